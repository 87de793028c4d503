"""The line: one loop that moves clips between stations, and owns all the state."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence, Sized
from functools import partial
from types import TracebackType

import ray

from show1_ray.clip import Clip
from show1_ray.line import events
from show1_ray.line.arrivals import Arrivals, Result
from show1_ray.line.batch import Batch, as_task, on_station, patience
from show1_ray.line.batch_report import BatchReport
from show1_ray.line.care import BLAMELESS, RECYCLED
from show1_ray.line.crew import Crew
from show1_ray.line.elsewhere import Elsewhere
from show1_ray.line.faults import Failure
from show1_ray.line.fleet import Fleet
from show1_ray.line.flight import Flight
from show1_ray.line.floor import Floor
from show1_ray.line.inbox import Inbox
from show1_ray.line.load import Assignment
from show1_ray.line.prospects import Prospects
from show1_ray.line.snapshot import Counts
from show1_ray.line.spec import FatalError, LineSettings, Order, StageSpec, check
from show1_ray.line.traffic import GivenUp

POLL_SECONDS = 0.05
"""How soon an open line that waits for a batch notices a new clip: `ray.wait` cannot be woken."""


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
        self.counts = Counts()
        self._events: deque[events.Event] = deque()
        self._inbox: Inbox | None = None
        self._prospects = Prospects(self.settings)
        self._arrivals = Arrivals()
        self._elsewhere = Elsewhere()
        self._stopped_because = ""
        self._stopping = False
        self._stopping_now = False

    def __enter__(self) -> Line:
        self.fleet.start()
        self._spec_refs = [ray.put(spec) for spec in self.specs]
        slots = max(self.settings.cpu_tasks, self.fleet.size)
        self.floor = Floor(self.specs, self.settings, slots, self.results)
        self.schedule, self.traffic, self.care = self.floor.schedule, self.floor.traffic, self.floor.care
        self.crew = Crew(self.fleet, self.floor, self.settings, self._arrivals, self._prospects, self._events.append)
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

        Raises FatalError if a stage did, if stages do not load or no station comes up, or, when what runs has landed,
        if suddenly far more clips fail than before; UserError if a stage does not fit a station; ValueError if two
        clips in the line have the same id.
        """
        self._inbox = clips if isinstance(clips, Inbox) else None
        if isinstance(clips, Inbox):
            total = clips.total
        elif total is None and isinstance(clips, Sized):
            total = len(clips)
        self.schedule.open(total)
        self.schedule.eager = self._inbox is not None and total is None
        self.counts.begin(total, time.monotonic())
        source = iter(clips)
        try:
            while not self._stopping_now:
                if self._stopping and not self.schedule.closed:
                    self.schedule.close()
                self._take_back()
                self._admit(source)
                if not self._stopping:
                    self.crew.scale(time.monotonic())
                self._dispatch()
                yield from self._tell()
                if self._ended():
                    break
                self._wait()
                self._hear()
                self._expire()
            yield from self._tell(last=True)
            if self._stopped_because:
                raise FatalError(self._stopped_because)
        finally:
            self._abandon()

    def wait_for_stations(self) -> None:
        """Blocks until every station is up. `run` does not need this: it begins with the first one."""
        while self.fleet.starting or self.fleet.later:
            done, _ = ray.wait(list(self.fleet.starting), timeout=1.0)
            for ref in done:
                self.crew.up(ref, time.monotonic())
            self._hear()
            self._expire()

    # From the manifest to the stations.

    def _take_back(self) -> None:
        """Cancels clips that are no longer wanted."""
        for clip_id in self._inbox.cancellations() if self._inbox is not None else ():
            self.traffic.cancel(clip_id)

    def _admit(self, source: Iterator[Clip | Order]) -> None:
        """Pulls clips while there is room. For an open line, the inbox, not the source, says when no more will come."""
        self._expect()
        if len(self._arrivals.results) < self.schedule.stages[-1].limit:
            self.traffic.admit(source)
        self._expect()

    def _expect(self) -> None:
        if self._inbox is not None and not self.schedule.closed:
            self.schedule.expect(self._inbox.left + len(self.traffic.lobby))

    def _dispatch(self) -> None:
        while assignment := self.schedule.decide(time.monotonic()):
            self._start(assignment)

    def _start(self, assignment: Assignment) -> None:
        spec, load = self.specs[assignment.stage], self.schedule.stages[assignment.stage]
        flights = self.traffic.take(assignment)
        handle = None if assignment.station is None else self.fleet.stations[assignment.station]
        key = self.traffic.key(flights)
        is_new = handle is not None and not handle.has_run(assignment, key)
        deadline = time.monotonic() + patience(self.settings, load, assignment, key, is_new)
        if handle is None:
            node = self._elsewhere.place(self._nodes_there(), time.monotonic())
            batch = as_task(self._spec_refs[assignment.stage], spec, assignment, flights, deadline, node)
        else:
            batch = on_station(handle.actor, spec, assignment, flights, deadline)
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
            self.counts.next_snapshot,
            min((batch.deadline for batch in self.batches.values()), default=math.inf),
        )
        refs = [*self.batches, *self.fleet.starting]
        timeout = max(0.0, min(until - now, 1.0))
        if not refs and self._arrivals:
            timeout = min(timeout, POLL_SECONDS)
        if self._inbox is not None and not refs:
            self._inbox.wait(timeout)
            return
        if not refs:
            time.sleep(timeout)
            return
        if self._inbox is not None or self._arrivals:
            timeout = min(timeout, POLL_SECONDS)
        done, _ = ray.wait(refs, num_returns=1, timeout=timeout, fetch_local=False)
        if done:
            done, _ = ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
        for ref in done:
            if ref in self.batches:
                self._settle(self.batches.pop(ref))
            else:
                self.crew.up(ref, time.monotonic())

    def _settle(self, batch: Batch) -> None:
        """A batch has ended by itself: reads its report, or starts finding out why there is none."""
        try:
            report = batch.read()
        except ray.exceptions.RayError as error:
            why = self.fleet.death(batch.assignment.station, error, batch.has_begun())
            self._arrivals.ask(why, partial(self._conclude_failed, batch))
            return
        self._conclude(batch, report)

    def _hear(self) -> None:
        """Answers that have come, and results of clips."""
        self._arrivals.answer()
        for result in self._arrivals.arrived(time.monotonic()):
            self._finish(result)

    def _expire(self) -> None:
        """Ends batches past their deadline, and gives up if there has been no station for too long."""
        now = time.monotonic()
        for ref in [ref for ref, batch in self.batches.items() if batch.deadline < now]:
            batch = self.batches.pop(ref)
            batch.cancel()
            self._arrivals.ask(self.fleet.overdue(), partial(self._conclude_failed, batch))
        self.crew.watch(now)

    def _conclude_failed(self, batch: Batch, failure: Failure) -> None:
        self._conclude(batch, BatchReport(failure=failure))

    def _conclude(self, batch: Batch, report: BatchReport) -> None:
        """A batch is over: its clips go on or back, and its station is idle or replaced."""
        assignment, failure, now = batch.assignment, report.failure, time.monotonic()
        self.floor.made_room(assignment, report)
        if failure is not None and failure.node:
            failure = self._try_elsewhere(batch, failure, now)
        if failure is not None:
            if failure.cause == "fatal":
                raise FatalError(failure.text)
            self.crew.count_coming(now)
            self._tell_given_up(self.floor.failed(assignment, batch.flights, failure, now))
            self._tell_repeated(batch, f"{failure.cause}: {failure.last_line}")
            self._count_dead_starts(batch, failure)
        elif report.lost:
            self._tell_given_up(self.floor.lost(assignment, batch.flights, report.lost))
            self._tell_repeated(batch, "gone: a value was lost, or is out of reach")
        else:
            self._succeed(batch, report, now)
        if assignment.station is None:
            return
        if failure is not None and failure.cause in RECYCLED:
            reason, troubled = f"{failure.cause}: {failure.last_line}", failure.cause not in BLAMELESS
            self.crew.replace(assignment.station, reason, troubled, now, after_a_pause=failure.node_is_short)
        else:
            self.care.free(assignment.station, now)
        self.crew.heed(now)

    def _try_elsewhere(self, batch: Batch, failure: Failure, now: float) -> Failure:
        """A CPU task failed on a node: its clips wait again, for another one, or there is none that would do better."""
        clips = [flight.clip.id for flight in batch.flights]
        is_task, there = batch.assignment.station is None, self._nodes_there()
        if not is_task or not self._elsewhere.failed(clips, failure.node, there, now):
            return Failure("fatal", failure.text) if failure.cause == "place" else failure
        address = self.fleet.node(failure.node).get("NodeManagerAddress", failure.node)
        self._events.append(events.NodeAvoided(address, self.specs[batch.assignment.stage].name, failure.last_line))
        return Failure("gone", f"tried on another node: {failure.text}")

    def _nodes_there(self) -> list[str]:
        return [node for node, known in self.fleet.nodes.view.nodes.items() if known["Alive"]]

    def _succeed(self, batch: Batch, report: BatchReport, now: float) -> None:
        assignment = batch.assignment
        self._prospects.loads(self.specs[assignment.stage].name)
        if assignment.station is not None:
            self.fleet.stations[assignment.station].worked(assignment, self.traffic.key(batch.flights))
        if self.floor.measure(assignment, report, self.traffic.key(batch.flights)):
            self.crew.limit()
        if assignment.station is None:
            self._elsewhere.done([flight.clip.id for flight in batch.flights])
        self.floor.done(assignment, batch.flights, report, batch.outputs, now)
        if batch.flights:
            self._tell_done(batch, report)

    def _tell_done(self, batch: Batch, report: BatchReport) -> None:
        self._prospects.works()
        stage, station = batch.assignment.stage, batch.assignment.station
        if station is not None and self.fleet.stations[station].slot.own is None:
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
        for flight in batch.flights:
            if flight.clip.id in report.rejected:
                self._reject(flight, report.rejected[flight.clip.id])
            elif stage + 1 == len(self.specs):
                self._await_result(flight)

    def _reject(self, flight: Flight, reason: str) -> None:
        if flight.unwanted:
            self.traffic.drop(flight)
            return
        self.traffic.leave(flight, "rejected")
        self.counts.count(rejected=1)
        stage, attempts = self.specs[flight.stage].name, flight.failures + 1
        self._events.append(
            events.ClipRejected(flight.clip, stage, reason, flight.plain, flight.seconds, flight.batch_sizes, attempts)
        )

    def _await_result(self, flight: Flight) -> None:
        """A clip is done: its results are fetched while the driver goes on."""
        if flight.unwanted:
            self.traffic.drop(flight)
            return
        refs = [flight.tensors[name] for name in self.results if name in self.traffic.tensors]
        self._arrivals.expect(flight, refs, time.monotonic())

    def _finish(self, result: Result) -> None:
        flight, values = result.flight, result.read()
        names = [name for name in self.results if name in self.traffic.tensors]
        if flight.unwanted:
            self.traffic.drop(flight)
            return
        if values is None:
            self._tell_given_up(self.traffic.rewind(flight, names))
            return
        self.traffic.leave(flight)
        self.counts.count(done=1)
        self._prospects.left()
        known = {**flight.plain, **dict(zip(names, values, strict=True))}
        given = {name: known[name] for name in self.results}
        attempts = flight.failures + 1
        self._events.append(
            events.ClipDone(flight.clip, given, flight.seconds, flight.batch_sizes, attempts, flight.plain)
        )

    def _count_dead_starts(self, batch: Batch, failure: Failure) -> None:
        stage, number = batch.assignment.stage, batch.assignment.station
        name = self.specs[stage].name
        is_of_loading = failure.cause == "load" or failure.loading
        if is_of_loading or (failure.cause in ("death", "deadline") and not batch.flights):
            self._prospects.does_not_load(name, failure.last_line, bool(self.floor.health.candidates(stage)))
        if number is None or failure.node_is_short:
            return
        if failure.cause == "idle" and not self.fleet.stations[number].has_worked:
            why = f"a station died before it did anything: {failure.last_line}"
            self._prospects.died(why, self.fleet.all_died)

    def _tell_repeated(self, batch: Batch, reason: str) -> None:
        ids = tuple(flight.clip.id for flight in batch.flights if flight.state == "queued")
        if ids:
            self._events.append(events.StageRepeated(ids, self.specs[batch.assignment.stage].name, reason))

    def _tell_given_up(self, given_up: Sequence[GivenUp]) -> None:
        for clip in given_up:
            self.counts.count(failed=1)
            because = self._prospects.left(clip.failure)
            if because and not self._stopping:
                self._stopped_because = because
                self.stop()
            flight = clip.flight
            stage, attempts = self.specs[flight.stage].name, max(1, flight.failures)
            self._events.append(events.ClipFailed(flight.clip, stage, attempts, clip.failure.text))

    # Beginning and end.

    def _ended(self) -> bool:
        if self._arrivals:
            return False
        if self.schedule.closed:
            return not self.batches
        is_open = self._inbox is not None and not self._inbox.closed
        return self.schedule.exhausted and not self.schedule.in_flight and not is_open

    @property
    def is_warm(self) -> bool:
        """Whether every station is up and, with `LineSettings.warm`, idle with all the stages that fit it."""
        stations = self.schedule.stations.values()
        are_up = bool(stations) and not self.fleet.starting and not self.fleet.later
        return are_up and (not self.settings.warm or all(self.schedule.is_full(station) for station in stations))

    def _tell(self, last: bool = False) -> Iterator[events.Event]:
        self._events.extend(events.ClipCancelled(clip) for clip in self.traffic.cancelled)
        self.traffic.cancelled.clear()
        while self._events:
            yield self._events.popleft()
        now = time.monotonic()
        if last or now >= self.counts.next_snapshot:
            self.counts.next_snapshot = now + self.settings.snapshot_seconds
            running = {batch.assignment.station: batch.assignment for batch in self.batches.values()}
            yield self.counts.snapshot(self.schedule, self.fleet, running, now, self.care.benched)

    def _abandon(self) -> None:
        """Forgets what still runs: tasks are cancelled here, stations end with the line."""
        for batch in self.batches.values():
            batch.cancel()
        self.batches.clear()
        self._arrivals.clear()
