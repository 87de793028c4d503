"""A pipeline of diffusers out of a checkpoint's folder, with what the settings change of it. Stations import this."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import attention_backend
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.utils.constants import DIFFUSERS_ATTN_BACKEND
from torch import nn

from show1_ray.errors import one_line
from show1_ray.pipeline import hub
from show1_ray.pipeline.checkpoints import CheckpointError, folder_of
from show1_ray.stages.diffusers.checks import cache_class
from show1_ray.stages.diffusers.layout import INDEX, Layout, layout, signature
from show1_ray.stages.diffusers.settings import Lora, Settings
from show1_ray.stages.diffusers.signatures import near

DENOISERS = ("transformer", "unet")
"""Beginnings of the names of components that denoise."""

CHANGES = ("scheduler", "lora", "vae", "attention", "cache")
"""Settings that change a pipeline that has been loaded."""
_LACKING = ("newly initialized", "| MISSING", "MISMATCH")
"""What the libraries log, and no more, where weights are not in the file or do not fit: they go on with random ones."""


class Absent:
    """A network that another stage holds: what its configuration tells is there, and nothing can be computed with it.

    It is no module, so that a pipeline does not take it for one of those that are on its device.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)


def load_pipeline(settings: Settings, dtype: str, device: str, parts: Collection[str] | None = None) -> Any:
    """The pipeline, on a device, ready to be called.

    Args:
        settings: of the stage.
        dtype: "float16", "bfloat16" or "float32".
        device: "cpu" or "cuda:0".
        parts: networks that are loaded; None: all that the checkpoint has. The others are `Absent`.

    Raises:
        CheckpointError: weights that are not to be had or do not fit.
    """
    folder, found = fetched(settings, parts)
    pipeline = signature(settings)
    assert pipeline is not None  # since the checkpoint is here
    wanted = [name for name in found.networks if parts is None or name in parts]
    absent = {name: skeleton(found, name, dtype) for name in found.networks if name not in wanted}
    more: dict[str, Any] = {name: None for name in pipeline.init if found.components.get(name, "") == (None, None)}
    more |= {name: network for name, network in absent.items() if name in pipeline.init}
    if settings.quantize is not None:
        more["quantization_config"] = quantization(settings.quantize, found, wanted)
    if settings.variant is not None:
        more["variant"] = settings.variant
    cls = getattr(diffusers, pipeline.name)
    try:
        with _whole_weights(folder):
            pipe = cls.from_pretrained(folder, dtype=getattr(torch, dtype), local_files_only=True, **more)
    except (torch.cuda.OutOfMemoryError, CheckpointError):
        raise
    except Exception as error:  # the libraries raise all kinds of things for a damaged or wrong file
        raise CheckpointError(f"{folder}: {pipeline.name} cannot be loaded: {one_line(error)}") from error
    pipe.set_progress_bar_config(disable=True)
    for name, config in getattr(more.get("quantization_config"), "quant_mapping", {}).items():
        if all(_is_plain(one) for one in getattr(pipe, name).parameters()):
            raise CheckpointError(f"{folder}: quantize: {type(config).__name__} finds nothing in its {name}")
    try:
        change(pipe, settings)
    except (torch.cuda.OutOfMemoryError, CheckpointError):
        raise
    except Exception as error:  # of diffusers' classes: a backend that is not installed, a network without blocks
        what = ", ".join(name for name in CHANGES if getattr(settings, name))
        raise CheckpointError(f"{folder}: {pipeline.name} cannot have its {what}: {one_line(error)}") from error
    for name in absent:
        if isinstance(getattr(pipe, name, None), nn.Module):
            pipe.__dict__[name] = Absent(getattr(pipe, name))
    pipe.to(device)
    return pipe


def skeleton(found: Layout, component: str, dtype: str) -> Any:
    """A network without weights, from its configuration: a pipeline asks it for sizes and types."""
    library, name = found.components[component]
    known = library in ("diffusers", "transformers")
    cls: Any = getattr(import_module(str(library) if known else f"diffusers.pipelines.{library}"), str(name))
    place = found.place / component
    with torch.device("meta"):
        if library == "transformers":
            network = cls(cls.config_class.from_pretrained(place))
        else:
            network = cls.from_config(cls.load_config(place))
    return nn.Module.to(network, dtype=getattr(torch, dtype)).eval()  # diffusers' own would warn


