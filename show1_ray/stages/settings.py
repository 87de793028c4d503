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


class SchedulerChanges(Settings):
    """Changes to the checkpoint's scheduler configuration; names and values are diffusers'."""

    solver_order: Literal[1, 2, 3] | None = Field(None, description="of the solver")
    solver_type: Literal["midpoint", "heun"] | None = Field(None, description="of a solver of second order")
    timestep_spacing: Literal["linspace", "leading", "trailing"] | None = Field(
        None, description="where on the training steps its own lie"
    )
    final_sigmas_type: Literal["sigma_min", "zero"] | None = Field(None, description="noise after the last step")
    use_karras_sigmas: bool | None = Field(None, description="noise levels as of Karras et al.")
    lower_order_final: bool | None = Field(None, description="a solver of lower order at the last steps")
    thresholding: bool | None = Field(None, description="dynamic thresholding, for pixels")
    dynamic_thresholding_ratio: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="the part of the values below the threshold"
    )
    sample_max_value: Annotated[float, Field(ge=1, le=1e6)] | None = Field(
        None, description="the most that a threshold is"
    )
    lambda_min_clipped: Annotated[float, Field(allow_inf_nan=True, lt=float("inf"))] | None = Field(
        None, description="the least log signal-to-noise ratio that is begun at"
    )


class Reuse(Settings):
    """A UNet's deep features are computed every `every` steps and reused in between (Ma et al., "DeepCache", arXiv
    2312.00858): there the `levels` highest resolutions alone are computed.
    """

    every: int = Field(ge=2, le=1000, description="steps from one whole computation to the next")
    levels: Count = Field(1, description="resolutions that are computed at every step, the highest first")


class Denoising(Settings):
    """A denoising loop: `steps` of a scheduler, with guidance (1 switches it off).

    Two shortcuts, off unless given. `guidance_interval` is the part of the walk that is guided, in parts of its steps:
    of 10 steps [0.2, 0.8] guides those from the third to the eighth, and the rest has the prompt's half alone
    (Kynkäänniemi et al., arXiv 2404.07724). `reuse` see `Reuse`.
    """

    later: ClassVar[frozenset[str]] = frozenset({"guidance_interval", "reuse"})

    checkpoint: Checkpoint
    steps: int = Field(ge=1, le=1000, description="of the scheduler")
    guidance: Guidance = Field(description="strength of the prompt; 1: none")
    scheduler: SchedulerChanges = SchedulerChanges()
    guidance_interval: Annotated[tuple[Fraction, Fraction], Field(strict=False)] | None = Field(
        None, description="the part of the steps that is guided, such as [0.2, 0.8]; none: all"
    )
    reuse: Reuse | None = Field(None, description="deep features that are computed at some steps only")

    @model_validator(mode="after")
    def _interval_has_a_length(self) -> Self:
        if self.guidance_interval is not None and self.guidance_interval[0] >= self.guidance_interval[1]:
            raise ValueError("'guidance_interval' must end after it begins")
        return self


class TorchExecution(StageExecution):
    """How a stage of torch's networks is computed: changes speed and memory, not what a clip is."""

    compile: Compile = Field(
        "off", description="torch.compile for all but text encoders: repeated blocks, or UNets whole, as CUDA graphs"
    )
    channels_last: bool = Field(False, description="lay the networks' convolutions out with channels last")
