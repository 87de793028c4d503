"""One writer at a time: a file in the dataset that its writer renews while it lives."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from show1_ray.dataset.conditional import Seen
from show1_ray.dataset.layout import LEASE
from show1_ray.dataset.storage import Storage, StorageError
from show1_ray.errors import UserError
from show1_ray.supervisor import command_pid

log = logging.getLogger(__name__)


class LeaseError(UserError):
    """Another process writes to this dataset: who, where, and since when."""


@dataclass(frozen=True)
class LeaseTimes:
    """Seconds between renewals, after which silence means death, and between writing the lease and reading it back.

    `stale` leaves room for the longest that a living holder may be silent: the 10 s between renewals, a store that says
    nothing until it is given up (`patience.SILENT_SECONDS`) and is asked again, and a process that stands still for a
    while.
    `settling` is for stores that know no conditional writes.
    """

    renewal: float = 10
    stale: float = 180
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
            pid=command_pid(),
            started=_process_start(command_pid()),
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


HOLDER = TypeAdapter(Holder)


LOOK_SECONDS = 5.0
"""For how long to look for a lease that has just been written: network file systems remember for a while what was not
there."""


def is_seen(storage: Storage, token: str) -> bool:
    """Whether the lease with a token lies in a storage, as this process sees it. Raises StorageError."""
    asked = Retrying(
        stop=stop_after_delay(LOOK_SECONDS),
        wait=wait_fixed(0.5),
        retry=retry_if_result(lambda there: there != token),
        retry_error_callback=lambda state: "",
    )
    return bool(asked(_token, storage))


def _token(storage: Storage) -> str:
    try:
        return str(json.loads(storage.read(LEASE))["token"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return ""


class Lease:
    """The right to write to a dataset, kept by a thread that renews it.

    A writer of this machine whose process has ended is replaced at once. One of another machine is watched:
    it is replaced when it does not renew its lease for `times.stale` seconds by this machine's clock (clocks
    are never compared).

    What this guarantees: the lease is created only where there is none, and renewed, taken over and given back only
    where it still is what was read (see `Storage.is_exact`). So of two that start at the same moment one gets
    it, and a holder that was silent for so long that it was replaced cannot take it back: its next renewal is refused,
    and `check` raises. `confirm` is for what must not be done by a writer that was replaced without knowing it yet.
    Stores may not know conditional writes, or may not heed them: there a writer also waits for `times.settling` and
    reads back, and two pass only if one stalls for longer than that between comparing and writing.
    """

    def __init__(self, storage: Storage, job: str = "", times: LeaseTimes | None = None) -> None:
        """Take the lease. Raises LeaseError where somebody else holds it, StorageError."""
        self._storage = storage
        self._times = times or LeaseTimes()
        self._lost: Exception | None = None
        self._ended = threading.Event()
        self.holder = Holder.this_process(job)
        before = self._wait_for_absence()
        self.took_over = before is not None
        """Whether the one before did not give its lease back: what it has begun may still land."""
        self._seen = self._take(before)
        self._confirmed = _now()
        self._thread = threading.Thread(target=self._keep, name="dataset lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise LeaseError if another writer has taken over, StorageError if the lease cannot be renewed.

        Returns at once: it tells what the renewals have found.
        """
        if self._lost:
            raise self._lost

    def confirm(self) -> None:
        """As `check`; asks the storage where the last renewal is so long ago that somebody may have taken over."""
        self.check()
        if _now() - self._confirmed > 2 * self._times.renewal:
            asked = _now()
            self._lost = self._loss(self._storage.look(LEASE))
            self.check()
            self._confirmed = asked

    def release(self) -> None:
        """Give the lease back. Does nothing where another has it."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join()
        seen = self._storage.look(LEASE)
        if seen and self._is_ours(seen):
            self._storage.remove(LEASE, seen)

    def _wait_for_absence(self) -> Seen | None:
        """The lease of a writer that is dead; None where there is none."""
        seen, quiet_since, told = self._storage.look(LEASE), _now(), False
        while seen:
            other = _holder_in(seen)
            if other and other.is_dead:
                break
            if other and other.machine and other.machine == self.holder.machine:
                raise self._refusal(other)
            if _now() - quiet_since >= self._times.stale:
                break
            if not told:
                told = True
                log.warning(
                    "dataset %s: waiting up to %g s for a sign of %s",
                    self._storage.url,
                    self._times.stale,
                    other or "whoever holds its lease",
                )
            time.sleep(min(1.0, self._times.renewal / 2))
            now = self._storage.look(LEASE)
            if now and now.data != seen.data:
                raise self._refusal(_holder_in(now))
            seen = now
        return seen

    def _take(self, before: Seen | None) -> Seen:
        seen = self._write(before)
        if seen and not self._storage.is_local:
            time.sleep(self._times.settling)
            seen = self._storage.look(LEASE)
        if not seen or not self._is_ours(seen):
            now = self._storage.look(LEASE)
            raise self._refusal(_holder_in(now) if now else None)
        return seen

    def _write(self, before: Seen | None) -> Seen | None:
        data = json.dumps(asdict(self.holder)).encode()
        if before is None:
            return self._storage.create(LEASE, data)
        return self._storage.replace(LEASE, data, before)

    def _is_ours(self, seen: Seen) -> bool:
        holder = _holder_in(seen)
        return holder is not None and holder.token == self.holder.token

    def _loss(self, seen: Seen | None) -> LeaseError | None:
        """Why the lease is not ours any more; None where it is."""
        if seen is None:
            return LeaseError(
                f"dataset {self._storage.url}: its {LEASE} was removed while this job holds it; if the dataset was "
                "deleted, the same command begins it again"
            )
        return None if self._is_ours(seen) else self._refusal(_holder_in(seen))

    def _refusal(self, other: Holder | None) -> LeaseError:
        who = other or "a job that has just begun or is of another version"
        return LeaseError(f"dataset {self._storage.url}: being written by {who}; one job at a time")

    def _keep(self) -> None:
        wait = self._times.renewal
        while not self._ended.wait(wait):
            wait = self._times.renewal
            try:
                self._renew()
            except StorageError as error:
                # As long as nobody may take over, a store that stands still may come back.
                if _now() - self._confirmed > self._times.stale:
                    self._lost = error
                wait = min(1.0, wait)
            if self._lost:
                return

    def _renew(self) -> None:
        asked = _now()
        holder = replace(self.holder, renewed=time.time())
        seen = self._storage.replace(LEASE, json.dumps(asdict(holder)).encode(), self._seen)
        if seen is None:
            now = self._storage.look(LEASE)
            self._lost = self._loss(now)
            if now and not self._lost:  # a renewal of ours whose answer got lost
                self._seen = now
            return
        self.holder, self._seen, self._confirmed = holder, seen, asked


def read_holder(storage: Storage) -> Holder | None:
    """Who holds the lease of a dataset, whether alive or not; None where nobody does."""
    seen = storage.look(LEASE)
    return _holder_in(seen) if seen else None


def _holder_in(seen: Seen) -> Holder | None:
    """Who wrote this lease; None for one of another version, or what is none."""
    try:
        return HOLDER.validate_json(seen.data)
    except ValidationError:
        return None


def _now() -> float:
    """Seconds on a clock that goes on while the machine sleeps, where there is one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


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
