"""The page: Gradio's components around the studio."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported: it is to call nobody

import gradio as gr
from fastapi import FastAPI
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel

from show1_ray.demo.bounds import MOST_BYTES, MOST_REQUESTS, Bounded
from show1_ray.demo.studio import MAX_CLIPS, Step, Studio, Take, Visitor, label
from show1_ray.errors import UserError, shown
from show1_ray.pipeline import Pipeline
from show1_ray.pipeline.inputs import Input
from show1_ray.pipeline.lineup import stage_names
from show1_ray.pipeline.media import IMAGE_NAMES, VIDEO_NAMES
from show1_ray.stage import Shape

HERE = Path(__file__).parent
PIECES: Any = (
    Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)
    .get_template("pieces.html.j2")
    .module
)
THEME = gr.themes.Base(
    primary_hue="indigo",
    neutral_hue="slate",
    radius_size="lg",
    font=["system-ui", "-apple-system", "Segoe UI", "sans-serif"],
    font_mono=["ui-monospace", "Menlo", "monospace"],
)
"""System fonts, so that nothing is fetched from elsewhere."""

MOST_COLUMNS = 6
"""Stages in one row; more go below."""

BEAT_SECONDS = 2.0
"""How often an open page reports while its clips are being made."""

SCROLL = """(...inputs) => {
  let left = 50;
  const timer = setInterval(() => {
    const begun = document.querySelector("#s1-take-1 .s1-state:not([data-state=done])");
    if (begun) begun.closest("#s1-take-1").scrollIntoView({block: "nearest"});
    if (begun || --left === 0) clearInterval(timer);
  }, 100);
  return inputs;
}"""
"""On a phone the clips in the making are below what one sees."""

EXAMPLES = [
    "a red circle moving left on a black background",
    "a green square growing on a gray background",
    "a yellow triangle moving up on a brown background",
    "a blue circle and a white square on a black background",
]
"""Prompts from the world that nano knows."""

PUBLISHED_EXAMPLES = [
    "a panda riding a bicycle through a city at night",
    "a sailing boat on a lake of lava, aerial view",
    "a cup of coffee with a storm inside, close-up",
    "two foxes dancing in the snow",
]
"""Prompts for the published weights, which know much of the world."""


def build(studio: Studio) -> gr.Blocks:
    """The page as Gradio's blocks."""
    with gr.Blocks(title="show1-ray", analytics_enabled=False, fill_width=True) as page:
        browser = gr.BrowserState("", storage_key="show1-ray")
        gr.HTML(PIECES.header(studio.pipeline, studio.line.stations))
        examples = examples_for(studio.pipeline)
        # With one line Enter makes the clip, and Shift-Enter a line; more lines are shown where there are.
        prompt = gr.Textbox(
            label="Prompt", lines=1, max_lines=6, placeholder=examples[0], elem_id="s1-prompt", autofocus=True
        )
        gr.Examples(examples, prompt, label="Examples", elem_id="s1-examples")
        with gr.Row(elem_id="s1-options"):
            # A text: JavaScript's numbers end before seeds do.
            seed = gr.Textbox(label="Seed", placeholder="a new one each time", max_lines=1, min_width=180, scale=3)
            dice = gr.Button("⚄", elem_id="s1-dice", min_width=48, scale=0)
            count = gr.Radio(list(range(1, MAX_CLIPS + 1)), value=1, label="Clips", min_width=280, scale=3)
            # Until `enter` has told the page whose it is, asking for a clip makes a second visitor.
            make = gr.Button(
                "Make", variant="primary", size="lg", elem_id="s1-make", min_width=140, scale=3, interactive=False
            )
            stop = gr.Button("Stop", size="lg", elem_id="s1-stop", min_width=80, scale=1, interactive=False)
        with gr.Row(elem_id="s1-inputs", visible=bool(studio.pipeline.inputs)):
            fields = [input_field(one) for one in studio.pipeline.inputs]
        with gr.Accordion("Negative prompt, steps and guidance", open=False):
            negative = gr.Textbox(
                label="Negative prompt", placeholder="what it should not show; empty: each stage's own"
            )
            gr.HTML(PIECES.settings(settings_rows(studio.pipeline)))
        message = gr.HTML(elem_id="s1-message")
        pieces = [message]
        for number in range(MAX_CLIPS):
            with gr.Column(elem_classes="s1-take", elem_id=f"s1-take-{number + 1}"):
                pieces.append(gr.HTML())
                with gr.Row(elem_classes="s1-steps"):
                    pieces += [gr.HTML() for _ in studio.stages]
                pieces.append(gr.HTML())
        pieces.append(gr.HTML())

        def visitor_of(visitor_id: str) -> Visitor:
            try:
                return studio.visitor(visitor_id)
            except UserError as error:
                raise gr.Error(str(error), print_exception=False) from None

        async def enter(visitor_id: str) -> AsyncIterator[Any]:
            visitor = visitor_of(visitor_id)
            async for update in follow(studio, visitor, ""):
                yield [visitor.id, *update]

        async def begin(visitor_id: str, *asked: Any) -> AsyncIterator[Any]:
            visitor = visitor_of(visitor_id)
            text, negative_text, seed_text, clips, *brought = asked
            try:
                inputs = {
                    one.name: Path(value) if one.is_file and value else value
                    for one, value in zip(studio.pipeline.inputs, brought, strict=True)
                }
                studio.start(visitor, text or "", negative_text or "", seed_text or "", int(clips or 1), inputs)
                trouble = ""
            except UserError as error:
                trouble = str(error)
            async for update in follow(studio, visitor, trouble):
                yield [visitor.id, *update]

        shown: dict[str, Any] = {
            "outputs": [browser, make, stop, *pieces],
            "show_progress": "hidden",
            "concurrency_limit": None,
        }
        page.load(enter, browser, api_visibility="private", **shown)
        asked = [browser, prompt, negative, seed, count, *fields]
        gr.on([make.click, prompt.submit], begin, asked, js=SCROLL, api_visibility="private", **shown)
        stop.click(
            lambda visitor_id: studio.stop(visitor_of(visitor_id)),
            browser,
            show_progress="hidden",
            queue=False,
            api_visibility="private",
        )
        dice.click(None, None, seed, js="() => String(Math.floor(Math.random() * 2 ** 31))")
    return page.queue(max_size=MOST_REQUESTS)


