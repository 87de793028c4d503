"""What a job will take: hours, GPUs and money, from its stages' costs and the line's schedule on a simulated clock."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from show1_ray.errors import UserError
from show1_ray.line.load import load_of
from show1_ray.line.pinning import limits, pin
from show1_ray.line.simulate import simulate
from show1_ray.line.spec import StageSpec
from show1_ray.pipeline import Pipeline
from show1_ray.pipeline.lineup import stage_specs
from show1_ray.planning.costs import (
    DISK_RATE,
    EFFICIENCY,
    LAND_SECONDS,
    Costs,
    costs_from_operations,
    costs_from_profile,
)
from show1_ray.planning.gpus import GIB, STAGES_SHARE, Gpu, find_gpu, known_gpu, same_device
from show1_ray.planning.profile import CPU, Profile, find_profile, mismatch

IMPORT_SECONDS = 12.0
"""Seconds in which a process imports torch and libraries, measured on 2 CPU cores; profiles have their own."""

RAY_SECONDS = 8.0
"""Seconds to start or join Ray and start a process for each station, measured on 2 CPU cores."""

STORE_BYTES = 8 * GIB
"""Assumed bytes of the object store for clips in flight, per GPU: about a sixth of 50 GB of host memory."""

SIMULATED = 2000
"""At most this many clips are simulated; for large fleets, enough to keep each station at work for a while …"""
SIMULATED_A_STATION = 16
"""… namely this many per station. Beyond that, the steady state is extrapolated."""

MOST_GPUS = 1024
NEAR_LEAST = 1.1
"""The best number of GPUs is the largest whose GPU-hours are at most this many times the least."""


@dataclass(frozen=True)
class StageEstimate:
    """One stage: seconds per clip, share of the work, clips per batch, bytes on the device, seconds to load."""

    name: str
    seconds: float
    share: float
    batch_size: int
    memory: int
    load_seconds: float


@dataclass(frozen=True)
class Choice:
    """A number of GPUs (or CPU stations), and what the job takes with it, start-up included.

    `busy_share` is the part of the stations' time that goes into batches; `cost` is None without a price.
    """

    gpus: int
    hours: float
    gpu_hours: float
    clips_an_hour: float
    busy_share: float
    cost: float | None


@dataclass(frozen=True)
class Estimate:
    """What `estimate` found.

    Attributes:
        unit: what there is a number of: "GPU", or "station" on CPUs.
        source, assumptions: what it rests on, in words.
        pins: groups of GPUs with their stages. A preference: the line moves stations where that pays.
        choices: ascending; `asked` is one of them.
        best: see `NEAR_LEAST`.
        beside: stages that run on CPU cores beside the stations, and cost these nothing; in the order of the pipeline.
    """

    pipeline: str
    clips: int
    device: str
    unit: str
    source: str
    assumptions: tuple[str, ...]
    stages: tuple[StageEstimate, ...]
    pins: tuple[tuple[int, tuple[str, ...]], ...]
    asked: Choice
    choices: tuple[Choice, ...]
    best: int
    beside: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Basis:
    """What an estimate rests on: the stages' costs, bytes that a station has for stages, seconds until it works."""

    costs: Costs
    device: str
    room: int
    start_seconds: float
    source: str
    assumptions: tuple[str, ...]


