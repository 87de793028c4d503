"""What a pipeline file may say of its stages: settings of the recipe, and of the execution."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from show1_ray.pipeline.checkpoints import Checkpoint
from show1_ray.stage import Count, StageExecution
from show1_ray.stage import StageSettings as Settings

Side = Annotated[int, Field(ge=1, le=8192)]  # pixels; H.264 ends at 16384
NoiseLevel = Annotated[int, Field(ge=0, lt=1000)]
Guidance = Annotated[float, Field(ge=1, le=1000)]
Part = Annotated[float, Field(ge=0, le=1)]
Compile = Annotated[
    Literal["off", "blocks", "graphs"],
    BeforeValidator(lambda value: "off" if value is False else value),  # YAML's off is false
]


class Text(Settings):
    """T5: prompts → `max_tokens` embeddings."""

    checkpoint: Checkpoint
    max_tokens: Count = 77
    clean_caption: bool = Field(False, description="clean prompts as DeepFloyd IF does, not only lower and strip them")
    negative_prompt: str = Field("", description="of the pixel stages, for clips that bring none")


class SchedulerChanges(Settings):
    """Changes to the checkpoint's scheduler configuration; names and values are diffusers'."""

    solver_order: Literal[1, 2, 3] | None = None
    solver_type: Literal["midpoint", "heun"] | None = None
    timestep_spacing: Literal["linspace", "leading", "trailing"] | None = None
    final_sigmas_type: Literal["sigma_min", "zero"] | None = None
    use_karras_sigmas: bool | None = None
    lower_order_final: bool | None = None
    thresholding: bool | None = None
    dynamic_thresholding_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    sample_max_value: Annotated[float, Field(ge=1, le=1e6)] | None = None
    lambda_min_clipped: Annotated[float, Field(allow_inf_nan=True, lt=float("inf"))] | None = None


class Reuse(Settings):
    """A UNet's deep features are computed every `every` steps and reused in between (Ma et al., "DeepCache", arXiv
    2312.00858): there the `levels` highest resolutions alone are computed.
    """

    every: Annotated[int, Field(ge=2, le=1000)]
    levels: Count = 1


class Denoising(Settings):
    """A denoising loop: `steps` of a scheduler, with guidance (1 switches it off).

    Two shortcuts, off unless given. `guidance_interval` is the part of the walk that is guided, in parts of its steps:
    of 10 steps [0.2, 0.8] guides those from the third to the eighth, and the rest has the prompt's half alone
    (Kynkäänniemi et al., arXiv 2404.07724). `reuse` see `Reuse`.
    """

    later: ClassVar[frozenset[str]] = frozenset({"guidance_interval", "reuse"})

    checkpoint: Checkpoint
    steps: Annotated[int, Field(ge=1, le=1000)]
    guidance: Guidance
    scheduler: SchedulerChanges = SchedulerChanges()
    guidance_interval: Annotated[tuple[Part, Part], Field(strict=False)] | None = None
    reuse: Reuse | None = None

    @model_validator(mode="after")
    def _interval_has_a_length(self) -> Self:
        if self.guidance_interval is not None and self.guidance_interval[0] >= self.guidance_interval[1]:
            raise ValueError("'guidance_interval' must end after it begins")
        return self


class Keyframes(Denoising):
    """Text → `frames` frames of `width` × `height`."""

    frames: Annotated[int, Field(ge=2, le=10_000)] = 8
    height: Side = 40
    width: Side = 64


class Interpolation(Denoising):
    """Each pair of neighbouring keyframes → a window of `window` frames, of which the ends lie on the keyframes."""

    window: Annotated[int, Field(ge=3, le=1000)] = 5


class FirstFrame(Denoising):
    """The first frame's super-resolution, by an image model."""

    noise_level: NoiseLevel = 150


class SuperResolution(Denoising):
    """Frames → frames `scale` times as wide and high, in windows; each starts from the last frame of the one before."""

    first_frame: FirstFrame
    scale: Annotated[int, Field(ge=1, le=64)] = 4
    window: Annotated[int, Field(ge=2, le=1000)] = 8
    stride: Count = 7
    noise_level: NoiseLevel = 250


class LatentSuperResolution(Denoising):
    """Frames → 8-bit frames of `width` × `height`, noised to `strength` and denoised in a VAE's latent space."""

    height: Side = 320
    width: Side = 576
    strength: Annotated[float, Field(gt=0, le=1)] = 0.8
    negative_prompt: str = "low resolution, blur"


class Stages(Settings):
    """The cascade, in its order."""

    text: Text
    keyframes: Keyframes
    interpolation: Interpolation
    super_resolution: SuperResolution
    latent_super_resolution: LatentSuperResolution


class Execution(StageExecution):
    """How a stage is computed: changes speed and memory, not what a clip is."""

    compile: Compile = Field(
        "off", description="torch.compile for all but text encoders: repeated blocks, or UNets whole, as CUDA graphs"
    )
    channels_last: bool = Field(False, description="lay the networks' convolutions out with channels last")
    fused: bool = Field(False, description="channels last, and Triton kernels for what is between convolutions")


class LatentExecution(Execution):
    """How latent super-resolution is computed."""

    vae_frames: Count = Field(8, description="frames that the VAE encodes or decodes at a time")


class StagesExecution(Settings):
    """Execution settings by stage."""

    text: Execution = Execution()
    keyframes: Execution = Execution()
    interpolation: Execution = Execution()
    super_resolution: Execution = Execution()
    latent_super_resolution: LatentExecution = LatentExecution()
