"""The pixel video UNet of Show-1's keyframe, interpolation and super-resolution stages.

It is DeepFloyd IF's image UNet (ResNet blocks, attention whose keys and values are extended by the text's) with a
temporal convolution behind every ResNet block and a temporal transformer behind every spatial attention: Zhang et al.,
"Show-1", arXiv 2309.15818, section 3.2. Names of parameters are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention, AttnAddedKVProcessor2_0
from diffusers.models.embeddings import TextTimeEmbedding, TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from show1_ray.errors import ConfigError
from show1_ray.show1.fused import join
from show1_ray.show1.temporal import attend_many_sequences, convolve_frames_in_2d

DOWN_BLOCKS = {"ResnetDownsampleBlock3D": False, "SimpleCrossAttnDownBlock3D": True}  # name: has attention
UP_BLOCKS = {"ResnetUpsampleBlock3D": False, "SimpleCrossAttnUpBlock3D": True}
ACTIVATION = "gelu"

# Options that the published configurations carry and that have one value in all of them.
SETTLED: dict[str, Any] = {
    "act_fn": ACTIVATION,
    "addition_embed_type": "text",
    "addition_time_embed_dim": None,
    "center_input_sample": False,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": "group_norm",
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim_type": "text_proj",
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_only_cross_attention": None,
    "mid_block_type": "UNetMidBlock3DSimpleCrossAttn",
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "projection_class_embeddings_input_dim": None,
    "resnet_time_scale_shift": "scale_shift",
    "time_cond_proj_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": 1,
    "transfromer_in_opt": False,  # spelled so in the published files
    "upcast_attention": False,
    "use_linear_projection": False,
}
CHOICES: dict[str, tuple[Any, ...]] = {
    "class_embed_type": (None, "timestep"),
    "time_embedding_act_fn": (None, ACTIVATION),
}


class VideoUNet(ModelMixin, ConfigMixin):
    """Predicts noise (or v) of a noisy video, given its time step and its text.

    Build it with `from_config`, which takes a published `unet/config.json` unchanged, or load it with
    `from_pretrained`.

    Args:
        sample_size: height and width it was trained at; informative.
        in_channels: channels of `sample`: 3, and those of what it is conditioned on.
        out_channels: 6 in the published checkpoints: the prediction, then its variance.
        down_block_types, up_block_types: keys of `DOWN_BLOCKS` and `UP_BLOCKS`, a resolution each.
        block_out_channels: channels at each resolution.
        layers_per_block: layers at each resolution; one number for all, or one each.
        attention_head_dim: dimension of the spatial attention's heads and *number* of heads of the temporal attention,
            as in the published code, whose temporal layers exchange the two; one number, or one for each resolution
            (not reversed for the up blocks, as there).
        cross_attention_dim: width of the projected text.
        encoder_hid_dim: width of the text embeddings that go in.
        addition_embed_type_num_heads: heads of the attention that pools the text into the time embedding.
        class_embed_type: "timestep" adds an embedding of `class_labels` (the noise level of the condition).
        time_embedding_act_fn, time_embedding_dim: an activation on the time embedding, its width
            (None: 4 × block_out_channels[0]).
        mid_block_scale_factor, resnet_out_scale_factor: ResNet blocks divide their output by these.
        resnet_skip_time_act: ResNet blocks take the time embedding without an activation of their own.
        norm_num_groups, norm_eps: group normalisation of ResNet blocks and attention.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | Sequence[int] | None = None,
        in_channels: int = 3,
        out_channels: int = 6,
        down_block_types: Sequence[str] = ("ResnetDownsampleBlock3D",) + ("SimpleCrossAttnDownBlock3D",) * 3,
        up_block_types: Sequence[str] = ("SimpleCrossAttnUpBlock3D",) * 3 + ("ResnetUpsampleBlock3D",),
        block_out_channels: Sequence[int] = (320, 640, 960, 1280),
        layers_per_block: int | Sequence[int] = 3,
        attention_head_dim: int | Sequence[int] = 64,
        cross_attention_dim: int = 1280,
        encoder_hid_dim: int = 4096,
        addition_embed_type_num_heads: int = 64,
        class_embed_type: str | None = None,
        time_embedding_act_fn: str | None = None,
        time_embedding_dim: int | None = None,
        mid_block_scale_factor: float = 1.0,
        resnet_out_scale_factor: float = 1.0,
        resnet_skip_time_act: bool = False,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        levels = len(block_out_channels)
        layers = _per_level(layers_per_block, levels)
        head_dims = _per_level(attention_head_dim, levels)
        time_dim = time_embedding_dim or 4 * block_out_channels[0]

        self.conv_in = nn.Conv2d(in_channels, block_out_channels[0], kernel_size=3, padding=1)
        self.time_proj = Timesteps(block_out_channels[0], flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(block_out_channels[0], time_dim, act_fn=ACTIVATION)
        if class_embed_type is not None:
            self.class_embedding = TimestepEmbedding(block_out_channels[0], time_dim, act_fn=ACTIVATION)
        self.encoder_hid_proj = nn.Linear(encoder_hid_dim, cross_attention_dim)
        self.add_embedding = TextTimeEmbedding(encoder_hid_dim, time_dim, num_heads=addition_embed_type_num_heads)

        shared: dict[str, Any] = {
            "time_dim": time_dim,
            "text_dim": cross_attention_dim,
            "skip_time_act": resnet_skip_time_act,
            "groups": norm_num_groups,
            "eps": norm_eps,
        }
        self.down_blocks = nn.ModuleList()
        skip_channels = [block_out_channels[0]]
        for level, kind in enumerate(down_block_types):
            channels = block_out_channels[level]
            self.down_blocks.append(
                DownBlock(
                    [skip_channels[-1]] + [channels] * (layers[level] - 1),
                    channels,
                    attention_head_dim=head_dims[level] if DOWN_BLOCKS[kind] else None,
                    scale=resnet_out_scale_factor,
                    downsample=level < levels - 1,
                    **shared,
                )
            )
            skip_channels += [channels] * (layers[level] + (level < levels - 1))

        middle = block_out_channels[-1]
        self.mid_block = MidBlock(
            [middle, middle], middle, attention_head_dim=head_dims[-1], scale=mid_block_scale_factor, **shared
        )

        self.up_blocks = nn.ModuleList()
        previous = middle
        for i, kind in enumerate(up_block_types):
            level = levels - 1 - i
            channels = block_out_channels[level]
            in_channels_of_layers = []
            for _ in range(layers[level] + 1):
                in_channels_of_layers.append(previous + skip_channels.pop())
                previous = channels
            self.up_blocks.append(
                UpBlock(
                    in_channels_of_layers,
                    channels,
                    attention_head_dim=head_dims[i] if UP_BLOCKS[kind] else None,
                    scale=resnet_out_scale_factor,
                    upsample=level > 0,
                    **shared,
                )
            )

        self.conv_norm_out = nn.GroupNorm(norm_num_groups, block_out_channels[0], eps=norm_eps)
        self.conv_out = nn.Conv2d(block_out_channels[0], out_channels, kernel_size=3, padding=1)
        attend_many_sequences(convolve_frames_in_2d(self))

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Builds the network of a published `unet/config.json`.

        Raises:
            ConfigError: an option, or an option's value, that no published checkpoint uses; the message names it.
        """
        return super().from_config(checked_config(config), return_unused_kwargs, **kwargs)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        """One prediction.

        Args:
            sample: B C F H W; H and W divisible by `self.stride`.
            timestep: a number, or one for each of the batch: B.
            encoder_hidden_states: B L encoder_hid_dim, text embeddings; padding is attended, as in the published code.
            class_labels: B, noise levels; needed if the configuration has a `class_embed_type`, else left out.

        Returns:
            B out_channels F H W.

        Raises:
            ValueError: a size that cannot be halved often enough, or `class_labels` missing or not wanted.
        """
        batch, _, frames, height, width = sample.shape
        if height % self.stride or width % self.stride:
            raise ValueError(f"{width}x{height} frames: width and height must be divisible by {self.stride}")

        emb = self._embed(sample, timestep, encoder_hidden_states, class_labels).repeat_interleave(frames, dim=0)
        text = self.encoder_hid_proj(encoder_hidden_states).repeat_interleave(frames, dim=0)

        x = self.conv_in(rearrange(sample, "b c f h w -> (b f) c h w"))
        skips = [x]
        for block in self.down_blocks:
            x = block(x, emb, text, frames, skips)
        x = self.mid_block(x, emb, text, frames)
        for block in self.up_blocks:
            x = block(x, emb, text, frames, skips)
        x = self.conv_out(F.gelu(self.conv_norm_out(x)))
        return rearrange(x, "(b f) c h w -> b c f h w", b=batch)

    @property
    def stride(self) -> int:
        """By how much the deepest level is smaller than the input."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    def _embed(self, sample: Tensor, timestep: Tensor | float, text: Tensor, class_labels: Tensor | None) -> Tensor:
        """The embedding of time, pooled text and noise level that every ResNet block sees: B D."""
        batch = sample.shape[0]
        timesteps = torch.as_tensor(timestep, device=sample.device).expand(batch)
        emb = self.time_embedding(self.time_proj(timesteps).to(sample.dtype))
        if (self.config.class_embed_type is None) != (class_labels is None):
            raise ValueError(f"class_labels do not fit class_embed_type {self.config.class_embed_type!r}")
        if class_labels is not None:
            emb = emb + self.class_embedding(self.time_proj(class_labels).to(sample.dtype))
        emb = emb + self.add_embedding(text)
        return F.gelu(emb) if self.config.time_embedding_act_fn else emb


class VideoBlock(nn.Module):
    """Layers of one resolution: ResNet block, temporal convolution and, where it attends, spatial and temporal
    attention.

    Args:
        in_channels: channels that go into each layer, one number a layer.
        out_channels: channels that come out of each.
        attention_head_dim: see `VideoUNet`; None for a block without attention.
        attentions: number of attentions, if not one a layer.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        *,
        time_dim: int,
        text_dim: int,
        attention_head_dim: int | None,
        scale: float,
        skip_time_act: bool,
        groups: int,
        eps: float,
        attentions: int | None = None,
    ) -> None:
        super().__init__()
        self._resnet_arguments = {
            "temb_channels": time_dim,
            "eps": eps,
            "groups": groups,
            "time_embedding_norm": "scale_shift",
            "non_linearity": ACTIVATION,
            "output_scale_factor": scale,
            "skip_time_act": skip_time_act,
        }
        self.resnets = nn.ModuleList(self._resnet(channels, out_channels) for channels in in_channels)
        self.temp_convs = nn.ModuleList(TemporalConvLayer(out_channels, out_channels, dropout=0.1) for _ in in_channels)
        self.attends = attention_head_dim is not None
        if attention_head_dim is not None:
            count = len(in_channels) if attentions is None else attentions
            heads = out_channels // attention_head_dim
            self.attentions = nn.ModuleList(
                Attention(
                    query_dim=out_channels,
                    cross_attention_dim=out_channels,
                    heads=heads,
                    dim_head=attention_head_dim,
                    added_kv_proj_dim=text_dim,
                    norm_num_groups=groups,
                    cross_attention_norm="group_norm",
                    bias=True,
                    upcast_softmax=True,
                    processor=AttnAddedKVProcessor2_0(),
                )
                for _ in range(count)
            )
            # Heads and head dimension are exchanged here in the published code; the weights know no other way.
            self.temp_attentions = nn.ModuleList(
                TransformerTemporalModel(attention_head_dim, heads, out_channels, norm_num_groups=groups)
                for _ in range(count)
            )

    def _resnet(self, in_channels: int, out_channels: int, **resample: bool) -> ResnetBlock2D:
        return ResnetBlock2D(in_channels=in_channels, out_channels=out_channels, **self._resnet_arguments, **resample)

    def _convolve(self, i: int, x: Tensor, emb: Tensor, frames: int) -> Tensor:
        return self.temp_convs[i](self.resnets[i](x, emb), num_frames=frames)

    def _attend(self, i: int, x: Tensor, text: Tensor, frames: int) -> Tensor:
        x = self.attentions[i](x, encoder_hidden_states=text)
        return self.temp_attentions[i](x, num_frames=frames).sample

    def _layer(self, i: int, x: Tensor, emb: Tensor, text: Tensor, frames: int) -> Tensor:
        x = self._convolve(i, x, emb, frames)
        return self._attend(i, x, text, frames) if self.attends else x


class DownBlock(VideoBlock):
    """Layers, then a ResNet block that halves height and width."""

    def __init__(self, in_channels: Sequence[int], out_channels: int, *, downsample: bool, **kwargs: Any) -> None:
        super().__init__(in_channels, out_channels, **kwargs)
        self.downsamplers = nn.ModuleList([self._resnet(out_channels, out_channels, down=True)] if downsample else [])

    def forward(self, x: Tensor, emb: Tensor, text: Tensor, frames: int, skips: list[Tensor]) -> Tensor:
        """(B F) C H W in; each layer's output is appended to `skips`."""
        for i in range(len(self.resnets)):
            x = self._layer(i, x, emb, text, frames)
            skips.append(x)
        for downsampler in self.downsamplers or ():  # none in `DeepFeatures.shallow`
            x = downsampler(x, emb)
            skips.append(x)
        return x


class MidBlock(VideoBlock):
    """Two layers with one attention between them."""

    def __init__(self, in_channels: Sequence[int], out_channels: int, **kwargs: Any) -> None:
        super().__init__(in_channels, out_channels, attentions=1, **kwargs)

    def forward(self, x: Tensor, emb: Tensor, text: Tensor, frames: int) -> Tensor:
        """(B F) C H W in and out."""
        x = self._layer(0, x, emb, text, frames)
        return self._convolve(1, x, emb, frames)


class UpBlock(VideoBlock):
    """Layers that take the down blocks' outputs too, then a ResNet block that doubles height and width."""

    def __init__(self, in_channels: Sequence[int], out_channels: int, *, upsample: bool, **kwargs: Any) -> None:
        super().__init__(in_channels, out_channels, **kwargs)
        self.upsamplers = nn.ModuleList([self._resnet(out_channels, out_channels, up=True)] if upsample else [])

    def forward(self, x: Tensor, emb: Tensor, text: Tensor, frames: int, skips: list[Tensor]) -> Tensor:
        """(B F) C H W in; each layer takes one off the end of `skips`."""
        for i in range(len(self.resnets)):
            x = self._layer(i, join(x, skips.pop()), emb, text, frames)
        for upsampler in self.upsamplers:
            x = upsampler(x, emb)
        return x


def checked_config(config: Any) -> dict[str, Any]:
    """`config` without the options that have one value in all published checkpoints.

    Raises:
        ConfigError: see `VideoUNet.from_config`.
    """
    wanted = {key: value for key, value in dict(config).items() if not key.startswith("_")}
    for key, value in wanted.items():
        if key in SETTLED and value != SETTLED[key]:
            raise ConfigError(f"VideoUNet: {key} = {value!r} is not supported; Show-1 has {SETTLED[key]!r}")
        if key in CHOICES and value not in CHOICES[key]:
            options = " or ".join(map(repr, CHOICES[key]))
            raise ConfigError(f"VideoUNet: {key} = {value!r} is not supported; Show-1 has {options}")
        if key not in SETTLED and key not in VideoUNet._get_init_keys(VideoUNet):
            raise ConfigError(f"VideoUNet: unknown option {key} = {value!r}")
    levels = len(wanted.get("block_out_channels", (320, 640, 960, 1280)))
    for key, known in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
        kinds = wanted.get(key, [])
        for kind in kinds:
            if kind not in known:
                raise ConfigError(
                    f"VideoUNet: {key} has {kind!r}, which is not supported; Show-1 has {' and '.join(known)}"
                )
        if key in wanted and len(kinds) != levels:
            raise ConfigError(f"VideoUNet: {key} has {len(kinds)} blocks for {levels} block_out_channels")
    return {key: value for key, value in wanted.items() if key not in SETTLED}


def _per_level(value: int | Sequence[int], levels: int) -> list[int]:
    return [value] * levels if isinstance(value, int) else list(value)
