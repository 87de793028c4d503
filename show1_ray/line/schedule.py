"""What should this idle station run next? Pure: counts go in, assignments come out, time is passed in.

The schedule knows how many clips wait before each stage and which stages each station holds; which clips they
are is the line's business. A decision looks at the stages only, never at all stations or all clips.

The rule: an idle station takes the most downstream stage with a full batch among those that it holds. It changes
to a stage that it does not hold (for the price of the swap, in seconds) in two cases:

- it is starved, and the other stage has fewer stations than its share of the work that is left, or the stage's
  queue outlasts the price and the station has waited for half of it, or it has waited for all of it;
- it is not starved, but its own stage has more stations than its share and the other one fewer.

Among several it changes to the one that will keep it busy longest.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from functools import partial

from show1_ray.line.ledger import Ledger
from show1_ray.line.load import Assignment, StageLoad, StationLoad
from show1_ray.line.pinning import shares, useful

# Tuned in simulation, over swap prices from a thousandth of a batch to one batch and 2 to 1,000 stations.
STARVED_DEFICIT = (0.5, 0.1)
"""What a stage lacks if a starved station is to join it without waiting: stations, and share of its own."""
UNSTARVED_DEFICIT = (1.3, 0.25)
"""… if a station with work of its own is to join it; also what that station's stage must have to spare."""
LEAVE_BEHIND = 8.0
"""A station leaves work of its own only if that is worth coming back for: this many times the price."""
PATIENCE = 0.5
"""Share of the price that a starved station waits before it joins a stage that has a long queue; none if it has
room for it."""
LONG_QUEUE = 4.0
"""A queue this many times the price is long even before a stage that has its share of stations."""
TAIL = 0.85
"""The tail begins when what is left for each station is less than this many times a batch of every stage."""

AMPLE = 1.5
"""A stage gets as many stations of its own as keep up with the others, and half as many again."""


