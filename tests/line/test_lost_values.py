"""Values that are gone, or out of reach, are made again: no clip is charged for them, and no station."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import ray

from show1_ray.clip import Clip
from show1_ray.line import station
from show1_ray.line.events import StageDone, StageRepeated
from show1_ray.line.line import Line
from show1_ray.line.spec import StageSpec, Values
from tests.line.sleepers import Adds, Outcome, clips, land, settings, spec

pytestmark = pytest.mark.usefixtures("local_ray")
LARGE = 100_000
"""Numbers that do not travel inline."""


@ray.remote(num_cpus=0)
def never() -> None:
    time.sleep(3600)


class Owner:
    """Has values that others are given."""

    def value(self) -> list[ray.ObjectRef]:
        return [never.remote()]


def lost() -> ray.ObjectRef:
    """A value that went with the process that had it."""
    owner: Any = ray.remote(num_cpus=0)(Owner).remote()
    [value] = ray.get(owner.value.remote())
    ray.kill(owner)
    with pytest.raises(ray.exceptions.ObjectLostError):
        ray.get(value)
    return value


def large(number: int, device: str) -> Adds:
    return Adds(number, 0.02, LARGE)


class Both(Adds):
    """Takes the first stage's value, too."""

    def render(self, clip: Clip, given: Values) -> Values:
        assert given["x0"][0] * 10 + 1 == given["x1"][0]
        return super().render(clip, given)


def test_a_value_that_is_lost_costs_no_clip_an_attempt_and_no_station() -> None:
    batch, outcome, repeated = clips(12), Outcome(), list[StageRepeated]()
    first, second = (spec(number, partial(large, number), output_bytes=8 * LARGE) for number in range(2))
    third = StageSpec("stage2", lambda device: Both(2, 0.01, LARGE), ("x0", "x1"), gives=("x2",), batch_size=4)
    gone, victims = lost(), {"clip-001", "clip-002"}
    with Line([first, second, third, land()], settings(stations=1)) as line:
        for event in line.run(batch):
            outcome.add(event)
            repeated += [event] if isinstance(event, StageRepeated) else []
            for name in victims.intersection(event.clips if isinstance(event, StageDone) else ()):
                victims.remove(name)
                line.traffic.flights[name].tensors["x0"] = gone
    outcome.assert_done(batch)
    assert not victims
    assert {done.attempts for done in outcome.done.values()} == {1}
    assert {event.reason for event in repeated} == {"gone: a value was lost, or is out of reach"}
    assert not outcome.lost
    of_first = [name for done in outcome.batches if done.stage == "stage0" for name in done.clips]
    assert len(of_first) == len(batch) + 2, "only what was lost is made again"


@pytest.fixture
def hangs(monkeypatch: pytest.MonkeyPatch) -> Iterator[ray.ObjectRef]:
    monkeypatch.setattr(station, "STALLED_SECONDS", 1.0)
    monkeypatch.setattr(station, "FETCH_SECONDS", 0.5)
    ref = never.remote()
    yield ref
    ray.cancel(ref, force=True)


def test_whatever_keeps_a_value_from_coming_it_is_lost(hangs: ray.ObjectRef) -> None:
    clip, there = clips(1)[0], ray.put(np.zeros(LARGE))
    _, missing = station._fetch([clip], [{"gone": lost(), "hangs": hangs, "there": there, "plain": 1}])
    assert missing == {clip.id: ("gone", "hangs")}
