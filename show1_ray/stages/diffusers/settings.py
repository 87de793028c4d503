"""What a pipeline file says of a diffusers pipeline. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from show1_ray.errors import shown
from show1_ray.pipeline.checkpoints import Checkpoint
from show1_ray.stage import Count, StageExecution, StageSettings
from show1_ray.stages.settings import Size

REMOTE = ("custom_pipeline", "custom_revision", "trust_remote_code", "remote_code")
"""Arguments of diffusers that run code of a model repository."""


class Lora(Checkpoint):
    """Low-rank weights that are added to the networks'."""

    weight: float = Field(1.0, ge=-100, le=100, allow_inf_nan=False, description="how strongly they are added")
    file: str | None = Field(None, description="the file of weights, where the folder has several")
    component: str | None = Field(
        None, description="the network that they are added to, where the file does not tell it: Wan 2.2's transformer_2"
    )


class PartExecution(StageSettings):
    """How a part of a pipeline that is cut is computed, where that differs from the whole."""

    batch_size: Count | None = Field(None, description="clips at a time")
    memory: float | None = Field(None, ge=0, le=10_000, description="GiB on the device")
    device: Literal["auto", "cpu"] | None = Field(None, description="cpu: on CPU cores, also where there are GPUs")
    cpus: int | None = Field(None, ge=0, description="with device: cpu, cores of a station that holds it")


def _one_or_several(value: Any) -> Any:
    return (value,) if isinstance(value, str | Mapping) else value


def _named(value: Any) -> Any:
    return {"class": value} if isinstance(value, str) else value


Named = Annotated[dict[str, Any], BeforeValidator(_named)]
"""A class of diffusers (`class`) and its arguments; the name alone stands for one without arguments."""


class Settings(StageSettings):
    """A pipeline of diffusers: its checkpoint, and what it is called with."""

    later: ClassVar[frozenset[str]] = frozenset(
        {
            *("pipeline", "negative_prompt", "long_prompts", "scheduler", "lora", "variant", "vae", "quantize"),
            *("attention", "cache", "over", "noise", "resize"),
        }
    )
    unrecorded: ClassVar[frozenset[str]] = frozenset({"split"})

    checkpoint: Checkpoint
    pipeline: str | None = Field(None, description="diffusers' class; default: the one that the checkpoint names")
    call: dict[str, Any] = Field(default_factory=dict, description="arguments of the pipeline's call, by name")
    negative_prompt: str | None = Field(None, description="of clips whose row gives none")
    long_prompts: Literal["refuse", "cut"] = Field(
        "refuse", description="prompts with more tokens than are encoded: the clip fails, or its end is left out"
    )
    scheduler: Named | None = Field(None, description="`class` and changes to the configuration, in place of its own")
    lora: Annotated[tuple[Lora, ...], BeforeValidator(_one_or_several), Field(strict=False)] = Field(
        (), description="low-rank weights: repo, revision, file, weight; one or several"
    )
    variant: str | None = Field(None, pattern=r"[A-Za-z0-9_]+", description="of the weights' files, such as fp16")
    vae: Annotated[tuple[Literal["tiling", "slicing"], ...], BeforeValidator(_one_or_several), Field(strict=False)] = (
        Field((), description="decode in tiles, or clip by clip")
    )
    quantize: dict[str, Any] | None = Field(
        None, description="`backend` of diffusers (torchao, bitsandbytes_8bit, …), `components`, and its arguments"
    )
    attention: str | None = Field(None, description="backend of attention, such as flash or sage")
    cache: Named | None = Field(None, description="`class` of a cache of diffusers, such as FirstBlock, and its values")
    over: Literal["frames"] | None = Field(
        None, description="frames: an image pipeline is called for each frame of the frames that it takes"
    )
    noise: Literal["same", "each"] = Field(
        "same", description="with over: frames, the noise of frames: the clip's for all, or each its own"
    )
    resize: Size | None = Field(None, description="with over: frames, to what frames are resized before (Lanczos)")
    split: bool | Literal["experts"] = Field(
        False, description="text, denoising and decoding as three stages; experts: Wan 2.2's two transformers apart too"
    )

    @model_validator(mode="before")
    @classmethod
    def _no_remote_code(cls, said: Any) -> Any:
        for place in (said, said.get("call")) if isinstance(said, Mapping) else ():
            for key in REMOTE:
                if isinstance(place, Mapping) and key in place:
                    raise ValueError(f"{key}: code of a model repository is never run; use a pipeline of diffusers")
        return said

    @field_validator("call", "scheduler", "quantize", "cache")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        """What JSON can hold: it is a part of the recipe."""
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise ValueError("holds something else than text, numbers, lists and mappings") from None
        return value

    @model_validator(mode="after")
    def _frames_are_gone_over(self) -> Self:
        if self.over is None:
            for key in ("noise", "resize"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"{key}: goes with over: frames only")
        elif self.split:
            raise ValueError("over: frames does not go with split: images are computed whole")
        return self

    @model_validator(mode="after")
    def _classes_are_named(self) -> Self:
        for key, word in (("scheduler", None), ("cache", "class"), ("quantize", "backend")):
            said = getattr(self, key)
            if said is not None and (name := said.get(word or "class")) is not None and not isinstance(name, str):
                raise ValueError(f"{key}: '{word or 'class'}' must be a name (it is {shown(name)})")
            if said is not None and word is not None and word not in said:
                raise ValueError(f"{key}: '{word}' is missing")
        return self


class Execution(StageExecution):
    """How it is computed; of a pipeline that is cut, each part may be computed in its own way."""

    frames: Count = Field(8, description="with over: frames, frames that are computed together, of one clip or several")
    text: PartExecution | None = Field(None, description="of a pipeline that is cut: of encoding texts")
    denoise: PartExecution | None = Field(None, description="of denoising (with split: experts of both transformers)")
    decode: PartExecution | None = Field(None, description="of decoding")

    def of(self, part: Literal["text", "denoise", "decode"]) -> Execution:
        """That of a part: what is said of it goes before what is said of the whole."""
        own = getattr(self, part)
        said = {} if own is None else {name: value for name, value in own if value is not None}
        return self.model_copy(update=said | dict.fromkeys(("text", "denoise", "decode")))
