"""What stations run: the stages of a pipeline as the line sees them, and the landing of clips behind them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from show1_ray.clip import Clip
from show1_ray.dataset import Lander, Rendering, StorageError
from show1_ray.line.spec import RENDERING, FatalError, LineSettings, StageSpec
from show1_ray.pipeline import STAGES, Pipeline
from show1_ray.pipeline.checkpoints import published_or_local_config
from show1_ray.planning.costs import Costs, costs_of_job
from show1_ray.planning.profile import CPU, local_gpu

STAGES_SHARE = 0.92
"""The part of a GPU's memory that stages may take; the rest is CUDA's own."""

LAND_SECONDS = 0.05
"""What it takes to write a clip's file, until the line has measured it."""

FRAMES_OF = {"keyframes": "keyframes", "interpolation": "frames", "super_resolution": "frames_sr"}
"""Stages whose frames can be saved, and the tensors that hold them."""


def specs(
    pipeline: Pipeline, lander: Lander, save_stages: Sequence[str] = (), costs: Costs | None = None
) -> list[StageSpec]:
    """The pipeline's stages as the line sees them, and the landing of clips behind them; costs default to a CPU's."""
    saved = {stage: FRAMES_OF[stage] for stage in save_stages}
    land = StageSpec(
        name="land",
        build=lambda device: Land(lander, saved),
        takes=("video", *saved.values()),
        values=("extra", RENDERING),
        gives=("row",),
        on="cpu",
        seconds=LAND_SECONDS,
    )
    return [*stage_specs(pipeline, costs or costs_of_job(pipeline, CPU)), land]


def stage_specs(pipeline: Pipeline, costs: Costs) -> list[StageSpec]:
    """The pipeline's stages as the line sees them."""
    from show1_ray.show1.cascade import STAGE_CLASSES  # torch, which takes seconds

    sizes = output_bytes(pipeline)
    return [
        StageSpec(
            name=name,
            build=partial(build_stage, pipeline, name),
            takes=tuple(STAGE_CLASSES[name].takes),
            gives=tuple(STAGE_CLASSES[name].gives),
            batch_size=getattr(pipeline.execution, name).batch_size,
            seconds=costs[name].seconds,
            load_seconds=costs[name].load_seconds,
            swap_seconds=costs[name].swap_seconds,
            memory=costs[name].memory,
            output_bytes=sizes[name],
        )
        for name in STAGES
    ]


def output_bytes(pipeline: Pipeline) -> dict[str, int]:
    """Bytes of what each stage gives for a clip, from the recipe's geometry."""
    stages, item = pipeline.stages, 4 if pipeline.dtype == "float32" else 2
    encoder = published_or_local_config(stages.text.checkpoint, "text_encoder") or {"d_model": 4096}
    pixels = 3 * stages.keyframes.height * stages.keyframes.width
    last = stages.latent_super_resolution
    return {
        "text": 2 * stages.text.max_tokens * encoder["d_model"] * item,
        "keyframes": stages.keyframes.frames * pixels * item,
        "interpolation": pipeline.total_frames * pixels * item,
        "super_resolution": pipeline.total_frames * pixels * stages.super_resolution.scale**2 * item,
        "latent_super_resolution": pipeline.total_frames * 3 * last.height * last.width,
    }


def memory_for_stages(device: str) -> int:
    """Bytes of a station's device that its stages may take: most of a GPU's; host memory is not counted."""
    if device == "cpu":
        return sys.maxsize
    import torch

    return int(STAGES_SHARE * torch.cuda.get_device_properties(device).total_memory)


def build_stage(pipeline: Pipeline, name: str, device: str) -> OnArrays:
    """Loads a stage on a station."""
    from show1_ray.show1.cascade import load_stage

    return OnArrays(load_stage(pipeline, name, device))


class OnArrays:
    """A stage whose tensors come and go as NumPy arrays, which Ray's object store shares without copying."""

    def __init__(self, stage: Any) -> None:
        self.stage = stage

    def __call__(self, clips: Sequence[Clip], arrays: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """See `Stage.__call__`."""
        given = [{name: to_tensor(array) for name, array in clip.items()} for clip in arrays]
        return [{name: to_array(tensor) for name, tensor in clip.items()} for clip in self.stage(clips, given)]

    def to(self, device: str) -> None:
        """See `Stage.leave` and `Stage.enter`; what the device does not need any more, others may have."""
        import torch

        if device == "cpu":
            self.stage.leave()
        else:
            self.stage.enter(device)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def to_tensor(array: Any) -> Any:
    """The tensor of an array out of the object store, whose memory is read-only; see `to_array`."""
    import torch

    tensor = torch.from_numpy(array.copy())
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.int16 else tensor


def to_array(tensor: Any) -> Any:
    """A tensor's array. NumPy has no bfloat16: it travels as the int16 of the same bits."""
    import torch

    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).contiguous().numpy()


def to_uint8(frames: np.ndarray) -> np.ndarray:
    """C F H W in [−1, 1], of `to_array` → F H W C, uint8, without waiting for torch."""
    if frames.dtype == np.int16:  # bfloat16 is the upper half of a single
        frames = (frames.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    levels = (frames.astype(np.float32) * 0.5 + 0.5).clip(0, 1) * 255
    return levels.astype(np.uint8).transpose(1, 2, 3, 0)


class Land:
    """The end of the line: frames become a file of the dataset, and a row."""

    def __init__(self, lander: Lander, saved: Mapping[str, str]) -> None:
        self.lander, self.saved = lander, saved

    def __call__(self, clips: Sequence[Clip], arrays: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Takes each clip's `video` (F H W 3, uint8), `extra` and `rendering`; gives its `row`.

        Raises:
            FatalError: the storage fails, after retries.
        """
        return [{"row": self._land(clip, given)} for clip, given in zip(clips, arrays, strict=True)]

    def _land(self, clip: Clip, given: Mapping[str, Any]) -> dict[str, Any]:
        try:
            for stage, name in self.saved.items():
                self.lander.save_stage(clip, stage, to_uint8(given[name]))
            return self.lander(clip, given["video"], Rendering(**given[RENDERING]), given["extra"])
        except StorageError as error:
            raise FatalError(str(error)) from error


def job_device(address: str, settings: LineSettings) -> str | None:
    """What the stations of a job compute on, as far as this machine knows: for `costs_of_job`."""
    if settings.gpus is False:
        return CPU
    return local_gpu() or (CPU if address == "local" else None)
