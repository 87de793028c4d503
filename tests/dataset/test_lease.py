"""One writer at a time."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from show1_ray.dataset.layout import LEASE
from show1_ray.dataset.lease import Holder, Lease, LeaseError, LeaseTimes, read_holder
from show1_ray.dataset.storage import Storage, StorageError
from tests.dataset.toys import QUICK

WORKER = Path(__file__).with_name("toys.py")
TIMES = LeaseTimes(renewal=0.05, stale=0.5, settling=0.01)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "out"))


@pytest.fixture
def writer(storage: Storage) -> Iterator[subprocess.Popen]:
    """Another process that has the dataset open."""
    command = [sys.executable, str(WORKER), storage.url, "mp4", "1", "hold"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process
        process.kill()


def elsewhere(storage: Storage, renewed: float = 0) -> None:
    """Let a job on another machine hold the lease."""
    holder = replace(
        Holder.this_process("theirs"),
        token="t",
        host="far",
        machine="m",
        pid=9,
        since="noon",
        renewed=renewed,
    )
    storage.write(LEASE, json.dumps(asdict(holder)).encode())


def check_until(lease: Lease, deadline: float) -> None:
    while time.monotonic() < deadline:
        lease.check()
        time.sleep(0.01)


def test_a_second_process_is_refused_and_told_who_writes(storage, writer):
    with pytest.raises(LeaseError) as error:
        Lease(storage, times=TIMES)
    holder = read_holder(storage)
    assert holder is not None
    assert str(error.value) == (
        f"dataset {storage.url}: being written by process {writer.pid} on {holder.host}, job worker, since "
        f"{holder.since}; one job at a time"
    )


def test_a_second_writer_of_the_same_process_is_refused(storage):
    lease = Lease(storage, times=TIMES)
    with pytest.raises(LeaseError):
        Lease(storage, times=TIMES)
    lease.release()
    Lease(storage, times=TIMES).release()
    assert read_holder(storage) is None


def test_a_killed_process_is_replaced_at_once(storage, writer):
    writer.kill()
    writer.wait()
    lease = Lease(storage, times=LeaseTimes(stale=1e9))
    assert read_holder(storage) == lease.holder
    lease.release()


def test_a_silent_job_on_another_machine_is_replaced(storage):
    elsewhere(storage)
    Lease(storage, times=TIMES).release()


def test_a_job_on_another_machine_that_renews_its_lease_is_not(storage):
    elsewhere(storage)
    ended = threading.Event()

    def renew() -> None:
        renewed = 0
        while not ended.wait(0.05):
            renewed += 1
            elsewhere(storage, renewed)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(
            LeaseError, match="being written by process 9 on far, job theirs, since noon; one job at a time"
        ):
            Lease(storage, times=replace(TIMES, stale=60))
    finally:
        ended.set()
        thread.join()


def test_the_lease_is_renewed_while_it_is_held(storage):
    lease = Lease(storage, times=TIMES)
    before = read_holder(storage)
    assert before is not None
    deadline = time.monotonic() + 30
    while (after := read_holder(storage)) is None or after.renewed <= before.renewed:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lease.release()


def test_a_writer_that_was_replaced_notices(storage):
    lease = Lease(storage, times=TIMES)
    elsewhere(storage)
    deadline = time.monotonic() + 30
    with pytest.raises(LeaseError, match="being written by process 9 on far"):
        check_until(lease, deadline)
    lease.release()
    holder = read_holder(storage)
    assert holder is not None
    assert holder.host == "far"


@pytest.fixture(params=["local", "memory", "s3"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "s3":
        return Storage(f"{request.getfixturevalue('s3')}/{tmp_path.name}/out")
    return Storage(str(tmp_path / "out") if request.param == "local" else f"memory://{tmp_path.name}/out")


def far_away(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> Lease:
    """A writer on another machine, which stands still as soon as it has the lease."""
    with monkeypatch.context() as there:
        there.setattr("show1_ray.dataset.lease._machine", lambda: "another boot")
        return Lease(storage, "far", replace(TIMES, renewal=3600))


def test_a_stalled_writer_that_comes_back_finds_itself_replaced_and_changes_nothing(anywhere, monkeypatch):
    stalled = far_away(anywhere, monkeypatch)
    assert not stalled.took_over
    second = Lease(anywhere, "second", replace(TIMES, renewal=3600))
    assert second.took_over
    stalled.check()  # it does not know yet
    lease = anywhere.read(LEASE)
    stalled._renew()
    with pytest.raises(LeaseError, match=r"being written by process .*, job second, since .*; one job at a time"):
        stalled.check()
    stalled.release()
    assert anywhere.read(LEASE) == lease
    second.confirm()
    second.release()
    assert anywhere.look(LEASE) is None


def test_what_must_not_be_done_by_a_writer_that_was_replaced_is_asked_of_the_storage(anywhere, monkeypatch):
    stalled = far_away(anywhere, monkeypatch)
    stalled._times = replace(TIMES, renewal=0)  # it wakes, before its renewals do
    stalled.confirm()
    second = Lease(anywhere, "second", replace(TIMES, renewal=3600))
    with pytest.raises(LeaseError, match="job second"):
        stalled.confirm()
    with pytest.raises(LeaseError, match="job second"):
        stalled.check()
    second.release()


def test_a_lease_that_was_removed_under_its_holder_is_told(storage, monkeypatch):
    lease = Lease(storage, times=TIMES)
    (Path(storage.url) / LEASE).unlink()
    with pytest.raises(
        LeaseError, match=r"its .lease.json was removed while this job holds it; if the dataset was del"
    ):
        check_until(lease, time.monotonic() + 30)
    lease.release()
    assert list(Path(storage.url).iterdir()) == []


def test_storage_that_stands_still_for_a_while_does_not_cost_the_lease(flaky):
    storage = Storage("flaky://bucket/lease", QUICK)
    lease = Lease(storage, times=replace(TIMES, stale=3600))
    flaky.failures = 12
    deadline = time.monotonic() + 30
    while flaky.failures:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    before = lease._confirmed
    while lease._confirmed == before:
        lease.check()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lease.release()


def test_storage_that_does_not_come_back_costs_the_lease(flaky):
    lease = Lease(Storage("flaky://bucket/lease", QUICK), times=replace(TIMES, stale=0.2))
    flaky.failures = 10**6
    with pytest.raises(StorageError, match="connection reset by peer"):
        check_until(lease, time.monotonic() + 30)
    flaky.failures = 0
    lease.release()


def test_a_lease_of_another_version_is_watched_like_any_other(storage):
    storage.write(LEASE, b'{"holder": "a newer one"}')
    lease = Lease(storage, times=TIMES)
    assert lease.took_over
    lease.release()


def test_a_writer_says_that_it_waits_for_a_sign_of_another(storage, caplog):
    elsewhere(storage)
    Lease(storage, times=TIMES).release()
    assert caplog.messages == [
        f"dataset {storage.url}: waiting up to 0.5 s for a sign of process 9 on far, job theirs, since noon"
    ]
