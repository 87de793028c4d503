"""Tiny pipelines of diffusers that make images of images; see `tiny_diffusers`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from tests import tiny_diffusers as tiny


def sdxl() -> Any:
    """SDXL, image to image: sides are multiples of 4."""
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 1),
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=2 * tiny.WIDTH,
        norm_num_groups=2,
    )
    return diffusers.StableDiffusionXLImg2ImgPipeline(
        vae=tiny.vae_2d(3),
        text_encoder=tiny.clip_text(),
        text_encoder_2=tiny.clip_text(cls=transformers.CLIPTextModelWithProjection),
        tokenizer=tiny.tokenizer(77),
        tokenizer_2=tiny.tokenizer(77),
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="leading"),
    )


def upscaler() -> Any:
    """The x4 upscaler."""
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=16,
        in_channels=7,
        out_channels=4,
        num_class_embeds=1000,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        cross_attention_dim=tiny.WIDTH,
        norm_num_groups=2,
    )
    return diffusers.StableDiffusionUpscalePipeline(
        vae=tiny.vae_2d(3),
        text_encoder=tiny.clip_text(),
        tokenizer=tiny.tokenizer(77),
        unet=unet,
        low_res_scheduler=diffusers.DDPMScheduler(),
        scheduler=diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False),
        max_noise_level=350,
    )


FAMILIES = {"sdxl": sdxl, "upscaler": upscaler}


def folder(name: str, place: Path) -> Path:
    """Writes a pipeline below a folder if it is not there yet."""
    target = place / name
    if not target.exists():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            FAMILIES[name]().save_pretrained(target, safe_serialization=True)
    return target
