"""Reuse of a UNet's deep features from one call to the next (Ma et al., "DeepCache", arXiv 2312.00858)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class DeepFeatures:
    """A UNet in two forms that share its weights, and what the one remembers for the other.

    `whole` is the network; it remembers what goes into its last `levels` up blocks. `shallow` is the network without
    its deeper levels: its first `levels` down blocks, what was remembered, its last `levels` up blocks. Both are called
    as the network is. The network itself is left as it is and remembers nothing, so two loops never see one another's
    features: make one of these for each denoising loop.

    Works with any network of diffusers' anatomy (`down_blocks`, `mid_block`, `up_blocks`, a block a resolution):
    `VideoUNet`, `UNet2DConditionModel`, `UNet3DConditionModel`.

    Args:
        unet: the network.
        levels: resolutions, from the highest, that `shallow` computes; fewer than the network has.
    """

    def __init__(self, unet: Any, levels: int) -> None:
        if not 1 <= levels < len(unet.up_blocks):
            raise ValueError(f"{levels} levels of a network that has {len(unet.up_blocks)}")
        memory = _Memory()
        deep, ups = len(unet.up_blocks) - levels, list(unet.up_blocks)
        receiver = _variant(ups[deep])
        receiver.register_forward_pre_hook(memory.remember, with_kwargs=True)
        self.whole = _variant(unet, up_blocks=nn.ModuleList([*ups[:deep], receiver, *ups[deep + 1 :]]))
        downs = list(unet.down_blocks[:levels])
        downs[-1] = _variant(downs[-1], downsamplers=None)
        self.shallow = _variant(
            unet, down_blocks=nn.ModuleList(downs), mid_block=memory, up_blocks=nn.ModuleList(ups[deep:])
        )


class _Memory(nn.Module):
    """Stands where the deeper levels were. Refers to no network, so that features go when the loop does."""

    def __init__(self) -> None:
        super().__init__()
        self.features: Tensor | None
        self.register_buffer("features", None, persistent=False)

    def remember(self, block: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """A hook: keeps what goes into `block`."""
        self.features = args[0] if args else named["hidden_states"]

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """(B F) C H W → the remembered features of as many rows.

        With guidance a batch is the negative half, then the prompt's: fewer rows than were remembered are the latter's.

        Raises:
            ValueError: as many rows were never remembered.
        """
        if self.features is None or len(self.features) < len(x):
            raise ValueError(f"no deep features of {len(x)} rows are remembered: call `whole` first")
        return self.features[len(self.features) - len(x) :]


def _variant(module: nn.Module, **parts: nn.Module | None) -> nn.Module:
    """The module with other parts, and with hooks of its own; all else, weights above all, is shared."""
    variant = copy.copy(module)
    variant._modules = {**module._modules, **parts}
    for hooks in ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"):
        setattr(variant, hooks, copy.copy(getattr(module, hooks)))
    return variant
