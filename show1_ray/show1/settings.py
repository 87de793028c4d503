"""The settings of the stages in pipeline files: of the recipe, and of the execution."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from show1_ray.pipeline.checkpoints import Checkpoint
from show1_ray.stage import Count
from show1_ray.stage import StageSettings as Settings
from show1_ray.stages.settings import Denoising, TorchExecution

Side = Annotated[int, Field(ge=1, le=8192)]  # pixels; H.264 ends at 16384
NoiseLevel = Annotated[int, Field(ge=0, lt=1000)]


class Text(Settings):
    """T5: prompts → `max_tokens` embeddings."""

    checkpoint: Checkpoint
    max_tokens: Count = Field(77, description="tokens per prompt; longer prompts are cut")
    clean_caption: bool = Field(
        False, description="clean prompts as DeepFloyd IF does, instead of only lower-casing and stripping them"
    )
    negative_prompt: str = Field("", description="for the pixel stages, where a row has none")


class Keyframes(Denoising):
    """Text → `frames` frames of `width` × `height`."""

    frames: int = Field(8, ge=2, le=10_000, description="keyframes per clip")
    height: Side = Field(40, description="height in pixels")
    width: Side = Field(64, description="width in pixels")


class Interpolation(Denoising):
    """Each pair of neighbouring keyframes → a window of `window` frames, of which the ends lie on the keyframes."""

    window: int = Field(5, ge=3, le=1000, description="frames from one keyframe to the next, both included")


class FirstFrame(Denoising):
    """The first frame's super-resolution, by an image model."""

    noise_level: NoiseLevel = Field(
        150, description="noise level of the upscaled frame that it starts from, in training steps"
    )


class SuperResolution(Denoising):
    """Frames → frames `scale` times as wide and high, in windows; each starts from the last frame of the one before."""

    first_frame: FirstFrame
    scale: int = Field(4, ge=1, le=64, description="factor by which width and height grow")
    window: int = Field(8, ge=2, le=1000, description="frames at a time")
    stride: Count = Field(7, description="frames from the start of one window to the start of the next")
    noise_level: NoiseLevel = Field(
        250, description="noise level of the upscaled frames that it starts from, in training steps"
    )


class LatentSuperResolution(Denoising):
    """Frames → 8-bit frames of `width` × `height`, noised to `strength` and denoised in a VAE's latent space."""

    height: Side = Field(320, description="height in pixels")
    width: Side = Field(576, description="width in pixels")
    strength: float = Field(0.8, gt=0, le=1, description="share of the steps to run, starting from as much noise")
    negative_prompt: str = Field("low resolution, blur", description="where a row has none")


class Stages(Settings):
    """The cascade, in its order."""

    text: Text
    keyframes: Keyframes
    interpolation: Interpolation
    super_resolution: SuperResolution
    latent_super_resolution: LatentSuperResolution


class Execution(TorchExecution):
    """How a stage of the cascade is computed."""

    fused: bool = Field(False, description="channels last, and Triton kernels for everything between convolutions")


class LatentExecution(Execution):
    """How latent super-resolution is computed."""

    vae_frames: Count = Field(8, description="frames that the VAE encodes or decodes at a time")
