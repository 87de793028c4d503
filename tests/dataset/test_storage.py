"""Storage: files are whole or not there, and failures are tried again."""

from __future__ import annotations

import pickle
import resource
from pathlib import Path

import pytest

from show1_ray.dataset.storage import Storage, StorageError
from tests.dataset.toys import QUICK


@pytest.fixture(params=["local", "memory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "s3":
        return Storage(f"{request.getfixturevalue('s3')}/{tmp_path.name}/out", QUICK)
    return Storage(str(tmp_path / "out") if request.param == "local" else f"memory://{tmp_path.name}/out", QUICK)


def test_files_are_written_read_listed_and_deleted(storage, tmp_path):
    assert storage.sizes("") == {}
    storage.write("a/b/file", b"old")
    storage.write("a/b/file", b"newer")
    (tmp_path / "big").write_bytes(b"0" * 1000)
    storage.upload("a/uploaded", tmp_path / "big")
    assert storage.read("a/b/file") == b"newer"
    assert storage.sizes("a") == {"uploaded": 1000}
    assert storage.folders("a") == ["b"]
    with storage.local_copy("a/uploaded") as local:
        assert local.stat().st_size == 1000
    storage.delete("a/b/file")
    storage.delete("a/b/file")
    assert storage.sizes("a/b") == {}
    with pytest.raises(FileNotFoundError):
        storage.read("a/b/file")


def test_storage_travels_to_other_processes(storage):
    storage.write("file", b"x")
    assert pickle.loads(pickle.dumps(storage)).read("file") == b"x"


def test_a_write_that_fails_is_tried_again(flaky):
    storage = Storage("flaky://bucket/out", QUICK)
    flaky.failures = 2
    storage.write("file", b"x")
    assert storage.read("file") == b"x"
    assert flaky.writes == 3


def test_a_write_that_keeps_failing_is_one_line_and_no_file(flaky):
    storage = Storage("flaky://bucket/out", QUICK)
    flaky.failures = 100
    with pytest.raises(StorageError) as error:
        storage.write("file", b"x")
    assert str(error.value) == "cannot write flaky://bucket/out/file after 3 attempts: connection reset by peer"
    assert storage.sizes("") == {}


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    storage = Storage(str(tmp_path), QUICK)
    storage.write("file", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # the kernel refuses to let files grow further
    try:
        with pytest.raises(StorageError, match=r"cannot write .*/file: \[Errno 27\] File too large"):
            storage.write("file", b"0" * 20_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_a_file_where_a_folder_should_be_is_refused_at_once(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(StorageError, match=r"^cannot write .*/out/file: .*/out is not a folder$"):
        Storage(str(tmp_path / "out")).write("file", b"x")


def test_an_unknown_protocol_is_refused():
    with pytest.raises(StorageError, match=r"^nowhere://out: cannot be opened: Protocol not known: nowhere$"):
        Storage("nowhere://out").read("file")


def test_what_interrupted_writes_leave_is_removed(tmp_path):
    (tmp_path / ".0123.tmp").write_text("half")
    Path(tmp_path / "clip.tmp").write_text("somebody's")
    Storage(str(tmp_path)).clean([""])
    assert [path.name for path in tmp_path.iterdir()] == ["clip.tmp"]