def estimate(
    pipeline: Pipeline,
    clips: int,
    gpus: int,
    gpu_type: str,
    price: float | None = None,
    profile: Profile | None = None,
) -> Estimate:
    """Predicts a job.

    A job of some thousands of clips is simulated; of a larger one as many, and the rest is taken to go on with the
    busy share that the middle half of these had; see `SIMULATED`.

    Args:
        pipeline: its batch sizes count.
        clips: to render.
        gpus: GPUs, or CPU stations: a core each.
        gpu_type: a GPU's name (see `gpus.find_gpu`), or "cpu".
        price: of a GPU-hour.
        profile: what the pipeline's stages were measured to cost; by default the one that is kept with the pipeline.

    Raises:
        UserError: a GPU that is not known; a stage that does not fit it; a CPU without a profile; a profile of another
            recipe.
    """
    for part in pipeline.parts:  # at the small files that what they say of themselves rests on
        part.cls.look(part.settings)
    pipeline = replace(pipeline)
    basis = find_basis(pipeline, gpu_type, profile)
    check_memory(pipeline, basis)
    specs = line_specs(pipeline, basis.costs, cores=basis.room == sys.maxsize)
    on_stations = [spec for spec in specs if spec.on == "station"]
    choices: dict[int, Choice] = {}
    for count in counts_to_try(gpus, clips):
        tried = predict(specs, clips, count, basis, price)
        choices[count] = tried
        least = min(choice.gpu_hours for choice in choices.values())
        if count >= gpus and tried.gpu_hours > 2 * least:
            break
    pins = pin([spec.seconds for spec in on_stations], [spec.memory for spec in on_stations], [basis.room] * gpus)
    groups = Counter(tuple(on_stations[index].name for index in pinned) for pinned in pins)
    work = sum(spec.seconds for spec in on_stations)
    return Estimate(
        pipeline=pipeline.name,
        clips=clips,
        device=basis.device,
        unit="station" if basis.room == sys.maxsize else "GPU",
        source=basis.source,
        assumptions=basis.assumptions,
        stages=tuple(
            StageEstimate(spec.name, spec.seconds, spec.seconds / work, spec.batch_size, spec.memory, spec.load_seconds)
            for spec in on_stations
        ),
        pins=tuple((count, stages) for stages, count in groups.items()),
        asked=choices[gpus],
        choices=tuple(choices[count] for count in sorted(choices)),
        best=best_number(list(choices.values())),
        beside=tuple(spec.name for spec in specs[:-1] if spec.on != "station"),
    )


def counts_to_try(gpus: int, clips: int) -> list[int]:
    """1, 2, 4, … as long as each station has a clip, and the requested number; ascending."""
    counts = {gpus}
    count = 1
    while count <= min(max(1, clips), MOST_GPUS):
        counts.add(count)
        count *= 2
    return sorted(counts)


def best_number(choices: Sequence[Choice]) -> int:
    """The largest number of GPUs that costs hardly more than the cheapest; see `NEAR_LEAST`."""
    least = min(choice.gpu_hours for choice in choices)
    return max(choice.gpus for choice in choices if choice.gpu_hours <= NEAR_LEAST * least)


def find_basis(pipeline: Pipeline, gpu_type: str, profile: Profile | None = None) -> Basis:
    """The basis of an estimate for a pipeline on a device; see `estimate`."""
    gpu_type = CPU if gpu_type.lower() == CPU else gpu_type
    gpu = known_gpu(gpu_type)
    ignored: list[str] = []
    if profile is None:
        profile, ignored = find_profile(pipeline, gpu_type)
    elif not same_device(profile.gpu_type, gpu_type):
        raise UserError(f"--profile: it was measured on {profile.device}, not on {gpu_type}")
    elif reason := mismatch(pipeline, profile):
        raise UserError(f"--profile: {reason}")
    if profile is not None:
        return _measured_basis(pipeline, profile, gpu)
    if gpu_type == CPU:
        reason = "; ".join(ignored) or f"no profile of {pipeline.name} on a CPU"
        measure = f"measure one with `show1-ray profile {pipeline.as_arguments} --device cpu`"
        raise UserError(f"{reason}: {measure}, or name a GPU with --gpu-type")
    return _counted_basis(pipeline, gpu or find_gpu(gpu_type), ignored)


