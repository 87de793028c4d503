"""Tiny pipelines of diffusers of families that the package says nothing of, or little: see `tiny_diffusers`.

They are written in the families' own table, so that `tiny_diffusers.pipeline` and `direct` know them.
"""

from __future__ import annotations

from typing import Any

import diffusers
import transformers
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

from tests import tiny_diffusers as tiny

SPECIAL: dict[str, int] = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
SMALL: dict[str, Any] = {"vocab_size": 128, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}


def video_vae() -> Any:
    """HunyuanVideo's, which Kandinsky 5 has, too."""
    return diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=2
    )


def shifting() -> Any:
    """A scheduler of flows."""
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0)


def hunyuan() -> Any:
    """HunyuanVideo 1.0: a Llama and a CLIP, guidance within the network."""
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        guidance_embeds=True,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 2, 4),
    )
    llama = transformers.LlamaConfig(**{**SMALL, "num_hidden_layers": 3}, num_attention_heads=2, **SPECIAL)
    return diffusers.HunyuanVideoPipeline(
        text_encoder=transformers.LlamaModel(llama).eval(),
        tokenizer=tiny.tokenizer(600),
        text_encoder_2=tiny.clip_text(8),
        tokenizer_2=tiny.tokenizer(77),
        transformer=transformer,
        vae=video_vae(),
        scheduler=shifting(),
    )


def kandinsky5() -> Any:
    """Kandinsky 5: it reads a prompt whole, shortens it, and reads it again."""
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"}
    qwen = transformers.Qwen2_5_VLConfig(
        text_config={**SMALL, **SPECIAL, "num_attention_heads": 2, "num_key_value_heads": 2, "rope_scaling": rope},
        vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16},
        vision_start_token_id=5,
        vision_end_token_id=6,
        vision_token_id=7,
    )
    transformer = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=tiny.WIDTH,
        time_dim=16,
        model_dim=24,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(4, 4, 4),
    )
    return diffusers.Kandinsky5T2VPipeline(
        text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(qwen).eval(),
        tokenizer=tiny.tokenizer(2000),
        text_encoder_2=tiny.clip_text(),
        tokenizer_2=tiny.tokenizer(77),
        transformer=transformer,
        vae=video_vae(),
        scheduler=shifting(),
    )


def svd() -> Any:
    """Stable Video Diffusion: an image, and no prompt."""
    unet = diffusers.UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=16,
        num_attention_heads=2,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
    )
    sight = transformers.CLIPVisionConfig(
        hidden_size=16, projection_dim=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    return diffusers.StableVideoDiffusionPipeline(
        unet=unet,
        image_encoder=transformers.CLIPVisionModelWithProjection(sight).eval(),
        feature_extractor=transformers.CLIPImageProcessorPil(),
        vae=diffusers.AutoencoderKLTemporalDecoder(
            block_out_channels=(32, 32), down_block_types=tiny.DOWN_2D, layers_per_block=1
        ),
        scheduler=diffusers.EulerDiscreteScheduler(
            prediction_type="v_prediction",
            timestep_type="continuous",
            sigma_min=0.002,
            sigma_max=700.0,
            use_karras_sigmas=True,
        ),
    )


def ltx2() -> Any:
    """LTX 2: sound beside the video; a VAE that halves time once."""
    gemma = transformers.Gemma3Config(
        text_config={**SMALL, **SPECIAL, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8},
        vision_config={
            **{"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1},
            **{"image_size": 8, "patch_size": 4},
        },
        image_token_index=127,
        boi_token_index=126,
        eoi_token_index=125,
        mm_tokens_per_image=1,
    )
    heads = {f"{kind}_connector_num_attention_heads": 2 for kind in ("video", "audio")}
    widths = {f"{kind}_connector_attention_head_dim": 8 for kind in ("video", "audio")}
    layers = {f"{kind}_connector_num_layers": 1 for kind in ("video", "audio")}
    registers = {f"{kind}_connector_num_learnable_registers": None for kind in ("video", "audio")}
    return diffusers.LTX2Pipeline(
        text_encoder=transformers.Gemma3ForConditionalGeneration(gemma).eval(),
        tokenizer=tiny.tokenizer(1024),
        connectors=LTX2TextConnectors(
            caption_channels=16, text_proj_in_factor=3, rope_type="split", **heads, **widths, **layers, **registers
        ),
        transformer=diffusers.LTX2VideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            audio_in_channels=4,
            audio_out_channels=4,
            audio_num_attention_heads=2,
            audio_attention_head_dim=4,
            audio_cross_attention_dim=8,
            num_layers=1,
            caption_channels=16,
            rope_type="split",
        ),
        vae=diffusers.AutoencoderKLLTX2Video(
            latent_channels=4,
            block_out_channels=(8,),
            decoder_block_out_channels=(8,),
            layers_per_block=(1,),
            decoder_layers_per_block=(1, 1),
            spatio_temporal_scaling=(True,),
            decoder_spatio_temporal_scaling=(True,),
            decoder_inject_noise=(False, False),
            downsample_type=("spatial",),
            upsample_residual=(False,),
            upsample_factor=(1,),
            patch_size=1,
        ),
        audio_vae=diffusers.AutoencoderKLLTX2Audio(
            base_channels=4, ch_mult=(1,), num_res_blocks=1, attn_resolutions=None, latent_channels=2, mel_bins=8
        ),
        vocoder=LTX2Vocoder(
            in_channels=16,
            hidden_channels=8,
            upsample_kernel_sizes=[4],
            upsample_factors=[2],
            resnet_kernel_sizes=[3],
            resnet_dilations=[[1]],
        ),
        scheduler=shifting(),
    )


def flux() -> Any:
    """Flux: images."""
    return diffusers.FluxPipeline(
        text_encoder=tiny.clip_text(),
        tokenizer=tiny.tokenizer(77),
        text_encoder_2=tiny.t5(),
        tokenizer_2=tiny.tokenizer(),
        transformer=diffusers.FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=tiny.WIDTH,
            pooled_projection_dim=tiny.WIDTH,
            axes_dims_rope=(2, 2, 4),
        ),
        vae=tiny.vae_2d(shift_factor=0.1),
        scheduler=shifting(),
    )


STRANGERS = ("hunyuan", "kandinsky5", "svd", "ltx2", "flux")
_CALL = {"height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 4.5}
tiny.FAMILIES |= {one.__name__: one for one in (hunyuan, kandinsky5, svd, ltx2, flux)}
tiny.CALLS |= {
    "hunyuan": {
        **_CALL,
        "num_frames": 9,
        "true_cfg_scale": 2.0,
        "prompt_template": {"template": "{}", "crop_start": 0},
        "max_sequence_length": 32,
    },
    "kandinsky5": {**_CALL, "num_frames": 5, "max_sequence_length": 900},
    "svd": {"num_frames": 2, "height": 32, "width": 32, "num_inference_steps": 2},
    "ltx2": {**_CALL, "num_frames": 5, "max_sequence_length": 64},
    "flux": {**_CALL, "true_cfg_scale": 2.0},
}
