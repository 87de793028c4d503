"""The line: one loop that moves clips between stations, and owns all the state."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import replace
from types import TracebackType

import ray

from show1_ray.clip import Clip
from show1_ray.errors import UserError
from show1_ray.line import events, plan
from show1_ray.line.batch import Batch, as_task, on_station, patience
from show1_ray.line.fleet import Fleet, StationHandle
from show1_ray.line.flight import Flight
from show1_ray.line.inbox import Inbox
from show1_ray.line.load import Assignment, load_of
from show1_ray.line.schedule import Schedule
from show1_ray.line.snapshot import Progress
from show1_ray.line.spec import FatalError, LineSettings, Order, StageSpec, check
from show1_ray.line.station import Failure, Report
from show1_ray.line.traffic import GivenUp, Traffic

POLL_SECONDS = 0.05
"""How soon an open line that waits for a batch notices that a clip has come: `ray.wait` cannot be woken."""

SCALING_SECONDS = 1.0
"""How often the line asks itself how many stations it should have."""


class Line:
    """The assembly line: stations on Ray, and the loop that keeps them busy.

        with Line(stages, LineSettings()) as line:
            for event in line.run(clips):
                ...

    A loop over everything that happens. `Service` runs it in a thread and gives each clip its own events:
    `async for event in line.render(clip)`.

    Ray has to be initialized. Raises UserError for stages that do not fit together.

    Args:
        stages: in their order.
        settings: how they are run.
        results: names of values that `ClipDone.result` holds; default: what the last stage gives. Everything else is
            released as soon as no stage takes it any more.
    """

    def __init__(
        self, stages: Sequence[StageSpec], settings: LineSettings | None = None, results: Sequence[str] = ()
    ) -> None:
        self.specs = list(stages)
        self.settings = settings or LineSettings()
        check(self.specs, results)
        self.results = tuple(results or self.specs[-1].gives)
        self.fleet = Fleet(self.specs, self.settings)
        self.batches: dict[ray.ObjectRef, Batch] = {}
        self.progress = Progress()
        self._events: deque[events.Event] = deque()
        self._inbox: Inbox | None = None
        self._next_scaling = 0.0
        self._dead_starts = 0
        self._alone_since = time.monotonic()
        self._stopping = False
        self._stopping_now = False

    def __enter__(self) -> Line:
        self.fleet.start()
        self._spec_refs = [ray.put(spec) for spec in self.specs]
        store = self.settings.store_bytes
        self.store_bytes = int(ray.cluster_resources()["object_store_memory"] / 2) if store is None else store
        self.schedule = Schedule([load_of(spec) for spec in self.specs], max(self.settings.cpu_tasks, self.fleet.size))
        self.schedule.warm = self.settings.warm
        self.traffic = Traffic(self.specs, self.schedule, self.settings.max_attempts, self.results)
        self._set_limits()
        self._alone_since = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._abandon()
        self.fleet.stop()

    def stop(self, now: bool = False) -> None:
        """End `run`: admit nothing more, start nothing more on stations, let what runs there end and land.

        With `now`, end at once. Only sets a flag: may be called from a signal handler or another thread.
        """
        self._stopping = True
        self._stopping_now = self._stopping_now or now

    def run(self, clips: Iterable[Clip | Order], total: int | None = None) -> Iterator[events.Event]:
        """Render `clips`, pulling them as room allows; ends when all are done or failed, or at `stop`.

        With an `Inbox` the line is open: it goes on until the inbox is closed and empty, and takes clips back that
        are cancelled there. If nobody knows how many will come, incomplete batches run at once: someone waits for them.

        `total` is the number of clips, if it is known (it is asked of `clips` if that knows). A line that was
        stopped, or whose events were not read to the end, cannot run again.

        Raises FatalError if a stage did, if stages do not load or no station comes up; UserError if a stage does
        not fit a station; ValueError if two clips in the line have the same id.
        """
        self._inbox = clips if isinstance(clips, Inbox) else None
        if isinstance(clips, Inbox):
            total = clips.total
        elif total is None and isinstance(clips, Sized):
            total = len(clips)
        self.schedule.open(total)
        self.schedule.eager = self._inbox is not None and total is None
        self.progress.begin(total, time.monotonic())
        source = iter(clips)
        try:
            while not self._stopping_now:
                if self._stopping and not self.schedule.closed:
                    self.schedule.close()
                self._take_back()
                self._admit(source)
                self._scale()
                self._dispatch()
                yield from self._tell()
                if self._ended():
                    break
                self._wait()
                self._expire()
            yield from self._tell(last=True)
        finally:
            self._abandon()

    def wait_for_stations(self) -> None:
        """Block until every station is up. `run` does not need it: it begins with the first one."""
        while self.fleet.starting:
            done, _ = ray.wait(list(self.fleet.starting), timeout=1.0)
            for ref in done:
                self._station_up(ref)
            self._expire()

    # From the manifest to the stations.

    def _take_back(self) -> None:
        """Cancel what is not wanted any more."""
        for clip_id in self._inbox.cancellations() if self._inbox is not None else ():
            self.traffic.cancel(clip_id)

    def _admit(self, source: Iterator[Clip | Order]) -> None:
        """Pull clips as there is room. That the source of an open line ends says nothing: the inbox does."""
        self._expect()
        self.traffic.admit(source)
        self._expect()

    def _expect(self) -> None:
        if self._inbox is not None and not self.schedule.closed:
            self.schedule.expect(self._inbox.left + len(self.traffic.lobby))

    def _dispatch(self) -> None:
        while assignment := self.schedule.decide(time.monotonic()):
            self._start(assignment)

    def _scale(self) -> None:
        """Have as many stations as the work that is left can use."""
        now = time.monotonic()
        if now < self._next_scaling or self._stopping:
            return
        self._next_scaling = now + SCALING_SECONDS
        before = self.fleet.size
        idle = self.schedule.idle.since(now - self.settings.idle_seconds)
        for number in self.fleet.scale(self.schedule.useful_stations(), idle, now):
            self.schedule.remove_station(number)
            self._events.append(events.StationEnded(number))
        if self.fleet.size != before:
            tasks = self.settings.cpu_tasks
            self.schedule.cpu_free += max(tasks, self.fleet.size) - max(tasks, before)
            self._set_limits()

    def _start(self, assignment: Assignment) -> None:
        spec, load = self.specs[assignment.stage], self.schedule.stages[assignment.stage]
        flights = self.traffic.take(assignment)
        deadline = time.monotonic() + patience(self.settings, load, assignment, self.traffic.key(flights))
        if assignment.station is None:
            batch = as_task(self._spec_refs[assignment.stage], spec, assignment, flights, deadline)
        else:
            actor = self.fleet.stations[assignment.station].actor
            batch = on_station(actor, spec, assignment, flights, deadline)
        self.batches[batch.report] = batch
        if flights:
            ids = tuple(flight.clip.id for flight in flights)
            seconds = load.on(assignment.kind).seconds * len(flights)
            self._events.append(events.StageBegan(ids, spec.name, assignment.station, seconds, assignment.price))

    # What comes back.

    def _wait(self) -> None:
        """Sleep until something ends, a deadline passes, or the schedule would change its mind."""
        now = time.monotonic()
        until = min(
            self.schedule.wake_at,
            self.progress.next_snapshot,
            min((batch.deadline for batch in self.batches.values()), default=math.inf),
        )
        refs = [*self.batches, *self.fleet.starting]
        timeout = max(0.0, min(until - now, 1.0))
        if self._inbox is not None and not refs:
            self._inbox.wait(timeout)
            return
        if not refs:
            time.sleep(timeout)
            return
        if self._inbox is not None:
            timeout = min(timeout, POLL_SECONDS)
        done, _ = ray.wait(refs, num_returns=1, timeout=timeout, fetch_local=False)
        if done:
            done, _ = ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
        for ref in done:
            if ref in self.batches:
                self._settle(self.batches.pop(ref))
            else:
                self._station_up(ref)

    def _station_up(self, ref: ray.ObjectRef) -> None:
        handle = self.fleet.starting[ref]
        now = time.monotonic()
        try:
            self.fleet.up(ref, now)
        except ray.exceptions.RayError as error:
            self._count_dead_start(f"a station did not start: {error}")
            self._events.append(events.StationLost(handle.number, _last_line(str(error))))
            self.fleet.ask(handle.slot)
            return
        assert handle.info is not None
        memory = handle.info.memory if handle.info.memory is not None else 1 << 60
        pins = self.fleet.pins(handle.slot, memory) if self.settings.pinned else None
        kind, host_memory = self.fleet.kind(handle), self.fleet.host_memory(handle)
        self.schedule.add_station(handle.number, memory, host_memory, now, pins, kind)
        homeless = [self.specs[index] for index in self.schedule.homeless()]
        if homeless and not self.fleet.starting:
            most = max(station.memory for station in self.schedule.stations.values())
            names = ", ".join(f"{spec.name} ({spec.memory / 1e9:.1f} GB)" for spec in homeless)
            raise UserError(f"stations: {most / 1e9:.1f} GB, the most that one has, are too little for {names}")
        self._events.append(events.StationUp(handle.number, handle.info.node, handle.info.pid, memory))

    def _settle(self, batch: Batch) -> None:
        """A batch has ended by itself: read its report."""
        try:
            report = batch.read()
        except ray.exceptions.RayError as error:
            begun, station = batch.has_begun(), batch.assignment.station
            report = Report(failure=self.fleet.death(station, error, begun, time.monotonic()))
        self._conclude(batch, report)

    def _expire(self) -> None:
        """End what has passed its deadline, and give up if there has been no station for too long."""
        now = time.monotonic()
        for ref in [ref for ref, batch in self.batches.items() if batch.deadline < now]:
            batch = self.batches.pop(ref)
            batch.cancel()
            waits_for_a_node = self.fleet.node_went_away(now)
            failure = Failure("gone" if waits_for_a_node else "deadline", "it did not return in time")
            self._conclude(batch, Report(failure=failure))
        if self.fleet.stations:
            self._alone_since = now
        elif now - self._alone_since > self.settings.start_deadline:
            raise FatalError(f"no station came up in {self.settings.start_deadline:g} s")

    def _conclude(self, batch: Batch, report: Report) -> None:
        """A batch is over: its clips go on, or back, and its station is idle, or replaced."""
        assignment, failure = batch.assignment, report.failure
        self.schedule.end(assignment)
        if failure is not None:
            self._fail(batch, failure)
        elif report.lost:
            lost = [flight for flight in batch.flights if flight.clip.id in report.lost]
            self.traffic.put_back(assignment, [flight for flight in batch.flights if flight not in lost])
            for flight in lost:
                self._tell_given_up(self.traffic.rewind(flight, report.lost[flight.clip.id]))
            self._tell_repeated(batch, "gone: a tensor was lost with its node")
        else:
            self._measure(batch, report)
            self._advance(batch, report)
            if assignment.station is not None:
                self.fleet.stations[assignment.station].has_worked = True
        if assignment.station is None:
            return
        if failure is None or failure.cause in ("error", "clip"):
            self.schedule.free(assignment.station, time.monotonic())
        else:
            self._replace(assignment.station, failure)

    def _advance(self, batch: Batch, report: Report) -> None:
        if not batch.flights:
            return
        self._dead_starts = 0
        stage, station = batch.assignment.stage, batch.assignment.station
        if station is not None:
            self.fleet.busy_seconds += report.seconds
        clips = tuple(flight.clip.id for flight in batch.flights)
        self._events.append(
            events.StageDone(
                clips,
                self.specs[stage].name,
                station,
                report.seconds,
                report.load_seconds,
                report.started,
                batch.shown(self.specs[stage].gives, report),
                report.plain,
            )
        )
        self.traffic.advance(batch.flights, report, batch.outputs)
        for flight in batch.flights:
            if flight.clip.id in report.rejected:
                self._reject(flight, report.rejected[flight.clip.id])
            elif stage + 1 == len(self.specs):
                self._finish(flight)

    def _reject(self, flight: Flight, reason: str) -> None:
        if flight.unwanted:
            self.traffic.drop(flight)
            return
        self.traffic.leave(flight, "rejected")
        self.progress.count(rejected=1)
        stage, attempts = self.specs[flight.stage].name, flight.failures + 1
        self._events.append(
            events.ClipRejected(flight.clip, stage, reason, flight.plain, flight.seconds, flight.batch_sizes, attempts)
        )

    def _finish(self, flight: Flight) -> None:
        if flight.unwanted:
            self.traffic.drop(flight)
            return
        names = [name for name in self.results if name in self.traffic.tensors]
        try:
            values = ray.get([flight.tensors[name] for name in names])
        except ray.exceptions.RayError:
            self._tell_given_up(self.traffic.rewind(flight, names))
            return
        self.traffic.leave(flight)
        self.progress.count(done=1)
        result = {**flight.plain, **dict(zip(names, values, strict=True))}
        result = {name: result[name] for name in self.results}
        attempts = flight.failures + 1
        self._events.append(
            events.ClipDone(flight.clip, result, flight.seconds, flight.batch_sizes, attempts, flight.plain)
        )

    def _fail(self, batch: Batch, failure: Failure) -> None:
        if failure.cause == "fatal":
            raise FatalError(failure.text)
        if failure.cause == "load" or (failure.cause in ("death", "deadline") and not batch.flights):
            name = self.specs[batch.assignment.stage].name
            self._count_dead_start(f"stage {name} does not load: {_last_line(failure.text)}")
        station = batch.assignment.station
        if failure.cause == "idle" and station is not None and not self.fleet.stations[station].has_worked:
            self._count_dead_start(f"a station died before it did anything: {_last_line(failure.text)}")
        self._tell_given_up(self.traffic.fail(batch.assignment, batch.flights, failure))
        self._tell_repeated(batch, f"{failure.cause}: {_last_line(failure.text)}")

    def _tell_repeated(self, batch: Batch, reason: str) -> None:
        ids = tuple(flight.clip.id for flight in batch.flights if flight.state == "queued")
        if ids:
            self._events.append(events.StageRepeated(ids, self.specs[batch.assignment.stage].name, reason))

    def _tell_given_up(self, given_up: Sequence[GivenUp]) -> None:
        for clip in given_up:
            self.progress.count(failed=1)
            flight = clip.flight
            stage, attempts = self.specs[flight.stage].name, max(1, flight.failures)
            self._events.append(events.ClipFailed(flight.clip, stage, attempts, clip.failure.text))

    def _replace(self, number: int, failure: Failure) -> None:
        self.schedule.remove_station(number)
        handle: StationHandle = self.fleet.lose(number, time.monotonic())
        self._events.append(events.StationLost(number, f"{failure.cause}: {_last_line(failure.text)}"))
        self.fleet.ask(handle.slot)

    def _count_dead_start(self, text: str) -> None:
        self._dead_starts += 1
        if self._dead_starts >= self.settings.max_dead_starts:
            raise FatalError(f"{_last_line(text)} ({self._dead_starts} times in a row)")

    def _measure(self, batch: Batch, report: Report) -> None:
        """Let what a batch took replace what was guessed."""
        index, kind = batch.assignment.stage, batch.assignment.kind
        load = self.schedule.stages[index]
        if batch.assignment.price:
            load.measure_load(kind, report.load_seconds, report.from_host)
        if not batch.flights:
            return
        known = load.measured
        load.measure(kind, report.seconds / len(batch.flights), self.traffic.key(batch.flights))
        guess = self.specs[index].output_bytes
        if report.output_bytes > 1.1 * guess or (not known and report.output_bytes < 0.9 * guess):
            self.specs[index] = replace(self.specs[index], output_bytes=report.output_bytes)
            self._set_limits()

    def _set_limits(self) -> None:
        limits = plan.limits(self.specs, self.fleet.size, self.store_bytes)
        for load, clips in zip(self.schedule.stages, limits.clips, strict=True):
            load.limit = clips

    # Beginning and end.

    def _ended(self) -> bool:
        if self.schedule.closed:
            return not self.batches
        is_open = self._inbox is not None and not self._inbox.closed
        return self.schedule.exhausted and not self.schedule.in_flight and not is_open

    @property
    def is_warm(self) -> bool:
        """Whether every station is up and, with `LineSettings.warm`, idle with all the stages that fit it."""
        stations = self.schedule.stations.values()
        are_up = bool(stations) and not self.fleet.starting
        return are_up and (not self.settings.warm or all(self.schedule.is_full(station) for station in stations))

    def _tell(self, last: bool = False) -> Iterator[events.Event]:
        self._events.extend(events.ClipCancelled(clip) for clip in self.traffic.cancelled)
        self.traffic.cancelled.clear()
        while self._events:
            yield self._events.popleft()
        now = time.monotonic()
        if last or now >= self.progress.next_snapshot:
            self.progress.next_snapshot = now + self.settings.snapshot_seconds
            running = {batch.assignment.station: batch.assignment for batch in self.batches.values()}
            yield self.progress.snapshot(self.schedule, self.fleet, running, now)

    def _abandon(self) -> None:
        """Forget what still runs: tasks are cancelled here, stations end when the line does."""
        for batch in self.batches.values():
            batch.cancel()
        self.batches.clear()


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""