def fetched(settings: Settings, networks: Collection[str] | None = None) -> tuple[Path, Layout]:
    """The checkpoint's folder, with (some of) its networks and all else. Raises CheckpointError."""
    variants = ("",) if settings.variant is None else (settings.variant, "")
    found = layout(settings.checkpoint)
    if found is None or found.is_copy:
        hub.fetch_configurations(settings.checkpoint, INDEX)
        found = layout(settings.checkpoint)
    assert found is not None
    names = [name for name in found.present if networks is None or name in networks or name not in found.networks]
    folder = folder_of(settings.checkpoint, (INDEX, *names), variants=variants)
    return folder, found


def change(pipe: Any, settings: Settings) -> None:
    """What the settings change of a pipeline: scheduler, low-rank weights, decoding, attention, cache; in place."""
    if settings.scheduler is not None and getattr(pipe, "scheduler", None) is not None:
        changes = {key: value for key, value in settings.scheduler.items() if key != "class"}
        cls = getattr(diffusers, settings.scheduler.get("class") or type(pipe.scheduler).__name__)
        pipe.scheduler = cls.from_config(pipe.scheduler.config, **changes)
    if settings.lora:
        add_lora(pipe, settings.lora)
    vae = getattr(pipe, "vae", None)
    for way in settings.vae if vae is not None else ():
        getattr(vae, f"enable_{way}")()
    for network in denoisers(pipe).values():
        if settings.attention is not None:
            with attention_of(settings):
                network.set_attention_backend(settings.attention)
        if settings.cache is not None:
            enable_cache(network, cache_config(pipe, settings.cache))


def attention_of(settings: Settings) -> AbstractContextManager[None]:
    """What a pipeline is to be called in. `set_attention_backend` of a network also sets, for all networks of the
    process, what those compute with that were told nothing; this takes it back in the end
    (`findings/attention_backend.sh`).
    """
    return attention_backend(AttentionBackendName((settings.attention or DIFFUSERS_ATTN_BACKEND).lower()))


def denoisers(pipe: Any) -> dict[str, Any]:
    """The networks that denoise, by component."""
    return {
        name: one for name, one in pipe.components.items() if name.startswith(DENOISERS) and isinstance(one, nn.Module)
    }


def enable_cache(network: Any, config: Any) -> None:
    """Turns a cache on. Raises CheckpointError if it finds nothing that it could keep; diffusers says nothing then."""
    kind = type(network).__name__
    if not hasattr(network, "enable_cache"):
        raise CheckpointError(f"cache: {kind} of diffusers has no caches")
    before = _hooks(network)
    network.enable_cache(config)
    if _hooks(network) == before:
        what = f"{type(config).__name__} finds no blocks in {kind}: it would change nothing"
        own = "; give its own 'cache_identifiers'" if hasattr(config, "cache_identifiers") else ""
        raise CheckpointError(f"cache: {what}{own}")


def _hooks(network: nn.Module) -> int:
    registries = [getattr(module, "_diffusers_hook", None) for module in network.modules()]
    return sum(len(one.hooks) for one in registries if one is not None)


def cache_config(pipe: Any, said: Mapping[str, Any]) -> Any:
    """A cache's configuration; those that ask how far the denoising is are told by the pipeline."""
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in said.items() if key != "class"}
    cls = getattr(diffusers, str(cache_class(said["class"])))
    if "current_timestep_callback" in cls.__dataclass_fields__:
        values["current_timestep_callback"] = lambda: pipe.current_timestep
    return cls(**values)


def add_lora(pipe: Any, loras: Iterable[Lora]) -> None:
    """Adds low-rank weights, each as strongly as it says. Raises CheckpointError."""
    names, weights = [], []
    for number, lora in enumerate(loras):
        folder, file = lora_file(lora)
        names.append(f"lora_{number}")
        weights.append(lora.weight)
        known = denoisers(pipe)
        if lora.component is not None and lora.component not in known:
            raise CheckpointError(f"lora.component: {lora.component!r}{near(lora.component, known)}")
        into = {} if lora.component in (None, "transformer", "unet") else {f"load_into_{lora.component}": True}
        try:
            pipe.load_lora_weights(folder, weight_name=file, adapter_name=names[-1], local_files_only=True, **into)
        except Exception as error:
            raise CheckpointError(f"{folder / file}: these low-rank weights do not fit: {one_line(error)}") from error
        found = [component for component, adapters in pipe.get_list_adapters().items() if names[-1] in adapters]
        if not found or lora.component not in (None, *found):  # diffusers warns, and goes on without them
            what = ", ".join(found) or f"none of its networks, which are {', '.join(known)}"
            raise CheckpointError(f"{folder / file}: these low-rank weights are of {what}")
    pipe.set_adapters(names, adapter_weights=weights)


