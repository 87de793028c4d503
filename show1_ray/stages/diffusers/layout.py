"""A diffusers checkpoint's folder: which components it has, of which classes, with which configurations. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from show1_ray.errors import shown
from show1_ray.pipeline.checkpoints import Checkpoint, CheckpointError, one_form, read_json
from show1_ray.pipeline.registry import RegistryError
from show1_ray.stages.diffusers import signatures
from show1_ray.stages.diffusers.signatures import Signature, UnknownClassError

INDEX = "model_index.json"
COPIES = Path(__file__).parent / "published"
"""Configurations of the checkpoints that the package's pipelines name, as diffusers' conversion scripts and classes
have them: for plans and checks where there is no network. What renders goes by the checkpoint's own."""
CONFIGS = ("config.json", "scheduler_config.json", "guider_config.json")


@dataclass(frozen=True)
class Layout:
    """What a checkpoint's JSON files say.

    Attributes:
        place: the folder; of the hub: its cache, or a copy of the configurations that the package brings.
        index: `model_index.json`.
    """

    place: Path
    index: Mapping[str, Any]

    @property
    def class_name(self) -> str:
        """Of the pipeline. Raises CheckpointError."""
        name = self.index.get("_class_name")
        if not isinstance(name, str):
            what = f"its _class_name is {shown(name)}: code of a model repository, which is never run"
            raise CheckpointError(f"{self.place / INDEX}: {what}")
        return name

    @property
    def components(self) -> dict[str, tuple[str | None, str | None]]:
        """Component → library and class; both None where the checkpoint leaves it out.

        Raises:
            CheckpointError: a component whose class is code of the repository.
        """
        found = {}
        for name, said in self.index.items():
            if name.startswith("_") or not isinstance(said, list) or len(said) != 2:
                continue
            library, kind = said
            if library is not None and library not in ("diffusers", "transformers") and not _is_of_diffusers(library):
                raise CheckpointError(
                    f"{self.place / INDEX}: {name} is {library}.{kind}: code of a model repository, which is never run"
                )
            found[name] = (library, kind)
        return found

    @property
    def present(self) -> tuple[str, ...]:
        """Components that the checkpoint has."""
        return tuple(name for name, (library, _) in self.components.items() if library is not None)

    @property
    def is_copy(self) -> bool:
        """Whether it is what the package brings in place of the checkpoint."""
        return self.place.is_relative_to(COPIES)

    @property
    def networks(self) -> tuple[str, ...]:
        """Components that are networks, and have weights."""
        return tuple(name for name in self.present if (self.place / name / "config.json").is_file())

    def weights(self, components: Iterable[str], variant: str | None, width: int) -> int | None:
        """Bytes of networks' weights, loaded as numbers of so many bytes; None where they are not here."""
        total = 0
        for component in components:
            names = [path.name for path in (self.place / component).glob("*")]
            files = one_form(names, ("",) if variant is None else (variant, ""))
            if not files:
                return None
            for path in (self.place / component / name for name in files):
                total += _numbers(path, path.stat().st_mtime_ns) * width
        return total

    def config(self, component: str) -> Mapping[str, Any]:
        """A component's configuration; empty where there is none."""
        for name in CONFIGS:
            path = self.place / component / name
            if path.is_file():
                return _json(path, path.stat().st_mtime_ns)
        return {}


def layout(checkpoint: Checkpoint) -> Layout | None:
    """What is known of a checkpoint without fetching anything; None: nothing.

    Raises:
        CheckpointError: a folder that is no checkpoint of diffusers.
    """
    if checkpoint.is_local:
        place = checkpoint.folder
        if not (place / INDEX).is_file():
            raise CheckpointError(f"{place}: no {INDEX}: give a folder that `save_pretrained` of a pipeline wrote")
    else:
        candidates = [*_cached(checkpoint), COPIES / checkpoint.repo]
        place = next((one for one in candidates if (one / INDEX).is_file()), Path())
        if place == Path():
            return None
    path = place / INDEX
    return Layout(place, _json(path, path.stat().st_mtime_ns))


def signature(settings: Any) -> Signature | None:
    """The pipeline class that is meant; None where the checkpoint has to be fetched first.

    Raises:
        RegistryError: there is none, or none that gives images or video.
    """
    name = settings.pipeline
    if name is None:
        try:
            found = layout(settings.checkpoint)
            name = None if found is None else found.class_name
        except CheckpointError as error:
            raise RegistryError(str(error)) from None
    if name is None:
        return None
    try:
        pipeline = signatures.pipeline(name)
    except UnknownClassError as error:
        raise RegistryError(str(error)) from None
    if not pipeline.call:
        raise RegistryError(f"{name} of diffusers is no pipeline that can be called")
    if pipeline.gives_audio:
        raise RegistryError(f"{name} gives sound, and neither video nor images")
    return pipeline


def _is_of_diffusers(library: str) -> bool:
    """Whether components' classes lie in a folder of diffusers' pipelines, as "stable_diffusion" safety checkers do."""
    return library in {module.partition(".")[0] for module in signatures.names("pipelines").values()}


def _cached(checkpoint: Checkpoint) -> list[Path]:
    from show1_ray.pipeline import hub  # here: its client takes a quarter of a second

    found = hub.cache_of(checkpoint)
    return [] if found is None else [found]


@lru_cache(256)
def _json(path: Path, changed: int) -> dict[str, Any]:
    return read_json(path)


@lru_cache(1024)
def _numbers(path: Path, changed: int) -> int:
    """How many numbers a file of weights holds: from its header, or of a pickle, about."""
    if path.suffix != ".safetensors":
        return path.stat().st_size // 4
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(prod(one["shape"]) for name, one in header.items() if name != "__metadata__")
