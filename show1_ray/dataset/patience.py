"""Patience with storage: which errors are retried, how often, and how long storage may be silent."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_after_delay, wait_exponential

from show1_ray.pipeline.passing import can_become_good

T = TypeVar("T")

NAMED_SECONDS = 15.0
"""Storage that has not answered for this long is reported."""
SILENT_SECONDS = 120.0
"""A call after which nothing came for so long has failed …"""
SLOWEST = 500_000
"""… and of a large file a second more for each of so many bytes."""
AGAIN_SECONDS = 5.0
"""How long a store may say nothing that has failed so already, until it answers again."""


@dataclass(frozen=True)
class Retries:
    """How often storage is asked, and the seconds of the first wait; each wait is twice the one before."""

    attempts: int = 6
    first_wait: float = 0.5


class SilenceError(Exception):
    """Storage has said nothing for `SILENT_SECONDS`: not asked again, because each time would take as long."""

    is_permanent = True


class Listener:
    """Who in this process is told that a store says nothing, and that it answers again; each once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tell: Callable[[str], None] | None = None
        self._named: set[str] = set()
        self._failed: set[str] = set()

    @contextmanager
    def told(self, tell: Callable[[str], None]) -> Iterator[None]:
        """Tells `tell` within this block, from any thread."""
        before, self._tell = self._tell, tell
        try:
            yield
        finally:
            self._tell = before

    def allowed(self, store: str) -> float:
        """Seconds that a store may say nothing."""
        return AGAIN_SECONDS if store in self._failed else SILENT_SECONDS

    def silent(self, store: str, seconds: float, failed: bool = False) -> None:
        """A store has said nothing for so long."""
        with self._lock:
            first = store not in self._named
            self._named.add(store)
            if failed:
                self._failed.add(store)
        if first and self._tell is not None:
            end = f"given up after {SILENT_SECONDS:.0f} s"
            self._tell(f"storage {store}: no answer for {seconds:.0f} s; {end}")

    def answered(self, store: str) -> None:
        """A store has answered."""
        if store not in self._named and store not in self._failed:
            return
        with self._lock:
            was_named = store in self._named
            self._named.discard(store)
            self._failed.discard(store)
        if was_named and self._tell is not None:
            self._tell(f"storage {store}: answers again")


LISTENER = Listener()


def patiently(action: Callable[[], T], retries: Retries, store: str, size: int = 0) -> T:
    """Does something with storage, again where that may help, each time in another thread: what hangs there (a network
    file system, a proxy) hangs alone.

    Args:
        action: what to do. Its last error is raised here, with the number of attempts as `attempts`.
        retries: how often.
        store: how the store is called where it is named.
        size: bytes that are on the way.

    Raises:
        SilenceError: nothing came back in time. It may still do what it was to do.
    """
    begin = time.monotonic()
    extra = size / SLOWEST
    limit = LISTENER.allowed(store) + extra

    def once() -> T:
        call = _Call(action)
        _hand_over(call)
        if not call.ended.wait(begin + min(NAMED_SECONDS + extra, limit) - time.monotonic()):
            LISTENER.silent(store, time.monotonic() - begin)
            if not call.ended.wait(begin + limit - time.monotonic()):
                LISTENER.silent(store, limit, failed=True)
                raise SilenceError(f"no answer for {limit:.0f} s")
        if call.error is not None:
            raise call.error
        return call.result

    asked = Retrying(
        stop=stop_after_attempt(retries.attempts) | stop_after_delay(limit),
        wait=wait_exponential(multiplier=retries.first_wait),
        retry=retry_if_exception(can_become_good),
        reraise=True,
    )
    try:
        result = asked(once)
    except Exception as error:
        if not (isinstance(error, SilenceError) or can_become_good(error)):
            LISTENER.answered(store)
        error.attempts = asked.statistics["attempt_number"]  # type: ignore[attr-defined]
        raise
    LISTENER.answered(store)
    return result


class _Call:
    def __init__(self, action: Callable[[], Any]) -> None:
        self.action = action
        self.ended = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self.action()
        except BaseException as error:  # it is raised where the call was made
            self.error = error
        self.ended.set()


_idle: list[SimpleQueue[_Call]] = []
"""The threads that have nothing to do. Daemons: one that hangs does not keep the process from ending."""
os.register_at_fork(after_in_child=_idle.clear)


def _hand_over(call: _Call) -> None:
    try:
        calls = _idle.pop()
    except IndexError:
        calls = SimpleQueue()
        threading.Thread(target=_work, args=(calls,), name="storage", daemon=True).start()
    calls.put(call)


def _work(calls: SimpleQueue[_Call]) -> None:
    while True:
        call = calls.get()
        call.run()
        del call  # or an idle thread would keep a file's bytes
        _idle.append(calls)
