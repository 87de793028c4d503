"""Networks, tokenizers and schedulers out of a checkpoint's folder.

Weights go straight to the device in the wanted dtype, file by file, through accelerate (`low_cpu_mem_usage`), so that
host memory never holds a second copy. Pickles are read with `weights_only=True` by both libraries: nothing else is
unpickled.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet3DConditionModel
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel
from transformers.utils import logging as transformers_logging

from show1_ray.errors import UserError
from show1_ray.models.checkpoints import Checkpoint, CheckpointError, component_config, folder_of, one_form
from show1_ray.models.video_unet import VideoUNet

FOLDERS: dict[type[nn.Module], str] = {
    VideoUNet: "unet",
    UNet2DConditionModel: "unet",
    UNet3DConditionModel: "unet",
    AutoencoderKL: "vae",
    T5EncoderModel: "text_encoder",
    CLIPTextModel: "text_encoder",
}
"""The networks of the cascade, and where they lie in a checkpoint."""

LATENT_HEAD_DIM = 64


class Checkpoints:
    """Where a stage's parts come from: checkpoints, fetched if they are not there yet.

    Args:
        device, dtype: where networks go, and as what.
    """

    def __init__(self, device: str | torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = torch.device(device), dtype

    def network(self, kind: type[nn.Module], checkpoint: Checkpoint) -> Any:
        """See `load_network`."""
        return load_network(kind, self._folder(checkpoint, FOLDERS[kind]), self.device, self.dtype)

    def tokenizer(self, checkpoint: Checkpoint) -> Any:
        """See `load_tokenizer`."""
        return load_tokenizer(self._folder(checkpoint, "tokenizer"))

    def scheduler_config(self, checkpoint: Checkpoint, component: str) -> dict[str, Any]:
        """The configuration of `scheduler` or `image_noising_scheduler`."""
        return component_config(self._folder(checkpoint, component), component)

    def _folder(self, checkpoint: Checkpoint, component: str) -> Path:
        return folder_of(checkpoint, [component], half=self.dtype != torch.float32)


def load_tokenizer(folder: Path) -> Any:
    """The checkpoint's tokenizer; no code of the checkpoint is run.

    Raises:
        CheckpointError: its files are missing or damaged.
    """
    try:
        return AutoTokenizer.from_pretrained(folder / "tokenizer", trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder / 'tokenizer'}: no tokenizer that can be read: {_line(error)}") from None


def load_network(kind: type[nn.Module], folder: Path, device: str | torch.device, dtype: torch.dtype) -> Any:
    """A network of diffusers, transformers or ours, in evaluation mode.

    Args:
        kind: its class, one of `FOLDERS`.
        folder: the checkpoint.
        device, dtype: where its weights go, and as what. T5's `wo` matrices stay in single precision under half, which
            they need (transformers sees to it); old names of a VAE's attention are translated (by diffusers).

    Raises:
        CheckpointError: a file is missing or damaged, or the weights' names or shapes do not fit the configuration; the
            message says which.
        ConfigError: the configuration has an option that the network does not know.
    """
    place = folder / FOLDERS[kind]
    config = component_config(folder, FOLDERS[kind])
    changes = {}
    if kind is UNet3DConditionModel and not isinstance(config.get("attention_head_dim"), int):
        # The published configuration lists numbers of heads; diffusers takes the value for the heads' dimension.
        changes["attention_head_dim"] = LATENT_HEAD_DIM
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
    except (torch.cuda.OutOfMemoryError, UserError):
        raise
    except NotImplementedError:  # what diffusers runs into when it moves a weight that no file had
        raise CheckpointError(f"{place}: lacks weights: {_some(_missing(kind, place, files))}") from None
    except (OSError, RuntimeError, ValueError, SafetensorError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{place}: {_line(error)}") from None
    for finding, reason in (
        ("missing_keys", "lacks weights"),
        ("mismatched_keys", "has weights of another shape"),
        ("unexpected_keys", "has weights that its configuration has no place for"),
    ):
        if report.get(finding):
            raise CheckpointError(f"{place}: {reason}: {_some(report[finding])}")
    return network.eval()


def _missing(kind: Any, place: Path, files: list[str]) -> set[str]:
    """Names of a network's weights that are in none of its files."""
    found: set[str] = set()
    for file in files:
        if file.endswith(".safetensors"):
            with safe_open(place / file, framework="pt") as weights:
                found |= set(weights.keys())
        else:
            found |= set(torch.load(place / file, map_location="meta", weights_only=True))
    with torch.device("meta"):
        network = kind.from_config(kind.load_config(place))
    return set(network.state_dict()) - found


def _some(names: Iterable[Any]) -> str:
    listed = sorted(map(str, names))
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the libraries' advice about configurations and missing keys off the screen: what matters is raised."""
    diffusers_level, transformers_level = (
        diffusers_logging.get_verbosity(),
        transformers_logging.get_verbosity(),
    )
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
