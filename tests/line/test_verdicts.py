"""Plain values, rejected clips and results, on real Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from show1_ray.clip import Clip
from show1_ray.errors import UserError
from show1_ray.line.events import ClipDone, ClipFailed, ClipRejected, Event, Snapshot, StageDone
from show1_ray.line.line import Line
from show1_ray.line.service import Ended, Service
from show1_ray.line.spec import ALL_PLAIN, Rejected, StageSpec, Values
from tests.line.sleepers import clips, references, render, settings, spec

pytestmark = pytest.mark.usefixtures("local_ray")


class Judges:
    """Gives a score, and lets no clip pass whose seed is odd."""

    def __call__(self, clips: list[Clip], tensors: list[Values]) -> list[Values | Rejected]:
        return [self.judge(clip) for clip in clips]

    def judge(self, clip: Clip) -> Values | Rejected:
        score = clip.seed / 10
        if clip.seed % 2:
            return Rejected(f"score {score} is odd", {"judge.score": score})
        return {"judge.score": score, "judge.word": f"fine {clip.seed}"}


class Tells:
    """Gives what it was given besides tensors, and, where it is told to, the clips that came to it."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def __call__(self, clips: list[Clip], tensors: list[Values]) -> list[Values]:
        if self.folder is not None:
            for clip in clips:
                (self.folder / clip.id).touch()
        return [{"told": {name: value for name, value in given.items() if name[0] != "x"}} for given in tensors]


def judge(**changes: Any) -> StageSpec:
    plain = ("judge.score", "judge.word")
    return StageSpec("judge", lambda device: Judges(), takes=("x0",), plain=plain, batch_size=4, **changes)


def tells(folder: Path | None = None, values: tuple[str, ...] = (ALL_PLAIN,), **changes: Any) -> StageSpec:
    return StageSpec("tells", lambda device: Tells(folder), values=values, gives=("told",), on="cpu", **changes)


def everything(stages: list[StageSpec], batch: list[Clip], results: tuple[str, ...] = ()) -> Iterator[Event]:
    with Line(stages, settings(), results) as line:
        yield from line.run(batch)


@pytest.mark.parametrize("on", ["station", "cpu"])
def test_a_rejected_clip_leaves_with_its_reason_and_nothing_behind_is_paid_for_it(on: Any, tmp_path: Path) -> None:
    batch = clips(12)
    happened = list(everything([spec(0), judge(on=on), spec(1), tells(tmp_path)], batch))
    rejected = {event.clip.id: event for event in happened if isinstance(event, ClipRejected)}
    done = {event.clip.id for event in happened if isinstance(event, ClipDone)}
    assert set(rejected) == {clip.id for clip in batch if clip.seed % 2}
    assert done == {path.name for path in tmp_path.iterdir()} == {clip.id for clip in batch} - set(rejected)
    event = rejected["clip-003"]
    assert (event.stage, event.reason, event.values) == ("judge", "score 0.3 is odd", {"judge.score": 0.3})
    assert (set(event.seconds), set(event.batch_sizes), event.attempts) == ({"stage0", "judge"}, {"stage0", "judge"}, 1)
    paid = {
        clip for event in happened if isinstance(event, StageDone) and event.stage == "stage1" for clip in event.clips
    }
    assert paid == done
    last = [event for event in happened if isinstance(event, Snapshot)][-1]
    assert (last.done, last.rejected, last.failed, last.in_flight) == (6, 6, 0, 0)
    assert not any(isinstance(event, ClipFailed) for event in happened)


def test_a_line_whose_clips_are_all_rejected_ends() -> None:
    happened = list(everything([spec(0), judge(), tells()], [clip for clip in clips(9) if clip.seed % 2]))
    assert sum(isinstance(event, ClipRejected) for event in happened) == 4
    assert not any(isinstance(event, ClipDone) for event in happened)


def test_plain_values_come_back_with_the_batch_and_go_to_who_takes_them() -> None:
    outcome = render([spec(0), judge(), spec(1), tells(values=("judge.word", ALL_PLAIN))], clips(3))
    done = outcome.done["clip-002"]
    both = {"judge.score": 0.2, "judge.word": "fine 2"}
    assert done.result == {"told": {"judge.word": "fine 2", ALL_PLAIN: both}}
    assert done.values == both
    values = {name: told for event in outcome.batches for name, told in event.values.items()}
    first = {"judge.score": 0.0, "judge.word": "fine 0"}
    assert values == {"clip-000": first, "clip-001": {"judge.score": 0.1}, "clip-002": both}


def test_a_stage_that_keeps_a_declared_value_back_fails_the_clip() -> None:
    class Silent:
        def __call__(self, clips: list[Clip], tensors: list[Values]) -> list[Values]:
            return [{} for _ in clips]

    silent = StageSpec("silent", lambda device: Silent(), plain=("silent.score",))
    outcome = render([silent], clips(1), max_attempts=1)
    assert "stage silent did not give silent.score" in outcome.failed["clip-000"].error


def test_results_are_what_was_asked_for_and_nothing_else_is_kept() -> None:
    before = references()
    batch = [clip for clip in clips(20) if not clip.seed % 2]
    results = ("x1", "judge.word")
    with Line([spec(0), judge(), spec(1), spec(2), tells()], settings(), results) as line:
        done = []
        for event in line.run(batch):
            if isinstance(event, ClipDone):
                done.append(event)
            assert all("x0" not in flight.tensors for flight in line.traffic.flights.values() if flight.stage > 2)
    assert {event.clip.id for event in done} == {clip.id for clip in batch}
    for event in done:
        assert set(event.result) == set(results)
        assert event.result["x1"].tolist() == [event.clip.seed * 100 + 1] * 1000
    del done, line
    assert references() <= before + 2, "what was rendered is released"


def test_a_result_that_nobody_gives_is_refused() -> None:
    with pytest.raises(UserError, match="line: no stage gives 'video', which is to be its result"):
        Line([spec(0)], results=("video",))


def test_a_value_that_two_stages_give_is_refused() -> None:
    twice = StageSpec("twice", lambda device: Judges(), plain=("x0",))
    with pytest.raises(UserError, match="stage twice gives 'x0', which a stage before it gives already"):
        Line([spec(0), twice])


def test_who_follows_a_clip_is_told_that_it_is_rejected() -> None:
    async def follow(line: Service, clip: Clip) -> list[Any]:
        return [event async for event in line.render(clip)]

    with Service([spec(0), judge(), spec(1)], settings()) as line:
        bad, good = asyncio.run(_both(follow, line))
        assert (line.in_line, line.waiting) == (0, 0)
    assert isinstance(bad[-1], ClipRejected)
    assert bad[-1].reason == "score 0.1 is odd"
    ended = [event for event in good if isinstance(event, Ended) and event.stage == "judge"]
    assert [event.values for event in ended] == [{"judge.score": 0.2, "judge.word": "fine 2"}]
    assert isinstance(good[-1], ClipDone)


async def _both(follow: Any, line: Service) -> list[list[Any]]:
    return await asyncio.gather(follow(line, Clip("a", "", seed=1)), follow(line, Clip("b", "", seed=2)))
