"""Networks, tokenizers and schedulers out of a checkpoint's folder.

Weights go straight to the device in the wanted dtype, file by file, through accelerate (`low_cpu_mem_usage`), so that
host memory never holds a second copy. Pickles are read with `weights_only=True` by both libraries: nothing else is
unpickled.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from show1_ray.errors import ConfigError
from show1_ray.pipeline.checkpoints import (
    Checkpoint,
    CheckpointError,
    component_config,
    folder_of,
    forms,
    one_form,
    read_json,
    what_lacks,
)

FOLDERS: dict[str, str] = {
    "VideoUNet": "unet",
    "UNet2DConditionModel": "unet",
    "UNet3DConditionModel": "unet",
    "AutoencoderKL": "vae",
    "T5EncoderModel": "text_encoder",
    "CLIPTextModel": "text_encoder",
}
"""The networks of the cascade by class name, and their folders in a checkpoint."""

LATENT_HEAD_DIM = 64
LACKS, WRONG_SHAPES = "lacks weights", "has weights of another shape than its configuration"


class Checkpoints:
    """Where a stage's parts come from: checkpoints, fetched if they are not there yet.

    Args:
        device, dtype: where networks go, and as what.
    """

    def __init__(self, device: str | torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = torch.device(device), dtype

    def network(self, kind: type[nn.Module], checkpoint: Checkpoint) -> Any:
        """See `load_network`."""
        return load_network(kind, self._folder(checkpoint, FOLDERS[kind.__name__]), self.device, self.dtype)

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
    from transformers import AutoTokenizer  # here, for what stages without texts need not wait for

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
    place = folder / FOLDERS[kind.__name__]
    config = component_config(folder, FOLDERS[kind.__name__])
    changes = {}
    if kind.__name__ == "UNet3DConditionModel" and not isinstance(config.get("attention_head_dim"), int):
        # The published configuration lists numbers of heads; diffusers takes the value for the heads' dimension.
        changes["attention_head_dim"] = LATENT_HEAD_DIM
    files = _weight_files(place, half=dtype != torch.float32)
    load: Callable[..., Any] = kind.from_pretrained  # type: ignore[attr-defined]
    dtype_argument = "dtype" if _is_of_transformers(kind) else "torch_dtype"
    try:
        with _quiet("transformers" if _is_of_transformers(kind) else "diffusers"):
            network, report = load(
                place,
                device_map={"": str(device)},
                variant="fp16" if ".fp16" in files[0] else None,
                use_safetensors=files[0].endswith(".safetensors"),
                output_loading_info=True,
                **{dtype_argument: dtype},
                **changes,
            )
    except torch.cuda.OutOfMemoryError:
        raise
    except ConfigError as error:
        raise ConfigError(f"{place / 'config.json'}: {error}") from None
    except Exception as error:  # the libraries raise all kinds of things for a damaged or wrong file
        reason = _diagnosis(kind, place, files, changes) or _line(error)
        raise CheckpointError(f"{place}: {reason}") from error
    for finding, reason in (
        ("mismatched_keys", WRONG_SHAPES),
        ("missing_keys", LACKS),
        ("unexpected_keys", "has weights that its configuration has no place for"),
    ):
        if report.get(finding):
            raise CheckpointError(f"{place}: {reason}: {_some(report[finding])}")
    return network.eval()


def _weight_files(place: Path, half: bool) -> list[str]:
    """See `one_form`; with the index that shards need."""
    names = [path.name for path in place.glob("*")]
    files = one_form(names, forms(half))
    if not files:
        raise CheckpointError(f"{place}: missing file: {what_lacks(names)}")
    if len(files) > 1:
        stem, suffix = files[0].partition("-0")[0].partition(".")[0], Path(files[0]).suffix
        indices = [name for name in names if re.fullmatch(rf"{stem}{suffix}\.index(\.fp16)?\.json", name)]
        read_json(place / (indices[0] if indices else f"{stem}{suffix}.index.json"))
    return files


def _diagnosis(kind: Any, place: Path, files: Sequence[str], changes: dict[str, Any]) -> str | None:
    """Why a network could not be loaded, as far as its files tell: a damaged one, shapes or names that do not fit."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            shapes |= _shapes(place / file)
        except Exception as error:
            return f"{file}: damaged, or no file of weights; copy or fetch it again ({type(error).__name__})"
    try:
        with torch.device("meta"):
            if _is_of_transformers(kind):
                network = kind(kind.config_class.from_pretrained(place))
            else:
                network = kind.from_config(kind.load_config(place), **changes)
    except Exception:  # a configuration that cannot be built: the error at hand says why
        return None
    wanted = {name: tuple(weight.shape) for name, weight in network.state_dict().items()}
    misfits = [(name, shapes[name], wanted[name]) for name in shapes if shapes[name] != wanted.get(name, shapes[name])]
    # Files of transformers have shared weights once.
    lacking = set() if _is_of_transformers(kind) else wanted.keys() - shapes.keys()
    return f"{WRONG_SHAPES}: {_some(misfits)}" if misfits else f"{LACKS}: {_some(lacking)}" if lacking else None


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as weights:
            return {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    weights = torch.load(file, map_location="meta", weights_only=True)
    return {name: tuple(weight.shape) for name, weight in weights.items()}


def _some(findings: Iterable[Any]) -> str:
    """Names; of shapes also what the file has and what is wanted."""
    listed = sorted(
        finding if isinstance(finding, str) else f"{finding[0]} {_size(finding[1])} instead of {_size(finding[2])}"
        for finding in findings
    )
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a number"


@contextmanager
def _quiet(library: str) -> Iterator[None]:
    """Keeps a library's advice about configurations and missing keys off the screen: what matters is raised."""
    logging: Any = importlib.import_module(f"{library}.utils.logging")
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _is_of_transformers(kind: type[nn.Module]) -> bool:
    return kind.__module__.startswith("transformers.")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
