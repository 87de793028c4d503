"""Video UNets whose frames lie with channels last, with the passes between convolutions fused (`kernels`).

`fuse` changes a network in place. Results are those of the network as it was, to rounding: where it rounds to half
precision after normalisation, after FiLM and after the activation, this does so once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention, AttnAddedKVProcessor2_0
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_temporal import (
    TransformerTemporalModel,
    TransformerTemporalModelOutput,
)
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

WIDE = 8192
"""Pixels per frame from which cuDNN has only slow kernels for convolutions over frames (H200, cuDNN 9)."""
ACTIVATIONS = {nn.SiLU: "silu", nn.GELU: "gelu"}
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu": F.gelu, "": lambda x: x}


def fuse(network: nn.Module) -> nn.Module:
    """Fuses what is between the convolutions of a network of diffusers' blocks, in place; returns `network`.

    Parameters keep their names and shapes. Their layout shall be that of `compilation.put_channels_last`: others cost
    copies.
    """
    for module in network.modules():
        for kind, fused in FUSED.items():
            if type(module) is kind:
                module.__class__ = fused
        if isinstance(module, Attention) and type(module.processor) is AttnAddedKVProcessor2_0:
            module.set_processor(FusedAddedKV())
    return network


def group_norm(
    x: Tensor,
    norm: nn.GroupNorm,
    activation: str = "",
    before: Tensor | None = None,
    film: Tensor | None = None,
    sums: Any = None,
) -> Tensor:
    """Group normalisation (Wu and He, arXiv 1803.08494), FiLM (Perez et al., arXiv 1709.07871) and activation.

    Args:
        x: N R C.
        norm: its groups, weights and eps.
        activation: "silu", "gelu" or "".
        before: C or N C, added before.
        film: N 2C: x · (1 + the first half) + the second.
        sums: `kernels.Sums` of x, if its writer took them.

    Returns:
        N R C.
    """
    if x.is_cuda:
        from show1_ray.show1 import kernels

        return kernels.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps, activation, before, film, sums)
    if before is not None:
        x = x + (before if before.dim() == 1 else before[:, None])
    x = F.group_norm(x.transpose(1, 2), norm.num_groups, norm.weight, norm.bias, norm.eps).transpose(1, 2)
    if film is not None:
        scale, shift = film[:, None].chunk(2, dim=-1)
        x = x * (1 + scale) + shift
    return FUNCTIONS[activation](x).contiguous()


def attend_frames(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention of each pixel's frames to one another: B F P C in and out, C = heads · dimension."""
    if q.is_cuda:
        from show1_ray.show1 import kernels

        return kernels.attend_frames(q, k, v, heads)
    q, k, v = (t.unflatten(3, (heads, -1)).permute(0, 2, 3, 1, 4) for t in (q, k, v))  # B P heads F D
    return F.scaled_dot_product_attention(q, k, v).permute(0, 3, 1, 2, 4).flatten(3)


def convolve_frames(
    x: Tensor, layer: nn.Conv3d, bias: Tensor | None = None, residual: Tensor | None = None
) -> tuple[Tensor, Any]:
    """A convolution over frames, without its own bias: B F P C → B F P C', and the result's sums, if they were taken.

    Args:
        x: B F P C.
        layer: the kernel.
        bias: C', added.
        residual: B F P C', added.
    """
    kernel = layer.weight.flatten(2)  # C' C taps
    if x.is_cuda and x.shape[2] >= WIDE:
        from show1_ray.show1 import kernels

        return kernels.convolve_frames(x, kernel.transpose(1, 2).contiguous(), bias, residual)
    out = F.conv2d(x.permute(0, 3, 1, 2), kernel[..., None], padding=(layer.padding[0], 0))  # type: ignore[arg-type]
    out = out.permute(0, 2, 3, 1).contiguous()
    return (out, None) if residual is None else add_up(residual, out, bias)


def add(x: Tensor, y: Tensor | None, bias: Tensor | None = None, factor: float = 1.0) -> Tensor:
    """(x + y + bias) · factor: … C in and out."""
    if x.is_cuda:
        from show1_ray.show1 import kernels

        return kernels.add(x, y, bias, factor)
    for term in (y, bias):
        x = x if term is None else x + term
    return x * factor


def add_up(x: Tensor, y: Tensor, bias: Tensor | None = None, factor: float = 1.0) -> tuple[Tensor, Any]:
    """`add` of … R C, and the result's sums by R rows, if they were taken."""
    if x.is_cuda:
        from show1_ray.show1 import kernels

        out, sums = kernels.add_up(x.flatten(0, -3), y.flatten(0, -3), bias, factor)
        return out.view_as(x), sums
    return add(x, y, bias, factor), None


def gated_gelu(x: Tensor) -> Tensor:
    """The first half times GELU of the second (Shazeer, arXiv 2002.05202): … 2C → … C."""
    if x.is_cuda:
        from show1_ray.show1 import kernels

        return kernels.gated_gelu(x)
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate)


