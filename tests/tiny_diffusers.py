"""Tiny pipelines of diffusers with random weights, as `save_pretrained` writes them: a second or less each.

`folder(name, place)` writes one of `FAMILIES` below a folder, once; `CALLS` has what it is called with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from inspect import signature
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing

from show1_ray.clip import Clip
from show1_ray.pipeline.lineup import blueprints
from show1_ray.pipeline.pipeline import Pipeline

WIDTH = 32
"""Of texts."""
DOWN_2D = ["DownEncoderBlock2D"] * 2
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def tokenizer(limit: int = 512) -> Any:
    """Each character is a token; texts end with </s>."""
    words = ["<pad>", "</s>", "<unk>", *map(chr, range(32, 127))]
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = Split("", "isolated")
    inner.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=limit,
        padding_side="right",
        chat_template=TEMPLATE,
    )


def t5(cls: Any = transformers.T5EncoderModel, width: int = WIDTH, words: int = 128) -> Any:
    """T5, or UMT5."""
    return cls(
        cls.config_class(
            vocab_size=words,
            d_model=width,
            d_kv=8,
            d_ff=37,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    ).eval()


def clip_text(width: int = WIDTH, cls: Any = transformers.CLIPTextModel) -> Any:
    """CLIP's."""
    config = transformers.CLIPTextConfig(
        vocab_size=128,
        hidden_size=width,
        projection_dim=width,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
    )
    return cls(config).eval()


def vae_2d(levels: int = 2, **more: Any) -> Any:
    """Of images: halves sides `levels` - 1 times."""
    return diffusers.AutoencoderKL(
        block_out_channels=[8] * levels,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        latent_channels=4,
        norm_num_groups=2,
        **more,
    )


def ddim() -> Any:
    """A scheduler of UNets."""
    return diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False
    )


def wan_transformer(channels: int = 16) -> Any:
    """Wan's."""
    return diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=channels,
        out_channels=channels,
        text_dim=WIDTH,
        freq_dim=256,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )


def wan_vae(**more: Any) -> Any:
    """Wan's."""
    return diffusers.AutoencoderKLWan(
        **{"base_dim": 3, "z_dim": 16, "dim_mult": [1] * 4, "num_res_blocks": 1, **more},
        temperal_downsample=[False, True, True],
    )


def wan_parts(vae: Any = None) -> dict[str, Any]:
    """What all Wan pipelines share."""
    return {
        "tokenizer": tokenizer(),
        "text_encoder": t5(transformers.UMT5EncoderModel),
        "vae": vae or wan_vae(),
        "scheduler": diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    }


def wan() -> Any:
    """Wan 2.1."""
    return diffusers.WanPipeline(transformer=wan_transformer(), **wan_parts())


def wan22() -> Any:
    """Wan 2.2: two experts."""
    experts = {"transformer": wan_transformer(), "transformer_2": wan_transformer()}
    return diffusers.WanPipeline(**experts, boundary_ratio=0.875, **wan_parts())


def wan5b() -> Any:
    """Wan 2.2 5B: a VAE of 16 times smaller sides."""
    vae = wan_vae(
        z_dim=48,
        in_channels=12,
        out_channels=12,
        is_residual=True,
        patch_size=2,
        latents_mean=[0.0] * 48,
        latents_std=[1.0] * 48,
        scale_factor_spatial=16,
        scale_factor_temporal=4,
    )
    return diffusers.WanPipeline(transformer=wan_transformer(48), expand_timesteps=True, **wan_parts(vae))


def ltx(conditioned: bool = False) -> Any:
    """LTX."""
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        timestep_conditioning=conditioned,
        patch_size=1,
        patch_size_t=1,
    )
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=WIDTH,
    )
    return diffusers.LTXPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=t5(),
        tokenizer=tokenizer(128),
        transformer=transformer,
    )


def ltx_conditioned() -> Any:
    """LTX whose VAE draws noise when it decodes."""
    return ltx(conditioned=True)


