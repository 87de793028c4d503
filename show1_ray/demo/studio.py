"""What happens behind the page: people's clips in the making, and those that were made. Knows nothing of Gradio.

Everything here lives in one asyncio loop, but for encoding, which threads do.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections import deque
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from show1_ray.clip import MAX_SEED, Clip
from show1_ray.dataset import Lander, Rendering, StorageError
from show1_ray.demo.preview import preview
from show1_ray.errors import UserError
from show1_ray.line.events import ClipDone, ClipFailed, ClipRejected
from show1_ray.line.service import Began, Ended, Queued, Repeated, Service
from show1_ray.pipeline import Pipeline
from show1_ray.pipeline.arrays import turned
from show1_ray.pipeline.inputs import InputError, noted
from show1_ray.pipeline.lineup import frames_of, stage_names
from show1_ray.pipeline.media import MOST_BYTES as FILE_BYTES
from show1_ray.stage import FRAMES

MAX_PROMPT = 500
MAX_CLIPS = 4
ABSENCE_SECONDS = 30.0
"""A page may be closed for so long before its clips are cancelled."""
GALLERY = 12
KEPT_CLIPS = 96
"""The latest clips, whose files and previews are kept: a few hundred kB each."""
MOST_VISITORS = 256
"""Remembered at a time."""
FORGET_SECONDS = 3600.0
"""When what a visitor made is forgotten."""


@dataclass
class Step:
    """One stage of a clip in the making. Times are seconds."""

    stage: str
    state: Literal["waiting", "running", "done"] = "waiting"
    expected: float = 0.0
    began: float = 0.0
    seconds: float = 0.0
    clips: int = 1
    """In its batch."""
    picture: str = ""
    """Its frames, as a data URL."""


@dataclass
class Take:
    """A clip in the making, as its author sees it."""

    clip: Clip
    steps: list[Step]
    state: Literal["queued", "running", "done", "failed", "rejected", "cancelled"] = "queued"
    place: int = 0
    note: str = ""
    """What went wrong, in plain words."""
    files: dict[str, str] = field(default_factory=dict)
    """Images and videos that were chosen: input → the file's name."""
    path: Path | None = None
    began: float = field(default_factory=time.time)
    seconds: float = 0.0

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens to it."""
        return self.state in ("done", "failed", "rejected", "cancelled")

    def end_unbegun(self, _: object) -> None:
        """Its task is over: it may have been cancelled before it did anything."""
        if not self.is_over:
            self.state, self.note = "cancelled", "Stopped."


class Visitor:
    """Who has the page open: one browser."""

    def __init__(self) -> None:
        self.id = secrets.token_urlsafe(16)
        self.takes: list[Take] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.seen = time.monotonic()
        self.version = 0
        self._changed = asyncio.Condition()

    @property
    def is_busy(self) -> bool:
        """Whether clips of it are in the making."""
        return any(not take.is_over for take in self.takes)

    async def tell(self) -> None:
        """Something of what it sees has changed."""
        async with self._changed:
            self.version += 1
            self._changed.notify_all()

    async def news(self, version: int, seconds: float) -> int:
        """Wait until the version is another one, for so long at most; the version."""
        self.seen = time.monotonic()
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: self.version != version), seconds)
            except TimeoutError:
                return version
        return self.version


class Studio:
    """Visitors, their clips, and the gallery of the latest clips, which all visitors share."""

    def __init__(
        self,
        line: Service,
        pipeline: Pipeline,
        lander: Lander,
        folder: Path,
        *,
        name: str = "",
        overrides: tuple[str, ...] = (),
        absence_seconds: float = ABSENCE_SECONDS,
        kept_clips: int = KEPT_CLIPS,
        most_visitors: int = MOST_VISITORS,
    ) -> None:
        self.line, self.pipeline, self.lander, self.folder = line, pipeline, lander, folder
        self.name, self.overrides = name or pipeline.name, overrides
        self.absence_seconds, self.kept_clips, self.most_visitors = absence_seconds, kept_clips, most_visitors
        self.gallery: deque[Take] = deque(maxlen=GALLERY)
        self.visitors: dict[str, Visitor] = {}
        self._kept: deque[Take] = deque()
        self.stages = stage_names(pipeline)
        self._axes = dict(frames_of(pipeline, deliver=True).values())

    def visitor(self, visitor_id: str | None) -> Visitor:
        """The visitor of this id; a new one if there is none, or none any more.

        There are `most_visitors` at a time: then the one without clips in the making that was seen least lately is
        forgotten. Raises UserError, in words for the page, where all have some.
        """
        now = time.monotonic()
        for known in list(self.visitors.values()):
            if not known.is_busy and now - known.seen > FORGET_SECONDS:
                del self.visitors[known.id]
        visitor = self.visitors.get(visitor_id or "")
        if visitor is None:
            if self.is_full:
                raise UserError(self.full_note)
            if len(self.visitors) >= self.most_visitors:
                idle = [known for known in self.visitors.values() if not known.is_busy]
                del self.visitors[min(idle, key=lambda known: known.seen).id]
            visitor = Visitor()
            self.visitors[visitor.id] = visitor
        visitor.seen = now
        return visitor

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another visitor."""
        return sum(visitor.is_busy for visitor in self.visitors.values()) >= self.most_visitors

    @property
    def full_note(self) -> str:
        """What somebody is told then."""
        return f"{self.most_visitors} visitors have clips in the making, which are the most; try again in a while."

    @property
    def most_file_bytes(self) -> int:
        """Of a file that a visitor chooses; 0: there are none to choose."""
        return max((FILE_BYTES[one.kind] for one in self.pipeline.inputs if one.is_file), default=0)

    def start(
        self,
        visitor: Visitor,
        prompt: str,
        negative_prompt: str,
        seed: str,
        count: int,
        inputs: Mapping[str, str | Path | None] | None = None,
    ) -> None:
        """Put clips of a prompt on the line, with the seeds `seed`, `seed` + 1, …; "": a seed that nobody knows before.

        `inputs` are what the pipeline's inputs name: what was written, or a file that was chosen.

        Raises UserError, in words for the page.
        """
        clips = checked_clips(prompt, negative_prompt, seed, count)
        given = inputs or {}
        values = checked_inputs(self.pipeline, given)
        clips = [replace(clip, inputs=values) for clip in clips]
        files = {name: path.name for name, path in given.items() if isinstance(path, Path)}
        if visitor.is_busy:
            raise UserError("Your clips are still in the making: wait for them, or stop them.")
        if self.line.waiting + len(clips) > self.line.max_waiting:
            most = f"{self.line.waiting} clips are waiting already, and {self.line.max_waiting} are the most"
            raise UserError(f"{most}: ask for fewer, or try again in a while.")
        visitor.takes = [Take(clip, [Step(stage) for stage in self.stages], files=files) for clip in clips]
        visitor.tasks = [asyncio.create_task(self._make(visitor, take)) for take in visitor.takes]
        for take, task in zip(visitor.takes, visitor.tasks, strict=True):
            task.add_done_callback(take.end_unbegun)
        visitor.tasks.append(asyncio.create_task(self._attend(visitor)))

    def stop(self, visitor: Visitor) -> None:
        """Cancel all clips of a visitor that are in the making."""
        for task in visitor.tasks:
            task.cancel()

    def manifest_line(self, take: Take) -> str:
        """The line of a JSON Lines manifest that makes this clip, beside the files that were chosen for it."""
        clip = take.clip
        row = {"id": clip.id, "prompt": clip.prompt, "negative_prompt": clip.negative_prompt, "seed": clip.seed}
        row |= {**clip.inputs, **take.files}
        return json.dumps({key: value for key, value in row.items() if value is not None}, ensure_ascii=False)

    def python_call(self, take: Take) -> str:
        """The Python that makes this clip."""
        beside = "".join(f"# Beside clip.jsonl: {name!r}, its {key}.\n" for key, name in take.files.items())
        changes = f", overrides={list(self.overrides)!r}" if self.overrides else ""
        changes += f", code={self.pipeline.code.given!r}" if self.pipeline.code else ""
        return (
            f"{beside}from pathlib import Path\n"
            "import show1_ray\n\n"
            f"Path('clip.jsonl').write_text({self.manifest_line(take)!r}, encoding='utf-8')\n"
            f"show1_ray.render('clip.jsonl', 'out', pipeline={self.name!r}{changes})"
        )

    async def _make(self, visitor: Visitor, take: Take) -> None:
        """Follow a clip through the line."""
        try:
            async with aclosing(self.line.render(take.clip, tuple(self._axes))) as events:
                async for event in events:
                    await self._hear(take, event)
                    await visitor.tell()
        except UserError as error:
            take.state, take.note = "failed", f"{str(error)[:1].upper()}{str(error)[1:]}."
        except asyncio.CancelledError:
            take.state, take.note = "cancelled", take.note or "Stopped."
        finally:
            if not take.is_over:  # a fault of ours: asyncio's log has the traceback
                take.state, take.note = "failed", "Something went wrong here; the demo's log says what."
            for step in take.steps:
                step.state = "done" if step.state == "done" else "waiting"
            take.seconds = time.time() - take.began
            self._keep(take)
            await visitor.tell()

    async def _hear(self, take: Take, event: Any) -> None:
        match event:
            case Queued():
                take.place = event.place
            case Began():
                take.state = "running"
                step = step_of(take, event.stage)
                step.state, step.expected, step.clips = "running", event.seconds, event.clips
                step.began = time.time()
            case Repeated():
                step_of(take, event.stage).state = "waiting"
                take.note = repeated_note(event)
            case Ended():
                step = step_of(take, event.stage)
                step.state, step.seconds, step.clips = "done", event.seconds, event.clips
                for name, tensor in event.tensors.items():
                    frames = turned(tensor, self._axes[name], FRAMES)
                    step.picture = await asyncio.to_thread(self._preview, frames)
            case ClipDone():
                take.path = await asyncio.to_thread(self._land, event)
                step_of(take, self.pipeline.video.stage).picture = await asyncio.to_thread(
                    self._preview, event.result["video"]
                )
                take.state, take.note = "done", ""
                self.gallery.appendleft(take)
            case ClipFailed():
                take.state, take.note = "failed", failed_note(event)
            case ClipRejected():
                take.state, take.note = "rejected", rejected_note(event)

    def _preview(self, frames: np.ndarray) -> str:
        """It plays as long as the clip does, also where there are fewer frames of it."""
        count = self.pipeline.video_shape.size("f") or len(frames)
        return preview(frames, count / self.pipeline.fps)

    def _land(self, event: ClipDone) -> Path:
        """Write the clip as a dataset would: the same bytes for the same frames."""
        rendering = Rendering(event.seconds, event.batch_sizes, event.attempts)
        try:
            row = self.lander(event.clip, event.result["video"], rendering, {})
        except StorageError as error:
            raise UserError(f"the clip could not be written: {error}") from error
        return self.folder / str(row["file_name"])

    def _keep(self, take: Take) -> None:
        """Of a clip that is over, for as long as it is one of the latest; then forget what is big of it."""
        if take.files:
            take.clip = replace(take.clip, inputs=noted(take.clip.inputs))  # files may have hundreds of megabytes
        self._kept.append(take)
        if len(self._kept) <= self.kept_clips:
            return
        oldest = self._kept.popleft()
        for step in oldest.steps:
            step.picture = ""
        if oldest.path is not None:
            oldest.path.unlink(missing_ok=True)
            oldest.path, oldest.note = None, "Its file is not kept any more; the same prompt and seed make it again."

    async def _attend(self, visitor: Visitor) -> None:
        """Cancel a visitor's clips when its page has been closed for long enough."""
        while visitor.is_busy:
            left = visitor.seen + self.absence_seconds - time.monotonic()
            if left <= 0:
                for take in visitor.takes:
                    take.note = "The page was closed."
                self.stop(visitor)
                return
            await asyncio.sleep(min(left, 1.0))


