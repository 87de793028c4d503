"""What Show-1's stages compute for a clip, from configurations and the recipe alone: for plans and checks.

Networks are counted; schedulers, resizing and tokenizers, which are next to nothing, are not. Of a clip's texts the
prompt counts; the negative prompt is encoded once and kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from show1_ray.pipeline.checkpoints import Checkpoint, published_or_local_config
from show1_ray.show1 import random
from show1_ray.show1 import settings as recipe
from show1_ray.show1.loading import FOLDERS
from show1_ray.show1.super_resolution import window_slices
from show1_ray.stage import Context, Shape
from show1_ray.stages.deep_features import DeepFeatures
from show1_ray.stages.operations import Work, argument, weight_bytes
from show1_ray.stages.steps import plan_steps

Given = Mapping[str, Shape]


def operations(stage: str, settings: Any, context: Context, given: Given) -> float | None:
    """Floating-point operations a clip.

    Args:
        stage: the class's name.
        settings, context, given: see `Stage.operations`.

    Returns:
        None where a size is not known, or a configuration without fetching it.
    """
    return _operations(stage, settings, context.dtype, tuple(sorted(given.items())))


def weights(stage: str, settings: Any, context: Context) -> int | None:
    """Bytes of a stage's weights; None where a configuration is not known without fetching it."""
    try:
        networks = NETWORKS[stage](settings, getattr(torch, context.dtype))
    except UnknownError:
        return None
    return sum(map(weight_bytes, networks))


class UnknownError(Exception):
    """A configuration or a size that is not known."""


@lru_cache(maxsize=32)
def _operations(stage: str, settings: Any, dtype: str, given: tuple[tuple[str, Shape], ...]) -> float | None:
    try:
        return sum(work.operations for work in WORKS[stage](settings, getattr(torch, dtype), dict(given)))
    except UnknownError:
        return None