def cogvideox(patch_size_t: int | None = None) -> Any:
    """CogVideoX 1.0."""
    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8,) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=8 if patch_size_t is None else 16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=WIDTH,
        num_layers=1,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        patch_size=2,
        patch_size_t=patch_size_t,
        temporal_compression_ratio=4,
        max_text_seq_length=16,
        use_rotary_positional_embeddings=patch_size_t is not None,
    )
    return diffusers.CogVideoXPipeline(
        tokenizer=tokenizer(), text_encoder=t5(), vae=vae, transformer=transformer, scheduler=ddim()
    )


def cogvideox15() -> Any:
    """CogVideoX 1.5: frames are padded for its patches."""
    return cogvideox(2)


def hunyuan15() -> Any:
    """HunyuanVideo 1.5: guidance is a component."""
    transformer = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        patch_size=1,
        patch_size_t=1,
        text_embed_dim=16,
        text_embed_2_dim=WIDTH,
        image_embed_dim=12,
        rope_axes_dim=(2, 2, 4),
        target_size=16,
        task_type="t2v",
    )
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
        downsample_match_channel=False,
        upsample_match_channel=False,
    )
    qwen = transformers.Qwen2_5_VLTextConfig(
        vocab_size=128,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        rope_scaling={"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    return diffusers.HunyuanVideo15Pipeline(
        text_encoder=transformers.Qwen2_5_VLTextModel(qwen).eval(),
        tokenizer=tokenizer(2000),
        transformer=transformer,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=t5(words=1510),
        tokenizer_2=transformers.ByT5Tokenizer(),
        guider=diffusers.ClassifierFreeGuidance(guidance_scale=3.0),
    )


def mochi() -> Any:
    """Mochi."""
    transformer = diffusers.MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=WIDTH,
        time_embed_dim=4,
        max_sequence_length=16,
    )
    vae = diffusers.AutoencoderKLMochi(
        latent_channels=12,
        encoder_block_out_channels=(32,) * 4,
        decoder_block_out_channels=(32,) * 4,
        layers_per_block=(1,) * 5,
    )
    return diffusers.MochiPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=t5(),
        tokenizer=tokenizer(),
        transformer=transformer,
    )


def sana() -> Any:
    """SanaVideo."""
    gemma = transformers.Gemma2Config(
        vocab_size=128,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
    )
    transformer = diffusers.SanaVideoTransformer3DModel(
        in_channels=16,
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=16,
        sample_size=8,
        patch_size=(1, 2, 2),
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    return diffusers.SanaVideoPipeline(
        tokenizer=tokenizer(4000),
        text_encoder=transformers.Gemma2Model(gemma).eval(),
        vae=wan_vae(),
        transformer=transformer,
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


def unet_2d() -> Any:
    """Of images."""
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        norm_num_groups=2,
        attention_head_dim=4,
    )


def animatediff() -> Any:
    """AnimateDiff."""
    adapter = diffusers.MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_norm_num_groups=2, motion_num_attention_heads=2
    )
    return diffusers.AnimateDiffPipeline(
        vae=vae_2d(),
        text_encoder=clip_text(),
        tokenizer=tokenizer(77),
        unet=unet_2d(),
        motion_adapter=adapter,
        scheduler=ddim(),
    )


def modelscope() -> Any:
    """TextToVideoSD."""
    unet = diffusers.UNet3DConditionModel(
        block_out_channels=(4, 8),
        layers_per_block=1,
        sample_size=16,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=2,
    )
    return diffusers.TextToVideoSDPipeline(
        vae=vae_2d(), text_encoder=clip_text(), tokenizer=tokenizer(77), unet=unet, scheduler=ddim()
    )


