"""Memory that does not suffice: on devices that only count, under real stations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from show1_ray.clip import Clip
from show1_ray.line.faults import Failure
from show1_ray.line.memory import GROW_AFTER, Caps
from show1_ray.line.simulate import rehearse
from show1_ray.line.spec import LineSettings, StageSpec, Values
from show1_ray.line.station import Station
from tests.line.sleepers import Adds, clips, land, settings, spec
from tests.line.test_bad_cards import stages


class OutOfMemoryError(RuntimeError):
    """As torch's, by its name."""


@dataclass
class Device:
    """Counts what it has of `room` bytes; each process has its own."""

    room: int
    taken: int = 0
    peak: int = 0
    released: int = 0
    working: list[int] = field(default_factory=list)

    def take(self, size: int) -> None:
        if self.taken + size > self.room:
            raise OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes")
        self.taken += size
        self.peak = max(self.peak, self.taken)

    def used(self) -> int:
        return self.taken

    def restart(self) -> None:
        self.peak = self.taken

    def most(self) -> int:
        return self.peak

    def release(self) -> None:
        self.released += 1


DEVICE = Device(100)


def gauge(device: str) -> Device:
    return DEVICE


class Takes(Adds):
    """Takes memory: its weights, and some for each clip of a batch."""

    def __init__(self, number: int, weights: int, a_clip: int, device: str = "cuda:0") -> None:
        super().__init__(number, 0.001, 10)
        self.weights, self.a_clip, self.there = weights, a_clip, 0
        self.to("cuda:0")

    def to(self, device: str) -> None:
        if device == "cpu":
            DEVICE.taken -= self.there
            self.there = 0
        else:
            DEVICE.take(self.weights)
            self.there = self.weights

    def __call__(self, clips: list[Clip], tensors: list[Values]) -> list[Values]:
        DEVICE.take(self.a_clip * len(clips))
        DEVICE.taken -= self.a_clip * len(clips)
        return super().__call__(clips, tensors)


@pytest.fixture
def device() -> Device:
    DEVICE.taken = DEVICE.peak = 0
    DEVICE.room = 100
    return DEVICE


def station(*specs: StageSpec) -> Station:
    """A station in this process."""
    made = Station(specs, "cuda:0")
    made.gauge = DEVICE
    return made


def taking(number: int, weights: int, a_clip: int = 1, **changes: Any) -> StageSpec:
    return spec(number, partial(Takes, number, weights, a_clip), **{"load_seconds": 0.01, **changes})


def test_a_stage_that_does_not_fit_beside_others_makes_room_for_itself(device: Device) -> None:
    one = station(taking(0, 60), taking(1, 60), taking(2, 30))
    assert one.run(0, (), (), [], []).failure is None
    assert one.run(2, (), (), [], []).failure is None
    report = one.run(1, (), (), [], [])
    assert report.failure is None
    assert (report.left, report.dropped) == ((0, 2), ())
    assert device.taken == report.weights == 60
    assert device.released == 1


def test_a_batch_that_does_not_fit_beside_other_stages_makes_room_for_itself(device: Device) -> None:
    one = station(taking(0, 20, a_clip=10), taking(1, 50))
    one.run(1, (), (), [], [])
    batch = clips(5)
    report, *_ = one.run(0, (), (), batch, [{}] * 5)
    assert report.failure is None
    assert (report.left, report.weights, report.work) == ((1,), 20, 50)


def test_a_batch_that_fits_nowhere_says_so(device: Device) -> None:
    one = station(taking(0, 60, a_clip=10), taking(1, 40))
    one.run(1, (), (), [], [])
    report, *_ = one.run(0, (), (), clips(5), [{}] * 5)
    assert report.failure.cause == "memory"
    assert not report.failure.loading
    assert report.left == (1,), "what left has left"


def test_a_stage_that_fits_nowhere_says_so(device: Device) -> None:
    report = station(taking(0, 101)).run(0, (), (), [], [])
    assert (report.failure.cause, report.failure.loading) == ("memory", True)


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("guess", [1, 0])
def test_what_stages_take_is_measured_and_no_station_is_lost_for_a_wrong_guess(guess: int) -> None:
    from show1_ray.line.line import Line
    from tests.line.sleepers import Outcome

    outcome, batch = Outcome(), clips(40)
    specs = [*(taking(number, 40, a_clip=5, memory=guess) for number in range(3)), land()]
    with Line(specs, settings(stations=1, station_memory=100, gauge=gauge, host_memory=1000)) as line:
        for event in line.run(batch):
            outcome.add(event)
        measured = [stage.memory for stage in line.schedule.stages[:3]]
    outcome.assert_done(batch)
    assert measured == [60, 60, 60], "weights, and the work of a batch of 4"
    assert not outcome.lost


def out_of_memory(limit: int, cards: Sequence[str] = (), until: int = 1 << 60) -> Any:
    def fault(card: str, batch: int, stage: int, ids: Sequence[str]) -> Failure | None:
        hit = stage == 1 and len(ids) > limit and (not cards or card in cards) and batch <= until
        return Failure("memory", "CUDA out of memory") if hit else None

    return fault


@pytest.mark.parametrize("stations", [1, 2, 8])
@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_batches_get_as_large_as_memory_allows_and_no_card_is_to_blame(stations: int, limit: int) -> None:
    done = rehearse(stages(batch_size=8), stations, clips(800), out_of_memory(limit), LineSettings(store_bytes=1000))
    assert len(done.done) == 800
    assert not done.news
    assert sum(done.recycled.values()) <= 3 * stations + 12, "for some batches that were too large, and some trials"
    assert {one.failures for one in done.flights} == {0}


def test_a_neighbour_that_leaves_gives_its_room_back() -> None:
    caps = Caps()
    caps.failed(0, "A100", "a", 8, 8, ["a", "b"])
    assert [caps.most(0, "A100", card, 8) for card in "ab"] == [4, 8]
    for _ in range(GROW_AFTER):
        caps.did(0, "A100", "a", 4)
    assert caps.most(0, "A100", "a", 8) == 8
    caps.failed(0, "A100", "a", 8, 8, ["a", "b"])
    assert caps.most(0, "A100", "a", 8) == 4
    for _ in range(4 * GROW_AFTER - 1):
        caps.did(0, "A100", "a", 4)
    assert caps.most(0, "A100", "a", 8) == 4, "it waits longer after each failure"
    caps.did(0, "A100", "a", 4)
    caps.did(0, "A100", "a", 8)
    assert caps.most(0, "A100", "a", 8) == 8


def test_what_two_cards_of_a_kind_have_no_room_for_none_of_the_kind_tries() -> None:
    caps, cards = Caps(), ["a", "b", "c"]
    caps.failed(0, "T4", "a", 8, 8, cards)
    caps.failed(0, "T4", "b", 8, 8, cards)
    assert [caps.most(0, "T4", card, 8) for card in cards] == [4, 4, 4]
    assert caps.most(0, "A100", "d", 8) == 8
    assert caps.most(1, "T4", "a", 8) == 8
    for _ in range(GROW_AFTER):
        caps.did(0, "T4", "c", 4)
    assert sorted(caps.most(0, "T4", card, 8) for card in cards) == [4, 4, 8], "one card tries for all"
