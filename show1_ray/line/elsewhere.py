"""CPU tasks that fail because of a node are tried on others. Pure: events and time are passed in."""

from __future__ import annotations

from collections.abc import Collection

MOST_NODES = 3
"""Nodes that a clip's task may fail on before no node is to blame."""
MOST_TIMES = 10
"""Times that it may fail, if Ray finds no other place for it."""
PAUSE_SECONDS = 60.0
"""A node that a task failed on gets none for so long, each time twice as long as before …"""
LONGEST_PAUSE = 3600.0
"""… up to this."""


class Elsewhere:
    """Nodes by Ray's id. Times are seconds of any clock that does not go back."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self._pause: dict[str, float] = {}
        self._tried: dict[str, list[str]] = {}
        self._turn = 0

    def failed(self, clips: Collection[str], node: str, there: Collection[str], now: float) -> bool:
        """A batch failed on a node; `there` are all nodes. Whether to try it on one that it has not failed on."""
        for clip in clips:
            self._tried.setdefault(clip, []).append(node)
        times = max(len(self._tried[clip]) for clip in clips)
        tried = {one for clip in clips for one in self._tried[clip]}
        if len(tried) >= MOST_NODES or tried.issuperset(there) or times >= MOST_TIMES:
            return False
        if now >= self._until.get(node, now):  # else it is known, by a batch that ran at the same time
            self._pause[node] = min(2 * self._pause.get(node, PAUSE_SECONDS / 2), LONGEST_PAUSE)
            self._until[node] = now + self._pause[node]
        return True

    def done(self, clips: Collection[str]) -> None:
        """A batch is done."""
        for clip in clips:
            self._tried.pop(clip, None)

    def place(self, there: Collection[str], now: float) -> str | None:
        """Of all nodes `there` the one for the next task, each in its turn; None: any, for none is to be avoided, or
        all are."""
        out = set(self.avoided(now)).intersection(there)
        good = sorted(set(there) - out)
        if not out or not good:
            return None
        self._turn += 1
        return good[self._turn % len(good)]

    def avoided(self, now: float) -> list[str]:
        """Nodes that are to get no tasks."""
        return [node for node, until in self._until.items() if until > now]
