"""Settings that denoising stages of any model share: of the recipe, and of the execution. No torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from show1_ray.pipeline.checkpoints import Checkpoint
from show1_ray.stage import Count, StageExecution
from show1_ray.stage import StageSettings as Settings

Guidance = Annotated[float, Field(ge=1, le=1000)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Compile = Annotated[
    Literal["off", "blocks", "graphs"],
    BeforeValidator(lambda value: "off" if value is False else value),  # YAML's off is false
]


class Size(Settings):
    """The size of frames."""

    height: int = Field(ge=1, le=16384, description="in pixels")
    width: int = Field(ge=1, le=16384, description="in pixels")


class SchedulerChanges(Settings):
    """Changes to the checkpoint's scheduler configuration; names and values are diffusers'."""

    solver_order: Literal[1, 2, 3] | None = Field(None, description="order of the solver")
    solver_type: Literal["midpoint", "heun"] | None = Field(None, description="kind of second-order solver")
    timestep_spacing: Literal["linspace", "leading", "trailing"] | None = Field(
        None, description="how its steps are spaced over the training steps"
    )
    final_sigmas_type: Literal["sigma_min", "zero"] | None = Field(None, description="noise after the last step")
    use_karras_sigmas: bool | None = Field(None, description="use the noise levels of Karras et al.")
    lower_order_final: bool | None = Field(None, description="use a lower order for the last steps")
    thresholding: bool | None = Field(None, description="use dynamic thresholding, for pixels")
    dynamic_thresholding_ratio: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="share of the values below the threshold"
    )
    sample_max_value: Annotated[float, Field(ge=1, le=1e6)] | None = Field(
        None, description="upper bound of the threshold"
    )
    lambda_min_clipped: Annotated[float, Field(allow_inf_nan=True, lt=float("inf"))] | None = Field(
        None, description="lower bound of the log signal-to-noise ratio to start from"
    )


class Reuse(Settings):
    """A UNet's deep features are computed every `every` steps and reused in between (Ma et al., "DeepCache", arXiv
    2312.00858): there the `levels` highest resolutions alone are computed.
    """

    every: int = Field(ge=2, le=1000, description="compute the whole network at every this many steps")
    levels: Count = Field(1, description="how many of the highest resolutions to compute at every step")


class Denoising(Settings):
    """A denoising loop: `steps` of a scheduler, with guidance (1 switches it off).

    Two shortcuts, off unless given. `guidance_interval` is the part of the walk that is guided, in parts of its steps:
    of 10 steps [0.2, 0.8] guides those from the third to the eighth, and the rest has the prompt's half alone
    (Kynkäänniemi et al., arXiv 2404.07724). `reuse` see `Reuse`.
    """

    later: ClassVar[frozenset[str]] = frozenset({"guidance_interval", "reuse"})

    checkpoint: Checkpoint
    steps: int = Field(ge=1, le=1000, description="denoising steps")
    guidance: Guidance = Field(description="guidance scale; 1: no guidance")
    scheduler: SchedulerChanges = SchedulerChanges()
    guidance_interval: Annotated[tuple[Fraction, Fraction], Field(strict=False)] | None = Field(
        None, description="share of the steps that is guided, such as [0.2, 0.8]; null: all"
    )
    reuse: Reuse | None = Field(None, description="compute deep features at some steps only")

    @model_validator(mode="after")
    def _interval_has_a_length(self) -> Self:
        if self.guidance_interval is not None and self.guidance_interval[0] >= self.guidance_interval[1]:
            raise ValueError("'guidance_interval' must end after it begins")
        return self


class TorchExecution(StageExecution):
    """How a stage of torch's networks is computed: changes speed and memory, not what a clip is."""

    compile: Compile = Field(
        "off", description="torch.compile, except for text encoders: repeated blocks, or whole UNets as CUDA graphs"
    )
    channels_last: bool = Field(False, description="lay out convolutions with channels last")
