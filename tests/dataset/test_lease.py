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
from show1_ray.dataset.storage import Storage

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
