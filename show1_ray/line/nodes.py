"""The cluster's nodes, asked about in threads: an answer may take long, and the line never waits."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from show1_ray.line import gcs

LOOK_SECONDS = 1.0
"""How often the cluster is checked."""
PROBE_SECONDS = 5.0
"""A node that has not answered for this long is gone, even if Ray has not noticed yet."""
GONE_LATELY = 60.0
"""Seconds within which tasks die, or are noticed to have died, of a node that went away."""

T = TypeVar("T")


@dataclass(frozen=True)
class View:
    """The cluster at one moment: its nodes by id, what it has in all, and what of that nobody has taken."""

    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    resources: dict[str, float] = field(default_factory=dict)
    free: dict[str, float] = field(default_factory=dict)


class Nodes:
    """Looks at the cluster again and again. `view` is what was seen last, at once.

    `start` looks once, and raises HeadError where the head does not answer; a later look that fails leaves the view as
    it was: that the cluster is gone is told elsewhere (see `cluster.watch`).
    """

    def __init__(self) -> None:
        self.view = View()
        self._gone_since: dict[str, float] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._inquiries: ThreadPoolExecutor | None = None

    def start(self) -> None:
        """Begin; nodes that are dead already have been so for ever."""
        self._stopped.clear()
        self.view = _look()
        self._gone_since = {name: -math.inf for name, node in self.view.nodes.items() if not node["Alive"]}
        self._inquiries = ThreadPoolExecutor(4, thread_name_prefix="nodes")
        threading.Thread(target=self._watch, name="nodes", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()
        if self._inquiries is not None:
            self._inquiries.shutdown(wait=False, cancel_futures=True)

    def inquire(self, question: Callable[[], T]) -> Future[T]:
        """Let a thread find something out."""
        assert self._inquiries is not None
        return self._inquiries.submit(question)

    def is_there(self, node: str) -> bool:
        """Whether a node answers now. May take PROBE_SECONDS: for `inquire`."""
        return _answers(self._nodes().get(node, {}))

    def went_away(self) -> bool:
        """Whether a node went away lately: what a task that died then ran is not at fault. For `inquire`."""
        nodes = self._nodes()
        with ThreadPoolExecutor(16) as probes:
            answers = dict(zip(nodes, probes.map(_answers, nodes.values()), strict=True))
        now = time.monotonic()
        with self._lock:
            for name, is_there in answers.items():
                if not is_there:
                    self._gone_since.setdefault(name, now)
            return any(now - since < GONE_LATELY for since in self._gone_since.values())

    def _nodes(self) -> dict[str, dict[str, Any]]:
        """As they are now, or as they were seen last, where the head does not answer."""
        with suppress(gcs.HeadError):
            return {node["NodeID"]: node for node in gcs.nodes()}
        return self.view.nodes

    def _watch(self) -> None:
        while not self._stopped.wait(LOOK_SECONDS):
            try:
                self.view = _look()
            except gcs.HeadError:
                continue


def _look() -> View:
    nodes = gcs.nodes()
    return View({node["NodeID"]: node for node in nodes}, gcs.total(nodes), gcs.free())


def _answers(node: dict[str, Any]) -> bool:
    if not node.get("Alive", False):
        return False
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=PROBE_SECONDS).close()
    except OSError:
        return False
    return True
