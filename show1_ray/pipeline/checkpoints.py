"""Checkpoints: a local folder in the hub's layout, or the hub at a pinned revision. No torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from show1_ray.errors import UserError, shown
from show1_ray.pipeline.file import find, mappings, names, read

PUBLISHED = Path(__file__).parent.parent / "show1" / "published"
CONFIG_FILES = {"scheduler": "scheduler_config.json", "image_noising_scheduler": "scheduler_config.json"}
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
NETWORKS = ("unet", "vae", "text_encoder")
"""Components that are networks even if their configuration is missing."""
TEXTS = (".json", ".txt", ".model", ".jinja", ".tiktoken")
"""Files besides the weights from which components are loaded."""
MOST_FILES = 10_000  # of a checkpoint: somebody's home or / is none
WHOLE_FILE = 64 * 2**20  # larger files are identified by their size and both ends


KEPT = "local"
"""The `repo` that a dataset stores for a local folder: its path is private, and its fingerprint identifies it."""


class CheckpointError(UserError):
    """Weights that are missing, not accessible, or not what they should be."""


class Checkpoint(BaseModel):
    """A folder of components (`unet`, `text_encoder`, `scheduler`, …), each in a folder of its own as on the hub.

    Attributes:
        repo: "owner/name" on the hub, or the path of a local folder; in a pipeline file a path that starts with "." is
            relative to that file.
        revision: a commit of the hub's repository (40 hexadecimal digits) or a branch; needed for the hub. Of a local
            folder: its fingerprint, filled in by `Pipeline.resolved`.
        licence: of the weights; shown when they are first fetched and written into datasets.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    repo: str = Field(description="owner/name on the hub, or a folder relative to the pipeline file")
    revision: str | None = Field(None, description="commit or branch; required for the hub")
    licence: str | None = Field(None, description="licence of the weights")

    @model_validator(mode="after")
    def _pinned(self) -> Checkpoint:
        if not self.is_local:
            if not re.fullmatch(r"[\w.-]+/[\w.-]+", self.repo):
                raise ValueError("'repo' is neither owner/name on the hub nor the path of a folder")
            if not self.revision:
                raise ValueError("'revision' is missing: give the commit of the hub's repository that is meant")
        return self

    @property
    def is_local(self) -> bool:
        """Whether it is a folder on this machine."""
        return self.repo == KEPT or self.repo.startswith(("/", ".", "~"))

    @property
    def folder(self) -> Path:
        """Of a local one. Raises CheckpointError for names that no folder can have, and folders that a dataset does not
        name and this machine does not have.
        """
        if self.repo == KEPT:
            return _kept_folder(self.revision)
        try:
            folder = Path(self.repo).expanduser()
            folder.stat()
        except (RuntimeError, ValueError, OSError) as error:
            if isinstance(error, FileNotFoundError | NotADirectoryError):
                return folder
            raise CheckpointError(f"{shown(self.repo)}: cannot be a checkpoint's folder: {error}") from None
        return folder

    @property
    def name(self) -> str:
        """For people: the hub's name, or that of the folder, without its place."""
        return Path(self.repo).name if self.is_local else self.repo

    def __str__(self) -> str:
        return self.repo if self.is_local else f"{self.repo}@{self.revision}"


def folder_of(
    checkpoint: Checkpoint, components: Sequence[str], *, half: bool = False, variants: Sequence[str] | None = None
) -> Path:
    """The local folder that has `components`; fetches them from the hub if they are not there yet.

    Processes on one machine share the hub's cache and wait for one another's downloads.

    Args:
        checkpoint: what is wanted.
        components: names of its folders; of a file at its top the name with ".json".
        half: prefer half-precision files where a repository has both.
        variants: of the weights' files, the first that there is, in place of what `half` says: ("fp16", "").

    Raises:
        CheckpointError: it cannot be had, or lacks a component.
    """
    if checkpoint.is_local:
        folder = checkpoint.folder
        files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        if not files:
            raise CheckpointError(f"{folder}: no such folder, or nothing in it; give a checkpoint in the hub's layout")
        wanted_files(str(checkpoint), files, components, variants or forms(half))
        return folder
    from show1_ray.pipeline import hub  # here: its client takes a quarter of a second, and local weights go without

    return hub.fetch(checkpoint, components, variants or forms(half))


def component_config(folder: Path, component: str) -> dict[str, Any]:
    """A component's configuration.

    Raises:
        CheckpointError: it is not there, or no JSON object.
    """
    return read_json(folder / component / CONFIG_FILES.get(component, "config.json"))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: it is not there, or none.
    """
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: is no JSON object")
    return found


def published_or_local_config(checkpoint: Checkpoint, component: str) -> dict[str, Any] | None:
    """A component's configuration if it is known without fetching: of a local folder, or of a published checkpoint."""
    if checkpoint.is_local:
        path = checkpoint.folder / component / "config.json"
    else:
        path = PUBLISHED / checkpoint.repo / f"{component}.json"
    return read_json(path) if path.is_file() else None


