"""The station: a Ray actor that owns one GPU (or some CPU cores), and the Ray task of a "cpu" stage.

Each tensor of each clip is a return value of its own, so that the driver owns it: it outlives the
station that made it (not the node), and goes from station to station without passing the driver.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import ray

from show1_ray.clip import Clip
from show1_ray.line.batch_report import BatchReport
from show1_ray.line.faults import Failure, failure
from show1_ray.line.memory import Gauge
from show1_ray.line.spec import LineSettings, Rejected, StageObject, StageSpec, Values

FETCH_SECONDS = 10.0
"""Seconds after which a fetch is asked for again."""
STALLED_SECONDS = 45.0
"""Seconds without a single value arriving, after which those that are missing count as lost. Less than a batch's
deadline: a value out of reach is neither the clip's fault nor the station's."""


@dataclass(frozen=True)
class StationInfo:
    """What a station says of itself when it is up: its node (Ray's id, address), process, GPU ("" if it has none), and
    memory."""

    node: str
    address: str
    pid: int
    gpu: str
    memory: int | None = None


def returns(spec: StageSpec, clips: int) -> int:
    """Number of values that a batch returns: the report, and each tensor of each clip."""
    return 1 + clips * len(spec.gives)


class Station:
    """Holds stages and runs batches of them, one after the other. An actor: see `start_station`."""

    def __init__(self, specs: Sequence[StageSpec], device: str) -> None:
        self.specs = specs
        self.device = device
        self.held: dict[int, StageObject] = {}
        self.hosted: dict[int, StageObject] = {}
        self.weights: dict[int, int] = {}
        self.gauge: Gauge | None = None

    def info(self, settings: LineSettings) -> StationInfo:
        """Where it is, and its memory."""
        memory = settings.station_memory
        if memory is None and settings.measure_memory is not None:
            memory = settings.measure_memory(self.device)
        self.gauge = None if settings.gauge is None else settings.gauge(self.device)
        return replace(self.where(), memory=memory)

    def where(self) -> StationInfo:
        """Where it is: asked of one that does not come up."""
        context = ray.get_runtime_context()
        gpus = context.get_accelerator_ids().get("GPU", []) if self.device != "cpu" else []
        return StationInfo(context.get_node_id(), ray.util.get_node_ip_address(), os.getpid(), ",".join(gpus))

    def answer(self) -> None:
        """Asked for right before each batch: a process that died before it has not died of the batch."""

    def run(
        self,
        stage: int,
        evict: Sequence[int],
        drop: Sequence[int],
        clips: list[Clip],
        inputs: list[dict[str, Any]],
    ) -> Any:
        """Make room, load the stage if it is not here, and run one batch (no clips: only load).

        Where memory does not suffice beside other stages, they leave, and it is tried once more.
        """
        spec = self.specs[stage]
        begin = time.monotonic()
        from_host = stage in self.hosted
        said = BatchReport()
        problem = self._try_to_load(stage, evict, drop)
        if problem is not None and problem.cause == "memory" and set(self.held) - {stage}:
            said = self._make_room(stage)
            problem = self._try_to_load(stage, (), ())
        said = replace(said, load_seconds=time.monotonic() - begin, from_host=from_host)
        if problem is not None:
            return _answer(spec, len(clips), replace(said, failure=problem), [])
        if not clips:
            return replace(said, started=time.time(), weights=self.weights.get(stage, 0))
        tensors, lost = _fetch(clips, inputs)
        if lost:
            return _answer(spec, len(clips), replace(said, lost=lost), [])
        report, outputs = self._measured(stage, clips, tensors, said)
        if report.failure is not None and report.failure.cause == "memory" and set(self.held) - {stage}:
            room = self._make_room(stage)
            said = replace(said, left=said.left + room.left, dropped=said.dropped + room.dropped)
            report, outputs = self._measured(stage, clips, tensors, said)
        return _answer(spec, len(clips), report, outputs)

    def _measured(
        self, stage: int, clips: list[Clip], tensors: list[Values], said: BatchReport
    ) -> tuple[BatchReport, Sequence[Values | Rejected]]:
        before = 0
        if self.gauge is not None:
            self.gauge.restart()
            before = self.gauge.used()
        report, outputs = compute(self.specs[stage], self.held[stage], clips, tensors, said)
        if self.gauge is not None and report.failure is None:
            work = max(0, self.gauge.most() - before)
            report = replace(report, weights=self.weights.get(stage, 0), work=work)
        return report, outputs

    def _try_to_load(self, stage: int, evict: Sequence[int], drop: Sequence[int]) -> Failure | None:
        try:
            self._load(stage, evict, drop)
        except Exception as error:
            return failure(error, loading=True)
        return None

    def _load(self, stage: int, evict: Sequence[int], drop: Sequence[int]) -> None:
        for number in (*evict, *drop):
            self._leave(number, to_host=number in evict)
            if number in drop:
                self.hosted.pop(number, None)
        if stage in self.held:
            return
        gc.collect()  # what leaves must be gone before the next one comes
        before = self.gauge.used() if self.gauge is not None else 0
        if stage in self.hosted:
            self.hosted[stage].to(self.device)  # type: ignore[attr-defined]
            self.held[stage] = self.hosted.pop(stage)
        else:
            self.held[stage] = self.specs[stage].build(self.device)
        if self.gauge is not None:
            self.weights[stage] = max(0, self.gauge.used() - before)

    def _leave(self, number: int, to_host: bool) -> None:
        leaving = self.held.pop(number, None)
        if leaving is not None and to_host and hasattr(leaving, "to"):
            leaving.to("cpu")
            self.hosted[number] = leaving

    def _make_room(self, stage: int) -> BatchReport:
        """All other stages leave the device."""
        others = [number for number in self.held if number != stage]
        for number in others:
            self._leave(number, to_host=True)
        gc.collect()
        if self.gauge is not None:
            self.gauge.release()
        left = tuple(number for number in others if number in self.hosted)
        return BatchReport(left=left, dropped=tuple(number for number in others if number not in left))


def compute(
    spec: StageSpec, stage: StageObject, clips: list[Clip], tensors: list[Values], said: BatchReport
) -> tuple[BatchReport, Sequence[Values | Rejected]]:
    """Run the stage on what was fetched. `said` is what there is to be told already."""
    started, begin = time.time(), time.monotonic()
    try:
        outputs = list(stage(clips, tensors))
        _check(spec, clips, outputs)
    except Exception as error:
        why = failure(error)
        if why.cause == "place":
            why = replace(why, node=ray.get_runtime_context().get_node_id())
        return replace(said, failure=why), []
    report = replace(
        said,
        started=started,
        seconds=time.monotonic() - begin,
        output_bytes=max(_bytes(spec, given) for given in outputs),
        plain={clip.id: _plain(spec, given) for clip, given in zip(clips, outputs, strict=True)} if spec.plain else {},
        rejected={clip.id: g.reason for clip, g in zip(clips, outputs, strict=True) if isinstance(g, Rejected)},
    )
    return report, outputs


def run_task(spec: StageSpec, clips: list[Clip], inputs: list[dict[str, Any]]) -> Any:
    """One batch of a "cpu" stage, as a Ray task."""
    try:
        stage = spec.build("cpu")
    except Exception as error:
        why = replace(failure(error, loading=True), node=ray.get_runtime_context().get_node_id())
        return _answer(spec, len(clips), BatchReport(failure=why), [])
    tensors, lost = _fetch(clips, inputs)
    if lost:
        return _answer(spec, len(clips), BatchReport(lost=lost), [])
    return _answer(spec, len(clips), *compute(spec, stage, clips, tensors, BatchReport()))


def _fetch(clips: Sequence[Clip], inputs: Sequence[dict[str, Any]]) -> tuple[list[Values], dict[str, tuple[str, ...]]]:
    """Values of the clips, and names of those that are lost: gone, or not to be had."""
    everything = [ref for refs in inputs for ref in refs.values() if isinstance(ref, ray.ObjectRef)]
    arrived = _arrived(everything)
    tensors: list[Values] = []
    lost: dict[str, tuple[str, ...]] = {}
    for clip, refs in zip(clips, inputs, strict=True):
        fetched: Values = {}
        for name, ref in refs.items():
            try:
                if isinstance(ref, ray.ObjectRef):
                    fetched[name] = ray.get(ref, timeout=FETCH_SECONDS if ref in arrived else 0)
                else:
                    fetched[name] = ref
            except ray.exceptions.RayError:
                lost[clip.id] = (*lost.get(clip.id, ()), name)
        tensors.append(fetched)
    return tensors, lost


def _arrived(refs: Sequence[ray.ObjectRef]) -> set[ray.ObjectRef]:
    """Those of `refs` that have come here, or failed. Waits as long as some come, and STALLED_SECONDS longer.

    Asks again and again, because a request begun while its node went away may hang for minutes.
    """
    left, since = list(dict.fromkeys(refs)), time.monotonic()
    while left and time.monotonic() - since < STALLED_SECONDS:
        came, still = ray.wait(left, num_returns=len(left), timeout=FETCH_SECONDS)
        since = time.monotonic() if came else since
        left = still
    return set(refs).difference(left)


def _check(spec: StageSpec, clips: Sequence[Clip], outputs: Sequence[Values | Rejected]) -> None:
    if len(outputs) != len(clips):
        raise ValueError(f"stage {spec.name} gave {len(outputs)} results for {len(clips)} clips")
    for given in outputs:
        if isinstance(given, Rejected):
            unknown = [name for name in given.plain if name not in spec.plain]
            if unknown:
                raise ValueError(f"stage {spec.name} rejects with {', '.join(unknown)}, which it does not declare")
            continue
        missing = [name for name in (*spec.gives, *spec.plain) if name not in given]
        if missing:
            raise ValueError(f"stage {spec.name} did not give {', '.join(missing)}")


def _bytes(spec: StageSpec, given: Values | Rejected) -> int:
    """What a clip's tensors take in the object store."""
    return 0 if isinstance(given, Rejected) else sum(_size(given[name]) for name in spec.gives)


def _plain(spec: StageSpec, given: Values | Rejected) -> dict[str, Any]:
    return dict(given.plain) if isinstance(given, Rejected) else {name: given[name] for name in spec.plain}


def _answer(spec: StageSpec, clips: int, report: BatchReport, outputs: Sequence[Values | Rejected]) -> Any:
    if returns(spec, clips) == 1:
        return report
    if not outputs:
        return (report, *[None] * (clips * len(spec.gives)))
    tensors: list[Mapping[str, Any]] = [{} if isinstance(given, Rejected) else given for given in outputs]
    return (report, *[given.get(name) for given in tensors for name in spec.gives])


def _size(value: Any) -> int:
    return int(getattr(value, "nbytes", None) or sys.getsizeof(value))


@cache
def _station() -> Any:
    """Made once: Ray exports each new one to all workers, and keeps it."""
    return ray.remote(Station)


def start_station(
    specs: ray.ObjectRef, settings: LineSettings, gpus: bool, cpus: int | None = None
) -> tuple[Any, ray.ObjectRef, ray.ObjectRef]:
    """Ask Ray for a station; gives the actor, and references to what it says of itself before and after it is up.

    `cpus`: of one that stands on CPUs beside those on GPUs.

    The numbers of threads are set before the process imports anything. Ray neither restarts the
    actor nor repeats its work: what runs again is the line's decision.
    """
    gpus = gpus and cpus is None
    cores = cpus or settings.threads
    variables = settings.variables(cores)
    has_them = variables.items() <= settings.inherited.items()
    actor: Any = (
        _station()
        .options(
            num_gpus=1 if gpus else 0,
            num_cpus=0 if gpus else cores,
            max_restarts=0,
            max_task_retries=0,
            runtime_env=None if has_them else {"env_vars": variables},
        )
        .remote(specs, "cuda:0" if gpus else "cpu")
    )
    return actor, actor.where.remote(), actor.info.remote(settings)
