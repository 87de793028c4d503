"""One writer at a time: a file in the dataset that its writer renews while it lives."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from show1_ray.dataset.layout import LEASE
from show1_ray.dataset.storage import Storage, StorageError
from show1_ray.errors import UserError


class LeaseError(UserError):
    """Another process writes to this dataset: who, where, and since when."""


@dataclass(frozen=True)
class LeaseTimes:
    """Seconds between renewals, after which silence means death, and between writing the lease and reading it back."""

    renewal: float = 10
    stale: float = 45
    settling: float = 0.3


@dataclass(frozen=True)
class Holder:
    """A writer. `machine` names a boot and a process namespace, in which `pid` and `started` mean one process."""

    token: str
    host: str
    machine: str
    pid: int
    started: str
    job: str
    since: str
    renewed: float

    @classmethod
    def this_process(cls, job: str) -> Holder:
        """This process, as a new writer."""
        return cls(
            token=uuid.uuid4().hex,
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            started=_process_start(os.getpid()),
            job=job,
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            renewed=time.time(),
        )

    @property
    def is_dead(self) -> bool:
        """Whether its process is known to have ended: it ran on this machine, and is not there any more."""
        return bool(self.machine) and self.machine == _machine() and _process_start(self.pid) != self.started

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"


class Lease:
    """The right to write to a dataset, kept by a thread that renews it.

    A writer of this machine whose process has ended is replaced at once. One of another machine is watched:
    it is replaced when it does not renew its lease for `times.stale` seconds by this machine's clock (clocks
    are never compared).

    What this guarantees: filesystems and object stores have no common compare-and-swap, so a writer reads,
    writes, waits for `times.settling` and reads back. Two that start at the same moment both pass only if one
    stalls for longer than that between reading and writing; a holder that stalls for longer than
    `times.stale` is replaced. In both cases the one whose token is overwritten notices at its next renewal,
    and `check` raises.
    """

    def __init__(self, storage: Storage, job: str = "", times: LeaseTimes | None = None) -> None:
        """Take the lease. Raises LeaseError where somebody else holds it, StorageError."""
        self._storage = storage
        self._times = times = times or LeaseTimes()
        self._lost: Exception | None = None
        self._ended = threading.Event()
        self.holder = Holder.this_process(job)
        self._wait_for_absence()
        self._write()
        time.sleep(times.settling)
        self._read_back()
        self._thread = threading.Thread(target=self._keep, name="dataset lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise LeaseError if another writer has taken over, StorageError if the lease cannot be renewed."""
        if self._lost:
            raise self._lost

    def release(self) -> None:
        """Give the lease back. Does nothing where another has it."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join()
        holder = read_holder(self._storage)
        if holder and holder.token == self.holder.token:
            self._storage.delete(LEASE)

    def _wait_for_absence(self) -> None:
        other = read_holder(self._storage)
        quiet_since = time.monotonic()
        while other and not other.is_dead and time.monotonic() - quiet_since < self._times.stale:
            if other.machine == self.holder.machine:
                raise self._refusal(other)
            time.sleep(min(1.0, self._times.renewal / 2))
            now = read_holder(self._storage)
            if now and (now.token, now.renewed) != (other.token, other.renewed):
                raise self._refusal(now)
            other = now

    def _refusal(self, other: Holder) -> LeaseError:
        return LeaseError(f"dataset {self._storage.url}: being written by {other}; one job at a time")

    def _write(self) -> None:
        self._storage.write(LEASE, json.dumps(asdict(self.holder)).encode())

    def _read_back(self) -> None:
        other = read_holder(self._storage)
        if other is None:
            raise LeaseError(f"dataset {self._storage.url}: its {LEASE} was removed while this job holds it")
        if other.token != self.holder.token:
            raise self._refusal(other)

    def _keep(self) -> None:
        while not self._ended.wait(self._times.renewal):
            try:
                self._read_back()
                self.holder = replace(self.holder, renewed=time.time())
                self._write()
            except (LeaseError, StorageError) as error:
                self._lost = error
                return


def read_holder(storage: Storage) -> Holder | None:
    """Who holds the lease of a dataset, whether alive or not; None where nobody does."""
    try:
        return Holder(**json.loads(storage.read(LEASE)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):  # a lease of another version: nobody that this version can wait for
        return None


def _machine() -> str:
    """The kernel's boot and the process namespace, in which a process number means one process; "" where unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _process_start(pid: int) -> str:
    """When a process began, in the kernel's ticks since boot; "" where there is no such process, or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
