"""Networks, tokenizers and schedulers out of a checkpoint's folder.

Weights go straight to the device in the wanted dtype, file by file, through accelerate (`low_cpu_mem_usage`), so that host
memory never holds a second copy. Pickles are read with `weights_only=True` by both libraries: nothing else is unpickled.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet3DConditionModel
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from torch import nn
from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel
from transformers.utils import logging as transformers_logging

from show1_ray.models.checkpoints import CheckpointError, component_config, one_form
from show1_ray.models.video_unet import VideoUNet

SR2_HEAD_DIM = 64


def load_video_unet(folder: Path, device: str | torch.device, dtype: torch.dtype) -> VideoUNet:
    """The pixel UNet of keyframes, interpolation or super-resolution. See `load_network` for what may be raised."""
    return load_network(VideoUNet, folder, "unet", device, dtype)


def load_image_unet(folder: Path, device: str | torch.device, dtype: torch.dtype) -> UNet2DConditionModel:
    """The image UNet of the first frame's super-resolution (IF-II-L)."""
    return load_network(UNet2DConditionModel, folder, "unet", device, dtype)


def load_latent_unet(folder: Path, device: str | torch.device, dtype: torch.dtype) -> UNet3DConditionModel:
    """The latent video UNet (show-1-sr2, a fine-tuned ModelScope text-to-video).

    Its published configuration gives `attention_head_dim` as numbers of heads, a list; diffusers' class takes it as the
    heads' dimension, which is 64 in all of them.
    """
    head_dim = component_config(folder, "unet").get("attention_head_dim", SR2_HEAD_DIM)
    head_dim = head_dim if isinstance(head_dim, int) else SR2_HEAD_DIM
    return load_network(UNet3DConditionModel, folder, "unet", device, dtype, attention_head_dim=head_dim)


def load_vae(folder: Path, device: str | torch.device, dtype: torch.dtype) -> AutoencoderKL:
    """The VAE of latent super-resolution; diffusers translates old names of its attention's weights."""
    return load_network(AutoencoderKL, folder, "vae", device, dtype)


def load_t5(folder: Path, device: str | torch.device, dtype: torch.dtype) -> T5EncoderModel:
    """T5's encoder. In half precision its `wo` matrices stay in single, which they need (transformers sees to it)."""
    return load_network(T5EncoderModel, folder, "text_encoder", device, dtype)


def load_clip(folder: Path, device: str | torch.device, dtype: torch.dtype) -> CLIPTextModel:
    """CLIP's text model."""
    return load_network(CLIPTextModel, folder, "text_encoder", device, dtype)


def load_tokenizer(folder: Path) -> Any:
    """The checkpoint's tokenizer; no code of the checkpoint is run.

    Raises:
        CheckpointError: its files are missing or damaged.
    """
    try:
        return AutoTokenizer.from_pretrained(folder / "tokenizer", trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder / 'tokenizer'}: no tokenizer that can be read: {_line(error)}") from None


def load_network(
    kind: type[nn.Module], folder: Path, component: str, device: str | torch.device, dtype: torch.dtype, **changes: Any
) -> Any:
    """A network of diffusers, transformers or ours, in evaluation mode.

    Args:
        kind: its class.
        folder: the checkpoint.
        component: the network's folder in it.
        device, dtype: where its weights go, and as what.
        changes: to its configuration.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights' names or shapes do not fit the configuration; the
            message says which.
        ConfigError: the configuration has an option that the network does not know.
    """
    place = folder / component
    component_config(folder, component)
    files = one_form((path.name for path in place.glob("*")), half=dtype != torch.float32)
    if not files:
        raise CheckpointError(f"{place}: missing file: no weights (.safetensors or .bin)")
    load: Callable[..., Any] = kind.from_pretrained  # type: ignore[attr-defined]
    dtype_argument = "torch_dtype" if kind.__module__.startswith(("diffusers", "show1_ray")) else "dtype"
    try:
        with _quiet():
            network, report = load(
                place,
                device_map={"": str(device)},
                variant="fp16" if ".fp16" in files[0] else None,
                use_safetensors=files[0].endswith(".safetensors"),
                output_loading_info=True,
                **{dtype_argument: dtype},
                **changes,
            )
    except (OSError, RuntimeError, ValueError, SafetensorError, pickle.UnpicklingError) as error:
        if isinstance(error, torch.cuda.OutOfMemoryError) or isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{place}: {_line(error)}") from None
    for finding, reason in (
        ("missing_keys", "lacks weights"),
        ("mismatched_keys", "has weights of another shape"),
        ("unexpected_keys", "has weights that its configuration has no place for"),
    ):
        keys = sorted(str(key) for key in report.get(finding) or [])
        if keys:
            raise CheckpointError(f"{place}: {reason}: {', '.join(keys[:3])}" + f" and {len(keys) - 3} more" * (len(keys) > 3))
    return network.eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the libraries' advice about configurations and missing keys off the screen: what matters is raised."""
    diffusers_level, transformers_level = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(diffusers_level)
        transformers_logging.set_verbosity(transformers_level)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
