"""Storage: files are whole or not there, and failures are tried again."""

from __future__ import annotations

import pickle
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from show1_ray.dataset.conditional import write_local
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


def test_a_file_is_created_replaced_and_removed_only_as_it_was_seen(storage):
    assert storage.look("a/lease") is None
    first = storage.create("a/lease", b"first")
    assert first is not None
    assert storage.create("a/lease", b"another") is None
    second = storage.replace("a/lease", b"second", first)
    assert second is not None
    assert storage.replace("a/lease", b"of one who was away", first) is None
    assert not storage.remove("a/lease", first)
    assert storage.read("a/lease") == b"second"
    assert storage.look("a/lease") == second
    assert storage.remove("a/lease", second)
    assert storage.sizes("a") == {}
    assert storage.replace("a/lease", b"of one whose file is gone", second) is None
    assert not storage.remove("a/lease", second)
    assert storage.sizes("a") == {}


def test_a_condition_that_was_met_by_this_very_write_is_no_refusal(storage):
    """The answer to a write may get lost, and the write be tried again."""
    first = storage.create("lease", b"first")
    assert storage.create("lease", b"first") == first
    second = storage.replace("lease", b"second", first)
    assert storage.replace("lease", b"second", first) == second


@pytest.mark.parametrize("storage", ["local", "s3"], indirect=True)
def test_of_many_that_write_at_the_same_moment_one_is_let_through(storage):
    assert storage.is_exact
    with ThreadPoolExecutor(8) as threads:
        created = list(threads.map(lambda n: storage.create("lease", b"%d" % n), range(8)))
        assert len([one for one in created if one]) == 1
        seen = storage.look("lease")
        replaced = list(threads.map(lambda n: storage.replace("lease", b"again %d" % n, seen), range(8)))
        assert len([one for one in replaced if one]) == 1
        seen = storage.look("lease")
        assert sum(threads.map(lambda _: storage.remove("lease", seen), range(8))) == 1


def test_a_shard_is_not_written_over(storage, tmp_path):
    (tmp_path / "local").write_bytes(b"ours")
    assert storage.upload_new("shards/0.tar", tmp_path / "local")
    (tmp_path / "local").write_bytes(b"theirs")
    assert not storage.upload_new("shards/0.tar", tmp_path / "local")
    assert storage.read("shards/0.tar") == b"ours"


def test_many_files_are_removed_in_few_requests(storage):
    paths = [f"many/{n}" for n in range(7)]
    for path in paths:
        storage.write(path, b"x")
    storage.delete_many([*paths[:5], "many/that was never there"])
    assert sorted(storage.sizes("many")) == ["5", "6"]
    storage.delete_many([])


def test_a_file_that_s3_will_not_delete_is_told(s3, monkeypatch):
    storage = Storage(f"{s3}/kept", QUICK)
    storage.write("file", b"x")
    client = storage._place[0]
    refused = {"Errors": [{"Key": "kept/file", "Code": "AccessDenied", "Message": "Access Denied"}]}
    monkeypatch.setattr(client, "call_s3", lambda method, **_: refused)  # moto refuses nothing
    with pytest.raises(StorageError, match=r"^cannot delete .*/kept/file.*: kept/file: Access Denied$"):
        storage.delete_many(["file"])


def test_results_of_many_small_things_come_in_order_and_do_not_pile_up(storage):
    asked = []

    def numbers() -> Iterator[int]:
        for number in range(1000):
            asked.append(number)
            yield number

    results = storage.map(lambda n: n * n, numbers())
    assert next(results) == 0
    assert len(asked) < 100
    assert list(results) == [n * n for n in range(1, 1000)]


def test_a_write_whose_temporary_file_was_cleaned_away_is_tried_again(tmp_path):
    storage, cleaned = Storage(str(tmp_path / "out"), QUICK), []

    def fill(path: Path) -> None:
        path.write_bytes(b"x")
        if not cleaned:
            cleaned.append(path)
            storage.clean([""])

    storage._try("write", "file", lambda _, full: write_local(Path(full), fill))
    assert storage.read("file") == b"x"


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
