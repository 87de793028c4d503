"""Decisions that look at groups of stations are those that looking at every station gives."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

from hypothesis import given, settings
from hypothesis import strategies as st

from show1_ray.line.idle import IdleStations
from show1_ray.line.keys import Counts
from show1_ray.line.load import Assignment, StageLoad, StationLoad
from show1_ray.line.schedule import Schedule
from tests.line.test_schedule import stages


class EveryStation(IdleStations):
    """Looks at all idle stations for each decision."""

    def candidates(self, stage: int, suits: Callable[[StationLoad], bool]) -> Iterator[StationLoad]:
        kinds: tuple[Callable[[StationLoad], bool], ...] = (
            lambda one: stage in one.held,
            lambda one: stage in one.hosted,
            lambda one: not one.held,
            lambda one: stage not in one.held and stage not in one.hosted,
        )
        for kind in kinds:
            yield from islice((one for one in self.all.values() if kind(one) and suits(one)), 1)

    def blank(self, stage: int) -> StationLoad | None:
        return next((one for one in self.all.values() if not one.held and one.may_run(stage)), None)


class Life:
    """A schedule to which random things happen: the same ones for the same seed, as long as it decides the same."""

    def __init__(self, loads: list[StageLoad], stations: int, seed: int, idle: type[IdleStations]) -> None:
        fresh = [replace(load, counts=Counts(), groups=deque()) for load in loads]
        self.schedule = Schedule(fresh, cpu_slots=2, total=60)
        self.schedule.idle = idle(len(loads))
        self.random = random.Random(seed)
        self.now, self.numbers = 0.0, 0
        self.running: list[Assignment] = []
        for _ in range(stations):
            self.add_station()
        for index in [index for index, load in enumerate(loads) if load.own]:
            self.add_station(index)

    def add_station(self, own: int | None = None) -> None:
        memory = self.random.choice([1, 3, 6])
        card = f"card {self.numbers % 5}"
        self.schedule.add_station(self.numbers, memory, self.random.choice([0, 4]), self.now, card=card, own=own)
        self.numbers += 1

    def step(self) -> list[Assignment]:
        """Something happens, and everything that is decided then."""
        schedule, stages = self.schedule, self.schedule.stages
        self.now += self.random.choice([0.0, 0.5, 3.0])
        match self.random.randrange(6):
            case 0 if clips := min(schedule.room(), schedule.unadmitted, self.random.randint(0, 6)):
                schedule.admit(clips, self.random.choice(["x", "y", None]))
            case 1 if any(stage.groups for stage in stages):
                index = self.random.choice([index for index, stage in enumerate(stages) if stage.groups])
                schedule.withdraw(index, self.random.randrange(len(stages[index].groups)))
            case 2 if not self.random.randrange(4) and len(schedule.stations) > 2:
                idle = [number for number, one in schedule.stations.items() if one.idle_since is not None]
                if idle:
                    own = schedule.remove_station(self.random.choice(idle)).own
                    self.add_station(own)
            case _ if self.running:
                self.end(self.running.pop(self.random.randrange(len(self.running))))
        decided = list(iter(lambda: schedule.decide(self.now), None))
        assert all(stage.grouped == sum(group.clips for group in stage.groups) for stage in stages)
        self.running += [one for one in decided if one is not None]
        return [one for one in decided if one is not None]

    def end(self, one: Assignment) -> None:
        self.schedule.end(one)
        if one.clips and not self.random.randrange(4):
            half = one.clips // 2
            for clips in (half, one.clips - half):
                if clips:
                    avoid = frozenset({f"card {self.random.randrange(5)}"})
                    self.schedule.isolate(one.stage, clips, avoid)
        elif one.clips and one.stage + 1 < len(self.schedule.stages):
            self.schedule.add(one.stage + 1, one.clips, one.key)
        if one.station is not None:
            self.schedule.free(one.station, self.now)


@settings(max_examples=100, deadline=None)
@given(
    loads=st.lists(stages, min_size=2, max_size=5),
    own=st.integers(0, 9),
    on_tasks=st.booleans(),
    stations=st.integers(1, 12),
    limit=st.integers(8, 60),
    seed=st.integers(0, 2**16),
)
def test_they_are_those_that_looking_at_every_station_gives(
    loads: list[StageLoad], own: int, on_tasks: bool, stations: int, limit: int, seed: int
) -> None:
    for index, load in enumerate(loads):
        load.limit, load.own = limit, index == own
    loads[-1].on_station = loads[-1].own or not on_tasks
    quick, thorough = (Life(loads, stations, seed, idle) for idle in (IdleStations, EveryStation))
    for _ in range(100):
        assert quick.step() == thorough.step()
        assert quick.schedule.wake_at == thorough.schedule.wake_at
