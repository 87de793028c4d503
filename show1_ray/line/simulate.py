"""The line on a simulated clock: the same schedule, with stages that only take time."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, islice

from show1_ray.clip import Clip
from show1_ray.line.batch_report import BatchReport
from show1_ray.line.care import BLAMELESS, RECYCLED, Place
from show1_ray.line.events import Event
from show1_ray.line.faults import Failure
from show1_ray.line.flight import Flight
from show1_ray.line.floor import Floor
from show1_ray.line.keys import LOBBY, Counts, Lobby
from show1_ray.line.load import Assignment, StageLoad
from show1_ray.line.schedule import Schedule
from show1_ray.line.spec import LineSettings, StageSpec
from show1_ray.line.traffic import GivenUp

MOST_SECONDS = 1e7
"""Of a rehearsal: it ends by itself much sooner."""


@dataclass
class Simulation:
    """What came of it. Times in seconds from the moment that the stations are up."""

    seconds: float = 0.0
    stations: int = 0
    loads: int = 0
    loading_seconds: float = 0.0
    most_in_flight: int = 0
    batches_of: dict[int, int] = field(default_factory=dict)
    """Batches of each stage."""
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
    on_stations = [stage for stage in stages if stage.on_station and not stage.own]
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
    own_stations: Mapping[int, int] | None = None,
) -> Simulation:
    """Render `clips` clips on `stations` stations that have `memory` bytes each, on a simulated clock.

    `stages` are copied; their `seconds` are what the schedule believes until a batch has ended,
    `actual_seconds` what a clip takes, times `noise()` for each batch. `watch` is called whenever all
    stations know what to do. `keys` are those of the clips, in the manifest's order, the same before every stage.
    `own_stations`: how many stations stages have that have their own; 1 if nothing is said.
    """
    loads = [replace(stage, groups=deque(map(replace, stage.groups)), counts=Counts()) for stage in stages]
    actual = list(actual_seconds or [stage.seconds for stage in stages])
    schedule = schedule_class(loads, total=clips)
    for number in range(stations):
        schedule.add_station(number, memory, host_memory, 0.0, pins[number] if pins else None)
    own = [index for index, stage in enumerate(loads) for _ in range((own_stations or {}).get(index, 1)) if stage.own]
    for number, index in enumerate(own, start=stations):
        schedule.add_station(number, 1 << 60, host_memory, 0.0, own=index)
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
            if assignment.clips:
                result.batches_of[assignment.stage] = result.batches_of.get(assignment.stage, 0) + 1
            if assignment.clips and assignment.station is not None and not loads[assignment.stage].own:
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


Fault = Callable[[str, int, int, Sequence[str]], Failure | None]
"""(card, how many batches it has begun, stage, ids of the batch's clips) -> what goes wrong, or None."""


@dataclass
class Rehearsal:
    """What came of a line with faults. `seconds` is when it ended."""

    done: set[str] = field(default_factory=set)
    given_up: dict[str, GivenUp] = field(default_factory=dict)
    flights: list[Flight] = field(default_factory=list)
    """Of the clips that are done."""
    news: list[Event] = field(default_factory=list)
    """Cards shut out, and tried again."""
    recycled: Counter[str] = field(default_factory=Counter)
    """Processes that ended, by card."""
    failed_batches: Counter[str] = field(default_factory=Counter)
    """By card."""
    seconds: float = 0.0


def rehearse(
    specs: Sequence[StageSpec],
    stations: int,
    clips: Sequence[Clip],
    fault: Fault,
    settings: LineSettings | None = None,
    failing_seconds: float = 0.01,
    start_seconds: float = 10.0,
    actual_seconds: Callable[[int, str], float] | None = None,
) -> Rehearsal:
    """The line with faults, on a simulated clock: everything that the line decides without Ray, clip by clip.

    Stations stand on the cards "card 0", … of nodes of one card each. Batches that fail take `failing_seconds`, a new
    process `start_seconds`; `actual_seconds` (stage, card) is what a clip takes, by default what its stage says.
    """
    specs, settings = list(specs), settings or LineSettings()
    floor, result = Floor(specs, settings, max(settings.cpu_tasks, stations)), Rehearsal()
    floor.limit(stations, settings.store_bytes or 1 << 60)
    schedule, care = floor.schedule, floor.care
    source, numbers, order, now = iter(clips), count(), count(), 0.0
    begun: Counter[str] = Counter()
    up: list[tuple[float, int, str]] = [(0.0, next(order), f"card {number}") for number in range(stations)]
    ends: list[tuple[float, int, Assignment, list[Flight], Failure | None]] = []
    ticks = 0.0
    schedule.open(len(clips))

    def begin() -> None:
        while assignment := schedule.decide(now):
            flights = floor.traffic.take(assignment)
            card = care.card(assignment.station) or ""
            begun[card] += bool(flights)
            ids = [flight.clip.id for flight in flights]
            problem = fault(card, begun[card], assignment.stage, ids) if flights else None
            each = specs[assignment.stage].seconds
            if actual_seconds is not None:
                each = actual_seconds(assignment.stage, card)
            seconds = failing_seconds if problem else each * assignment.clips
            heapq.heappush(ends, (now + assignment.price + seconds, next(order), assignment, flights, problem))

    def conclude(assignment: Assignment, flights: list[Flight], problem: Failure | None) -> None:
        if problem is not None:
            result.failed_batches[care.card(assignment.station) or ""] += 1
            for one in floor.failed(assignment, flights, problem, now):
                result.given_up[one.flight.clip.id] = one
        else:
            outputs = [None] * (len(flights) * len(specs[assignment.stage].gives))
            floor.done(assignment, flights, BatchReport(seconds=0.0), outputs, now)
            if assignment.stage + 1 == len(specs):
                for flight in flights:
                    floor.traffic.leave(flight)
                    result.done.add(flight.clip.id)
                    result.flights.append(flight)
        if assignment.station is None:
            return
        if problem is not None and problem.cause in RECYCLED:
            replace_station(assignment.station, problem.cause not in BLAMELESS)
        else:
            care.free(assignment.station, now)

    def replace_station(number: int, troubled: bool) -> None:
        card = care.places[number].card
        care.leave(number, troubled)
        result.recycled[card] += 1
        heapq.heappush(up, (now + start_seconds, next(order), card))

    while schedule.in_flight or not schedule.exhausted:
        floor.health.coming = len(up)
        if now >= ticks:
            care.tick(now)
            ticks = now + 1.0
        for number in list(care.to_replace):
            replace_station(number, troubled=True)
        result.news += care.news
        care.news.clear()
        floor.traffic.admit(source)
        begin()
        times = [at for at in (ends[0][0] if ends else None, up[0][0] if up else None) if at is not None]
        now = max(now, min([*times, schedule.wake_at, max(ticks, now + 0.001)]))
        if now > MOST_SECONDS:
            raise RuntimeError(f"the line stands still with {schedule.in_flight} clips in flight")
        while up and up[0][0] <= now:
            _, _, card = heapq.heappop(up)
            number = next(numbers)
            schedule.add_station(number, settings.station_memory or 1 << 60, 1 << 60, now, card=card)
            care.arrive(number, Place(card, card, f"node of {card}", f"node of {card}"), now)
        while ends and ends[0][0] <= now:
            _, _, assignment, flights, problem = heapq.heappop(ends)
            conclude(assignment, flights, problem)
    result.seconds = now
    return result
