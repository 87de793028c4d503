"""The demo of a pipeline that is not Show-1's: two stages of somebody's own, one of which rejects clips."""

from __future__ import annotations

import asyncio
import shutil
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest

from show1_ray import Pipeline, open_line
from show1_ray.dataset import Lander
from show1_ray.dataset.storage import Storage
from show1_ray.demo.studio import Studio, Visitor
from show1_ray.job import origin
from show1_ray.line import LineSettings
from tests.demo.browsing import ask, downloaded, shown_python, until_done
from tests.demo.command import serving
from tests.test_examples import EXAMPLES, FEWER_STEPS, MAGENTA, with_a_bug

STAGES = '''
import numpy as np
from show1_ray import Reject, Shape, Stage

class Draw(Stage):
    """Grey frames, as bright as the seed says."""
    gives = {"picture": "f h w c"}

    @classmethod
    def shapes(cls, settings, context, given):
        return {"picture": Shape("f h w c", (4, 16, 32, 3), "uint8")}

    def run(self, clips, values):
        return [{"picture": np.full((4, 16, 32, 3), clip.seed, "uint8")} for clip in clips]

class Invert(Stage):
    """Dark becomes bright; what is grey is rejected."""
    takes = {"picture": "f h w c"}
    gives = {"turned": "f h w c", "mean": "value"}

    def run(self, clips, values):
        return [self.turned(v["picture"], v["picture"].mean()) for v in values]

    def turned(self, picture, mean):
        return Reject(f"too grey: {mean:g}") if mean == 101 else {"turned": 255 - picture, "mean": mean}
'''
PIPELINE = 'fps: 8\nstages: {draw: {uses: "own:Draw"}, invert: {uses: "own:Invert"}}'


async def two_clips(studio: Studio) -> Visitor:
    visitor = studio.visitor(None)
    studio.start(visitor, "a wall", "", "100", 2)
    while visitor.is_busy:
        await visitor.news(visitor.version, 10)
    return visitor


def test_labels_previews_and_rejections_come_from_its_stages(local_ray: None, tmp_path: Path) -> None:
    page = pytest.importorskip("show1_ray.demo.page", reason="gradio is not installed")
    (tmp_path / "own.py").write_text(STAGES)
    (tmp_path / "own.yaml").write_text(PIPELINE)
    pipeline = Pipeline.load(tmp_path / "own.yaml", code=tmp_path / "own.py").resolved()
    lander = Lander(Storage.at(str(tmp_path)), origin(pipeline))
    with open_line(pipeline, settings=LineSettings(stations=1, gpus=False)) as line:
        studio = Studio(line, pipeline, lander, tmp_path)
        visitor = asyncio.run(two_clips(studio))
        idle = "".join(page.takes(studio, Visitor(), 0.0))
        shown = page.takes(studio, visitor, 0.0)
    done, rejected = visitor.takes
    assert [step.stage for step in done.steps] == ["draw", "invert"]
    assert (done.state, [bool(step.picture) for step in done.steps]) == ("done", [True, True])
    assert (rejected.state, rejected.note) == ("rejected", "Invert did not let it go on: too grey: 101.")
    assert list(studio.gallery) == [done]
    assert "4 frames, 32 x 16" in idle
    assert "made in 2 stages" in idle
    assert len(shown) == 4 * (2 + 2)
    assert "too grey: 101" in "".join(shown)
    assert f"code={str(tmp_path / 'own.py')!r}" in studio.python_call(done)


@contextmanager
def page_of(pipeline: Pipeline, folder: Path) -> Iterator[str]:
    """The page of a pipeline, served from this process: its address."""
    page = pytest.importorskip("show1_ray.demo.page", reason="gradio is not installed")
    from show1_ray.demo import server

    lander = Lander(Storage.at(str(folder)), origin(pipeline))
    with (
        open_line(pipeline, settings=LineSettings(stations=1, gpus=False)) as line,
        server.listen("127.0.0.1", 0) as listening,
        server.serving(page.app(Studio(line, pipeline, lander, folder, name=str(pipeline.file)), None), listening),
    ):
        yield server.page_url("127.0.0.1", listening)


def test_the_example_of_a_stage_of_ones_own_in_a_browser(visit: Callable[..., Any]) -> None:
    pytest.importorskip("gradio", reason="the extra [demo] is not installed")
    fewer = [argument for change in FEWER_STEPS for argument in ("--set", change)]
    mine = ["--pipeline", str(EXAMPLES / "mine.yaml"), "--code", str(EXAMPLES / "brighten.py")]
    with serving(*mine, *fewer) as (url, _):
        tab = visit(url)
        tab.locator(".s1-brighten").get_by_text("29 frames, 144 x 96").wait_for()
        ask(tab, "a red circle", 7)
        until_done(tab)
        labels = tab.locator("#s1-take-1 .s1-stage").all_inner_texts()
        assert [text.lower() for text in labels][-2:] == ["latent super resolution", "brighten"]
        levels = {}
        for stage in ("latent_super_resolution", "brighten"):
            source = tab.locator(f"#s1-take-1 .s1-{stage} img").get_attribute("src")
            levels[stage] = iio.imread(b64decode(source.partition(",")[2]), extension=".webp").mean()
        assert levels["brighten"] > levels["latent_super_resolution"] + 10
        assert iio.imread(downloaded(tab), plugin="pyav").shape == (29, 96, 144, 3)


def test_an_image_is_chosen_in_the_browser_and_a_bug_is_told_with_file_and_line(
    local_ray: None, visit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buggy, line = with_a_bug(EXAMPLES, tmp_path)
    pipeline = Pipeline.load(EXAMPLES / "zoom.yaml", code=buggy).resolved()
    (tmp_path / "magenta.png").write_bytes(MAGENTA)
    picture = tmp_path / "stripes.png"
    shutil.copy(EXAMPLES / "pictures" / "stripes.png", picture)
    (tmp_path / "text.png").write_text("no image")
    with page_of(pipeline, tmp_path / "clips") as url:
        tab = visit(url)
        tab.get_by_text("Picture (image; PNG, JPEG, WebP, GIF, BMP or TIFF)").wait_for()
        ask(tab, "a wall", 7)
        tab.get_by_text("Choose a file for 'picture' first.").wait_for()

        def choose(path: Path) -> Any:
            tab = visit(url)
            tab.locator("#s1-input-picture input[type=file]").set_input_files(path)
            tab.locator("#s1-input-picture").get_by_text(path.stem).first.wait_for()
            ask(tab, "a wall", 7)
            return tab

        tab = choose(picture)
        until_done(tab)
        clip = iio.imread(downloaded(tab), plugin="pyav")
        call = shown_python(tab)
        assert "# Beside clip.jsonl: 'stripes.png', its picture." in call
        note = choose(tmp_path / "magenta.png").locator(".s1-note", has_text="AttributeError")
        assert f"{buggy}, line {line}, in zoomed: AttributeError" in note.inner_text()
        note = choose(tmp_path / "text.png").locator(".s1-note", has_text="is no image that is read here")
        assert note.inner_text().startswith("Inputs failed: ")
    monkeypatch.chdir(tmp_path)
    exec(call)
    [rendered] = tmp_path.glob("out/clips/*/*.mp4")
    assert np.array_equal(clip, iio.imread(rendered, plugin="pyav"))
