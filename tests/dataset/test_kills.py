"""A job that is killed between any two of its operations on storage loses nothing and doubles nothing."""

from __future__ import annotations

import io
import itertools
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import fsspec
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from show1_ray.dataset import Rendering, parts, read_status
from show1_ray.dataset.metadata import Row
from tests.dataset.toys import QUICK, SETTINGS, Job, entries, frames

COUNT = 14


class KilledError(BaseException):
    """The process is gone."""


class MortalFileSystem(MemoryFileSystem):
    """Changes something `left` times, and never again: as seen by a process that is killed then. None: it lives."""

    protocol = "mortal"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]
    left: int | None = None
    changes = 0

    def _change(self) -> None:
        type(self).changes += 1
        left = type(self).left
        if left is not None:
            if not left:
                raise KilledError
            type(self).left = left - 1

    def pipe_file(self, path, value, mode="overwrite", **options):
        self._change()
        super().pipe_file(path, value, mode, **options)

    def rm_file(self, path):
        self._change()
        super().rm_file(path)

    def put_file(self, lpath, rpath, **options):
        self._change()
        super().put_file(lpath, rpath, **options)


fsspec.register_implementation("mortal", MortalFileSystem, clobber=True)


@pytest.fixture
def mortal(monkeypatch) -> Iterator[type[MortalFileSystem]]:
    """Parts are merged as soon as there are a few."""
    monkeypatch.setattr(parts, "FAN", 3)
    monkeypatch.setattr(parts, "LEAST", 2)
    monkeypatch.setattr(parts, "MERGED_ROWS", 5)
    monkeypatch.setattr("show1_ray.dataset.lease._process_start", lambda pid: f"{MortalFileSystem.changes}")
    MortalFileSystem.left, MortalFileSystem.changes = None, 0
    yield MortalFileSystem
    MortalFileSystem.left = None
    MortalFileSystem.store.clear()


@pytest.fixture(scope="module")
def landed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Row, bytes]]:
    """The row and the file of each clip, as a lander makes them."""
    job = Job(str(tmp_path_factory.mktemp("landed") / "out"))
    with job.open() as dataset:
        rows = [dataset.lander(one.clip, frames(one.clip), Rendering(), one.extra) for one in entries(COUNT)]
    return {row["id"]: (row, (Path(job.url) / row["file_name"]).read_bytes()) for row in rows}


def one_job(job: Job, format: str, landed: dict[str, tuple[Row, bytes]], rendered: list[str]) -> None:
    """Renders what is missing. One clip fails in the first job."""
    settings = replace(SETTINGS, part_rows=1, shard_clips=2, retries=QUICK)
    first = not rendered
    with job.open(format=format, settings=settings) as dataset:
        for entry in dataset.missing(entries(COUNT), retry_failed=True):
            row, data = landed[entry.clip.id]
            if first and entry.clip.seed == 3:
                dataset.record_failure(entry.clip, "text", 1, "boom")
                dataset.flush()
                continue
            dataset.lander.storage.write(row["file_name"], data)
            rendered.append(entry.clip.id)
            dataset.record(row)
            dataset._wait()  # so that what the thread writes comes at a known place
        dataset.finish()


@pytest.mark.parametrize("format", ["mp4", "webdataset"])
def test_a_job_that_is_killed_after_any_change_of_its_storage_is_completed_by_the_next(format, mortal, landed):
    job = Job("mortal://out")
    for moment in itertools.count():
        mortal.store.clear()
        mortal.left, mortal.changes, rendered = moment, 0, list[str]()
        with suppress(KilledError):
            one_job(job, format, landed, rendered)
        was_killed, mortal.left = mortal.left == 0, None
        one_job(job, format, landed, rendered or ["none"])
        assert len(rendered) == len(set(rendered)), f"killed after change {moment}: a clip that had landed is repeated"
        check(mortal, landed)
        if not was_killed:
            break
    assert moment > 3 * COUNT


def check(mortal: type[MortalFileSystem], landed: dict[str, tuple[Row, bytes]]) -> None:
    """Each clip is there once, with its row, and nothing else is."""
    files = {name.partition("out/")[2]: file.getvalue() for name, file in mortal.store.items()}
    rows = pq.read_table(io.BytesIO(files["metadata.parquet"])).to_pylist()
    assert sorted(row["id"] for row in rows) == sorted(landed)
    found = []
    for name, data in files.items():
        if name.endswith(".mp4"):
            found.append((name, data))
        if name.endswith(".tar"):
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                members = [one for one in tar if one.name.endswith(".mp4")]
                contents = map(tar.extractfile, members)
                found += [(one.name, file.read()) for one, file in zip(members, contents, strict=True) if file]
    assert sorted(found) == sorted((row["file_name"], landed[row["id"]][1]) for row in rows)
    assert not [name for name in files if name.startswith((".", "metadata/", "failures/"))]
    status = read_status("mortal://out")
    assert (status.done, status.left, status.lost, status.foreign) == (COUNT, 0, [], [])
