"""Stages that only sleep, stages that go wrong on a given clip, and how the tests run a line of them."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray

from show1_ray.clip import Clip
from show1_ray.line.events import ClipDone, ClipFailed, Event, Snapshot, StageDone, StationLost
from show1_ray.line.line import Line
from show1_ray.line.spec import LineSettings, StageObject, StageSpec, Values


class Adds:
    """Adds its number to what it is given, so that a clip's result tells which stages it went through."""

    def __init__(self, number: int, seconds: float, size: int) -> None:
        self.number, self.seconds, self.size = number, seconds, size

    def __call__(self, clips: list[Clip], tensors: list[Values]) -> list[Values]:
        time.sleep(self.seconds * len(clips))
        return [self.render(clip, given) for clip, given in zip(clips, tensors, strict=True)]

    def render(self, clip: Clip, given: Values) -> Values:
        before = given[f"x{self.number - 1}"] if self.number else np.full(self.size, clip.seed, np.int64)
        return {f"x{self.number}": before * 10 + self.number}

    def to(self, device: str) -> None:
        self.device = device


class Fails(Adds):
    """Does `act` when it meets a clip whose seed is in `guilty`."""

    def __init__(self, number: int, guilty: set[int], act: Callable[[Clip, int], Any]) -> None:
        super().__init__(number, 0.01, 1000)
        self.guilty, self.act = guilty, act

    def __call__(self, clips: list[Clip], tensors: list[Values]) -> list[Values]:
        for clip in clips:
            if clip.seed in self.guilty:
                self.act(clip, len(clips))
        return super().__call__(clips, tensors)


class Lands:
    """The last stage: a small plain value."""

    def __call__(self, clips: list[Clip], tensors: list[Values]) -> list[Values]:
        return [
            {"row": {"id": clip.id, "value": int(given["x2"][0])}} for clip, given in zip(clips, tensors, strict=True)
        ]


def spec(number: int, stage: Callable[[str], StageObject] | None = None, **settings: Any) -> StageSpec:
    build = stage or (lambda device: Adds(number, settings.get("seconds", 0.01), 1000))
    defaults: dict[str, Any] = {"seconds": 0.01, "load_seconds": 0.01, "swap_seconds": 0.01, "batch_size": 4}
    takes = (f"x{number - 1}",) if number else ()
    return StageSpec(f"stage{number}", build, takes=takes, gives=(f"x{number}",), **{**defaults, **settings})


def land(**settings: Any) -> StageSpec:
    return StageSpec("land", lambda device: Lands(), takes=("x2",), gives=("row",), batch_size=2, on="cpu", **settings)


def clips(count: int) -> list[Clip]:
    return [Clip(f"clip-{number:03}", f"prompt {number}", seed=number) for number in range(count)]


def expected(clip: Clip) -> int:
    return clip.seed * 1000 + 12


def references() -> int:
    """Objects that this process holds in Ray."""
    gc.collect()
    worker: Any = ray._private.worker.global_worker
    return len(worker.core_worker.get_all_reference_counts())


def once(folder: Path, clip: Clip) -> bool:
    """Whether this is the first time that it is asked for this clip."""
    try:
        os.close(os.open(folder / clip.id, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


@dataclass
class Outcome:
    """Everything that a line told, sorted by kind."""

    done: dict[str, ClipDone] = field(default_factory=dict)
    failed: dict[str, ClipFailed] = field(default_factory=dict)
    batches: list[StageDone] = field(default_factory=list)
    lost: list[StationLost] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)

    def add(self, event: Event) -> None:
        if isinstance(event, ClipDone):
            assert event.clip.id not in self.done, "a clip is done once"
            self.done[event.clip.id] = event
        elif isinstance(event, ClipFailed):
            assert event.clip.id not in self.failed, "a clip fails once"
            self.failed[event.clip.id] = event
        elif isinstance(event, StageDone):
            self.batches.append(event)
        elif isinstance(event, StationLost):
            self.lost.append(event)
        elif isinstance(event, Snapshot):
            self.snapshots.append(event)

    def assert_done(self, clips: Sequence[Clip], failed: Collection[str] = ()) -> None:
        """Every clip is done, with the value that an undisturbed run gives it, but for those that failed."""
        failed = set(failed)
        assert set(self.failed) == failed
        assert set(self.done) == {clip.id for clip in clips} - failed
        for clip in clips:
            if clip.id not in failed:
                assert self.done[clip.id].result["row"] == {"id": clip.id, "value": expected(clip)}


def settings(**changes: object) -> LineSettings:
    return LineSettings(**{"gpus": True, "stations": 2, **changes})  # type: ignore[arg-type]


def render(stages: Sequence[StageSpec], clips: Sequence[Clip], **changes: object) -> Outcome:
    outcome = Outcome()
    with Line(stages, settings(**changes)) as line:
        for event in line.run(clips):
            outcome.add(event)
    return outcome
