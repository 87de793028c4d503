"""A batch, handed to a station or to a Ray task, and its outcome."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from show1_ray.clip import Clip
from show1_ray.line.batch_report import BatchReport
from show1_ray.line.faults import failure, shortened
from show1_ray.line.flight import Flight
from show1_ray.line.load import Assignment, StageLoad
from show1_ray.line.spec import LineSettings, StageSpec
from show1_ray.line.station import returns, run_task

REPORT_SECONDS = 5.0
"""A report is small, and comes with the answer; this is for one that does not."""


@dataclass
class Batch:
    """A batch that runs. `outputs` are the references to its tensors, clip by clip."""

    assignment: Assignment
    flights: list[Flight]
    report: ray.ObjectRef
    outputs: list[ray.ObjectRef]
    deadline: float
    began: ray.ObjectRef | None = None
    """Of a station's answer right before the batch."""

    def read(self) -> BatchReport:
        """Its report, once it has ended by itself. Raises RayError if its process or node ended instead."""
        try:
            return ray.get(self.report, timeout=REPORT_SECONDS)
        except ray.exceptions.RayTaskError as error:
            return BatchReport(failure=replace(failure(error), text=shortened(str(error))))

    def has_begun(self) -> bool:
        """Whether the batch found its station alive."""
        try:
            if self.began is not None:
                ray.get(self.began, timeout=0)
        except ray.exceptions.RayError:
            return False
        return True

    def cancel(self) -> None:
        """End it, if it is a task: stations end otherwise."""
        if self.assignment.station is None:
            ray.cancel(self.report, force=True)

    def shown(self, gives: Sequence[str], report: BatchReport) -> dict[str, dict[str, ray.ObjectRef]]:
        """Of what the batch gave, the references that its clips' orders ask for."""
        shown = {}
        for at, flight in enumerate(self.flights):
            if flight.outputs and not flight.unwanted and flight.clip.id not in report.rejected:
                refs = self.outputs[at * len(gives) : (at + 1) * len(gives)]
                given = dict(zip(gives, refs, strict=True))
                shown[flight.clip.id] = {name: given[name] for name in flight.outputs.intersection(gives)}
        return shown


def patience(
    settings: LineSettings, load: StageLoad, assignment: Assignment, key: Hashable, is_new_size: bool = False
) -> float:
    """Seconds after which a batch counts as one that never returns; clips of another key may take much longer.

    `is_new_size`: the station's process has not had such a batch of the stage yet, and may have to compile for it.
    """
    cost = load.on(assignment.kind)
    a_clip = max(cost.seconds, load.by_key.get(key, 0.0))
    seconds = max(settings.deadline_floor, settings.deadline_factor * a_clip * assignment.clips)
    # CPU tasks wait for storage, which may be slow and has retries of its own.
    is_new = is_new_size or not cost.measured or (key is not None and key not in load.by_key)
    if assignment.price or is_new or assignment.station is None:
        seconds += settings.first_deadline
    return seconds


def on_station(actor: Any, spec: StageSpec, assignment: Assignment, flights: list[Flight], deadline: float) -> Batch:
    """Hand a batch to a station."""
    began = actor.answer.remote()
    run = actor.run.options(num_returns=returns(spec, len(flights)))
    refs = run.remote(assignment.stage, assignment.evict, assignment.drop, *_contents(spec, flights))
    return _batch(assignment, flights, refs, deadline, began)


@cache
def _task() -> Any:
    """Made once: Ray exports each new one to all workers, and keeps it."""
    return ray.remote(run_task)


def as_task(
    spec_ref: ray.ObjectRef,
    spec: StageSpec,
    assignment: Assignment,
    flights: list[Flight],
    deadline: float,
    node: str | None = None,
) -> Batch:
    """Run a batch of a "cpu" stage: on a node, or, if there is no such node any more, or None is given, on any."""
    where: Any = "SPREAD"
    if node is not None:  # labels to be avoided do not do: Ray takes such a node again while the others are busy
        where = NodeAffinitySchedulingStrategy(node, soft=True)
    task = _task().options(
        num_cpus=0, num_returns=returns(spec, len(flights)), max_retries=0, scheduling_strategy=where
    )
    return _batch(assignment, flights, task.remote(spec_ref, *_contents(spec, flights)), deadline)


def _contents(spec: StageSpec, flights: list[Flight]) -> tuple[list[Clip], list[dict[str, Any]]]:
    return [flight.clip for flight in flights], [flight.inputs(spec) for flight in flights]


def _batch(
    assignment: Assignment, flights: list[Flight], refs: Any, deadline: float, began: ray.ObjectRef | None = None
) -> Batch:
    report, *outputs = refs if isinstance(refs, list) else [refs]
    return Batch(assignment, flights, report, outputs, deadline, began)