def _measured_basis(pipeline: Pipeline, profile: Profile, gpu: Gpu | None) -> Basis:
    memory = profile.device_memory or (gpu.memory if gpu else 0)
    start = 2 * profile.import_seconds + RAY_SECONDS
    return Basis(
        costs_from_profile(pipeline, profile),
        profile.device,
        sys.maxsize if profile.kind == "cpu" else int(STAGES_SHARE * memory),
        start,
        f"a profile, measured on {profile.device} with torch {profile.versions.get('torch', '?')}",
        (f"{start:.0f} s until stations begin to load ({profile.import_seconds:.0f} s of imports, twice: measured)",),
    )


def _counted_basis(pipeline: Pipeline, gpu: Gpu, ignored: Sequence[str]) -> Basis:
    rate = gpu.rate(pipeline.dtype) / 1e12
    start = 2 * IMPORT_SECONDS + RAY_SECONDS
    return Basis(
        costs_from_operations(pipeline, gpu),
        gpu.name,
        int(STAGES_SHARE * gpu.memory),
        start,
        f"operation counts and the datasheet ({gpu.source}: {rate:g} TFLOP/s in {pipeline.dtype}); "
        f"no profile of {pipeline.name} on {gpu.name}",
        (
            *ignored,
            f"networks reach {EFFICIENCY:.0%} of the datasheet's rate (the published demo: 21 % of an A100's)",
            "memory is what the pipeline file says, or a multiple of the weights",
            f"{start:.0f} s until stations begin to load; then {DISK_RATE / 1e9:g} GB/s from each node's disk, "
            "where the weights are taken to be already",
        ),
    )


def check_memory(pipeline: Pipeline, basis: Basis) -> None:
    """Raises UserError if a stage does not fit the device."""
    on_cpu = {stage.name for stage in pipeline.wired() if stage.execution.device == "cpu"}
    for name, cost in basis.costs.items():
        if cost.memory > basis.room and name not in on_cpu:
            raise UserError(
                f"{basis.device}: {basis.room / GIB:.1f} GiB for stages are too little for {name}, which takes "
                f"{cost.memory / GIB:.1f} GiB: a larger GPU, or a smaller execution.{name}.batch_size with its memory"
            )


def line_specs(pipeline: Pipeline, costs: Costs, cores: bool = False) -> list[StageSpec]:
    """What the line is given, and a stand-in for the landing of clips; `cores`: stations are CPU cores."""
    specs = stage_specs(pipeline, costs)
    if cores:  # they hold what runs beside the GPUs elsewhere
        specs = [replace(spec, on="station") if spec.on == "cpus" else spec for spec in specs]
    clip = (pipeline.video.line,)
    land = StageSpec("land", lambda device: lambda clips, tensors: [], clip, on="cpu", seconds=LAND_SECONDS)
    return [*specs, land]


def predict(specs: Sequence[StageSpec], clips: int, gpus: int, basis: Basis, price: float | None = None) -> Choice:
    """What a job takes on this many GPUs."""
    seconds = basis.start_seconds + line_seconds(specs, clips, gpus, basis.room)
    work = clips * sum(spec.seconds for spec in specs if spec.on == "station")
    hours = seconds / 3600
    return Choice(
        gpus=gpus,
        hours=hours,
        gpu_hours=hours * gpus,
        clips_an_hour=clips / hours,
        busy_share=work / (gpus * seconds),
        cost=None if price is None else price * hours * gpus,
    )


def line_seconds(specs: Sequence[StageSpec], clips: int, stations: int, room: int) -> float:
    """Seconds from stations that are up and empty to the last clip, by the line's schedule; see `estimate`."""
    bounds = limits(specs, stations, STORE_BYTES * stations)
    loads = [load_of(spec, limit) for spec, limit in zip(specs, bounds.clips, strict=True)]
    most = max(SIMULATED, SIMULATED_A_STATION * stations)
    simulation = simulate(loads, stations, min(clips, most), room)
    if clips <= most:
        return simulation.seconds
    work = sum(load.seconds for load in loads if load.on_station)
    return simulation.seconds + (clips - most) * work / (stations * simulation.busy_share(0.25, 0.75))
