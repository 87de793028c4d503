"""What a dataset is: the recipe and the format that all its clips have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from show1_ray.dataset.conditional import TEMPORARY
from show1_ray.dataset.lander import Origin
from show1_ray.dataset.layout import (
    CARD,
    CLIPS,
    DATASET,
    FAILURES,
    METADATA,
    METADATA_FILE,
    PIPELINE,
    REJECTIONS,
    REPORT,
    SAVED_FRAMES,
    SHARDS,
    shard_number,
)
from show1_ray.dataset.storage import Storage
from show1_ray.errors import UserError, without_secrets

Format = Literal["mp4", "webdataset"]
Count = Annotated[int, Field(ge=0, lt=2**63)]
VERSION = 1
"""Format version of `dataset.json`. Raised when an older show1-ray would misread a dataset."""


class LastManifest(BaseModel):
    """What the last job rendered. `count` is None where that is not known; `others` and `other_failures` are clips of
    the dataset that are not this manifest's."""

    model_config = ConfigDict(strict=True, frozen=True)

    url: str = ""
    count: Count | None = None
    fingerprint: str = ""
    others: Count = 0
    other_failures: Count = 0


class Identity(BaseModel):
    """What `dataset.json` says: the recipe and the format that all clips have, and the last job's manifest.

    `seeds` is `Clip.seed_rule`; None in datasets that were begun when "low" was the only one.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    show1_ray_dataset: Annotated[int, Field(ge=1)]
    seeds: Literal["mixed"] | None = None
    format: Format
    pipeline: str
    recipe_hash: str
    recipe: dict[str, Any]
    manifest: LastManifest = LastManifest()


class _Versioned(BaseModel):
    model_config = ConfigDict(strict=True)

    show1_ray_dataset: Annotated[int, Field(ge=1)]


def check_identity(storage: Storage, origin: Origin, format: str) -> None:
    """Refuse a folder of something else, and a dataset of another recipe or format. Raises UserError."""
    about = read_identity(storage)
    if about is None:
        foreign = _foreign(storage)
        if foreign:
            raise UserError(f"dataset {storage.url}: holds something else ({foreign}); give an empty one")
        return
    if not has_begun(storage):
        return
    if about.format != format:
        raise UserError(f"dataset {storage.url}: its format is {about.format}, not {format}")
    if about.recipe_hash != origin.recipe_hash:
        before, now = _dotted(about.recipe), _dotted(json.loads(json.dumps(origin.recipe)))
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        changes = [f"{key} {before.get(key)!r} → {now.get(key)!r}" for key in keys]
        changes = changes or [f"its hash {about.recipe_hash} → {origin.recipe_hash}"]
        raise UserError(
            f"dataset {storage.url}: made with another recipe: {'; '.join(changes)}; "
            "render with the same, or give another --out"
        )


def has_begun(storage: Storage) -> bool:
    """Whether a clip has landed, failed or been rejected: not so after a job that ended before its first clip.

    Raises StorageError.
    """
    folders = set(storage.folders(""))
    return bool(folders & {CLIPS, SHARDS, METADATA, FAILURES, REJECTIONS}) or METADATA_FILE in storage.sizes("")


def _foreign(storage: Storage) -> str:
    """What a folder without dataset.json holds that a job does not write; "" for nothing.

    A dataset that is deleted under a job is written to until the job notices: the next one goes on with what is left.
    """
    listed = storage.listing("")
    files, folders = {name for name in listed[0] if not name.startswith(".")}, set(listed[1])
    ours = folders & {CLIPS, SHARDS, METADATA, FAILURES, REJECTIONS}
    known = {METADATA_FILE, REPORT} | ({PIPELINE, CARD} if ours or METADATA_FILE in files else set())
    strange = sorted(files - known) + sorted(folders - {CLIPS, SHARDS, METADATA, FAILURES, REJECTIONS, SAVED_FRAMES})
    if CLIPS in ours:
        strange += [f"{CLIPS}/{name}" for name in storage.folders(CLIPS) if not re.fullmatch("[0-9a-f]{2}", name)]
        strange += [f"{CLIPS}/{name}" for name in storage.sizes(CLIPS) if not name.startswith(".")]
    if SHARDS in ours:
        strange += [f"{SHARDS}/{name}" for name in storage.sizes(SHARDS) if shard_number(name) is None]
    for folder in sorted(ours & {METADATA, FAILURES, REJECTIONS}):
        strange += [f"{folder}/{name}" for name in storage.sizes(folder) if not name.endswith((".parquet", TEMPORARY))]
    return strange[0] if strange else ""


def write_identity(storage: Storage, origin: Origin, format: Format, manifest: Mapping[str, Any]) -> None:
    """Writes what the dataset is, and the resolved pipeline. Raises StorageError."""
    about = {
        "show1_ray_dataset": VERSION,
        **({"seeds": "mixed"} if origin.seed_rule == "mixed" else {}),
        "format": format,
        "pipeline": origin.name,
        "recipe_hash": origin.recipe_hash,
        "recipe": origin.recipe,
        "manifest": dict(manifest),
    }
    storage.write(DATASET, without_secrets(json.dumps(about, indent=2)).encode())
    pipeline = yaml.safe_dump(dict(origin.pipeline), sort_keys=False, allow_unicode=True)
    storage.write(PIPELINE, pipeline.encode())


def read_identity(storage: Storage) -> Identity | None:
    """What a dataset says of itself; None where there is none.

    Raises UserError: no JSON, something else's, of a newer version, values of wrong types; StorageError.
    """
    try:
        content = storage.read(DATASET)
    except FileNotFoundError:
        return None
    try:
        # The version first: of a newer one, nothing else is known.
        version = _Versioned.model_validate_json(content).show1_ray_dataset
        if version > VERSION:
            raise UserError(
                f"dataset {storage.url}: its {DATASET} is of version {version}, and this show1-ray knows "
                f"{VERSION}; use a newer show1-ray"
            )
        return Identity.model_validate_json(content)
    except ValidationError as error:
        raise UserError(f"dataset {storage.url}: its {DATASET} {_told(error)}") from None


def _told(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(step) for step in first["loc"])
    if first["type"] == "json_invalid":
        return f"is not JSON: {first['ctx']['error']}; bring back what was there, or give another --out"
    if not where or where == "show1_ray_dataset":
        return "is not one of show1-ray; give another --out"
    if first["type"] == "missing":
        return f"lacks {where!r}; bring back what was there, or give another --out"
    value, wanted = _short(first["input"]), first["msg"][:1].lower() + first["msg"][1:]
    return f"has a {where!r} that is {value}: {wanted}; bring back what was there, or give another --out"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _dotted(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict):
        items: Iterable[tuple[Any, Any]] = tree.items()
    elif isinstance(tree, list):
        items = enumerate(tree)
    else:
        return {prefix.removesuffix("."): tree}
    return {key: value for name, inner in items for key, value in _dotted(inner, f"{prefix}{name}.").items()}
