"""What stages cost on a device, before a job measures it: from a profile or, without one, from operation counts."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from show1_ray.errors import UserError
from show1_ray.pipeline import STAGES, Pipeline
from show1_ray.planning.gpus import GIB, Gpu
from show1_ray.planning.profile import CPU, Profile, StageProfile, find_profile

RELATIVE_SECONDS = {
    "text": 0.05,
    "keyframes": 1.0,
    "interpolation": 3.0,
    "super_resolution": 7.0,
    "latent_super_resolution": 2.5,
}
"""What stages cost beside one another, until the line has measured it: the operations of the published demo."""

EFFICIENCY = 0.35
"""Share of a GPU's datasheet rate that networks are assumed to reach. The published demo reached 21 % of an A100's
(10.57 PFLOP in 160 s of 312 TFLOP/s), with a clip at a time and every network moved off the GPU after each call; large
batches of convolutions and attention reach half and more. Not measured here: `show1-ray profile` measures it."""

DISK_RATE = 1e9
"""Bytes a second that weights are assumed to be loaded at from a local disk."""

HOST_RATE = 10e9
"""Bytes a second between host memory that is not pinned and a GPU, assumed: less than half of PCIe 4."""

WORKING_SET = {"text": 1.2}
WORKING_SETS = 3.0
"""A stage's memory as a multiple of its weights, where neither the pipeline file nor a profile says it. The published
demo's peaks are three times the weights; texts are encoded one at a time."""

ALLOCATOR = 1.1
"""What torch takes of a GPU as a multiple of the peak that it gave out: its cache has gaps."""


@dataclass(frozen=True)
class StageCost:
    """One stage: seconds a clip, bytes on the device with a full batch, seconds to load and to swap in."""

    seconds: float
    memory: int
    load_seconds: float
    swap_seconds: float


Costs = Mapping[str, StageCost]
"""By stage."""


def costs_from_profile(pipeline: Pipeline, profile: Profile) -> dict[str, StageCost]:
    """What was measured, at the pipeline's batch sizes; memory that the pipeline file gives goes before."""
    costs = {}
    for name in STAGES:
        execution, stage = getattr(pipeline.execution, name), profile.stages[name]
        seconds, memory = at_batch_size(stage, execution.batch_size)
        memory = int(execution.memory * GIB) or (int(ALLOCATOR * memory) if profile.memory == "peak" else memory)
        costs[name] = StageCost(seconds, memory, stage.load_seconds, stage.swap_seconds)
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
    """Operations over the datasheet's rate times `efficiency`; loading at assumed rates. Imports torch.

    Raises:
        UserError: see `count_stages`.
    """
    from show1_ray.stages.operations import count_stages

    counts = count_stages(pipeline)
    memory = stage_memory(pipeline, {name: count.weights for name, count in counts.items()})
    return {
        name: StageCost(
            count.operations / (gpu.rate(pipeline.dtype) * efficiency),
            memory[name],
            count.weights / DISK_RATE,
            count.weights / HOST_RATE,
        )
        for name, count in counts.items()
    }


def costs_of_job(pipeline: Pipeline, device: str | None) -> dict[str, StageCost]:
    """What a job begins with, until it has measured better: the profile of a device, or guesses.

    Says on standard error which profiles are ignored. Seconds without a profile are in proportion to the published
    demo's operations; memory is looked at on GPUs only.

    Args:
        pipeline: resolved or not.
        device: "cpu", a GPU's name, or None for GPUs of a cluster whose kind is not known yet.

    Raises:
        UserError: a file that is no profile.
    """
    profile, ignored = find_profile(pipeline, device)
    for sentence in ignored:
        print(sentence, file=sys.stderr)
    if profile is not None:
        return costs_from_profile(pipeline, profile)
    weights = dict.fromkeys(STAGES, 0)
    if device != CPU and not all(getattr(pipeline.execution, name).memory for name in STAGES):
        from show1_ray.stages.operations import weights_of

        try:
            weights = weights_of(pipeline)
        except UserError as error:
            print(f"memory of stages is not known, and taken for none: {error}", file=sys.stderr)
    memory = stage_memory(pipeline, weights)
    return {name: StageCost(RELATIVE_SECONDS[name], memory[name], 1.0, 1.0) for name in STAGES}


def stage_memory(pipeline: Pipeline, weights: Mapping[str, int]) -> dict[str, int]:
    """Bytes of each stage: what the pipeline file says, or a multiple of its weights' bytes."""
    return {
        name: int(getattr(pipeline.execution, name).memory * GIB)
        or int(weights[name] * WORKING_SET.get(name, WORKING_SETS))
        for name in STAGES
    }
