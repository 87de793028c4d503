"""What should this idle station run next? Pure: plain counts go in, assignments come out, time is passed in.

The schedule knows how many clips wait before each stage and which stages each station holds; which clips they are is
the line's business. Every decision looks at the stages only, never at all stations or clips.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class StageLoad:
    """One stage: its prices (seconds, replaced by measurements) and the clips that stand before it."""

    name: str
    batch_size: int
    seconds: float
    load_seconds: float = 0.0
    swap_seconds: float = 0.0
    memory: int = 0
    on_station: bool = True
    limit: int = 1 << 60
    """At most this many clips may be in this stage or beyond it."""
    waiting: int = 0
    groups: deque[int] = field(default_factory=deque)
    """Sizes of batches that have to run by themselves: what a failed batch was split into."""
    running: int = 0
    holders: int = 0
    ready_since: float | None = None

    @property
    def queued(self) -> int:
        """Clips before this stage, those in groups of their own included."""
        return self.waiting + sum(self.groups)


@dataclass
class StationLoad:
    """One station: what it holds on its device (least recently used first) and in host memory, and what it does."""

    number: int
    memory: int
    host_memory: int
    held: dict[int, None] = field(default_factory=dict)
    hosted: dict[int, None] = field(default_factory=dict)
    pinned: tuple[int, ...] = ()
    idle_since: float | None = None
    busy_until: float = 0.0


@dataclass(frozen=True)
class Assignment:
    """What a station (None: a CPU task) is to run: a batch of `clips` of `stage`; 0 clips: only load the stage."""

    station: int | None
    stage: int
    clips: int
    isolated: bool = False
    evict: tuple[int, ...] = ()
    price: float = 0.0
    """Expected seconds until the stage is on the device."""


class Schedule:
    """Hands out work to idle stations: the most downstream stage that has a full batch, with the price of a swap weighed.

    `waiting clips → decide() → running → finish()`. Call `decide` until it gives None; `wake_at` then says when time
    alone would change its mind.
    """

    def __init__(self, stages: Sequence[StageLoad], cpu_slots: int = 4, total: int | None = None, pinned: bool = False):
        self.stages = list(stages)
        self.stations: dict[int, StationLoad] = {}
        self.cpu_free = cpu_slots
        self.pinned = pinned
        self.unadmitted = total
        self.exhausted = False
        self.wake_at = math.inf
        self._freed: deque[int] = deque()
        self._idle: dict[int, None] = {}
        self._blank: dict[int, None] = {}
        self._idle_holding: list[dict[int, None]] = [{} for _ in stages]
        self._idle_hosting: list[dict[int, None]] = [{} for _ in stages]
        self._busy = 0

    # What happened: the line tells, the schedule counts.

    def room(self) -> int:
        """How many more clips may be admitted."""
        first = self.stages[0]
        return max(0, first.limit - sum(stage.queued + stage.running for stage in self.stages))

    def admit(self, clips: int) -> None:
        """`clips` came from the manifest and wait before the first stage."""
        self.add(0, clips)
        if self.unadmitted is not None:
            self.unadmitted = max(0, self.unadmitted - clips)

    def add(self, stage: int, clips: int) -> None:
        """`clips` wait before `stage`: they were advanced, or put back."""
        self.stages[stage].waiting += clips

    def isolate(self, stage: int, clips: int) -> None:
        """`clips` wait before `stage` and have to run as a batch of their own."""
        self.stages[stage].groups.append(clips)

    def withdraw(self, stage: int, clips: int) -> None:
        """`clips` that waited before `stage` are there no more: a tensor of theirs was lost, or they failed."""
        self.stages[stage].waiting -= clips

    def end(self, assignment: Assignment) -> None:
        """A batch is over, well or badly; where its clips go from here is told by `add` and `isolate`."""
        self.stages[assignment.stage].running -= assignment.clips
        if assignment.station is None:
            self.cpu_free += 1

    def add_station(self, number: int, memory: int, host_memory: int, now: float, pinned: Sequence[int] = ()) -> None:
        """A station is up and holds nothing."""
        self.stations[number] = StationLoad(number, memory, host_memory, pinned=tuple(pinned))
        self.free(number, now)

    def remove_station(self, number: int) -> None:
        """A station is gone, with what it held."""
        station = self.stations.pop(number)
        if station.idle_since is not None:
            self._unidle(station)
        else:
            self._busy -= 1
        if number in self._freed:
            self._freed.remove(number)
        for stage in station.held:
            self.stages[stage].holders -= 1

    def free(self, number: int, now: float) -> None:
        """A station ended what it did and is idle from `now`."""
        station = self.stations[number]
        if station.idle_since is None and station.busy_until:
            self._busy -= 1
        station.idle_since = now
        self._idle[number] = None
        if not station.held:
            self._blank[number] = None
        for stage in station.held:
            self._idle_holding[stage][number] = None
        for stage in station.hosted:
            self._idle_hosting[stage][number] = None
        self._freed.append(number)

    # What to do next.

    def decide(self, now: float) -> Assignment | None:
        """The next assignment, or None when every idle station is right to wait (until `wake_at` at most)."""
        self.wake_at = math.inf
        ready = self._ready(now)
        for stage, clips in ready:
            if not self.stages[stage].on_station and self.cpu_free:
                self.cpu_free -= 1
                return self._assign(None, stage, clips)
        ready = [(stage, clips) for stage, clips in ready if self.stages[stage].on_station]
        shares = self._shares()
        while self._freed:
            number = self._freed.popleft()
            chosen = self._choose(self.stations[number], ready, shares, now)
            if chosen is not None:
                return self._assign(self.stations[number], *chosen, now=now)
        for stage, clips in ready:
            for group in (self._idle_holding[stage], self._idle_hosting[stage], self._blank, self._idle):
                if not group:
                    continue
                station = self.stations[next(iter(group))]
                chosen = self._choose(station, [(stage, clips)], shares, now)
                if chosen is not None:
                    return self._assign(station, *chosen, now=now)
        return self._preload(now)
