"""What is shipped with a submitted job: this package, and local files of the manifest, pipeline and code."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import fsspec
import yaml

import show1_ray
from show1_ray.errors import UserError, shown
from show1_ray.manifest import AS_THEY_ARE, Columns, open_manifest
from show1_ray.manifest.files import is_local
from show1_ray.manifest.places import GLOB, find_tables
from show1_ray.manifest.table import UnreadableError
from show1_ray.pipeline import PIPELINE_FOLDERS, Pipeline, names
from show1_ray.pipeline.code import Code
from show1_ray.pipeline.sources import folder_of_manifest
from show1_ray.planning.profile import kept_profiles

CODE = "code"
"""The folder of a shipment that holds the user's code."""
MOST_BYTES = 95 * 2**20
"""Size limit of a shipment: Ray's dashboard accepts 100 MiB of uncompressed files."""


@dataclass(frozen=True)
class Files:
    """Which of the images and videos that a manifest names go along: those of the first `limit` clips. The job reads
    local files outside the manifest's folder too where `allow_private`, which nodes may share. `columns` see
    `open_manifest`."""

    limit: int | None = None
    allow_private: bool = False
    columns: Columns = AS_THEY_ARE


@contextmanager
def shipment(
    manifest: str, pipeline: str, overrides: Sequence[str], code: Code | None = None, files: Files | None = None
) -> Iterator[tuple[Path, str, str]]:
    """A folder with what a job needs: this package, and what is this machine's: manifest, the images and videos that
    it names below its folder, pipeline file, and code.

    Args:
        manifest, pipeline, overrides: as for `show1_ray.render`.
        code: that the pipeline may use.
        files: which files of the manifest go along; default: those of all clips.

    Yields:
        The folder, and the names of manifest and pipeline in it (URLs and names of pipelines stay as they are); code
        lies in `CODE`.

    Raises:
        UserError: no such manifest, more than can be shipped, or what `Pipeline.load` and `open_manifest` raise.
    """
    loaded = Pipeline.load(pipeline, overrides, code)
    with tempfile.TemporaryDirectory(prefix="show1-ray") as name:
        folder = Path(name)
        package = Path(show1_ray.__file__).parent
        ignored = shutil.ignore_patterns("__pycache__", "profiles", ".*")
        shutil.copytree(package, folder / "show1_ray", ignore=ignored)
        for pipelines in PIPELINE_FOLDERS:
            shutil.copytree(pipelines, folder / "show1_ray" / "pipelines", ignore=ignored, dirs_exist_ok=True)
        if code is not None:
            code.write(folder / CODE)
        there = _ship_manifest(manifest, folder)
        if there != manifest and loaded.input_columns.has_files:
            named = _files_of(manifest, loaded, files or Files())
            _ship_files(manifest, named, folder, Path(folder_of_manifest(str(folder / there))))
        shipped = _ship_pipeline(pipeline, folder, code)
        _ship_profiles(loaded, folder / "show1_ray" / "pipelines" if shipped == pipeline else folder)
        yield folder, there, shipped


def _ship_manifest(manifest: str, folder: Path) -> str:
    """Copies a manifest's tables, in their folders, and nothing else that lies beside them. Returns its name there."""
    if "::" in manifest:
        return _ship_archive(manifest, folder)
    filesystem, path = fsspec.core.url_to_fs(manifest)
    if not is_local(filesystem):
        return manifest
    whole = Path(path)
    try:
        tables = [Path(table.url) for table in find_tables(manifest).tables] if not whole.is_file() else [whole]
    except UnreadableError as error:
        raise UserError(f"manifest {error}") from None
    _check_size(f"manifest {manifest}", folder, tables)
    anchor = whole.parent if whole.exists() else Path(GLOB.split(path, maxsplit=1)[0].rpartition("/")[0])
    while "=" in anchor.name:  # folders that give columns
        anchor = anchor.parent
    for one in tables:
        place = folder / "manifest" / one.relative_to(anchor)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(one, place)
    return f"manifest/{whole.relative_to(anchor)}"


def _ship_archive(manifest: str, folder: Path) -> str:
    """Like `_ship_manifest`, for a file in an archive: ships the archive if it is local."""
    *chain, last = manifest.split("::")
    filesystem, path = fsspec.core.url_to_fs(last)
    if not is_local(filesystem):
        return manifest
    archive = Path(path)
    if not archive.is_file():
        raise UserError(f"manifest {manifest}: no such file")
    _check_size(f"manifest {manifest}", folder, [archive])
    (folder / "manifest").mkdir()
    shutil.copy(archive, folder / "manifest" / archive.name)
    return "::".join([*chain, f"manifest/{archive.name}"])


def _files_of(manifest: str, pipeline: Pipeline, files: Files) -> dict[str, Path]:
    """Images and videos that rows name by paths below the manifest's folder: as they are written → where they lie.

    What is not there costs its clip, as everywhere. Raises UserError for paths that lead elsewhere on this machine.
    """
    columns = pipeline.input_columns
    root = Path(folder_of_manifest(manifest))
    found: dict[str, Path] = {}
    for entry in open_manifest(manifest, inputs=columns, limit=files.limit, columns=files.columns):
        for one in columns.inputs:
            given = entry.clip.inputs.get(one.name)
            if not one.is_file or not isinstance(given, str) or given in found:
                continue
            scheme, is_url, _ = given.partition("://")
            if is_url and scheme.lower() != "file":
                continue
            is_absolute = bool(is_url) or Path(given).is_absolute()
            if is_absolute and files.allow_private:
                continue
            place = (root / given).resolve()
            if is_absolute or not place.is_relative_to(root):
                raise UserError(
                    f"manifest {manifest}: clip {entry.clip.id!r}: column {one.name!r} is {shown(given, 200)}, a file "
                    "of this machine: shipped are those below the manifest's folder that are written relative to it; "
                    "write it so, or give a URL that all nodes reach"
                )
            if place.is_file():
                found[given] = place
    return found


def _ship_files(manifest: str, files: dict[str, Path], folder: Path, root: Path) -> None:
    """Copies files to where a manifest below `root` names them."""
    missing = {given: place for given, place in files.items() if not (root / given).exists()}
    _check_size(f"manifest {manifest} and the {len(files):,} files that it names", folder, list(missing.values()))
    for given, place in missing.items():
        target = (root / given).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(place, target)


def _check_size(what: str, folder: Path, more: Sequence[Path]) -> None:
    """Raises UserError if a folder and more files exceed what can be shipped."""
    there = sum(file.stat().st_size for file in _below(folder))
    size = sum(file.stat().st_size for file in more)
    if there + size > MOST_BYTES:
        raise UserError(
            f"{what}: {size / 2**20:,.0f} MiB, but {(MOST_BYTES - there) / 2**20:,.0f} MiB can be shipped: put them "
            "where all nodes reach them, such as s3://…, and give that"
        )


def _below(path: Path) -> list[Path]:
    """A file, or all files below a folder."""
    return [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else [path]


def _ship_profiles(pipeline: Pipeline, beside: Path) -> None:
    """Copies a pipeline's profiles to where the job looks for them."""
    for profile in kept_profiles(pipeline):
        (beside / profile.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(profile, beside / profile.parent.name / profile.name)


def _ship_pipeline(pipeline: str, folder: Path, code: Code | None) -> str:
    if pipeline in names():
        return pipeline
    # Whole, with absolute paths: what it extends and where it lies are not known there.
    whole = Pipeline.load(pipeline, code=code).document()
    path = folder / Path(pipeline).name
    path.write_text(yaml.safe_dump(whole, sort_keys=False))
    return path.name