def checked_clips(prompt: str, negative_prompt: str, seed: str, count: int) -> list[Clip]:
    """The clips that someone asks for. Raises UserError, in words for the page."""
    prompt, negative_prompt = prompt.strip(), negative_prompt.strip()
    if not prompt:
        raise UserError("Write a prompt first.")
    for text, what in ((prompt, "prompt"), (negative_prompt, "negative prompt")):
        if len(text) > MAX_PROMPT:
            raise UserError(f"The {what} has {len(text)} characters; {MAX_PROMPT} are the most.")
        if any(0xD800 <= ord(character) < 0xE000 for character in text):  # half a character; no file can hold it
            raise UserError(f"The {what} is not valid Unicode.")
    seed = seed.strip() or str(secrets.randbelow(2**31))
    if not re.fullmatch("[0-9]{1,19}", seed) or int(seed) > MAX_SEED - MAX_CLIPS:
        raise UserError(f"The seed has to be a whole number from 0 to {MAX_SEED - MAX_CLIPS}.")
    if count not in range(1, MAX_CLIPS + 1):
        raise UserError(f"1 to {MAX_CLIPS} clips at a time.")
    return [
        Clip(f"clip-{secrets.token_hex(8)}", prompt, negative_prompt or None, int(seed) + number)
        for number in range(count)
    ]


