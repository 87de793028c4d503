"""What is known of families of diffusers' pipelines, beyond what their signatures tell. All of it is here. No torch.

A family is a folder of diffusers (`pipelines/wan`), or some classes of it. What is not said of a family holds for
pipelines that nobody has told us of, too: they run whole, clip by clip, and what comes out is held against what was
asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import lcm
from typing import Any

from show1_ray.stages.diffusers.layout import Layout
from show1_ray.stages.diffusers.signatures import Signature

Number = Callable[[Layout], int]
"""Something that a checkpoint's configurations tell."""

FRAMES = ("num_frames", "frames", "video_length")
"""What pipelines call the number of frames that they are asked for."""


@dataclass(frozen=True)
class Split:
    """How a pipeline is cut into text, denoising and decoding; see `split` for how that is done for all alike.

    A family may have one if its pipelines encode by `encode_prompt` alone, give latents for `output_type="latent"`
    that are those which decoding begins with, and come to their first latents by `prepare_latents`. A test must show
    that what comes out is equal to the whole, bit for bit.

    Attributes:
        texts: what `encode_prompt` gives, in its order (of several calls one after the other), with its axes.
        latents: axes of the latents that `output_type="latent"` gives.
        calls: how often `encode_prompt` is called: once, or for the negative prompt again.
        experts: whether it has two transformers, for the noisier steps and the others, cut at `boundary_ratio`.
    """

    texts: Mapping[str, str]
    latents: str = "c f h w"
    calls: int = 1
    experts: bool = False


TWO = {"prompt_embeds": "l d", "negative_prompt_embeds": "l d"}
"""What most encode: the prompt and the negative one."""
FOUR = {
    "prompt_embeds": "l d",
    "prompt_attention_mask": "l",
    "negative_prompt_embeds": "l d",
    "negative_prompt_attention_mask": "l",
}
"""The same with masks."""
_QWEN_AND_BYTES = ("prompt_embeds", "prompt_embeds_mask", "prompt_embeds_2", "prompt_embeds_mask_2")


@dataclass(frozen=True)
class Family:
    """What is known of a family.

    Attributes:
        name: for people.
        frames: counts that it can make are 1 more than multiples of this.
        size: what height and width are multiples of, beside what the class itself demands.
        alone: why a batch would change a clip, or cannot be computed; "" where batches are fine.
        vae: a setting `vae` without which it cannot decode.
        lists: whether it takes a generator for each clip where its scheduler draws noise.
        scale: how many times larger than the image that it takes its image is; None: not known, or asked for.
        split: how pipeline classes of it are cut in three; others run whole.
    """

    name: str
    frames: Number | None = None
    size: Number | None = None
    alone: str = ""
    vae: str = ""
    lists: bool = True
    scale: Number | None = None
    split: Mapping[str, Split] = field(default_factory=dict)


def _of(component: str, *keys: str, default: int) -> Number:
    """A number of a component's configuration, by the first of the keys that it has."""

    def number(layout: Layout) -> int:
        config = layout.config(component)
        found = next((config[key] for key in keys if isinstance(config.get(key), int)), default)
        return max(1, int(found))

    return number


def _patched(spatial: Number, at: int = -1) -> Number:
    """Times the transformer's patches."""

    def number(layout: Layout) -> int:
        patch = layout.config("transformer").get("patch_size", 1)
        if isinstance(patch, list):
            patch = patch[at] if patch else 1
        return spatial(layout) * (patch if isinstance(patch, int) else 1)

    return number


def _levels(component: str = "vae") -> Number:
    """What a VAE that halves once a level makes smaller."""
    return lambda layout: 2 ** max(0, len(layout.config(component).get("block_out_channels") or [0] * 4) - 1)


def _ltx_time(layout: Layout) -> int:
    """Of LTX' VAEs, which work it out of their levels where their configuration does not say it."""
    config = layout.config("vae")
    levels = [bool(level) for level in config.get("spatio_temporal_scaling") or ()]
    own = int(config.get("patch_size_t") or 1) * 2 ** sum(levels) if levels else 8
    return _of("vae", "temporal_compression_ratio", default=own)(layout)


_WAN_TIME = _of("vae", "scale_factor_temporal", default=4)
_WAN_SPACE = _patched(_of("vae", "scale_factor_spatial", default=8))

_IMAGES = Family("Stable Diffusion", size=_levels(), scale=lambda _: 1)

WAN = Family("Wan", _WAN_TIME, _WAN_SPACE, split={"WanPipeline": Split(TWO, experts=True)})
UNKNOWN = Family("")