def join(x: Tensor, y: Tensor) -> Tensor:
    """Channels of two: N C H W and N C' H W → N C+C' H W."""
    if x.is_cuda and x.is_contiguous(memory_format=torch.channels_last):
        from show1_ray.show1 import kernels

        return to_frames(*kernels.join_up(to_rows(x), to_rows(y)), size=x.shape[-2:])
    return torch.cat([x, y], dim=1)


def prepend(first: Tensor, rows: Tensor) -> Tensor:
    """N L C before N R C: N L+R C."""
    if rows.is_cuda:
        from show1_ray.show1 import kernels

        return kernels.join(first.flatten(1), rows.flatten(1)).unflatten(1, (-1, rows.shape[2]))
    return torch.cat([first, rows], dim=1)


def double(x: Tensor) -> Tensor:
    """Each pixel four times: N C H W → N C 2H 2W, channels last, of any size."""
    height, width = x.shape[-2:]
    if x.is_cuda:
        from show1_ray.show1 import kernels

        return to_frames(kernels.double(to_rows(x), width), size=(2 * height, 2 * width))
    rows = x.permute(0, 2, 3, 1)[:, :, None, :, None]
    return rows.expand(-1, -1, 2, -1, 2, -1).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def halve(x: Tensor) -> Tensor:
    """The mean of each four pixels: N C 2H 2W → N C H W, channels last."""
    height, width = x.shape[-2:]
    if x.is_cuda and height % 2 == width % 2 == 0:
        from show1_ray.show1 import kernels

        return to_frames(kernels.halve(to_rows(x), width), size=(height // 2, width // 2))
    return F.avg_pool2d(x, 2)


def to_rows(x: Tensor) -> Tensor:
    """N C H W → N (H W) C, contiguous: no copy if channels are last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2).contiguous()


def to_frames(rows: Tensor, sums: Any = None, *, size: Any) -> Tensor:
    """N (H W) C → N C H W, channels last: no copy.

    Args:
        rows: N (H W) C.
        sums: `kernels.Sums` of the rows: they go with this very tensor, to the norm that it may come to.
        size: (H, W).
    """
    frames = rows.unflatten(1, tuple(size)).permute(0, 3, 1, 2)
    if sums is not None:
        frames.sums = sums
    return frames


def sums_of(frames: Tensor) -> Any:
    """What `to_frames` was told; nothing is known of a tensor that was made from that one."""
    return getattr(frames, "sums", None)


class FusedGroupNorm(nn.GroupNorm):
    """Takes N C … ."""

    def forward(self, input: Tensor) -> Tensor:
        """N C … in and out."""
        rows = group_norm(input.flatten(2).transpose(1, 2).contiguous(), self)
        return rows.transpose(1, 2).unflatten(2, input.shape[2:])


class FusedLayerNorm(nn.LayerNorm):
    """Over the last axis, with weights."""

    def forward(self, input: Tensor) -> Tensor:
        """… C in and out."""
        if not input.is_cuda:
            return super().forward(input)
        from show1_ray.show1 import kernels

        return kernels.layer_norm(input.contiguous(), self.weight, self.bias, self.eps)


class FusedGEGLU(GEGLU):
    """See `GEGLU`."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """… C → … C'."""
        return gated_gelu(self.proj(hidden_states))


class FusedConv2d(nn.Conv2d):
    """Adds its bias in one pass, which torch does at a third of the speed; channels go by eights, or cuDNN has no fast
    kernel.
    """

    def forward(self, input: Tensor) -> Tensor:
        """N C H W → N C' H' W'."""
        if not input.is_cuda:
            return super().forward(input)
        x, weight = input, self.weight
        missing, short = -self.out_channels % 8, -self.in_channels % 8
        if missing or short:
            x, weight = F.pad(x, (0,) * 5 + (short,)), F.pad(weight, (0,) * 5 + (short, 0, missing))
        x = self._conv_forward(x, weight, None)
        if missing:
            x = x[:, : self.out_channels]
            return x if self.bias is None else x + self.bias[:, None, None]
        return x if self.bias is None else to_frames(add(to_rows(x), None, self.bias), size=x.shape[-2:])


class FusedUpsample(Upsample2D):
    """See `Upsample2D`: doubles, then convolves."""

    def forward(self, hidden_states: Tensor, output_size: Any = None, *_: Any, **__: Any) -> Tensor:
        """N C H W → N C' 2H 2W, or as large as `output_size`."""
        if output_size is not None or not isinstance(self.conv, nn.Conv2d):
            return super().forward(hidden_states, output_size)
        return self.conv(double(hidden_states))


class FusedResnetBlock(ResnetBlock2D):
    """See `ResnetBlock2D`."""

    def forward(self, input_tensor: Tensor, temb: Tensor | None, *_: Any, **__: Any) -> Tensor:
        """N C H W and N D → N C' H' W', channels last."""
        activation = ACTIVATIONS[type(self.nonlinearity)]
        x = to_rows(input_tensor)
        h = group_norm(x, self.norm1, activation, sums=sums_of(input_tensor))
        frames, h = (to_frames(rows, size=input_tensor.shape[-2:]) for rows in (x, h))
        if self.upsample is not None:
            frames, h = double(frames), double(h)
        elif self.downsample is not None:
            frames, h = halve(frames), halve(h)
        size = frames.shape[-2:]
        h = F.conv2d(h, self.conv1.weight, padding=1)
        before, film = self.conv1.bias, None
        if self.time_emb_proj is not None:
            temb = self.time_emb_proj(temb if self.skip_time_act else self.nonlinearity(temb))
            if self.time_embedding_norm == "scale_shift":
                film = temb
            else:
                before = before + temb
        h = to_frames(group_norm(to_rows(h), self.norm2, activation, before, film), size=size)
        h = to_rows(F.conv2d(h, self.conv2.weight, padding=1))
        x = to_rows(frames)
        if self.conv_shortcut is not None:
            x = F.linear(x, self.conv_shortcut.weight.flatten(1), self.conv_shortcut.bias)
        return to_frames(*add_up(x, h, self.conv2.bias, 1 / self.output_scale_factor), size=size)


class FusedTemporalConv(TemporalConvLayer):
    """See `TemporalConvLayer`."""

    def forward(self, hidden_states: Tensor, num_frames: int = 1) -> Tensor:
        """(B F) C H W in and out, channels last."""
        x = to_rows(hidden_states).unflatten(0, (-1, num_frames))  # B F P C
        h, sums, before = x, sums_of(hidden_states), None
        for part in (self.conv1, self.conv2, self.conv3, self.conv4):
            norm, layer = part[0], part[-1]
            last = (layer.bias, x) if part is self.conv4 else (None, None)
            h = group_norm(h.flatten(1, 2), norm, "silu", before, sums=sums).view_as(h)
            (h, sums), before = convolve_frames(h, layer, *last), layer.bias
        return to_frames(h.flatten(0, 1), sums, size=hidden_states.shape[-2:])


class FusedTemporalTransformer(TransformerTemporalModel):
    """See `TransformerTemporalModel`. Linear layers take rows in any order, so that frames stay where they are."""

    def forward(self, hidden_states: Tensor, *_: Any, num_frames: int = 1, **__: Any) -> Any:
        """(B F) C H W in and out, channels last."""
        x = to_rows(hidden_states).unflatten(0, (-1, num_frames))  # B F P C
        h = self.proj_in(group_norm(x.flatten(1, 2), self.norm, sums=sums_of(hidden_states)).view_as(x))
        for block in self.transformer_blocks:
            h = h + _attend(block.attn1, block.norm1(h))
            h = h + _attend(block.attn2, block.norm2(h))
            h = h + block.ff(block.norm3(h))
        x, h = x.flatten(0, 1), self.proj_out(h).flatten(0, 1)
        return TransformerTemporalModelOutput(sample=to_frames(*add_up(x, h), size=hidden_states.shape[-2:]))


class FusedTransformer(Transformer2DModel):
    """See `Transformer2DModel`, of frames. Its 1 x 1 convolutions are linear layers of rows."""

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *_: Any, **__: Any
    ) -> tuple[Tensor]:
        """N C H W in and out, channels last; N L D."""
        x = to_rows(hidden_states)
        h = _linear(self.proj_in, group_norm(x, self.norm, sums=sums_of(hidden_states)))
        for block in self.transformer_blocks:
            h = block(h, encoder_hidden_states=encoder_hidden_states)
        return (to_frames(*add_up(x, _linear(self.proj_out, h)), size=hidden_states.shape[-2:]),)


def _linear(layer: Any, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight.flatten(1), layer.bias)


class FusedAddedKV(AttnAddedKVProcessor2_0):
    """Attention of a frame's pixels to one another and to a text, with its norm and its sum."""

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor:
        """N C H W in and out, channels last; N L D."""
        text = encoder_hidden_states
        if text is None or attn.only_cross_attention:
            return super().__call__(attn, hidden_states, text)
        x = to_rows(hidden_states)
        h = group_norm(x, attn.group_norm, sums=sums_of(hidden_states))
        if attn.norm_cross:
            text = attn.norm_encoder_hidden_states(text)
        keys = prepend(attn.add_k_proj(text), attn.to_k(h))
        values = prepend(attn.add_v_proj(text), attn.to_v(h))
        q, k, v = (attn.head_to_batch_dim(t, out_dim=4) for t in (attn.to_q(h), keys, values))
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return to_frames(*add_up(x, attn.to_out[0](h)), size=hidden_states.shape[-2:])


def _attend(attention: Attention, x: Tensor) -> Tensor:
    q, k, v = attention.to_q(x), attention.to_k(x), attention.to_v(x)
    return attention.to_out[0](attend_frames(q, k, v, attention.heads))


FUSED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: FusedConv2d,
    nn.GroupNorm: FusedGroupNorm,
    nn.LayerNorm: FusedLayerNorm,
    GEGLU: FusedGEGLU,
    Upsample2D: FusedUpsample,
    ResnetBlock2D: FusedResnetBlock,
    TemporalConvLayer: FusedTemporalConv,
    Transformer2DModel: FusedTransformer,
    TransformerTemporalModel: FusedTemporalTransformer,
}
