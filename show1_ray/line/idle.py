"""Idle stations in groups, so that a decision looks at groups and never at all stations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice

from show1_ray.line.load import StationLoad

Group = dict[int, StationLoad]


class IdleStations:
    """Idle stations by number, in the order in which they became idle, and by what they hold."""

    def __init__(self, stages: int) -> None:
        self.all: Group = {}
        self.freed: Group = {}
        """Those that nothing was decided for since they became idle."""
        self.small: Group = {}
        """Those that have no room for some stage."""
        self._of_stage: Counter[int | None] = Counter()
        # By stage, those that it is for, and that …
        self._holding: list[Group] = [{} for _ in range(stages)]
        self._hosting: list[Group] = [{} for _ in range(stages)]
        self._blank: list[Group] = [{} for _ in range(stages)]
        self._lacking: list[Group] = [{} for _ in range(stages)]

    def __len__(self) -> int:
        return len(self.all)

    def count(self, own: int | None) -> int:
        """How many there are of those that are for one stage (None: for all that have no stations of their own)."""
        return self._of_stage[own]

    def __contains__(self, station: StationLoad) -> bool:
        return station.number in self.all

    def add(self, station: StationLoad, now: float) -> None:
        """A station is idle from `now`."""
        station.idle_since = now
        self._of_stage[station.own] += station.number not in self.all
        for group in self._groups(station):
            group[station.number] = station

    def remove(self, station: StationLoad) -> None:
        """A station is not idle any more (if it was). What it holds must still be what it held as it came."""
        station.idle_since = None
        self._of_stage[station.own] -= station.number in self.all
        for group in self._groups(station):
            group.pop(station.number, None)

    def candidates(self, stage: int, suits: Callable[[StationLoad], bool]) -> Iterator[StationLoad]:
        """Stations that `suits` says may run `stage`, the cheapest kind first and one of each kind.

        The kinds: it holds the stage, has it in host memory, holds nothing, has to make room.
        """
        for kind in (self._holding, self._hosting, self._blank, self._lacking):
            yield from islice(filter(suits, kind[stage].values()), 1)

    def blank(self, stage: int) -> StationLoad | None:
        """One that holds nothing and may run `stage`."""
        return next((one for one in self._blank[stage].values() if one.may_run(stage)), None)

    def since(self, time: float) -> list[int]:
        """Numbers of those that have been idle since `time` or longer, the longest first."""
        found = [(one.idle_since, one.number) for one in self.all.values() if one.idle_since is not None]
        return [number for at, number in sorted(found) if at <= time]

    def _groups(self, station: StationLoad) -> Iterator[Group]:
        yield self.all
        yield self.freed
        if station.too_big:
            yield self.small
        for stage in filter(station.is_for, range(len(self._holding))):
            if stage in station.held:
                yield self._holding[stage]
            elif stage in station.hosted:
                yield self._hosting[stage]
            else:
                yield self._lacking[stage]
            if not station.held:
                yield self._blank[stage]
