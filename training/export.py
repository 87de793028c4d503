"""Writes what was trained in the published layout: a folder a checkpoint, half-precision safetensors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import nn

from show1_ray.show1.random import published_config
from training import networks
from training.phases import LAMBDA_MIN

if TYPE_CHECKING:
    from training.train import Training

CHECKPOINTS = {
    "keyframes": "base",
    "interpolation": "interpolation",
    "super_resolution": "sr1",
    "first_frame": "first_frame",
    "latent_super_resolution": "sr2",
}
"""The folder of each stage's checkpoint."""
PUBLISHED = {
    "keyframes": "show-1-base",
    "interpolation": "show-1-interpolation",
    "super_resolution": "show-1-sr1",
    "first_frame": "IF-II-L-v1.0",
    "latent_super_resolution": "show-1-sr2",
}


def write(training: Training, folder: Path) -> None:
    """Writes all checkpoints with averaged weights, as far as they are trained, over those in `folder`."""
    for stage, name in CHECKPOINTS.items():
        place = folder / name
        shutil.rmtree(place, ignore_errors=True)
        _write_network(training.network(stage), place / "unet", networks.config_of(stage))
        scheduler = published_config(PUBLISHED[stage], "scheduler")
        if stage in LAMBDA_MIN:
            scheduler["lambda_min_clipped"] = LAMBDA_MIN[stage]
        _write_json(place / "scheduler" / "scheduler_config.json", scheduler)
        if stage in ("super_resolution", "first_frame"):
            noising = published_config(PUBLISHED[stage], "image_noising_scheduler")
            _write_json(place / "image_noising_scheduler" / "scheduler_config.json", noising)
    for text, checkpoint in (("t5", "base"), ("clip", "sr2")):
        encoder = training.network(text).encoder
        _write_network(
            encoder, folder / checkpoint / "text_encoder", json.loads(encoder.config.to_json_string()), "model"
        )
        shutil.copytree(training.folder / f"{text}_tokenizer", folder / checkpoint / "tokenizer")
    vae = training.network("vae")
    config = {**networks.config_of("vae"), "scaling_factor": vae.config.scaling_factor}
    _write_network(vae, folder / "sr2" / "vae", config)


def _write_network(
    network: nn.Module, folder: Path, config: dict[str, Any], stem: str = "diffusion_pytorch_model"
) -> None:
    _write_json(folder / "config.json", config)
    state = {
        name: tensor.to("cpu", torch.float16 if tensor.is_floating_point() else tensor.dtype).contiguous().clone()
        for name, tensor in network.state_dict().items()
        if name != "encoder.embed_tokens.weight"  # T5's second name of `shared.weight`
    }
    save_file(state, folder / f"{stem}.safetensors", {"format": "pt"})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
