"""Checkpoints with random weights: for benchmarks (speed does not depend on the weights) and tests.

`network` makes one network on a device; `write_tiny_cascade` writes a whole cascade in the hub's layout, small enough
for a CPU, with a tokenizer of its own and a pipeline file.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import sentencepiece
import torch
import yaml
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet3DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from show1_ray.pipeline.checkpoints import PUBLISHED, Checkpoint
from show1_ray.show1.loading import FOLDERS, LATENT_HEAD_DIM, load_tokenizer
from show1_ray.show1.video_unet import VideoUNet

TEXT_WIDTH, CLIP_WIDTH = 32, 16
WORDS = (  # what the tokenizer of a tiny cascade is trained on
    "a an the of on in and with over under red green blue yellow purple white black gray circle square triangle moving "
    "left right up down standing still growing shrinking cat dog horse panda car ship city sea snow fire driving "
    "riding walking eating playing low resolution blur small large old new bright dark background"
)


def network(kind: Any, config: Any, device: str | torch.device, dtype: torch.dtype, seed: int = 0) -> Any:
    """A network with random weights, made on the device in `dtype`.

    Matrices and kernels are normal with variance 1 / fan-in, biases 0, norms 1: activations stay of order 1 at any
    depth, in half precision too. What transformers keeps in single precision (T5's `wo`) is so here.

    Args:
        kind: a class with `from_config` (diffusers' and ours) or one that is called with a configuration
        (transformers'). config: its configuration.
        device, dtype: where the weights lie, and as what.
        seed: of the weights.
    """
    model = blank_network(kind, config, device, dtype)
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
        else:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=generator)
    return model.eval().requires_grad_(False)


def blank_network(kind: Any, config: Any, device: str | torch.device, dtype: torch.dtype) -> Any:
    """A network whose weights are not set yet (on the device "meta": that has none); arguments as for `network`."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = kind.from_config(config) if hasattr(kind, "load_config") else kind(config)
    finally:
        torch.set_default_dtype(default)
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in (getattr(model, "_keep_in_fp32_modules", None) or []):
            module.float()
    return model


def configuration(kind: type[nn.Module], config: Mapping[str, Any]) -> Any:
    """A checkpoint's configuration as `network` takes it for a class of `FOLDERS`; see also `load_network`."""
    if kind is UNet3DConditionModel:
        heads = config.get("attention_head_dim")
        return {
            **without_unknown(kind, config),
            "attention_head_dim": heads if isinstance(heads, int) else LATENT_HEAD_DIM,
        }
    if kind is T5EncoderModel:
        return T5Config(**config)
    if kind is CLIPTextModel:
        return CLIPTextConfig(**config)
    return config


class RandomCheckpoints:
    """What `loading.Checkpoints` is, with random weights in the published checkpoints' shapes: nothing is fetched.

    Args:
        device, dtype: where networks are made, and in what.
    """

    def __init__(self, device: str | torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = torch.device(device), dtype

    def network(self, kind: type[nn.Module], checkpoint: Checkpoint) -> Any:
        """A network of the class and the published size."""
        config = configuration(kind, self._config(checkpoint, FOLDERS[kind.__name__]))
        return network(kind, config, self.device, self.dtype)

    def tokenizer(self, checkpoint: Checkpoint) -> Any:
        """A tokenizer of few words; its tokens are in any published vocabulary."""
        is_clip = self._config(checkpoint, "text_encoder")["model_type"].startswith("clip")
        with TemporaryDirectory() as folder:
            (_write_clip_tokenizer if is_clip else _write_t5_tokenizer)(Path(folder) / "tokenizer")
            return load_tokenizer(Path(folder))

    def scheduler_config(self, checkpoint: Checkpoint, component: str) -> dict[str, Any]:
        """The published configuration of a scheduler."""
        return self._config(checkpoint, component)

    def _config(self, checkpoint: Checkpoint, component: str) -> dict[str, Any]:
        return published_config(checkpoint.repo.rpartition("/")[2], component)


def published_config(repo: str, component: str) -> dict[str, Any]:
    """The configuration of a published checkpoint's component: `published_config("show-1-base", "unet")`.

    Raises:
        KeyError: it is not among those that the package knows.
    """
    for path in PUBLISHED.glob(f"*/{repo}/{component}.json"):
        return json.loads(path.read_text())
    raise KeyError(f"{repo}/{component}")


def without_unknown(kind: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what a class of diffusers does not know."""
    return {key: value for key, value in config.items() if key in kind._get_init_keys(kind)}


def write_tiny_cascade(folder: Path, dtype: str = "float32", seed: int = 0) -> Path:
    """Writes a cascade with random weights in the published layout: half-precision pickles, T5 in two
    single-precision shards.

    9 frames of 36 × 24 pixels; a clip takes a fraction of a second on one core.

    Args:
        folder: gets a folder a checkpoint, and `pipeline.yaml`.
        dtype: what the pipeline computes in.
        seed: of the weights.

    Returns:
        The pipeline file.
    """
    for place, model in tiny_networks(seed).items():
        transformer = place.endswith("text_encoder")
        _write_weights(
            model,
            folder / place,
            stem="pytorch_model" if transformer else "diffusion_pytorch_model",
            shards=2 if place == "show-1-base/text_encoder" else 1,
        )
        if transformer:
            model.config.save_pretrained(folder / place)
        else:
            _write_files(folder / place, {"config.json": dict(model.config)})
    for repo in ("show-1-base", "show-1-interpolation", "show-1-sr1", "IF-II-L-v1.0", "show-1-sr2"):
        for scheduler in ("scheduler", "image_noising_scheduler"):
            with suppress(KeyError):
                config = published_config(repo, scheduler)
                _write_files(folder / repo / scheduler, {"scheduler_config.json": config})
    _write_t5_tokenizer(folder / "show-1-base" / "tokenizer")
    _write_clip_tokenizer(folder / "show-1-sr2" / "tokenizer")
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(_tiny_pipeline(dtype), sort_keys=False))
    return path


def tiny_networks(seed: int = 0) -> dict[str, Any]:
    """The networks that `write_tiny_cascade` writes, by their folder; in half precision, T5 in single."""
    pixel: dict[str, Any] = {
        "attention_head_dim": 8,
        "addition_embed_type_num_heads": 4,
        "encoder_hid_dim": TEXT_WIDTH,
        "cross_attention_dim": 32,
        "block_out_channels": [32, 32],
        "layers_per_block": 1,
    }
    pixel3d = {
        **pixel,
        "down_block_types": ["ResnetDownsampleBlock3D", "SimpleCrossAttnDownBlock3D"],
        "up_block_types": ["SimpleCrossAttnUpBlock3D", "ResnetUpsampleBlock3D"],
    }
    pixel2d = {
        **pixel,
        "down_block_types": ["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
        "up_block_types": ["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
        "time_embedding_dim": 32,
    }
    latent = {
        "block_out_channels": [32, 32],
        "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"],
        "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"],
        "layers_per_block": 1,
        "cross_attention_dim": CLIP_WIDTH,
        "attention_head_dim": 8,
    }
    vae = {
        "block_out_channels": [8, 16, 16],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "layers_per_block": 1,
        "norm_num_groups": 4,
    }
    networks: dict[str, Any] = {}
    for place, kind, changes in [
        ("show-1-base/unet", VideoUNet, pixel3d),
        ("show-1-interpolation/unet", VideoUNet, pixel3d),
        ("show-1-sr1/unet", VideoUNet, {**pixel3d, "time_embedding_dim": 32}),
        ("IF-II-L-v1.0/unet", UNet2DConditionModel, pixel2d),
        ("show-1-sr2/unet", UNet3DConditionModel, latent),
        ("show-1-sr2/vae", AutoencoderKL, vae),
    ]:
        config = {**published_config(*place.split("/")), **changes}
        if kind is UNet3DConditionModel:
            config = without_unknown(kind, config)
        networks[place] = network(kind, config, "cpu", torch.float32, seed + len(networks)).half()
    networks["show-1-base/text_encoder"] = network(T5EncoderModel, _t5_config(), "cpu", torch.float32, seed)
    networks["show-1-sr2/text_encoder"] = network(CLIPTextModel, _clip_config(), "cpu", torch.float32, seed).half()
    return networks


def _tiny_pipeline(dtype: str) -> dict[str, Any]:
    def loop(repo: str, **settings: Any) -> dict[str, Any]:
        return {"checkpoint": {"repo": f"./{repo}"}, "steps": 2, "guidance": 4.0, **settings}

    return {
        "name": "tiny",
        "description": "random weights: noise, fast",
        "dtype": dtype,
        "stages": {
            "text": {"checkpoint": {"repo": "./show-1-base"}, "max_tokens": 12},
            "keyframes": loop("show-1-base", frames=3, height=8, width=12),
            "interpolation": loop("show-1-interpolation", window=5),
            "super_resolution": loop(
                "show-1-sr1", steps=1, scale=2, window=5, stride=4, first_frame=loop("IF-II-L-v1.0")
            ),
            "latent_super_resolution": loop("show-1-sr2", steps=3, height=24, width=36),
        },
    }


def _write_weights(model: nn.Module, folder: Path, stem: str, shards: int = 1) -> None:
    """Pickles as they are published: one file, or shards with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if shards == 1:
        torch.save(state, folder / f"{stem}.bin")
        return
    names = list(state)
    size = math.ceil(len(names) / shards)
    places = {name: f"{stem}-{i // size + 1:05}-of-{shards:05}.bin" for i, name in enumerate(names)}
    for file in dict.fromkeys(places.values()):
        torch.save({name: state[name] for name in names if places[name] == file}, folder / file)
    total = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / f"{stem}.bin.index.json").write_text(json.dumps(index))


def _t5_config() -> T5Config:
    return T5Config(
        vocab_size=320,
        d_model=TEXT_WIDTH,
        d_ff=64,
        d_kv=8,
        num_heads=4,
        num_layers=2,
        feed_forward_proj="gated-gelu",
        architectures=["T5EncoderModel"],
    )


def _clip_config() -> CLIPTextConfig:
    tokens = len(_clip_tokens())
    return CLIPTextConfig(
        vocab_size=tokens,
        hidden_size=CLIP_WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=tokens - 2,
        eos_token_id=tokens - 1,
        pad_token_id=tokens - 1,
        architectures=["CLIPTextModel"],
    )


def _write_t5_tokenizer(folder: Path) -> None:
    pieces = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([WORDS] * 20),
        model_writer=pieces,
        vocab_size=200,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}
    _write_files(folder, {"spiece.model": pieces.getvalue(), "tokenizer_config.json": settings})


def _clip_tokens() -> list[str]:
    letters = sorted(ByteLevel.alphabet())
    return [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]


def _write_clip_tokenizer(folder: Path) -> None:
    _write_files(
        folder,
        {
            "vocab.json": {token: i for i, token in enumerate(_clip_tokens())},
            "merges.txt": b"#version: 0.2\n",
            "tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77},
        },
    )


def _write_files(folder: Path, files: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / name).write_bytes(content)
