"""Operations and weights of the stages, counted on the meta device: no weights, no GPU, no hub."""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet3DConditionModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle
from transformers import CLIPTextModel, T5EncoderModel

from show1_ray.errors import UserError
from show1_ray.pipeline import Pipeline
from show1_ray.pipeline.checkpoints import Checkpoint, published_or_local_config
from show1_ray.show1.deep_features import DeepFeatures
from show1_ray.show1.loading import FOLDERS
from show1_ray.show1.random import blank_network, configuration
from show1_ray.show1.settings import Denoising
from show1_ray.show1.super_resolution import window_slices
from show1_ray.show1.video_unet import VideoUNet
from show1_ray.stages.plan import plan_steps
from show1_ray.stages.stage import Stage

Call = tuple[Any, ...]


@dataclass(frozen=True)
class StageCount:
    """What one stage is made of: floating-point operations a clip, and bytes of weights in the pipeline's dtype."""

    operations: float
    weights: int


@lru_cache(maxsize=8)
def count_stages(pipeline: Pipeline) -> dict[str, StageCount]:
    """Operations and weights of each stage, from the networks' configurations and the recipe alone.

    Networks are counted; schedulers, resizing and tokenizers, which are next to nothing, are not. Of a clip's texts the
    prompt counts; the negative prompt is encoded once and kept.

    Raises:
        UserError: the configuration of a network is not known without fetching it.
    """
    return {
        name: StageCount(
            sum(work.calls * operations_of(work.network, work.shapes, work.named) for work in works), _weights(works)
        )
        for name, works in _works(pipeline).items()
    }


def weights_of(pipeline: Pipeline) -> dict[str, int]:
    """Bytes of each stage's weights in the pipeline's dtype. Raises UserError like `count_stages`."""
    return {name: _weights(works) for name, works in _works(pipeline).items()}


def weight_bytes(network: nn.Module) -> int:
    """Bytes of a network's parameters and buffers."""
    tensors = [*network.parameters(), *network.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True)
class _Work:
    """Calls of one network, or of a part or form of it, for one clip, with shapes and dtypes of the arguments."""

    network: nn.Module
    calls: int
    shapes: Sequence[Any]
    named: Sequence[tuple[str, Any]] = ()
    whole: nn.Module | None = None
    """What `network` is a part of."""


def _weights(works: Sequence[_Work]) -> int:
    networks = {id(network): network for network in (work.whole or work.network for work in works)}
    return sum(map(weight_bytes, networks.values()))


def _works(pipeline: Pipeline) -> dict[str, list[_Work]]:
    stages, frames = pipeline.stages, pipeline.total_frames
    dtype: torch.dtype = getattr(torch, pipeline.dtype)
    tokens = stages.text.max_tokens
    small = (stages.keyframes.height, stages.keyframes.width)
    sr, first = stages.super_resolution, stages.super_resolution.first_frame
    large = (small[0] * sr.scale, small[1] * sr.scale)
    t5 = _network(T5EncoderModel, stages.text.checkpoint, dtype)

    def loop(
        kind: type[nn.Module],
        settings: Denoising,
        shape: Sequence[int],
        steps: int,
        text: tuple[int, int],
        loops: int = 1,
    ) -> list[_Work]:
        unet: Any = _network(kind, settings.checkpoint, dtype)
        labels = [("class_labels", ((1,), torch.int64))] if unet.config.get("class_embed_type") else []
        shapes = [((1, unet.config.in_channels, *shape), dtype), ((), torch.int64), ((1, *text), dtype)]
        return _loop_works(unet, settings, steps, loops, shapes, labels)

    text = (tokens, t5.config.d_model)
    windows = len(list(window_slices(frames, sr.window, sr.stride)))
    return {
        "text": [_Work(t5, 1, [((1, tokens), torch.int64)])],
        "keyframes": loop(VideoUNet, stages.keyframes, (stages.keyframes.frames, *small), stages.keyframes.steps, text),
        "interpolation": loop(
            VideoUNet,
            stages.interpolation,
            (stages.interpolation.window, *small),
            stages.interpolation.steps,
            text,
            loops=stages.keyframes.frames - 1,
        ),
        "super_resolution": [
            *loop(UNet2DConditionModel, first, large, first.steps, text),
            *loop(VideoUNet, sr, (sr.window, *large), sr.steps, text, loops=windows),
        ],
        "latent_super_resolution": _latent_works(pipeline, dtype, loop),
    }


