"""The station: a Ray actor that owns one GPU (or some CPU cores), and the Ray task of a "cpu" stage.

Each tensor of each clip is a return value of its own, so that the driver owns it: it outlives the
station that made it (not the node), and goes from station to station without passing the driver.
"""

from __future__ import annotations

import gc
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import ray

from show1_ray.clip import Clip
from show1_ray.line.spec import FatalError, LineSettings, Rejected, StageObject, StageSpec, Tensors

FETCH_SECONDS = 10.0
"""Seconds after which a fetch is asked for again."""

Cause = Literal["error", "memory", "device", "clip", "fatal", "load", "death", "deadline", "gone", "idle"]


@dataclass(frozen=True)
class Failure:
    """Why a batch was not done.

    "error": the stage raised; "memory": it ran out of memory; "device": the GPU failed, and the process cannot use
    it any more; "clip": the stage named the clip at fault; "fatal": nothing more can be rendered; "load": the stage
    could not be loaded; "death": the process died; "deadline": it did not return; "gone": the node went away;
    "idle": the process had died before the batch came to it. The last two are nobody's fault.
    """

    cause: Cause
    text: str
    clip_id: str | None = None


@dataclass(frozen=True)
class Report:
    """What a station says of a batch: small, and the only thing that the driver fetches."""

    started: float = 0.0
    """Seconds since the epoch when the batch itself began."""
    seconds: float = 0.0
    load_seconds: float = 0.0
    from_host: bool = False
    output_bytes: int = 0
    """Of the clip that gave most."""
    failure: Failure | None = None
    lost: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Tensors that are gone, by clip: the batch was not run."""
    plain: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Plain values that the stage gave, by clip and name."""
    rejected: dict[str, str] = field(default_factory=dict)
    """Why clips shall not go on, by clip."""


@dataclass(frozen=True)
class StationInfo:
    """What a station says of itself when it is up."""

    node: str
    pid: int
    memory: int | None


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

    def info(self, settings: LineSettings) -> StationInfo:
        """Node, process and memory."""
        memory = settings.station_memory
        if memory is None and settings.measure_memory is not None:
            memory = settings.measure_memory(self.device)
        return StationInfo(ray.get_runtime_context().get_node_id(), os.getpid(), memory)

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
        """Make room, load the stage if it is not here, and run one batch (no clips: only load)."""
        spec = self.specs[stage]
        begin = time.monotonic()
        from_host = stage in self.hosted
        try:
            self._load(stage, evict, drop)
        except Exception as error:
            return _answer(spec, len(clips), Report(failure=_load_failure(error)), [])
        load_seconds = time.monotonic() - begin
        if not clips:
            return Report(time.time(), 0.0, load_seconds, from_host)
        return run_batch(spec, self.held[stage], clips, inputs, load_seconds, from_host)

    def _load(self, stage: int, evict: Sequence[int], drop: Sequence[int]) -> None:
        for number in (*evict, *drop):
            leaving = self.held.pop(number, None)
            if leaving is not None and number in evict and hasattr(leaving, "to"):
                leaving.to("cpu")
                self.hosted[number] = leaving
            if number in drop:
                self.hosted.pop(number, None)
            del leaving
        if stage in self.held:
            return
        gc.collect()  # what leaves must be gone before the next one comes
        hosted = self.hosted.pop(stage, None)
        if hosted is None:
            self.held[stage] = self.specs[stage].build(self.device)
        else:
            hosted.to(self.device)  # type: ignore[attr-defined]
            self.held[stage] = hosted


def run_batch(
    spec: StageSpec,
    stage: StageObject,
    clips: list[Clip],
    inputs: list[dict[str, Any]],
    load_seconds: float = 0.0,
    from_host: bool = False,
) -> Any:
    """Fetch the tensors, run the stage, answer with the report and every tensor by itself."""
    tensors, lost = _fetch(clips, inputs)
    if lost:
        return _answer(spec, len(clips), Report(load_seconds=load_seconds, lost=lost), [])
    started, begin = time.time(), time.monotonic()
    try:
        outputs = list(stage(clips, tensors))
        _check(spec, clips, outputs)
    except Exception as error:
        return _answer(spec, len(clips), Report(load_seconds=load_seconds, failure=_failure(error)), [])
    report = Report(
        started,
        time.monotonic() - begin,
        load_seconds,
        from_host,
        max(_bytes(spec, given) for given in outputs),
        plain={clip.id: _plain(spec, given) for clip, given in zip(clips, outputs, strict=True)} if spec.plain else {},
        rejected={clip.id: g.reason for clip, g in zip(clips, outputs, strict=True) if isinstance(g, Rejected)},
    )
    return _answer(spec, len(clips), report, outputs)


