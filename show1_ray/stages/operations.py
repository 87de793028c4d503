"""Operations and weights of networks, counted on the meta device: no weights, no GPU, no hub."""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

from show1_ray.stages.torch_stage import TorchStage

Call = tuple[Any, ...]


@dataclass(frozen=True)
class Work:
    """Calls of one network, or of a part or form of it, for one clip, with shapes and dtypes of the arguments."""

    network: nn.Module
    calls: int
    shapes: Sequence[Any]
    named: Sequence[tuple[str, Any]] = ()

    @property
    def operations(self) -> int:
        """Floating-point operations of all calls; see `operations_of`."""
        return self.calls * operations_of(self.network, self.shapes, self.named) if self.calls else 0


def weight_bytes(network: nn.Module) -> int:
    """Bytes of a network's parameters and buffers."""
    tensors = [*network.parameters(), *network.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextlib.contextmanager
def counted(stage: TorchStage) -> Iterator[Counter[Call]]:
    """Counts calls of the stage's networks by their arguments' shapes: (network, positional, by name).

    Networks are named by copies on the meta device, made at their first call: `DeepFeatures` make new ones for each
    loop, which afterwards remember other shapes.
    """
    calls: Counter[Call] = Counter()
    known: dict[Call, Call] = {}
    networks: list[Any] = []
    for name, whole in stage.networks.items():  # of a VAE the parts are called, not the whole
        networks += [whole.encoder, whole.decoder] if name == "vae" else [whole]

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
        meta(*map(argument, positional), **{k: argument(value) for k, value in named if k != "attention_mask"})
    return counter.get_total_flops()


def argument(value: Any) -> Any:
    """A tensor on the meta device for (shape, dtype); other values as they are."""
    return torch.empty(value[0], dtype=value[1], device="meta") if isinstance(value, tuple) else value


def meta_copy(network: nn.Module) -> nn.Module:
    """The network on the meta device, without a copy of its weights in between."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in network.parameters()}
    memo |= {id(buffer): buffer.to("meta") for buffer in network.buffers()}
    return copy.deepcopy(network, memo)