class Schedule(Ledger):
    """Hands out work to idle stations. Tell it what happened, then call `decide` until it gives None.

    Numbers of stations and stages are ints; `now` is any clock that does not go back, in seconds.
    """

    def __init__(self, stages: Sequence[StageLoad], cpu_slots: int = 4, total: int | None = None) -> None:
        super().__init__(stages, cpu_slots, total)
        self.eager = False
        """Incomplete batches do not wait for clips on their way: someone waits for the clips."""
        self.warm = False
        """Idle stations load what fits them."""
        self.wake_at = math.inf
        """When time alone would change the schedule's mind; set by `decide`."""

    def decide(self, now: float) -> Assignment | None:
        """The next assignment; None when every idle station does right to wait, until `wake_at` at most."""
        self.wake_at = math.inf
        ready = self._ready(now)
        for stage, clips in ready:
            if not self.stages[stage].on_station and self.cpu_running < self.cpu_slots:
                self.cpu_running += 1
                return self._take(stage, self._offer(stage, clips, None), None)
        if self.closed:
            return None
        ready = [(stage, clips) for stage, clips in ready if self.stages[stage].on_station]
        for small in self.idle.small.values():
            # It is idle beside work that it has no room for: those that have do that first, and leave it the rest.
            ready.sort(key=lambda batch: batch[0] not in small.too_big)
            break
        wanted = self._wanted()
        while self.idle.freed:
            station = self.idle.freed.pop(next(iter(self.idle.freed)))
            chosen = self._choose(station, ready, wanted, now)
            if chosen is not None:
                return self._take(*chosen, station)
        for stage, clips in ready:
            for station in self.idle.candidates(stage, partial(self._suits, stage, clips)):
                chosen = self._choose(station, [(stage, clips)], wanted, now)
                if chosen is not None:
                    return self._take(*chosen, station)
        return self._preload()

    def useful_stations(self, own: int | None = None) -> int:
        """How many stations the work that is left can use, those included that it has; 1 at least.

        `own`: of those for a stage that has its own: no more than keep up with the others.
        """
        stages = [stage for index, stage in enumerate(self.stages) if stage.on_station and self._pool(index) == own]
        cost = max((stage.seconds + stage.load_seconds for stage in stages), default=0.0)
        if not stages:
            return 1
        work, others = sum(self._work(own)), self._sizes[None]
        most = useful(work, self.unadmitted + self.in_flight, cost)
        pace = sum(self._work()) / others if own is not None and others else 0.0
        return max(1, min(most, math.ceil(AMPLE * work / pace))) if pace else most

    def seconds_left(self) -> float:
        """Seconds of work that is left for each station, if all of them work all the time."""
        pools = {self._pool(index) for index, stage in enumerate(self.stages) if stage.on_station}
        left = ((sum(self._work(own)), self._sizes[own]) for own in pools)
        return max((work / stations if stations else math.inf for work, stations in left), default=0.0)

    def price(self, station: StationLoad, stage: int) -> float:
        """Seconds until `stage` is on the station's device: never more from host memory than from disk."""
        if stage in station.held:
            return 0.0
        prices = self.stages[stage].on(station.kind)
        return min(prices.swap_seconds, prices.load_seconds) if stage in station.hosted else prices.load_seconds

    def _ready(self, now: float) -> list[tuple[int, int]]:
        """Stages with an admissible batch, with its size (0: only groups are there): the most downstream one first."""
        ready = self._admissible()
        admissible = {index for index, _ in ready}
        for index, stage in enumerate(self.stages):
            if index not in admissible:
                stage.ready_since = None
            elif stage.ready_since is None:
                stage.ready_since = now
        return ready

    def _admissible(self) -> list[tuple[int, int]]:
        before = self._clips_before()
        fullness = self._fullness()
        ready = []
        at_or_beyond = 0
        for index in reversed(range(len(self.stages))):
            stage = self.stages[index]
            at_or_beyond += stage.running
            size = self._batch(index, before[index], stage.limit - at_or_beyond, fullness)
            at_or_beyond += stage.queued
            if size or stage.groups:
                ready.append((index, size))
        is_stuck = not self.unadmitted or not self.room()
        if not ready and is_stuck and len(self.idle):
            ready = self._unlike()
        if not ready and is_stuck and not any(stage.running for stage in self.stages):
            # Incomplete batches everywhere and the limits in their way: the last of them has to go first.
            for index in reversed(range(len(self.stages))):
                stage = self.stages[index]
                if stage.waiting:
                    return [(index, min(self._next(stage)[0], stage.batch_size))]
        return ready

    def _unlike(self) -> list[tuple[int, int]]:
        """Incomplete batches where clips do not share them all: what comes may never fill them. The fullest first."""
        found = []
        at_or_beyond = 0
        for index in reversed(range(len(self.stages))):
            stage = self.stages[index]
            at_or_beyond += stage.running
            size = min(self._next(stage)[0], stage.batch_size, stage.limit - at_or_beyond)
            at_or_beyond += stage.queued
            if stage.counts.mixed and size > 0:
                found.append((index, size))
        return sorted(found, key=lambda batch: -batch[1] / self.stages[batch[0]].batch_size)

    def _next(self, stage: StageLoad) -> tuple[int, Hashable]:
        """The clips before a stage that share its next batch, and their key: most, or who has waited for longest."""
        return stage.counts.next() if self.eager else stage.counts.most()

    def _batch(self, index: int, before: int, room: int, fullness: float) -> int:
        """Size of the next batch: a full one, or what there is when nothing more is coming; or 0.

        Groups, which go first, do not count here; see `_offer`.
        """
        stage, pool = self.stages[index], self._pool(index)
        full = max(1, math.ceil(stage.batch_size * fullness))
        alike = self._next(stage)[0]
        possible = min(alike, full, room)
        if self.eager:  # idle stations share what waits
            return max(0, min(possible, math.ceil(stage.waiting / max(1, self.idle.count(pool)))))
        if before == 0 or (not stage.on_station and possible > 0):
            if fullness < 1.0:
                possible = min(possible, math.ceil(stage.waiting / max(1, self._sizes[pool])))
            return max(0, possible)
        return full if possible == full else 0

    def _clips_before(self) -> list[int]:
        """For each stage: clips that are still to come to it."""
        before, clips = [], self.unadmitted
        for stage in self.stages:
            before.append(clips)
            clips += stage.queued + stage.running
        return before

    def _work(self, own: int | None = None) -> list[float]:
        """Seconds of work that is left for each stage on stations (of running batches: half).

        Of stages on stations of another sort (see `add_station`), and in tasks: 0.
        """
        work, clips = [], float(self.unadmitted)
        for index, stage in enumerate(self.stages):
            clips += stage.queued + stage.running / 2
            work.append(clips * stage.seconds if stage.on_station and self._pool(index) == own else 0.0)
            clips += stage.running / 2
        return work

    def _wanted(self) -> list[float]:
        """For each stage: the number of stations that its share of the work asks for."""
        return shares(self._work(), self._sizes[None])

    def _fullness(self) -> float:
        """How full batches are to be: 1, and less and less in the tail, so that all stations end together."""
        if not self.exhausted or not self._sizes[None] or self.eager:
            return 1.0
        path = sum(stage.batch_size * stage.seconds for stage in self.stages if stage.on_station and not stage.own)
        return min(1.0, sum(self._work()) / (TAIL * path * self._sizes[None])) if path else 1.0

    def _choose(
        self, station: StationLoad, ready: Sequence[tuple[int, int]], wanted: Sequence[float], now: float
    ) -> tuple[int, int] | None:
        """The stage of `ready` that `station` should run now, with the size of the batch, or None: wait."""
        offers = [(index, self._offer(index, size, station)) for index, size in ready if station.may_run(index)]
        own = next((batch for batch in offers if batch[0] in station.held and batch[1]), None)
        best: tuple[float, tuple[int, int]] | None = None
        for batch in offers:
            index = batch[0]
            if index in station.held or not batch[1]:
                continue
            stage = self.stages[index]
            # What this kind of station does well comes first: the same queue counts by what it saves the others.
            advantage = stage.seconds / stage.on(station.kind).seconds if stage.kinds and stage.seconds else 1.0
            run = stage.queued * stage.seconds * advantage / (stage.holders + 1)
            if best is not None and run <= best[0]:
                continue
            if own is None:
                pays = self._pays_when_starved(station, index, wanted, now)
            else:
                pays = self._pays_to_leave(station, index, own[0], wanted)
            if pays:
                best = (run, batch)
        return own if best is None else best[1]

    def _offer(self, index: int, size: int, station: StationLoad | None) -> int:
        """Size of the batch of a stage that `station` (None: a CPU task) would be given: of a group, or `size`."""
        group, stage = self._group(index, station), self.stages[index]
        if group is not None:
            return stage.groups[group].clips
        if station is None or not stage.full:
            return size
        return min(size, self.caps.most(index, station.kind, station.card, stage.full))

    def _suits(self, index: int, size: int, station: StationLoad) -> bool:
        return station.may_run(index) and self._offer(index, size, station) > 0

    def _group(self, index: int, station: StationLoad | None) -> int | None:
        """The first group of a stage that is not to avoid `station`."""
        for number, group in enumerate(self.stages[index].groups):
            if station is None or station.card not in group.avoid:
                return number
        return None

    def _pays_when_starved(self, station: StationLoad, index: int, wanted: Sequence[float], now: float) -> bool:
        stage = self.stages[index]
        price = self.price(station, index)
        queue = stage.queued * stage.seconds
        lacks = _exceeds(wanted[index] - stage.holders, STARVED_DEFICIT, wanted[index])
        if stage.holders == 0 or station.pins is not None or (lacks and queue > price * stage.holders / 2):
            return True
        assert station.idle_since is not None
        assert stage.ready_since is not None
        go_at = max(station.idle_since, stage.ready_since) + price
        if queue > price * stage.holders * (1.0 if wanted[index] > stage.holders else LONG_QUEUE):
            go_at -= price if self._fits(station, index) else price * (1.0 - PATIENCE)
        if now >= go_at:
            return True
        self.wake_at = min(self.wake_at, go_at)
        return False

    def _pays_to_leave(self, station: StationLoad, index: int, own: int, wanted: Sequence[float]) -> bool:
        if station.pins is not None:
            return False
        stage, current = self.stages[index], next(reversed(station.held))
        price = self.price(station, index)
        lacks = _exceeds(wanted[index] - stage.holders, UNSTARVED_DEFICIT, wanted[index])
        spare = self.stages[current].holders - wanted[current]
        return (
            lacks
            and (self._fits(station, index) or _exceeds(spare, UNSTARVED_DEFICIT, wanted[current]))
            and stage.queued * stage.seconds >= price
            and self.stages[own].queued * self.stages[own].seconds >= LEAVE_BEHIND * price
        )

    def _fits(self, station: StationLoad, index: int) -> bool:
        """Whether `station` has room for a stage beside those that it holds."""
        return sum(self.stages[held].memory for held in (*station.held, index)) <= station.memory

    def _preload(self) -> Assignment | None:
        """Let a station that holds nothing load the first stage that clips are about to reach."""
        before = 0
        for index, stage in enumerate(self.stages):
            coming = before + stage.queued
            before = stage.queued + stage.running
            station = self.idle.blank(index) if stage.on_station else None
            if station is None:
                continue
            useful = coming / stage.batch_size
            if stage.load_seconds > 0:
                useful = min(useful, coming * stage.seconds // stage.load_seconds)
            if stage.holders < useful or (station.pins is not None and coming):
                return self._take(index, 0, station)
        return self._fill() if self.warm else None

    def _fill(self) -> Assignment | None:
        """Let an idle station load a stage that it has room for."""
        for station in self.idle.all.values():
            for index in self._missing(station):
                return self._take(index, 0, station)
        return None

    def is_full(self, station: StationLoad) -> bool:
        """Whether a station is idle and has no room for a stage that it does not hold."""
        return station in self.idle and not any(True for _ in self._missing(station))

    def _missing(self, station: StationLoad) -> Iterator[int]:
        """Stages that `station` could load beside those that it holds."""
        for index, stage in enumerate(self.stages):
            is_new = stage.on_station and index not in station.held and station.may_run(index)
            if is_new and self._fits(station, index):
                yield index

    def _take(self, index: int, clips: int, station: StationLoad | None) -> Assignment:
        """Book an assignment."""
        stage = self.stages[index]
        group = self._group(index, station) if clips else None
        key: Hashable = None
        if group is not None:
            stage.grouped -= clips
            del stage.groups[group]
        elif clips:
            key = self._next(stage)[1]
            stage.counts.take(clips, key)
        stage.running += clips
        if station is None:
            return Assignment(None, index, clips, group, key=key)
        price = self.price(station, index)
        self.idle.remove(station)
        before = set(station.held)
        evict, drop = station.hold(index, [one.memory for one in self.stages])
        stage.holders += index not in before
        for left in before.difference(station.held):
            self.stages[left].holders -= 1
        return Assignment(station.number, index, clips, group, evict, drop, price, station.kind, key)


def _exceeds(stations: float, threshold: tuple[float, float], share: float) -> bool:
    return stations >= max(threshold[0], threshold[1] * share)