def run_task(spec: StageSpec, clips: list[Clip], inputs: list[dict[str, Any]]) -> Any:
    """One batch of a "cpu" stage, as a Ray task."""
    try:
        stage = spec.build("cpu")
    except Exception as error:
        return _answer(spec, len(clips), Report(failure=_load_failure(error)), [])
    return run_batch(spec, stage, clips, inputs)


def _fetch(clips: Sequence[Clip], inputs: Sequence[dict[str, Any]]) -> tuple[list[Tensors], dict[str, tuple[str, ...]]]:
    everything = [ref for refs in inputs for ref in refs.values() if isinstance(ref, ray.ObjectRef)]
    with suppress(ray.exceptions.RayError):  # all at once; which of them is lost is seen below
        _get(everything)
    tensors: list[Tensors] = []
    lost: dict[str, tuple[str, ...]] = {}
    for clip, refs in zip(clips, inputs, strict=True):
        fetched: Tensors = {}
        for name, ref in refs.items():
            try:
                fetched[name] = _get(ref) if isinstance(ref, ray.ObjectRef) else ref
            except ray.exceptions.RayError:
                lost[clip.id] = (*lost.get(clip.id, ()), name)
        tensors.append(fetched)
    return tensors, lost


def _get(refs: Any) -> Any:
    """Fetch. Asks again and again, because a request begun while its node went away may hang for minutes."""
    while True:
        try:
            return ray.get(refs, timeout=FETCH_SECONDS)
        except ray.exceptions.GetTimeoutError:
            continue


def _check(spec: StageSpec, clips: Sequence[Clip], outputs: Sequence[Tensors | Rejected]) -> None:
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


def _bytes(spec: StageSpec, given: Tensors | Rejected) -> int:
    """What a clip's tensors take in the object store."""
    return 0 if isinstance(given, Rejected) else sum(_size(given[name]) for name in spec.gives)


def _plain(spec: StageSpec, given: Tensors | Rejected) -> dict[str, Any]:
    return dict(given.plain) if isinstance(given, Rejected) else {name: given[name] for name in spec.plain}


def _answer(spec: StageSpec, clips: int, report: Report, outputs: Sequence[Tensors | Rejected]) -> Any:
    if returns(spec, clips) == 1:
        return report
    if not outputs:
        return (report, *[None] * (clips * len(spec.gives)))
    tensors: list[Mapping[str, Any]] = [{} if isinstance(given, Rejected) else given for given in outputs]
    return (report, *[given.get(name) for given in tensors for name in spec.gives])


def _failure(error: Exception) -> Failure:
    text = "".join(traceback.format_exception(error)).strip()
    if isinstance(error, FatalError):
        return Failure("fatal", str(error))
    if is_out_of_memory(error):
        return Failure("memory", text)
    if "CUDA error" in str(error):
        return Failure("device", text)
    clip_id = getattr(error, "clip_id", None)
    return Failure("error" if clip_id is None else "clip", text, clip_id)


def _load_failure(error: Exception) -> Failure:
    if isinstance(error, FatalError):
        return Failure("fatal", str(error))
    return Failure("load", "".join(traceback.format_exception(error)).strip())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is the host's, torch's or Ray's out-of-memory error (by name: no torch here)."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"OutOfMemoryError", "MemoryError"})


def _size(value: Any) -> int:
    return int(getattr(value, "nbytes", None) or sys.getsizeof(value))


def start_station(specs: ray.ObjectRef, settings: LineSettings, gpus: bool) -> tuple[Any, ray.ObjectRef]:
    """Ask Ray for a station; gives the actor, and the reference to its `StationInfo`.

    The numbers of threads are set before the process imports anything. Ray neither restarts the
    actor nor repeats its work: what runs again is the line's decision.
    """
    threads = str(settings.threads)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    actor: Any = (
        ray.remote(Station)
        .options(
            num_gpus=1 if gpus else 0,
            num_cpus=0 if gpus else settings.threads,
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": {**dict.fromkeys(names, threads), **settings.environment}},
        )
        .remote(specs, "cuda:0" if gpus else "cpu")
    )
    return actor, actor.info.remote(settings)