def _latent_works(pipeline: Pipeline, dtype: torch.dtype, loop: Any) -> list[_Work]:
    latent, frames = pipeline.stages.latent_super_resolution, pipeline.total_frames
    clip = _network(CLIPTextModel, latent.checkpoint, dtype)
    vae = _network(AutoencoderKL, latent.checkpoint, dtype)
    tokens, width = clip.config.max_position_embeddings, clip.config.hidden_size
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    size = (latent.height // factor, latent.width // factor)
    steps = min(int(latent.steps * latent.strength), latent.steps)
    return [
        _Work(clip, 1, [((1, tokens), torch.int64)]),
        _Work(vae.encoder, frames, [((1, 3, latent.height, latent.width), dtype)], whole=vae),
        *loop(UNet3DConditionModel, latent, (frames, *size), steps, (tokens, width)),
        _Work(vae.decoder, frames, [((1, vae.config.latent_channels, *size), dtype)], whole=vae),
    ]


def _loop_works(
    unet: Any,
    settings: Denoising,
    steps: int,
    loops: int,
    shapes: Sequence[Any],
    labels: Sequence[tuple[str, Any]],
) -> list[_Work]:
    """The calls of a denoising loop, `loops` times; shapes are of one clip, of which guidance has two halves."""
    calls = dict.fromkeys((True, False), 0)
    for step in plan_steps(settings, steps):
        calls[step.whole] += loops * (2 if step.guided else 1)
    works = [_Work(unet, calls[True], shapes, labels)]
    if calls[False] and settings.reuse:
        deep = DeepFeatures(unet, settings.reuse.levels)
        with torch.device("meta"), torch.no_grad():
            deep.whole(*map(_argument, shapes), **{key: _argument(value) for key, value in labels})
        works.append(_Work(deep.shallow, calls[False], shapes, labels, whole=unet))
    return works


def _network(kind: type[nn.Module], checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """A network without weights, on the meta device."""
    config = published_or_local_config(checkpoint, FOLDERS[kind])
    if config is None:
        raise UserError(
            f"{checkpoint}: the configuration of its {FOLDERS[kind]} is not known here, so that its operations cannot "
            "be counted: measure the pipeline with `show1-ray profile`"
        )
    return blank_network(kind, configuration(kind, config), "meta", dtype).eval()


@contextlib.contextmanager
def counted(stage: Stage) -> Iterator[Counter[Call]]:
    """Counts calls of the stage's networks by their arguments' shapes: (network, positional, by name).

    Networks are named by copies on the meta device, made at their first call: `DeepFeatures` make new ones for each
    loop, which afterwards remember other shapes.
    """
    calls: Counter[Call] = Counter()
    known: dict[Call, Call] = {}
    networks: list[nn.Module] = []
    for network in stage.networks.values():  # of a VAE the parts are called, not the whole
        networks += [network.encoder, network.decoder] if isinstance(network, AutoencoderKL) else [network]

    def record(network: nn.Module, positional: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        arguments = (tuple(map(_signature, positional)), tuple((k, _signature(v)) for k, v in named.items()))
        call = (network, *arguments)
        if call not in known:
            known[call] = (_without_hooks(meta_copy(network), handles), *arguments)
        calls[known[call]] += 1

    handles = [network.register_forward_pre_hook(record, with_kwargs=True) for network in networks]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _without_hooks(network: nn.Module, handles: Iterable[RemovableHandle]) -> nn.Module:
    for handle in handles:  # a copy has its hooks under the same ids
        network._forward_pre_hooks.pop(handle.id, None)
        network._forward_pre_hooks_with_kwargs.pop(handle.id, None)
    return network


def _signature(value: Any) -> Any:
    return (tuple(value.shape), value.dtype) if isinstance(value, torch.Tensor) else value


def operations_of(network: nn.Module, positional: Sequence[Any], named: Sequence[tuple[str, Any]] = ()) -> int:
    """Floating-point operations (a multiplication and an addition are two) of one call, counted on the meta device.

    Args:
        network: on any device; it is not run there.
        positional: its arguments; (shape, dtype) stands for a tensor.
        named: those that are given by name.
    """
    meta = meta_copy(network)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        # A mask costs no operations, and transformers looks at its values.
        meta(*map(_argument, positional), **{k: _argument(value) for k, value in named if k != "attention_mask"})
    return counter.get_total_flops()


def _argument(value: Any) -> Any:
    return torch.empty(value[0], dtype=value[1], device="meta") if isinstance(value, tuple) else value


def meta_copy(network: nn.Module) -> nn.Module:
    """The network on the meta device, without a copy of its weights in between."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in network.parameters()}
    memo |= {id(buffer): buffer.to("meta") for buffer in network.buffers()}
    return copy.deepcopy(network, memo)