FAMILIES: Mapping[str, Family] = {
    "wan": WAN,
    "lucy": WAN,
    "skyreels_v2": Family("SkyReels-V2", _WAN_TIME, _WAN_SPACE),
    "chronoedit": Family("ChronoEdit", _WAN_TIME, _WAN_SPACE),
    "ltx": Family(
        "LTX",
        _ltx_time,
        lambda _: 32,
        split={"LTXPipeline": Split(FOUR, latents="l c")},
    ),
    "ltx2": Family("LTX-2", _ltx_time, lambda _: 32),
    "cogvideo": Family(
        "CogVideoX", lambda _: 8, lambda _: 16, split={"CogVideoXPipeline": Split(TWO, latents="f c h w")}
    ),
    "consisid": Family("ConsisID", lambda _: 8, lambda _: 16),
    "hunyuan_video": Family("HunyuanVideo", _of("vae", "temporal_compression_ratio", default=4), lambda _: 16),
    "hunyuan_video1_5": Family(
        "HunyuanVideo 1.5",
        _of("vae", "temporal_compression_ratio", default=4),
        _patched(_of("vae", "spatial_compression_ratio", default=16)),
        alone="its VAE decodes no batch without slicing",
        split={
            "HunyuanVideo15Pipeline": Split(
                {
                    f"{half}{name}": "l" if "mask" in name else "l d"
                    for half in ("", "negative_")
                    for name in _QWEN_AND_BYTES
                },
                calls=2,
            )
        },
    ),
    "mochi": Family(
        "Mochi",
        lambda _: 6,
        lambda _: 16,
        alone="an empty prompt at the end of a batch changes the clips before it",
        split={"MochiPipeline": Split(FOUR)},
    ),
    "sana_video": Family(
        "SanaVideo",
        _of("vae", "scale_factor_temporal", "temporal_compression_ratio", default=4),
        split={"SanaVideoPipeline": Split(FOUR)},
    ),
    "kandinsky5": Family(
        "Kandinsky 5",
        _of("vae", "temporal_compression_ratio", default=4),
        lambda _: 16,
        alone="prompts of other lengths in its batch change a clip",
    ),
    "allegro": Family("Allegro", vae="tiling"),
    "animatediff": Family("AnimateDiff", lists=False, split={"AnimateDiffPipeline": Split(TWO)}),
    "stable_diffusion": _IMAGES,
    "stable_diffusion_xl": _IMAGES,
}
"""By diffusers' folder or class."""

CLASSES: Mapping[str, Family] = {
    "TextToVideoSDPipeline": Family(
        "ModelScope", size=_levels(), lists=False, split={"TextToVideoSDPipeline": Split(TWO)}
    ),
    "VideoToVideoSDPipeline": Family("ModelScope", size=_levels(), lists=False, alone="it takes one video at a time"),
    "StableDiffusionUpscalePipeline": Family("Stable Diffusion", size=_levels(), scale=_levels()),
    "StableDiffusionLatentUpscalePipeline": Family("Stable Diffusion", size=_levels(), scale=lambda _: 2),
}
"""Classes that differ from what lies in their folder."""


def family_of(pipeline: Signature) -> Family:
    """What is known of a pipeline class."""
    return CLASSES.get(pipeline.name) or FAMILIES.get(pipeline.folder, UNKNOWN)


_MEANT = {
    "image": ("ImageToVideo", "Image2Video", "I2V", "Img2Img", "ImageToImage", "Inpaint", "Upscale", "I2I"),
    "video": ("VideoToVideo", "Video2Video", "V2V"),
}
"""Pipelines whose names say what they begin with, although their calls have a default for it."""


def is_needed(pipeline: Signature, argument: str) -> bool:
    """Whether a pipeline cannot do without an argument of its call."""
    said = any(word in pipeline.name for word in _MEANT.get(argument, ()))
    return pipeline.call[argument].is_required or said


def split_of(pipeline: Signature) -> Split | None:
    """How a pipeline class is cut; None: it runs whole."""
    return family_of(pipeline).split.get(pipeline.name)


def frames_argument(pipeline: Signature) -> str | None:
    """What its call names the number of frames."""
    return next((name for name in FRAMES if name in pipeline.call), None)


def frames_step(pipeline: Signature, layout: Layout | None) -> int:
    """Counts of frames that it can make are 1 more than multiples of this."""
    rule = family_of(pipeline).frames
    return 1 if rule is None or layout is None else rule(layout)


def size_step(pipeline: Signature, layout: Layout | None, side: str) -> int:
    """What "height" or "width" is a multiple of."""
    rule = family_of(pipeline).size
    return lcm(pipeline.divisors.get(side, 1), 1 if rule is None or layout is None else rule(layout))


def image_scale(pipeline: Signature, layout: Layout | None) -> int | None:
    """How many times larger than the image that it takes its image is; None: not known."""
    rule = family_of(pipeline).scale
    return None if rule is None or layout is None else rule(layout)


def cut_size(pipeline: Signature, layout: Layout | None, sizes: Mapping[str, int | None]) -> dict[str, int] | None:
    """Where a pipeline would cut images of a size ("height", "width"), the nearest size that it takes as it is."""
    steps = {side: size_step(pipeline, layout, side) for side in sizes}
    known = {side: size for side, size in sizes.items() if size is not None}
    if len(known) < len(sizes) or not any(size % steps[side] for side, size in known.items()):
        return None
    return {side: nearest(size, steps[side], 0) for side, size in known.items()}


def nearest(value: int, step: int, rest: int) -> int:
    """The nearest to a value of those that are `rest` more than multiples of `step`; the lower one of two."""
    below = max((value - rest) // step * step + rest, rest or step)
    above = below + step if below < value else below
    return below if value - below <= above - value else above


def default_of(pipeline: Signature, call: Mapping[str, Any], name: str) -> Any:
    """What an argument is: as it was given, or the class's own default where that is a plain value."""
    argument = pipeline.call.get(name)
    value = call.get(name, argument.default if argument is not None else None)
    return value if isinstance(value, int | float | str | bool) else None


STOCHASTIC = ("EulerAncestralDiscreteScheduler", "DDPMScheduler", "LCMScheduler", "KDPM2AncestralDiscreteScheduler")
"""Schedulers that draw noise at each step."""


def may_batch(pipeline: Signature, scheduler: Any, settings: Any) -> bool:
    """Whether several clips may go through one call: of families that are known, and not where a list of generators
    would be an error, or a neighbour would change a clip.
    """
    family = family_of(pipeline)
    draws = type(scheduler).__name__ in STOCHASTIC or bool(settings.call.get("eta"))
    alone = family.alone and not ("slicing" in settings.vae and "slicing" in family.alone)
    return bool(family.name) and not alone and (family.lists or not draws)
