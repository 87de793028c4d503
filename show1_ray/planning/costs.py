"""Costs of stages on a device before a job measures them: from a profile or, without one, from operation counts."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from show1_ray.errors import UserError
from show1_ray.line.spec import LineSettings
from show1_ray.output import say
from show1_ray.pipeline import Pipeline
from show1_ray.pipeline.wiring import Wired
from show1_ray.planning.gpus import GIB, Gpu
from show1_ray.planning.profile import CPU, Profile, StageProfile, find_profile, local_gpu

LAND_SECONDS = 0.05
"""Seconds to write a clip's file, until the line has measured it."""

EFFICIENCY = 0.35
"""Share of a GPU's datasheet rate that networks are assumed to reach. The published demo reached 21 % of an A100's
(10.57 PFLOP in 160 s of 312 TFLOP/s), with a clip at a time and every network moved off the GPU after each call; large
batches of convolutions and attention reach half and more. Not measured here: `show1-ray profile` measures it."""

DISK_RATE = 1e9
"""Assumed bytes per second of loading weights from a local disk."""

HOST_RATE = 10e9
"""Assumed bytes per second between unpinned host memory and a GPU: less than half of PCIe 4."""

ALLOCATOR = 1.1
"""Memory that torch reserves on a GPU, as a multiple of the peak that it allocated: its cache has gaps."""


@dataclass(frozen=True)
class StageCost:
    """One stage: seconds per clip, bytes on the device with a full batch, seconds to load and to swap in."""

    seconds: float
    memory: int
    load_seconds: float
    swap_seconds: float


Costs = Mapping[str, StageCost]
"""By stage."""


@dataclass(frozen=True)
class StageCount:
    """The size of one stage: floating-point operations per clip, and bytes of its weights."""

    operations: float
    weights: int


def count_stages(pipeline: Pipeline) -> dict[str, StageCount]:
    """Operations and weights of each stage, as far as it declares them; may import torch.

    Raises:
        UserError: a stage does not know its own.
    """
    counts = {}
    all_operations, all_weights = pipeline.operations(), pipeline.weights()
    for stage in pipeline.wired():
        operations, weights = all_operations[stage.name], all_weights[stage.name]
        is_elsewhere = stage.execution.device == "cpu" and operations != 0
        if operations is None or weights is None or is_elsewhere:
            what = "operations" if weights is not None else "weights"
            what = "seconds" if is_elsewhere else what
            raise UserError(
                f"{pipeline.name}: the {what} of its stage {stage.name} are not known before it runs: measure the "
                f"pipeline with `show1-ray profile {pipeline.as_arguments}`"
            )
        counts[stage.name] = StageCount(operations, weights)
    return counts


def costs_from_profile(pipeline: Pipeline, profile: Profile) -> dict[str, StageCost]:
    """Measured costs at the pipeline's batch sizes; memory given in the pipeline file takes precedence."""
    costs = {}
    for wired in pipeline.wired():
        stage = profile.stages[wired.name]
        seconds, memory = at_batch_size(stage, wired.execution.batch_size)
        memory = int(wired.execution.memory * GIB) or (int(ALLOCATOR * memory) if profile.memory == "peak" else memory)
        costs[wired.name] = StageCost(seconds, memory, stage.load_seconds, stage.swap_seconds)
    return costs


def at_batch_size(stage: StageProfile, size: int) -> tuple[float, int]:
    """Seconds a clip and bytes at a batch size; linear between the sizes that were measured.

    Beyond the largest, seconds a clip stay and memory goes on growing as between the last two.
    """
    sizes = [batch.size for batch in stage.batches]
    memory = [batch.memory for batch in stage.batches]
    more = 0.0
    if size > sizes[-1] and len(sizes) > 1:
        more = (size - sizes[-1]) * max(0.0, (memory[-1] - memory[-2]) / (sizes[-1] - sizes[-2]))
    seconds = float(np.interp(size, sizes, [batch.seconds for batch in stage.batches]))
    return seconds, int(np.interp(size, sizes, memory) + more)


def costs_from_operations(pipeline: Pipeline, gpu: Gpu, efficiency: float = EFFICIENCY) -> dict[str, StageCost]:
    """Operations over the datasheet's rate times `efficiency`; loading at assumed rates. May import torch.

    Raises:
        UserError: see `count_stages`.
    """
    counts = count_stages(pipeline)
    return {
        stage.name: StageCost(
            counts[stage.name].operations / (gpu.rate(pipeline.dtype) * efficiency),
            stage_memory(stage, counts[stage.name].weights),
            counts[stage.name].weights / DISK_RATE,
            counts[stage.name].weights / HOST_RATE,
        )
        for stage in pipeline.wired()
    }


def costs_of_job(pipeline: Pipeline, device: str | None) -> dict[str, StageCost]:
    """What a job begins with, until it has measured better: the profile of a device, or guesses.

    Says on standard error which profiles are ignored. Seconds without a profile are what stages say of themselves
    beside one another. Memory is looked at on GPUs only: what the pipeline file says or, where it says nothing, a
    multiple of the weights; where these are not known either, 0: the line measures it.

    Args:
        pipeline: resolved or not.
        device: "cpu", a GPU's name, or None for GPUs of a cluster whose kind is not known yet.

    Raises:
        UserError: a file that is no profile.
    """
    profile, ignored = find_profile(pipeline, device)
    for sentence in ignored:
        say(sentence, sys.stderr)
    if profile is not None:
        return costs_from_profile(pipeline, profile)
    wired = pipeline.wired()
    known = device == CPU or all(stage.execution.memory or stage.execution.device == "cpu" for stage in wired)
    weights = {} if known else weights_elsewhere(pipeline)
    return {
        stage.name: StageCost(stage.cls.relative_seconds, stage_memory(stage, weights.get(stage.name) or 0), 1.0, 1.0)
        for stage in wired
    }


def weights_elsewhere(pipeline: Pipeline) -> dict[str, int | None]:
    """`Pipeline.weights`, in another process if this one has not imported torch: a job's driver does without it.

    Raises:
        UserError: a stage that cannot tell.
    """
    if "torch" in sys.modules:
        return pipeline.weights()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(place for place in sys.path if place)}
    answer = subprocess.run(
        [sys.executable, "-m", __name__],
        input=pickle.dumps(pipeline),
        stdout=subprocess.PIPE,
        env=environment,
        check=True,
    )
    found = pickle.loads(answer.stdout)
    if isinstance(found, UserError):
        raise found
    return found


def _weights_asked() -> None:
    """What `weights_elsewhere` runs: a pickled pipeline in, its weights or the error out."""
    given, out = sys.stdin.buffer.read(), os.dup(1)
    os.dup2(2, 1)  # what stages and libraries print is no part of the answer
    try:
        found: object = pickle.loads(given).weights()
    except UserError as error:
        found = error
    with os.fdopen(out, "wb") as answer:
        answer.write(pickle.dumps(found))


def stage_memory(stage: Wired, weights: int) -> int:
    """Bytes of a stage on the device: what the pipeline file says, or a multiple of its weights' bytes."""
    return int(stage.execution.memory * GIB) or int(weights * stage.cls.working_set)


def job_device(address: str, settings: LineSettings) -> str | None:
    """The device of a job's stations, as far as this machine knows: for `costs_of_job`."""
    if settings.gpus is False:
        return CPU
    return local_gpu() or (CPU if address == "local" else None)


if __name__ == "__main__":
    _weights_asked()