def checked_inputs(pipeline: Pipeline, given: Mapping[str, str | Path | None]) -> dict[str, Any]:
    """A clip's inputs as the page has them: texts, and files. Raises UserError, in words for the page."""
    columns = pipeline.input_columns
    for one in columns.inputs:
        value = given.get(one.name)
        if one.name in columns.needed and not value:
            raise UserError(f"Choose a file for {one.name!r} first." if one.is_file else f"Fill in {one.name!r} first.")
        if isinstance(value, str) and len(value) > MAX_PROMPT:
            raise UserError(f"{one.name!r} has {len(value)} characters; {MAX_PROMPT} are the most.")
        if isinstance(value, Path) and value.stat().st_size > FILE_BYTES[one.kind]:
            raise UserError(f"{one.name!r} has more than {FILE_BYTES[one.kind] >> 20} MiB, the most.")
    read = {name: value.read_bytes() if isinstance(value, Path) else value for name, value in given.items()}
    try:
        return dict(columns.read(read))
    except InputError as error:
        raise UserError(f"{error}.") from None


def step_of(take: Take, stage: str) -> Step:
    """A take's step of this stage."""
    return next(step for step in take.steps if step.stage == stage)


def label(stage: str) -> str:
    """A stage's name for people."""
    return stage.replace("_", " ")


def failed_note(event: ClipFailed) -> str:
    """Why a clip failed, in plain words where they are known."""
    stage = label(event.stage).capitalize()
    if "NonFiniteError" in event.reason:
        return f"{stage} failed: its values are not numbers any more. Another prompt or seed may do better."
    attempts = f" {event.attempts} times" if event.attempts > 1 else ""
    return f"{stage} failed{attempts}: {event.reason}"


def rejected_note(event: ClipRejected) -> str:
    """Why a clip does not go on, in plain words."""
    return f"{label(event.stage).capitalize()} did not let it go on: {event.reason.rstrip('.')}."


def repeated_note(event: Repeated) -> str:
    """Why a stage is done again, in plain words."""
    cause, _, reason = event.reason.partition(": ")
    what = {
        "death": "The station that worked on it died",
        "gone": "The machine that worked on it went away",
        "memory": "Its station ran out of memory",
        "device": "The GPU that worked on it failed",
        "deadline": "Its station did not answer in time",
        "load": "The stage could not be loaded",
    }.get(cause, f"Something went wrong ({reason})")
    return f"{what}: {label(event.stage)} is done again."