def app(studio: Studio, account: tuple[str, str] | None, most_requests: int = MOST_REQUESTS) -> Bounded:
    """The page as an ASGI application, which also serves the clips' files."""
    page = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        build(studio),
        path="/",
        auth=account,
        allowed_paths=[str(studio.folder)],
        theme=THEME,
        css=(HERE / "style.css").read_text(encoding="utf-8") + aspect(studio.pipeline),
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        show_error=True,
        max_file_size=max(MOST_BYTES, studio.most_file_bytes),
    )
    return Bounded(page, studio, most_requests)


def input_field(one: Input) -> gr.components.Component:
    """Where a visitor gives what an input of the pipeline names: a file is chosen, all else is written."""
    name = label(one.name).capitalize()
    if one.is_file:
        names = IMAGE_NAMES if one.kind == "image" else VIDEO_NAMES
        which = names if one.default is None else f"default: {shown(one.default)}"
        return gr.File(label=f"{name} ({one.kind}; {which})", file_types=[one.kind], elem_id=f"s1-input-{one.name}")
    left_out = (
        "as the pipeline has it" if one.setting else {"int": "a whole number", "float": "a number"}.get(one.kind, "")
    )
    return gr.Textbox(
        label=name,
        placeholder=left_out if one.default is None else str(one.default),
        max_lines=1,
        min_width=180,
        elem_id=f"s1-input-{one.name}",
    )


def aspect(pipeline: Pipeline) -> str:
    """The clips' shape and the number of stages, for the style sheet."""
    height, width = (pipeline.video_shape.size(axis) for axis in "hw")
    columns = min(len(stage_names(pipeline)), MOST_COLUMNS)
    return f".gradio-container {{ --s1-aspect: {width or 3} / {height or 2}; --s1-columns: {columns}; }}"


