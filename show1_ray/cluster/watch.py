"""Watching whether the cluster is still there, in a thread, while a job runs."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import ray

from show1_ray.cluster.head import wants_tls
from show1_ray.errors import UserError
from show1_ray.line import gcs

LOOK_SECONDS = 2.0
GONE_SECONDS = 25.0
"""A head that has not answered for this long is gone."""
REFUSALS = 3
"""How often in a row this machine's raylet may refuse a connection before it counts as gone."""
RAYLET = "Ray's process on this machine, the raylet,"
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"
"""The greeting of a gRPC client, with empty settings; a server answers with its own."""

Raylet = Literal["answers", "refuses", "silent"]


class ClusterGoneError(UserError):
    """The cluster of a job is gone. Rerun the same command to resume, on another one if need be."""

    exit_code = 3


@dataclass
class Verdict:
    """What is known about the cluster. Pure: time and observations are passed in."""

    answered: float
    """When the head last answered."""
    failures: int = 0
    """How often in a row the head did not answer."""
    refusals: int = 0
    """How often in a row this machine's raylet refused a connection."""
    silent_since: float | None = None
    """Since when this machine's raylet has accepted connections without answering; None: it answers."""
    gone: str = ""
    """Why the cluster is gone; "" while it is there."""

    @property
    def is_open(self) -> bool:
        """Whether something is wrong, but the cluster is not known to be gone."""
        return not self.gone and (bool(self.failures or self.refusals) or self.silent_since is not None)

    def silent(self, now: float, is_another: bool) -> None:
        """The head did not answer, or another head did."""
        self.failures += 1
        if is_another:
            self.gone = "its head has been started anew"
        elif self.failures >= REFUSALS and now - self.answered >= GONE_SECONDS:
            self.gone = f"its head has not answered for {now - self.answered:.0f} s"

    def seen(self, now: float, alive: bool, raylet: Raylet) -> None:
        """The head answered: whether it considers this machine's raylet alive, and how the raylet itself responds."""
        self.answered, self.failures = now, 0
        self.refusals = self.refusals + 1 if raylet == "refuses" else 0
        if raylet != "silent":
            self.silent_since = None
        elif self.silent_since is None:
            self.silent_since = now
        seconds = 0.0 if self.silent_since is None else now - self.silent_since
        if not alive or self.refusals >= REFUSALS:
            self.ended()
        elif seconds >= GONE_SECONDS:
            self.gone = f"{RAYLET} has not answered for {seconds:.0f} s"

    def ended(self) -> None:
        """This machine's raylet has closed a connection and accepts no more."""
        self.gone = f"{RAYLET} has ended"


class Watch:
    """Looks at the cluster again and again; who wants to know is told once, in its thread, when it is gone.

    Ray has to be initialized. `name` is how the cluster is called in the error.

    Attributes:
        inherited: environment variables that all processes of the cluster are known to have.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.inherited: Mapping[str, str] = {}
        self._node = ray.get_runtime_context().get_node_id()
        self._lock = threading.Lock()
        self._verdict = Verdict(time.monotonic())
        self._told: list[Callable[[ClusterGoneError], None]] = []
        self._holds = False
        self._held: socket.socket | None = None
        self._stopped = threading.Event()
        self._decided = threading.Condition(self._lock)
        threading.Thread(target=self._watch, name="cluster watch", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()
        with suppress(OSError):
            if self._held is not None:
                self._held.shutdown(socket.SHUT_RDWR)

    def when_gone(self, tell: Callable[[ClusterGoneError], None]) -> None:
        """Calls back when the cluster is gone; at once if it is already."""
        with self._lock:
            self._told.append(tell)
            error = self.error
        if error is not None:
            tell(error)

    @property
    def error(self) -> ClusterGoneError | None:
        """The error that says that the cluster is gone; None while it is there."""
        why = self._verdict.gone
        return ClusterGoneError(f"{self._name} is gone: {why}; rerun the same command to resume") if why else None

    def cause(self) -> ClusterGoneError | None:
        """Waits until it is known whether an error came from the cluster being gone; returns that error, or None."""
        self._look()
        with self._decided:
            self._decided.wait_for(lambda: not self._verdict.is_open, timeout=GONE_SECONDS + 2 * gcs.ANSWER_SECONDS)
            return self.error

    def _watch(self) -> None:
        while not self._stopped.is_set():
            self._look()
            if self.error is not None:
                return
            self._stopped.wait(LOOK_SECONDS)

    def _look(self) -> None:
        try:
            found = gcs.nodes()
        except gcs.HeadError as error:
            is_another = error.is_another
            self._note(lambda now: self._verdict.silent(now, is_another))
            return
        own = next((node for node in found if node["NodeID"] == self._node), None)
        if own is not None and not self._holds:
            self._holds = True
            threading.Thread(target=self._hold, args=(own,), name="raylet watch", daemon=True).start()
        alive = own is not None and own["Alive"]
        raylet = _ask(own) if own is not None else "refuses"
        self._note(lambda now: self._verdict.seen(now, alive, raylet))

    def _hold(self, node: dict[str, Any]) -> None:
        """Keeps a connection to this machine's raylet, which tells at once that it has ended. That has to be known
        soon: Ray's object store is gone too, and whoever uses it now is ended by Ray, exit code 1, without a word.
        """
        while not self._stopped.is_set():
            try:
                with _connected(node) as self._held:
                    self._held.settimeout(None)
                    while self._held.recv(4096):
                        pass
            except ConnectionRefusedError:
                self._note(lambda now: self._verdict.ended())
                return
            except OSError:
                self._stopped.wait(LOOK_SECONDS)

    def _note(self, note: Callable[[float], None]) -> None:
        with self._decided:
            was_gone = bool(self._verdict.gone)
            if not was_gone and not self._stopped.is_set():
                note(time.monotonic())
            self._decided.notify_all()
            error = None if was_gone else self.error
            told = list(self._told)
        if error is not None:
            for tell in told:
                tell(error)


def _connected(node: dict[str, Any]) -> socket.socket:
    """A connection to a node's raylet that has answered the greeting."""
    connection = socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=2.0)
    if not wants_tls():
        connection.sendall(HTTP2_PREFACE)
    return connection


def _ask(node: dict[str, Any]) -> Raylet:
    """The kernel accepts connections even for a stopped process, but that does not answer the greeting."""
    try:
        with _connected(node) as connection:
            return "answers" if wants_tls() or connection.recv(1) else "refuses"
    except TimeoutError:
        return "silent"
    except OSError:
        return "refuses"
