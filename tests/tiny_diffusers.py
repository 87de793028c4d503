"""Tiny pipelines of diffusers with random weights, as `save_pretrained` writes them: a second or less each.

`folder(name, place)` writes one of `FAMILIES` below a folder, once for each process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from show1_ray.clip import Clip
from show1_ray.pipeline.lineup import blueprints
from show1_ray.pipeline.pipeline import Pipeline

WIDTH = 32
"""Of texts."""


def tokenizer(limit: int = 512) -> PreTrainedTokenizerFast:
    """Each character is a token; texts end with </s>."""
    words = ["<pad>", "</s>", "<unk>", *map(chr, range(32, 127))]
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = Split("", "isolated")
    inner.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=limit,
        padding_side="right",
    )


def umt5() -> UMT5EncoderModel:
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=128, d_model=WIDTH, d_kv=8, d_ff=37, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
        )
    ).eval()


def wan_transformer(channels: int = 16) -> Any:
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


def wan_parts() -> dict[str, Any]:
    vae = diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    return {
        "tokenizer": tokenizer(),
        "text_encoder": umt5(),
        "vae": vae,
        "scheduler": diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
        ),
    }


def wan() -> Any:
    """Wan 2.1."""
    return diffusers.WanPipeline(transformer=wan_transformer(), **wan_parts())


def wan22() -> Any:
    """Wan 2.2: two experts."""
    return diffusers.WanPipeline(
        transformer=wan_transformer(), transformer_2=wan_transformer(), boundary_ratio=0.875, **wan_parts()
    )


FAMILIES: dict[str, Callable[[], Any]] = {"wan": wan, "wan22": wan22}


def folder(name: str, place: Path) -> Path:
    """Writes a pipeline below a folder if it is not there yet."""
    target = place / name
    if not target.exists():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            FAMILIES[name]().save_pretrained(target, safe_serialization=True)
    return target


def pipeline(place: Path, name: str, call: dict[str, Any], dtype: str = "float32", **more: Any) -> Any:
    """A pipeline of one stage, `video`, that calls a family's; `more`: other keys of the stage and the file."""
    keys = {"execution", "inputs"} & more.keys()
    stage = {"uses": "diffusers", "checkpoint": {"repo": str(folder(name, place))}, "call": call}
    stage |= {key: value for key, value in more.items() if key not in keys}
    file = place / f"{name}.yaml"
    said = {"fps": 8, "dtype": dtype, "stages": {"video": stage}, **{key: more[key] for key in keys}}
    file.write_text(yaml.safe_dump(said))
    return Pipeline.load(file)


def rendered(pipeline: Pipeline, clips: Sequence[Clip], **given: Sequence[Any]) -> list[np.ndarray]:
    """Frames of clips, as stations compute them: stage after stage, in one batch."""
    values: list[dict[str, Any]] = [{name: one[i] for name, one in given.items()} for i in range(len(clips))]
    for blueprint in blueprints(pipeline):
        for known, found in zip(values, blueprint.build("cpu")(clips, values), strict=True):
            assert isinstance(found, dict)
            known |= found
    return [one[pipeline.video.line] for one in values]


def direct(place: Path, cls: str, clip: Clip, call: dict[str, Any], dtype: str = "float32") -> np.ndarray:
    """What diffusers itself gives for a clip."""
    pipe = getattr(diffusers, cls).from_pretrained(place, dtype=getattr(torch, dtype))
    texts = {"prompt": clip.prompt} | ({"negative_prompt": clip.negative_prompt} if clip.negative_prompt else {})
    generator = torch.Generator("cpu").manual_seed(clip.seed)
    output = pipe(**texts, **call, generator=generator, output_type="pil")
    frames = output.frames[0] if hasattr(output, "frames") else output.images
    return np.stack([np.asarray(frame) for frame in frames])
