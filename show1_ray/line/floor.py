"""The line's floor: schedule, traffic and care, kept in step. What becomes of clips and cards when a batch is over.

No Ray here: the line carries it out with real stations, `simulate.rehearse` on a simulated clock.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from show1_ray.line import pinning
from show1_ray.line.batch_report import BatchReport
from show1_ray.line.care import Care
from show1_ray.line.faults import Failure
from show1_ray.line.flight import Flight
from show1_ray.line.health import Health
from show1_ray.line.load import Assignment, load_of
from show1_ray.line.schedule import Schedule
from show1_ray.line.spec import LineSettings, StageSpec
from show1_ray.line.traffic import GivenUp, Traffic


class Floor:
    """All that is decided without Ray. `specs` is shared with who makes it, and gets what is measured."""

    def __init__(self, specs: list[StageSpec], settings: LineSettings, cpu_slots: int, results: Collection[str] = ()):
        self.specs = specs
        self.schedule = Schedule([load_of(spec) for spec in specs], cpu_slots)
        self.schedule.warm = settings.warm
        self.health = Health(settings.shut_out_seconds)
        self.care = Care(self.schedule, self.health)
        self.traffic = Traffic(specs, self.schedule, settings.max_attempts, results, self.health)

    def failed(self, assignment: Assignment, flights: list[Flight], failure: Failure, now: float) -> list[GivenUp]:
        """A batch failed: whose fault it may be is noted, its clips go elsewhere. Returns those that are given up."""
        stage, number = assignment.stage, assignment.station
        self.schedule.end(assignment)
        card = self.care.card(number)
        was_sound = card is None or self.health.is_sound(card, stage)
        is_too_large = failure.cause == "memory" and not failure.loading and len(flights) > 1
        if is_too_large and number is not None:
            self.schedule.too_large(number, stage, len(flights))
        elif number is not None:  # a batch that was too large says nothing of the card: a smaller one may
            self.care.failed(number, stage, [flight.clip.id for flight in flights], failure, now)
        return self.traffic.fail(assignment, flights, failure, card, was_sound)

    def made_room(self, assignment: Assignment, report: BatchReport) -> None:
        """Before anything else is done with a station's report: what it says that left its device."""
        if assignment.station is not None and (report.left or report.dropped):
            self.schedule.made_room(assignment.station, assignment.stage, report.left, report.dropped)

    def lost(self, assignment: Assignment, flights: list[Flight], lost: Mapping[str, Sequence[str]]) -> list[GivenUp]:
        """A batch could not begin, because values of some of its clips are gone: `lost` names them, by clip."""
        self.schedule.end(assignment)
        gone = [flight for flight in flights if flight.clip.id in lost]
        self.traffic.put_back(assignment, [flight for flight in flights if flight not in gone])
        return [given_up for flight in gone for given_up in self.traffic.rewind(flight, lost[flight.clip.id])]

    def done(
        self, assignment: Assignment, flights: list[Flight], report: BatchReport, outputs: Sequence[Any], now: float
    ) -> None:
        """A batch is done, or (no clips) a stage is loaded: its clips go on."""
        self.schedule.end(assignment)
        if assignment.station is not None:
            clips = [flight.clip.id for flight in flights]
            self.schedule.fitted(assignment.station, assignment.stage, len(flights))
            self.care.succeeded(assignment.station, assignment.stage, clips, now)
        self.traffic.advance(flights, report, outputs)

    def measure(self, assignment: Assignment, report: BatchReport, key: Hashable = None) -> bool:
        """Let what a batch took replace what was guessed. Returns whether clips take more, or less."""
        index, kind = assignment.stage, assignment.kind
        load = self.schedule.stages[index]
        if assignment.price:
            load.measure_load(kind, report.load_seconds, report.from_host)
        if not assignment.clips:
            return False
        if report.weights:
            # Of a smaller batch it is known what a clip takes at most.
            work = report.work * max(1.0, load.batch_size / assignment.clips)
            self.schedule.takes(index, report.weights + int(work), assignment.clips)
            self.care.recount()
            self.specs[index] = replace(self.specs[index], memory=load.memory)
        known = load.measured
        load.measure(kind, report.seconds / assignment.clips, key)
        guess = self.specs[index].output_bytes
        if report.output_bytes > 1.1 * guess or (not known and report.output_bytes < 0.9 * guess):
            self.specs[index] = replace(self.specs[index], output_bytes=report.output_bytes)
            return True
        return False

    def limit(self, stations: int, store_bytes: int) -> None:
        """Bound the clips in flight."""
        limits = pinning.limits(self.specs, stations, store_bytes, self.traffic.results)
        for load, clips in zip(self.schedule.stages, limits.clips, strict=True):
            load.limit = clips
