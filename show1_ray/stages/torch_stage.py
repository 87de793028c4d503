"""The base of stages on torch: a batch of clips' tensors in, a batch of clips' tensors out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from show1_ray.clip import Clip
from show1_ray.stage import NonFiniteError, StageError
from show1_ray.stages.host_copy import HostCopy
from show1_ray.stages.noise import Noise, seeded_noise

Tensors = Mapping[str, Tensor]
"""One clip's tensors by name, without a batch axis, on the CPU: so that the next stage may batch clips differently."""


__all__ = ["NonFiniteError", "StageError", "Tensors", "TorchStage", "device_and_dtype"]


class TorchStage(ABC):
    """One step of the cascade.

    A stage is called with a list of clips and a list of their tensors, and returns a list of new tensors. A clip's
    result does not depend on the rest of the list: its noise comes from a generator of its own, seeded with its seed.
    On a GPU the list is one batch; kernels may then sum in another order. On the CPU, where a batch gains little, clips
    are computed one after the other, so that they are equal bit for bit.

    Attributes:
        name: the stage's key in the pipeline file.
        takes: tensors it needs of each clip: name → axes, such as "c f h w".
        gives: tensors it gives for each clip.
        device, dtype: where and in what it computes.
    """

    name: ClassVar[str]
    takes: ClassVar[Mapping[str, str]] = {}
    gives: ClassVar[Mapping[str, str]]

    device: torch.device
    dtype: torch.dtype
    _host: HostCopy | None = None

    def __call__(
        self, clips: Sequence[Clip], tensors: Sequence[Tensors], noise: Sequence[Noise] | None = None
    ) -> list[dict[str, Tensor]]:
        """Runs the stage.

        Args:
            clips: the batch.
            tensors: for each clip, what `takes` names; more is ignored.
            noise: for each clip, where its noise comes from; by default from its seed, as the published script draws
            it.

        Returns:
            For each clip, what `gives` names, on the CPU.

        Raises:
            StageError: a tensor is missing or has other axes.
            NonFiniteError: the output of a clip is not finite.
        """
        for clip, given in zip(clips, tensors, strict=True):
            self._check(clip, given, self.takes)
        if noise is None:
            noise = [seeded_noise(clip.generator_seed, self.dtype) for clip in clips]
        size = 1 if self.device.type == "cpu" else len(clips)
        outputs = []
        with torch.inference_mode():
            for i in range(0, len(clips), max(size, 1)):
                batch = slice(i, i + size)
                outputs += self.run(clips[batch], tensors[batch], noise[batch])
        for clip, output in zip(clips, outputs, strict=True):
            self._check(clip, output, self.gives)
            for name, tensor in output.items():
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    raise NonFiniteError(clip.id, self.name, f"{name} has NaN or infinite values")
        return outputs

    @abstractmethod
    def run(self, clips: Sequence[Clip], tensors: Sequence[Tensors], noise: Sequence[Noise]) -> list[dict[str, Tensor]]:
        """The batch as one, between `__call__`'s checks; it is called under `torch.inference_mode`."""

    @property
    @abstractmethod
    def networks(self) -> Mapping[str, nn.Module]:
        """The stage's networks by their folder in the checkpoint."""

    def to(self, device: str | torch.device) -> Self:
        """Moves the weights; "cpu" gives the device back."""
        self.device = torch.device(device)
        for network in self.networks.values():
            network.to(self.device)
        return self

    def leave(self) -> None:
        """Gives the device back and keeps the weights in pinned host memory, from where `enter` takes them.

        For weights that come and go: from the second time on nothing is copied here. They must not change meanwhile.
        """
        if self._host is None:
            self._host = HostCopy(self.networks.values())
        self._host.leave()
        self.device = torch.device("cpu")

    def enter(self, device: str | torch.device) -> None:
        """Back from where `leave` put the weights."""
        if self._host is None:
            raise ValueError(f"stage {self.name} has not left its device")
        self._host.enter(device)
        self.device = torch.device(device)

    def batch(self, tensors: Sequence[Tensors], name: str) -> Tensor:
        """One tensor of all clips, stacked: B …, on the stage's device and in its dtype."""
        return torch.stack([given[name] for given in tensors]).to(self.device, self.dtype)

    def _check(self, clip: Clip, tensors: Tensors, wanted: Mapping[str, str]) -> None:
        for name, axes in wanted.items():
            if name not in tensors:
                raise StageError(clip.id, self.name, f"{name} ({axes}) is missing")
            if tensors[name].dim() != len(axes.split()):
                raise StageError(clip.id, self.name, f"{name} has shape {tuple(tensors[name].shape)}; wanted {axes}")


def device_and_dtype(network: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where a network's weights are, and of what type."""
    parameter = next(network.parameters())
    return parameter.device, parameter.dtype
