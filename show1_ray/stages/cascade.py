"""The stages of a pipeline, loaded, and run one after the other in one process: without Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from show1_ray.clip import Clip
from show1_ray.models import loading
from show1_ray.models.checkpoints import Checkpoint, component_config, folder_of
from show1_ray.pipeline import STAGES, Denoising, Pipeline
from show1_ray.stages.interpolation import Interpolation
from show1_ray.stages.keyframes import Keyframes
from show1_ray.stages.latent_super_resolution import LatentSuperResolution
from show1_ray.stages.sampling import Scheduler, make_scheduler
from show1_ray.stages.stage import Stage
from show1_ray.stages.super_resolution import FirstFrame, SuperResolution
from show1_ray.stages.text import Text, TextEncoder

STAGE_CLASSES: dict[str, type[Stage]] = {
    stage.name: stage for stage in (Text, Keyframes, Interpolation, SuperResolution, LatentSuperResolution)
}
COMPONENTS: dict[str, tuple[str, ...]] = {
    "text": ("tokenizer", "text_encoder"),
    "keyframes": ("unet", "scheduler"),
    "interpolation": ("unet", "scheduler"),
    "first_frame": ("unet", "scheduler", "image_noising_scheduler"),
    "super_resolution": ("unet", "scheduler", "image_noising_scheduler"),
    "latent_super_resolution": ("tokenizer", "text_encoder", "unet", "vae", "scheduler"),
}
"""What each stage needs of its checkpoint."""


def fetch(pipeline: Pipeline) -> list[Path]:
    """Downloads everything the pipeline needs that is not there yet; returns the folders, a stage each.

    Raises:
        CheckpointError: see `models.checkpoints.folder_of`.
    """
    half = pipeline.dtype != "float32"
    stages = pipeline.stages
    checkpoints: dict[str, Checkpoint] = {name: getattr(stages, name).checkpoint for name in STAGES}
    checkpoints["first_frame"] = stages.super_resolution.first_frame.checkpoint
    return [folder_of(checkpoints[name], components, half=half) for name, components in COMPONENTS.items()]


def load_stage(pipeline: Pipeline, name: str, device: str | torch.device = "cpu") -> Stage:
    """One stage with its weights on `device`, in the pipeline's dtype.

    Raises:
        CheckpointError: weights that are not to be had or do not fit.
        KeyError: no stage of that name.
    """
    return {
        "text": _text,
        "keyframes": _keyframes,
        "interpolation": _interpolation,
        "super_resolution": _super_resolution,
        "latent_super_resolution": _latent_super_resolution,
    }[name](_Parts(pipeline, torch.device(device)))


def load_stages(pipeline: Pipeline, device: str | torch.device = "cpu") -> list[Stage]:
    """All stages in their order; see `load_stage`."""
    return [load_stage(pipeline, name, device) for name in STAGES]


def render(
    stages: Iterable[Stage],
    clips: Sequence[Clip],
    report: Callable[[str, list[dict[str, Tensor]]], None] = lambda name, tensors: None,
) -> list[Tensor]:
    """Runs clips through the stages as one batch.

    Args:
        stages: in their order.
        clips: the batch.
        report: called with each stage's name and what it gave.

    Returns:
        For each clip F H W 3, uint8.
    """
    tensors: list[dict[str, Tensor]] = [{} for _ in clips]
    for stage in stages:
        given = stage(clips, tensors)
        report(stage.name, given)
        tensors = [{**old, **new} for old, new in zip(tensors, given, strict=True)]
    return [clip_tensors["video"] for clip_tensors in tensors]


class _Parts:
    """Loads a pipeline's components: what the functions below have in common."""

    def __init__(self, pipeline: Pipeline, device: torch.device) -> None:
        self.stages, self.execution, self.device = pipeline.stages, pipeline.execution, device
        self.dtype: torch.dtype = getattr(torch, pipeline.dtype)

    def folder(self, name: str, checkpoint: Checkpoint) -> Path:
        return folder_of(checkpoint, COMPONENTS[name], half=self.dtype != torch.float32)

    def scheduler(self, folder: Path, settings: Denoising) -> Scheduler:
        return make_scheduler(component_config(folder, "scheduler"), **settings.scheduler)


def _text(parts: _Parts) -> Stage:
    settings = parts.stages.text
    folder = parts.folder("text", settings.checkpoint)
    model = loading.load_t5(folder, parts.device, parts.dtype)
    encoder = TextEncoder(loading.load_tokenizer(folder), model, settings.max_tokens, attends_mask=True)
    return Text(encoder, settings, parts.dtype)


def _keyframes(parts: _Parts) -> Stage:
    settings = parts.stages.keyframes
    folder = parts.folder("keyframes", settings.checkpoint)
    unet = loading.load_video_unet(folder, parts.device, parts.dtype)
    return Keyframes(unet, parts.scheduler(folder, settings), settings)


def _interpolation(parts: _Parts) -> Stage:
    settings = parts.stages.interpolation
    folder = parts.folder("interpolation", settings.checkpoint)
    unet = loading.load_video_unet(folder, parts.device, parts.dtype)
    return Interpolation(unet, parts.scheduler(folder, settings), settings)


def _super_resolution(parts: _Parts) -> Stage:
    settings = parts.stages.super_resolution
    folder = parts.folder("first_frame", settings.first_frame.checkpoint)
    first_frame = FirstFrame(
        loading.load_image_unet(folder, parts.device, parts.dtype),
        parts.scheduler(folder, settings.first_frame),
        make_scheduler(component_config(folder, "image_noising_scheduler")),
        settings.first_frame,
    )
    folder = parts.folder("super_resolution", settings.checkpoint)
    return SuperResolution(
        loading.load_video_unet(folder, parts.device, parts.dtype),
        parts.scheduler(folder, settings),
        make_scheduler(component_config(folder, "image_noising_scheduler")),
        first_frame,
        settings,
    )


def _latent_super_resolution(parts: _Parts) -> Stage:
    settings = parts.stages.latent_super_resolution
    folder = parts.folder("latent_super_resolution", settings.checkpoint)
    model = loading.load_clip(folder, parts.device, parts.dtype)
    return LatentSuperResolution(
        loading.load_latent_unet(folder, parts.device, parts.dtype),
        loading.load_vae(folder, parts.device, parts.dtype),
        TextEncoder(loading.load_tokenizer(folder), model, model.config.max_position_embeddings, attends_mask=False),
        parts.scheduler(folder, settings),
        settings,
        parts.execution.latent_super_resolution.vae_frames,
    )
