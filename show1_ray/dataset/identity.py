"""What a dataset is: the recipe and the format that all its clips have."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import yaml

from show1_ray.dataset.lander import Origin
from show1_ray.dataset.layout import CLIPS, DATASET, FAILURES, METADATA, METADATA_FILE, PIPELINE, SHARDS
from show1_ray.dataset.storage import Storage
from show1_ray.errors import UserError

Format = Literal["mp4", "webdataset"]


def check_identity(storage: Storage, origin: Origin, format: str) -> None:
    """Refuse a folder of something else, and a dataset of another recipe or format. Raises UserError."""
    about = read_identity(storage)
    if about is None:
        names = sorted(n for n in [*storage.sizes(""), *storage.folders("")] if not n.startswith("."))
        if names:
            raise UserError(f"dataset {storage.url}: holds something else ({names[0]}); give an empty one")
        return
    folders = set(storage.folders(""))
    if not folders & {CLIPS, SHARDS, METADATA, FAILURES} and METADATA_FILE not in storage.sizes(""):
        return  # a dry run, or a job that ended before its first clip
    if about["format"] != format:
        raise UserError(f"dataset {storage.url}: its format is {about['format']}, not {format}")
    if about["recipe_hash"] != origin.recipe_hash:
        before, now = _dotted(about["recipe"]), _dotted(json.loads(json.dumps(origin.recipe)))
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        changes = [f"{key} {before.get(key)!r} → {now.get(key)!r}" for key in keys]
        changes = changes or [f"its hash {about['recipe_hash']} → {origin.recipe_hash}"]
        raise UserError(
            f"dataset {storage.url}: made with another recipe: {'; '.join(changes)}; "
            "render with the same, or give another --out"
        )


def write_identity(storage: Storage, origin: Origin, format: Format, manifest: Mapping[str, Any]) -> None:
    """Write down what the dataset is, and the pipeline as it was resolved. Raises StorageError."""
    about = {
        "show1_ray_dataset": 1,
        "format": format,
        "pipeline": origin.name,
        "recipe_hash": origin.recipe_hash,
        "recipe": origin.recipe,
        "manifest": dict(manifest),
    }
    storage.write(DATASET, json.dumps(about, indent=2).encode())
    pipeline = yaml.safe_dump(dict(origin.pipeline), sort_keys=False, allow_unicode=True)
    storage.write(PIPELINE, pipeline.encode())


def read_identity(storage: Storage) -> dict[str, Any] | None:
    """What a dataset says of itself; None where there is none. Raises UserError."""
    try:
        about = json.loads(storage.read(DATASET))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"dataset {storage.url}: its {DATASET} is not JSON: {error}") from error
    if not isinstance(about, dict) or "show1_ray_dataset" not in about:
        raise UserError(f"dataset {storage.url}: its {DATASET} is not one of show1-ray")
    return about


def _dotted(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict):
        items: Iterable[tuple[Any, Any]] = tree.items()
    elif isinstance(tree, list):
        items = enumerate(tree)
    else:
        return {prefix.removesuffix("."): tree}
    return {key: value for name, inner in items for key, value in _dotted(inner, f"{prefix}{name}.").items()}