def stable_diffusion() -> Any:
    """An image pipeline."""
    return diffusers.StableDiffusionPipeline(
        vae=vae_2d(),
        text_encoder=clip_text(),
        tokenizer=tokenizer(77),
        unet=unet_2d(),
        scheduler=diffusers.PNDMScheduler(skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


FAMILIES: dict[str, Callable[[], Any]] = {
    one.__name__: one
    for one in (
        *(wan, wan22, wan5b, ltx, ltx_conditioned, cogvideox, cogvideox15, hunyuan15, mochi, sana, animatediff),
        *(modelscope, stable_diffusion),
    )
}

_SMALL = {"height": 32, "width": 32, "num_inference_steps": 3, "guidance_scale": 5.0}
CALLS: dict[str, dict[str, Any]] = {
    **{name: {**_SMALL, "num_frames": 9} for name in ("wan", "wan22", "wan5b", "ltx")},
    "ltx_conditioned": {**_SMALL, "num_frames": 9, "decode_timestep": 0.05, "decode_noise_scale": 0.025},
    "cogvideox": {**_SMALL, "num_frames": 9, "height": 16, "width": 16, "max_sequence_length": 16},
    "cogvideox15": {**_SMALL, "num_frames": 9, "height": 16, "width": 16},
    "hunyuan15": {"num_frames": 9, "height": 16, "width": 16, "num_inference_steps": 2},
    "mochi": {**_SMALL, "num_frames": 7, "height": 16, "width": 16, "num_inference_steps": 2},
    "sana": {**_SMALL, "frames": 9, "use_resolution_binning": False},
    "animatediff": {**_SMALL, "num_frames": 4},
    "modelscope": {**_SMALL, "num_frames": 4},
    "stable_diffusion": _SMALL,
}
"""What each is called with."""


def folder(name: str, place: Path) -> Path:
    """Writes a pipeline below a folder if it is not there yet."""
    target = place / name
    if not target.exists():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            FAMILIES[name]().save_pretrained(target, safe_serialization=True)
    return target


def pipeline(place: Path, name: str, call: dict[str, Any] | None = None, dtype: str = "float32", **more: Any) -> Any:
    """A pipeline of one stage, `video`, that calls a family's; `more`: other keys of the stage and the file."""
    keys = {"execution", "inputs"} & more.keys()
    stage = {"uses": "diffusers", "checkpoint": {"repo": str(folder(name, place))}, "call": call or CALLS[name]}
    stage |= {key: value for key, value in more.items() if key not in keys}
    file = place / f"{name}.yaml"
    said = {"fps": 8, "dtype": dtype, "stages": {"video": stage}, **{key: more[key] for key in keys}}
    file.write_text(yaml.safe_dump(said, sort_keys=False))
    return Pipeline.load(file)


def rendered(pipeline: Pipeline, clips: Sequence[Clip], **given: Sequence[Any]) -> list[np.ndarray]:
    """Frames of clips, as stations compute them: stage after stage, in one batch."""
    values: list[dict[str, Any]] = [{name: one[i] for name, one in given.items()} for i in range(len(clips))]
    for blueprint in blueprints(pipeline):
        for known, found in zip(values, blueprint.build("cpu")(clips, values), strict=True):
            assert isinstance(found, dict)
            known |= found
    return [one[pipeline.video.line] for one in values]


def direct(
    place: Path,
    clip: Clip,
    call: dict[str, Any],
    dtype: str = "float32",
    cls: str = "",
    change: Callable[[Any], Any] | None = None,
) -> np.ndarray:
    """What diffusers itself gives for a clip; `change`: of the pipeline, before it is called."""
    pipe = _loaded(place, dtype, cls or "DiffusionPipeline") if change is None else _load(place, dtype, cls)
    if change is not None:
        change(pipe)
    texts = {"prompt": clip.prompt} if "prompt" in signature(pipe.__call__).parameters else {}
    texts |= {"negative_prompt": clip.negative_prompt} if clip.negative_prompt else {}
    generator = torch.Generator("cpu").manual_seed(clip.seed)
    output = pipe(**texts, **call, generator=generator, output_type="pil")
    frames = output.frames[0] if hasattr(output, "frames") else output.images
    return np.stack([np.asarray(frame) for frame in frames])


def _load(place: Path, dtype: str, cls: str) -> Any:
    pipe = getattr(diffusers, cls or "DiffusionPipeline").from_pretrained(place, dtype=getattr(torch, dtype))
    pipe.set_progress_bar_config(disable=True)
    return pipe


_loaded = lru_cache(1)(_load)
