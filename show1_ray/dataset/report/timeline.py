"""What stations did when, in memory that does not grow with the job: shares over time, and bars of a Gantt picture.

All times are seconds since the job began.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace

LOADING = "loading"
"""What a station does, besides stages: it loads the weights of one."""
UP = "up"

BINS = 240
BARS = 4000
LANES = 64
SPANS = 50  # of stations that follow one another in a lane


class Shares:
    """Seconds of each kind (a stage, `LOADING`, `UP`) in each of at most BINS bins, whose width doubles as needed."""

    def __init__(self, width: float = 0.1) -> None:
        self.width = width
        self.kinds: dict[str, list[float]] = {}

    def add(self, kind: str, begin: float, end: float) -> None:
        """An interval of this kind."""
        while end > BINS * self.width:
            self._halve()
        bins = self.kinds.setdefault(kind, [0.0] * BINS)
        for number in range(int(begin / self.width), min(BINS, int(end / self.width) + 1)):
            overlap = min(end, (number + 1) * self.width) - max(begin, number * self.width)
            bins[number] += max(0.0, overlap)

    def of(self, kind: str, number: int) -> float:
        """Share of the stations' time in this bin."""
        up = self.kinds.get(UP, [0.0] * BINS)[number]
        # A station may have ended a batch that it began before the driver heard that it is up.
        return min(1.0, self.kinds[kind][number] / up) if up > 0 and kind in self.kinds else 0.0

    def _halve(self) -> None:
        self.width *= 2
        for bins in self.kinds.values():
            bins[:] = [bins[i] + bins[i + 1] for i in range(0, BINS, 2)] + [0.0] * (BINS // 2)


@dataclass(frozen=True)
class Bar:
    """A batch, the loading of a stage, or several of them that are drawn as one. `seconds`: what ran, and how long."""

    begin: float
    end: float
    seconds: dict[str, float]
    clips: int
    batches: int
    station: int | None

    @property
    def kind(self) -> str:
        """What took most of it."""
        return max(self.seconds, key=lambda kind: self.seconds[kind])


@dataclass(frozen=True)
class Span:
    """The time that a station was up. `end` is None while it is; `lost`: it did not end by itself."""

    station: int
    begin: float
    end: float | None = None
    lost: bool = False


class Lane:
    """A row of the picture: a station, and those that replaced it."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.bars: list[Bar] = []

    def open(self, station: int, at: float) -> None:
        """A station goes on in this lane."""
        self.spans.append(Span(station, at))
        if len(self.spans) > SPANS:
            first, second = self.spans[:2]
            self.spans[:2] = [replace(second, begin=first.begin)]

    def close(self, at: float, lost: bool) -> None:
        """The station is gone."""
        self.spans[-1] = replace(self.spans[-1], end=at, lost=lost)


class Gantt:
    """Lanes of stations, and one of CPU tasks. At most BARS bars: when there are more, neighbours become one.

    `tick` are the seconds within which they do; 0: every batch has a bar of its own.
    """

    def __init__(self) -> None:
        self.tick = 0.0
        self.lanes: list[Lane] = []
        self.cpu = Lane()
        self._lane_of: dict[int, int] = {}
        self._free: list[int] = []
        self._bars = 0

    def open(self, station: int, at: float) -> None:
        """A station is up: it takes the first free lane."""
        number = heapq.heappop(self._free) if self._free else len(self.lanes)
        if number == len(self.lanes):
            self.lanes.append(Lane())
        self._lane_of[station] = number
        self.lanes[number].open(station, at)

    def close(self, station: int, at: float, lost: bool) -> None:
        """A station is gone: its lane is free."""
        number = self._lane_of.pop(station)
        self.lanes[number].close(at, lost)
        heapq.heappush(self._free, number)

    def add(self, bar: Bar) -> None:
        """What a station (or a CPU task, where that is None) did. Lanes that are not drawn keep no bars."""
        number = -1 if bar.station is None else self._lane_of.get(bar.station, LANES)
        if number >= LANES:
            return
        (self.cpu if number < 0 else self.lanes[number]).bars.append(bar)
        self._bars += 1
        if self._bars > BARS:
            self._coarsen()

    def drawn(self, lane: Lane) -> list[Bar]:
        """The bars of a lane, in order, as close together as the others are."""
        return merged(lane.bars, self.tick) if self.tick else sorted(lane.bars, key=lambda bar: bar.begin)

    def _coarsen(self) -> None:
        lanes = [*self.lanes, self.cpu]
        self.tick = self.tick or 0.01
        while True:
            for lane in lanes:
                lane.bars = merged(lane.bars, self.tick)
            self._bars = sum(len(lane.bars) for lane in lanes)
            if self._bars <= BARS // 2:
                return
            self.tick *= 2


def merged(bars: Iterable[Bar], tick: float) -> list[Bar]:
    """Joins neighbours that fit into a tick together."""
    joined: list[Bar] = []
    for bar in sorted(bars, key=lambda bar: bar.begin):
        if joined and max(bar.end, joined[-1].end) - joined[-1].begin <= tick:
            joined[-1] = _join(joined[-1], bar)
        else:
            joined.append(bar)
    return joined


def _join(one: Bar, other: Bar) -> Bar:
    kinds = {**one.seconds, **other.seconds}
    return Bar(
        one.begin,
        max(one.end, other.end),
        {kind: one.seconds.get(kind, 0.0) + other.seconds.get(kind, 0.0) for kind in kinds},
        one.clips + other.clips,
        one.batches + other.batches,
        other.station,
    )


class Timeline:
    """The stations' time: how much of it there was, what it went into, and the pictures of it.

    The time of a batch is known when it is done. So the time of a station at work counts up to the end of its last
    batch only: a long batch is not taken for idle time meanwhile.
    """

    def __init__(self) -> None:
        self.gantt = Gantt()
        self.most_at_once = 0
        self._shares = Shares()
        self._ended_seconds = 0.0
        self._up: dict[int, float] = {}
        self._known: dict[int, float] = {}
        self._at_work: frozenset[int] = frozenset()

    @property
    def up(self) -> int:
        """Stations that are up."""
        return len(self._up)

    def station_up(self, station: int, at: float) -> None:
        """A station takes work from now on."""
        self._up[station] = self._known[station] = at
        self.most_at_once = max(self.most_at_once, len(self._up))
        self.gantt.open(station, at)

    def station_gone(self, station: int, at: float, lost: bool) -> None:
        """A station is gone, lost or because there was nothing left for it; it may never have been up."""
        if station not in self._up:
            return
        begin = self._up.pop(station)
        del self._known[station]
        self._ended_seconds += at - begin
        self._shares.add(UP, begin, at)
        self.gantt.close(station, at, lost)

    def working(self, stations: Iterable[int]) -> None:
        """These stations are in a batch at this moment, the others are not."""
        self._at_work = frozenset(stations)

    def batch(self, stage: str, station: int | None, begin: float, end: float, load_seconds: float, clips: int) -> None:
        """A batch has run, after a stage was loaded for so many seconds (0: it was there)."""
        if load_seconds:
            before = max(0.0, begin - load_seconds)
            self.gantt.add(Bar(before, begin, {LOADING: load_seconds}, 0, 0, station))
            if station is not None:
                self._shares.add(LOADING, before, begin)
        self.gantt.add(Bar(begin, end, {stage: end - begin}, clips, 1, station))
        if station in self._known:
            self._shares.add(stage, begin, end)
            self._known[station] = max(end, self._known[station])

    def shares(self, now: float) -> Shares:
        """The shares over time, up to now."""
        shares = deepcopy(self._shares)
        for begin, end in self._open(now):
            shares.add(UP, begin, end)
        return shares

    def up_seconds(self, now: float) -> float:
        """The time that stations were up, all of them together."""
        return self._ended_seconds + sum(end - begin for begin, end in self._open(now))

    def known_until(self, station: int, now: float) -> float:
        """Up to when it is known what a station does that is up."""
        return self._known[station] if station in self._at_work else now

    def _open(self, now: float) -> Iterator[tuple[float, float]]:
        for station, begin in self._up.items():
            yield begin, self.known_until(station, now)