def network(kind: str, checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """A network without weights, on the meta device.

    Raises:
        UnknownError: its configuration is not known without fetching it.
    """
    config = published_or_local_config(checkpoint, FOLDERS[kind])
    if config is None:
        raise UnknownError
    return _blank(kind, json.dumps(config), dtype)


@lru_cache(maxsize=16)
def _blank(kind: str, config: str, dtype: torch.dtype) -> Any:
    found = getattr(random, kind)
    return random.blank_network(found, random.configuration(found, json.loads(config)), "meta", dtype).eval()


def _text_networks(settings: recipe.Text, dtype: torch.dtype) -> list[Any]:
    return [network("T5EncoderModel", settings.checkpoint, dtype)]


def _video_networks(settings: recipe.Denoising, dtype: torch.dtype) -> list[Any]:
    return [network("VideoUNet", settings.checkpoint, dtype)]


def _super_resolution_networks(settings: recipe.SuperResolution, dtype: torch.dtype) -> list[Any]:
    first = network("UNet2DConditionModel", settings.first_frame.checkpoint, dtype)
    return [first, *_video_networks(settings, dtype)]


def _latent_networks(settings: recipe.LatentSuperResolution, dtype: torch.dtype) -> list[Any]:
    kinds = ("CLIPTextModel", "AutoencoderKL", "UNet3DConditionModel")
    return [network(kind, settings.checkpoint, dtype) for kind in kinds]


def _text_works(settings: recipe.Text, dtype: torch.dtype, given: Given) -> Iterable[Work]:
    [t5] = _text_networks(settings, dtype)
    return [Work(t5, 1, [((1, settings.max_tokens), torch.int64)])]


def _keyframes_works(settings: recipe.Keyframes, dtype: torch.dtype, given: Given) -> Iterable[Work]:
    [unet] = _video_networks(settings, dtype)
    shape = (settings.frames, settings.height, settings.width)
    return _loop(unet, settings, shape, _text_size(given), dtype)


def _interpolation_works(settings: recipe.Interpolation, dtype: torch.dtype, given: Given) -> Iterable[Work]:
    [unet] = _video_networks(settings, dtype)
    keyframes, *size = _frames(given, "keyframes")
    return _loop(unet, settings, (settings.window, *size), _text_size(given), dtype, loops=keyframes - 1)


def _super_resolution_works(settings: recipe.SuperResolution, dtype: torch.dtype, given: Given) -> Iterable[Work]:
    first, unet = _super_resolution_networks(settings, dtype)
    frames, height, width = _frames(given, "frames")
    large, text = (height * settings.scale, width * settings.scale), _text_size(given)
    windows = len(list(window_slices(frames, settings.window, settings.stride)))
    return [
        *_loop(first, settings.first_frame, large, text, dtype),
        *_loop(unet, settings, (settings.window, *large), text, dtype, loops=windows),
    ]


def _latent_works(settings: recipe.LatentSuperResolution, dtype: torch.dtype, given: Given) -> Iterable[Work]:
    clip, vae, unet = _latent_networks(settings, dtype)
    frames, _, _ = _frames(given, "frames_sr")
    text = (clip.config.max_position_embeddings, clip.config.hidden_size)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    size = (settings.height // factor, settings.width // factor)
    steps = min(int(settings.steps * settings.strength), settings.steps)
    return [
        Work(clip, 1, [((1, text[0]), torch.int64)]),
        Work(vae.encoder, frames, [((1, 3, settings.height, settings.width), dtype)]),
        *_loop(unet, settings, (frames, *size), text, dtype, steps=steps),
        Work(vae.decoder, frames, [((1, vae.config.latent_channels, *size), dtype)]),
    ]


def _loop(
    unet: Any,
    settings: recipe.Denoising,
    shape: Sequence[int],
    text: tuple[int, int],
    dtype: torch.dtype,
    loops: int = 1,
    steps: int | None = None,
) -> list[Work]:
    """The calls of a denoising loop, `loops` times; shapes are of one clip, of which guidance has two halves.

    Args:
        unet: of the loop.
        settings: of the loop.
        shape: of the sample, without clips and channels.
        text: tokens and their width.
        dtype: of sample and text.
        loops: how often it is walked.
        steps: that are walked, if these are not all.
    """
    calls = dict.fromkeys((True, False), 0)
    for step in plan_steps(settings, settings.steps if steps is None else steps):
        calls[step.whole] += loops * (2 if step.guided else 1)
    labels = [("class_labels", ((1,), torch.int64))] if unet.config.get("class_embed_type") else []
    shapes = [((1, unet.config.in_channels, *shape), dtype), ((), torch.int64), ((1, *text), dtype)]
    works = [Work(unet, calls[True], shapes, labels)]
    if calls[False] and settings.reuse:
        deep = DeepFeatures(unet, settings.reuse.levels)
        with torch.device("meta"), torch.no_grad():
            deep.whole(*map(argument, shapes), **{key: argument(value) for key, value in labels})
        works.append(Work(deep.shallow, calls[False], shapes, labels))
    return works


def _frames(given: Given, name: str) -> tuple[int, int, int]:
    """Frames, height and width. Raises UnknownError."""
    return _known(given, name, "fhw")  # type: ignore[return-value]


def _text_size(given: Given) -> tuple[int, int]:
    """Tokens and their width. Raises UnknownError."""
    return _known(given, "prompt_embeds", "ld")  # type: ignore[return-value]


def _known(given: Given, name: str, axes: str) -> tuple[int, ...]:
    shape = given.get(name)
    sizes = [shape.size(axis) for axis in axes] if shape is not None and shape.sizes else [None]
    known = [size for size in sizes if size is not None]
    if len(known) < len(axes):
        raise UnknownError
    return tuple(known)


NETWORKS: dict[str, Callable[[Any, torch.dtype], list[nn.Module]]] = {
    "Text": _text_networks,
    "Keyframes": _video_networks,
    "Interpolation": _video_networks,
    "SuperResolution": _super_resolution_networks,
    "LatentSuperResolution": _latent_networks,
}
WORKS: dict[str, Callable[[Any, torch.dtype, Given], Iterable[Work]]] = {
    "Text": _text_works,
    "Keyframes": _keyframes_works,
    "Interpolation": _interpolation_works,
    "SuperResolution": _super_resolution_works,
    "LatentSuperResolution": _latent_works,
}
