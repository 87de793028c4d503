"""The line on a simulated clock: the same schedule, with stages that only take time."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from show1_ray.line.keys import LOBBY, Counts, Lobby
from show1_ray.line.load import Assignment, StageLoad
from show1_ray.line.schedule import Schedule


@dataclass
class Simulation:
    """What came of it. Times in seconds from the moment that the stations are up."""

    seconds: float = 0.0
    stations: int = 0
    loads: int = 0
    loading_seconds: float = 0.0
    most_in_flight: int = 0
    batches: int = 0
    busy: list[tuple[float, float]] = field(default_factory=list)
    """Start and end of every batch, without the loading before it."""

    def busy_share(self, start: float = 0.0, end: float = 1.0) -> float:
        """The share of station time spent on batches, between two fractions of the job."""
        return busy_share(self.busy, self.stations, self.seconds * start, self.seconds * end)


def busy_share(busy: Sequence[tuple[float, float]], stations: int, start: float, end: float) -> float:
    """Share of the time from `start` to `end` that `stations` spent in the intervals `busy`."""
    worked = sum(max(0.0, min(stop, end) - max(begin, start)) for begin, stop in busy)
    return worked / (stations * (end - start)) if end > start else 0.0


def lower_bound(stages: Sequence[StageLoad], stations: int, clips: int) -> float:
    """Seconds that no schedule can beat, with `stations` stations that are up and empty.

    The larger of: all the work, shared evenly, after each station has loaded one stage (the cheapest); and
    the path of one clip through all stages, after the first is loaded.
    """
    on_stations = [stage for stage in stages if stage.on_station]
    work = clips * sum(stage.seconds for stage in on_stations)
    load = min(stage.load_seconds for stage in on_stations)
    path = on_stations[0].load_seconds + sum(stage.seconds for stage in on_stations)
    return max(work / stations + min(load, work), path)


def simulate(
    stages: Sequence[StageLoad],
    stations: int,
    clips: int,
    memory: int = 1,
    host_memory: int = 1 << 60,
    pins: Sequence[tuple[int, ...]] | None = None,
    actual_seconds: Sequence[float] | None = None,
    noise: Callable[[], float] = lambda: 1.0,
    watch: Callable[[Schedule, float], None] | None = None,
    schedule_class: type[Schedule] = Schedule,
    keys: Sequence[Hashable] | None = None,
) -> Simulation:
    """Render `clips` clips on `stations` stations that have `memory` bytes each, on a simulated clock.

    `stages` are copied; their `seconds` are what the schedule believes until a batch has ended,
    `actual_seconds` what a clip takes, times `noise()` for each batch. `watch` is called whenever all
    stations know what to do. `keys` are those of the clips, in the manifest's order, the same before every stage.
    """
    loads = [replace(stage, groups=stage.groups.copy(), counts=Counts()) for stage in stages]
    actual = list(actual_seconds or [stage.seconds for stage in stages])
    schedule = schedule_class(loads, total=clips)
    for number in range(stations):
        schedule.add_station(number, memory, host_memory, 0.0, pins[number] if pins else None)
    result = Simulation(stations=stations)
    ends: list[tuple[float, int, Assignment]] = []
    manifest, lobby = iter(keys or ()), Lobby[Hashable]()
    now, started, done = 0.0, 0, 0
    while done < clips:
        admitted = min(schedule.room(), schedule.unadmitted)
        if admitted and keys is None:
            schedule.admit(admitted)
        elif admitted:
            for key in islice(manifest, max(admitted, LOBBY) - len(lobby)):
                lobby.put(key, key)
            for key in lobby.take(admitted):
                schedule.admit(1, key)
        if not schedule.unadmitted and not schedule.exhausted:
            schedule.exhaust()
        while assignment := schedule.decide(now):
            started += 1
            begin = now + assignment.price
            end = begin + assignment.clips * actual[assignment.stage] * noise()
            heapq.heappush(ends, (end, started, assignment))
            result.loads += assignment.price > 0
            result.loading_seconds += assignment.price
            result.batches += assignment.clips > 0
            if assignment.clips and assignment.station is not None:
                result.busy.append((begin, end))
        result.most_in_flight = max(result.most_in_flight, schedule.in_flight)
        if watch:
            watch(schedule, now)
        if schedule.wake_at < (ends[0][0] if ends else float("inf")):
            now = schedule.wake_at
            continue
        if not ends:
            raise RuntimeError(f"the line stands still with {clips - done} clips to do")
        now, _, assignment = heapq.heappop(ends)
        schedule.end(assignment)
        if assignment.clips:
            loads[assignment.stage].seconds = actual[assignment.stage]
            if assignment.stage + 1 < len(loads):
                schedule.add(assignment.stage + 1, assignment.clips, assignment.key)
            else:
                done += assignment.clips
        if assignment.station is not None:
            schedule.free(assignment.station, now)
    result.seconds = now
    return result