@lru_cache
def resolve(checkpoint: Checkpoint) -> str:
    """The exact revision: a hub repository's commit, or the fingerprint of a local folder's files.

    Raises:
        CheckpointError: there is no such folder, repository or revision, or no access.
    """
    if checkpoint.is_local:
        return fingerprint(checkpoint.folder)
    if is_commit(checkpoint.revision):
        return str(checkpoint.revision)
    from show1_ray.pipeline import hub

    return hub.commit_of(checkpoint)


@lru_cache
def _kept_folder(revision: str | None) -> Path:
    """The folder with this fingerprint, if it is one that the package brings. Raises CheckpointError."""
    repos = {str(node.get("repo")) for name in names() for node in mappings(read(find(name)).keys)}
    for folder in sorted(repo for repo in repos if repo.startswith("/")):
        if fingerprint(Path(folder)) == revision:
            return Path(folder)
    raise CheckpointError(
        f"weights {revision}: they were in a folder of the machine that rendered with them, which a dataset does not "
        "name; give the pipeline file that it was rendered with, or the folder: --set STAGE.checkpoint.repo=FOLDER"
    )


def fingerprint(folder: Path) -> str:
    """Identifies a folder's files by name and content: "sha256:" and 16 hexadecimal digits.

    Of files larger than 64 MiB the size and the first and last MiB are taken for the content.

    Raises:
        CheckpointError: no such folder, or nothing in it.
    """
    try:
        return _fingerprint(folder)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read as a checkpoint: {error}") from None


def _fingerprint(folder: Path) -> str:
    files = (path for path in folder.rglob("*") if path.is_file())
    paths = sorted(islice(files, MOST_FILES + 1))
    if len(paths) > MOST_FILES:
        raise CheckpointError(f"{folder}: holds more than {MOST_FILES} files; give a checkpoint in the hub's layout")
    if not paths:
        raise CheckpointError(f"{folder}: no such folder, or nothing in it; give a checkpoint in the hub's layout")
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= WHOLE_FILE:
                digest.update(file.read())
            else:
                digest.update(file.read(2**20))
                file.seek(-(2**20), 2)
                digest.update(file.read())
    return f"sha256:{digest.hexdigest()[:16]}"


def forms(half: bool) -> tuple[str, str]:
    """Variants of weights' files in the order in which they are taken: half precision first, or last."""
    return ("fp16", "") if half else ("", "fp16")


def wanted_files(place: str, names: Iterable[str], components: Sequence[str], variants: Sequence[str]) -> list[str]:
    """Of a checkpoint's files those that `components` need: configurations, and one form of the weights.

    Safetensors before pickles; the first of the variants that there is. A component without a `config.json` (a
    tokenizer, a scheduler) needs no weights.

    Raises:
        CheckpointError: a component has no files, or a network no weights.
    """
    names = list(names)
    wanted = []
    for component in components:
        if component.endswith(".json"):
            if component not in names:
                raise CheckpointError(f"{place}: missing file: no {component}; is it a checkpoint of this stage?")
            wanted.append(component)
            continue
        files = [name for name in names if name.startswith(f"{component}/")]
        if not files:
            raise CheckpointError(f"{place}: missing file: no {component}/ folder; is it a checkpoint of this stage?")
        wanted += [name for name in files if Path(name).suffix in TEXTS]
        if component in NETWORKS or f"{component}/config.json" in files:
            weights = one_form(files, variants)
            if not weights:
                raise CheckpointError(f"{place}: missing file: {component}/ {what_lacks(files)}")
            wanted += weights
    return wanted


def one_form(names: Iterable[str], variants: Sequence[str]) -> list[str]:
    """The weights that are taken where a network lies in several forms, all shards of them; empty if there are none.

    The wanted variant comes first, then safetensors before pickles.
    """
    names = list(names)
    for variant in (f".{one}" if one else "" for one in variants):
        for suffix in (".safetensors", ".bin"):
            pattern = rf"({'|'.join(STEMS)}){re.escape(variant)}(-\d{{5}}-of-\d{{5}})?{re.escape(suffix)}"
            form = [name for name in names if re.fullmatch(pattern, Path(name).name)]
            parts = re.search(r"-of-(\d{5})", form[0]) if form else None
            if form and (parts is None or len(form) == int(parts[1])):
                return form
    return []


def what_lacks(names: Iterable[str]) -> str:
    """Why `one_form` finds no weights among files."""
    shards = [found for name in names if (found := re.search(r"-\d{5}-of-(\d{5})\.(safetensors|bin)$", name))]
    if shards:
        return f"has {len(shards)} of the {int(shards[0][1])} shards of its weights"
    return "has no weights (.safetensors or .bin)"


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a commit, which does not change."""
    return re.fullmatch(r"[0-9a-f]{40}", revision or "") is not None
