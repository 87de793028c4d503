"""Fixtures of the dataset's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from tests.dataset.toys import FlakyFileSystem, Job


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(str(tmp_path / "out"))


@pytest.fixture
def memory_job(tmp_path: Path) -> Iterator[Job]:
    """A job that writes to an object store: fsspec's, in memory."""
    yield Job(f"memory://{tmp_path.name}/out")
    fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)


@pytest.fixture
def flaky() -> Iterator[type[FlakyFileSystem]]:
    """The class of a file system that fails as often as it is told."""
    FlakyFileSystem.failures = FlakyFileSystem.writes = 0
    yield FlakyFileSystem
    FlakyFileSystem.store.clear()