async def follow(studio: Studio, visitor: Visitor, trouble: str) -> AsyncIterator[list[Any]]:
    """What changes on a visitor's page, until its clips are made: the buttons, and each piece that is another one.

    Gradio stops asking for more when the page is closed; the visitor's `seen` is then its last sign of life.
    """
    sent: list[Any] = []
    version, opened = -1, time.time()
    while True:
        version = await visitor.news(version, BEAT_SECONDS if sent else 0.0)
        is_last = not visitor.is_busy  # asked now: while an update is on its way, the clips' end may come
        current = [*buttons(visitor), PIECES.message(trouble), *takes(studio, visitor, opened), gallery(studio)]
        yield [gr.skip() if sent and new == old else new for new, old in zip(current, sent or current, strict=True)]
        sent = current
        if is_last:
            return


def buttons(visitor: Visitor) -> list[Any]:
    """The current states of the buttons that start and stop clips."""
    return [gr.update(interactive=not visitor.is_busy), gr.update(interactive=visitor.is_busy)]


def takes(studio: Studio, visitor: Visitor, opened: float) -> list[str]:
    """Each clip's title, steps and result, as HTML; empty where there is none.

    `opened` is when the page began to follow them: how far the bars were then.
    """
    pieces: list[str] = []
    shown = shapes(studio.pipeline)
    count = len(visitor.takes)
    for number, take in enumerate(visitor.takes, start=1):
        pieces.append(PIECES.title(take, number, count))
        for step in take.steps:
            pieces.append(PIECES.step(step, shown[step.stage], take.clip.prompt, max(step.began, opened)))
        pieces.append(result(studio, take, count))
    if not visitor.takes:
        pieces.append(PIECES.idle(shown[studio.pipeline.video.stage], len(studio.stages)))
        pieces += [PIECES.step(Step(stage), shown[stage], "", 0.0) for stage in studio.stages]
        pieces.append("")
    return pieces + [""] * (MAX_CLIPS * (2 + len(studio.stages)) - len(pieces))


def result(studio: Studio, take: Take, count: int) -> str:
    """A clip that is done, one of `count`."""
    if take.path is None:
        return ""
    return PIECES.result(take, count, url(take), studio.manifest_line(take), studio.python_call(take))


def gallery(studio: Studio) -> str:
    """The latest clips of all visitors."""
    return PIECES.gallery(list(studio.gallery), [url(take) for take in studio.gallery])


def url(take: Take) -> str:
    """Where Gradio serves a clip's file, to those who may see the page."""
    return f"gradio_api/file={quote(str(take.path))}"


def examples_for(pipeline: Pipeline) -> list[str]:
    """Example prompts that suit a pipeline's weights."""
    is_small = all(checkpoint.is_local for checkpoint in pipeline.checkpoints())
    return EXAMPLES if is_small else PUBLISHED_EXAMPLES


def shapes(pipeline: Pipeline) -> dict[str, str]:
    """What each stage gives, for people."""
    found = dict.fromkeys(stage_names(pipeline), "what you bring")
    for stage in pipeline.wired():
        if stage.frames:
            found[stage.name] = frames_shown(stage.shapes[stage.frames[-1]])
        else:
            found[stage.name] = ", ".join(name.replace("_", " ") for name in stage.gives)
    return found


def frames_shown(shape: Shape) -> str:
    """How many and how large frames are, as far as it is known."""
    if not shape.sizes:
        return "frames"
    count, height, width = (shape.size(axis) for axis in "fhw")
    return (f"{count} frames" if count else "frames") + (f", {width} x {height}" if width and height else "")


def settings_rows(pipeline: Pipeline) -> list[tuple[str, int, float]]:
    """Steps and guidance of each denoising loop: of all settings that have both."""
    return [row for part in pipeline.parts for row in _loops(part.name, part.settings)]


def _loops(name: str, settings: BaseModel) -> Iterator[tuple[str, int, float]]:
    for key, value in settings:
        if isinstance(value, BaseModel):
            yield from _loops(f"{name}, {key.replace('_', ' ')}", value)
    steps, guidance = getattr(settings, "steps", None), getattr(settings, "guidance", None)
    if isinstance(steps, int) and isinstance(guidance, int | float):
        yield name, steps, guidance