def lora_file(lora: Lora) -> tuple[Path, str]:
    """Folder and name of the file of low-rank weights. Raises CheckpointError."""
    if not lora.is_local:
        name = lora.file or "pytorch_lora_weights.safetensors"
        return folder_of(lora, (name,)), name
    folder = lora.folder
    there = sorted(path.name for path in folder.glob("*.safetensors"))
    if lora.file is None and len(there) == 1:
        return folder, there[0]
    if lora.file is None or not (folder / lora.file).is_file():
        raise CheckpointError(f"{folder}: lora: give its 'file' ({', '.join(there) or 'there is no .safetensors'})")
    return folder, lora.file


def quantization(said: Mapping[str, Any], found: Layout, wanted: Iterable[str]) -> Any:
    """diffusers' configuration of quantised components, from its and transformers' own classes.

    Without `components` those that denoise are quantised.

    Raises:
        CheckpointError: a library that is missing, or values that its classes refuse.
    """
    from diffusers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as OF_DIFFUSERS
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as OF_TRANSFORMERS

    backend = said["backend"]
    values = {key: value for key, value in said.items() if key not in ("backend", "components")}
    chosen = said.get("components") or [name for name in wanted if name.startswith(DENOISERS)]
    mapping = {}
    try:
        if backend == "torchao":
            values["quant_type"] = _torchao(values.get("quant_type"))
        values = {key: _dtype(value) for key, value in values.items()}
        for name in [chosen] if isinstance(chosen, str) else chosen:
            if name in wanted:
                own = found.components[name][0] == "diffusers"
                mapping[name] = (OF_DIFFUSERS if own else OF_TRANSFORMERS)[backend](**values)
        return diffusers.PipelineQuantizationConfig(quant_mapping=mapping) if mapping else None
    except ModuleNotFoundError as error:
        raise CheckpointError(f"quantize: {backend} needs the package {error.name}, which is not here") from error
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"quantize: {backend}: {one_line(error)}") from error


def _torchao(said: Any) -> Any:
    """torchao's configuration: the name of its class, or `{class: …}` with its arguments."""
    import torchao.quantization as torchao

    if isinstance(said, str):
        said = {"class": said}
    known = [name for name in dir(torchao) if name.endswith("Config")]
    name = said.get("class") if isinstance(said, Mapping) else None
    if name not in known:
        raise CheckpointError(f"quantize: quant_type: torchao has no configuration {name}{near(str(name), known, 40)}")
    values = {key: _dtype(value) for key, value in said.items() if key != "class"}
    return getattr(torchao, name)(**values)


def _is_plain(weights: torch.Tensor) -> bool:
    """Whether weights are numbers of 16 bits or more, as they were before they were quantised."""
    return type(weights.data) is torch.Tensor and weights.is_floating_point() and weights.element_size() > 1


def _dtype(value: Any) -> Any:
    """torch's type where its name was given: "bfloat16"."""
    kind = getattr(torch, value, None) if isinstance(value, str) else None
    return kind if isinstance(kind, torch.dtype) else value


@contextmanager
def _whole_weights(folder: Path) -> Iterator[None]:
    """Refuses what the libraries only log: weights that a file lacks, or has in another shape.

    Raises:
        CheckpointError: such weights.
    """
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    ear = Ear(logging.WARNING)
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    bars = (diffusers.utils.logging, transformers.utils.logging)
    for one in loggers:
        one.addHandler(ear)
    for library in bars:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for one in loggers:
            one.removeHandler(ear)
        for library in bars:
            library.enable_progress_bar()
    for text in heard:
        if any(word in text for word in _LACKING):
            raise CheckpointError(f"{folder}: lacks weights: {' '.join(text.split())[:400]}")
