"""Orders for an open line: put in by any thread, taken out by the line's."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from show1_ray.line.spec import Order


class Inbox:
    """What `Line.run` pulls from when clips come one by one. An iterator that ends for now, not for good.

    `total` is how many clips will come in all, if anybody knows.
    """

    def __init__(self, total: int | None = None) -> None:
        self.total = total
        self._to_come = total or 0
        self._changed = threading.Condition()
        self._news = False
        self._orders: dict[str, Order] = {}
        self._cancelled: list[str] = []
        self.closed = False

    def __len__(self) -> int:
        return len(self._orders)

    @property
    def left(self) -> int:
        """Clips that wait here, and those that are known to come."""
        with self._changed:
            return len(self._orders) + self._to_come

    def __iter__(self) -> Iterator[Order]:
        return self

    def __next__(self) -> Order:
        with self._changed:
            for clip_id in self._orders:
                self._changed.notify_all()
                return self._orders.pop(clip_id)
        raise StopIteration

    def put(self, order: Order) -> None:
        """Ask for a clip. Raises ValueError if one of its id waits already, or if nothing is taken any more."""
        with self._changed:
            if self.closed or order.clip.id in self._orders:
                reason = "the line is closed" if self.closed else "it waits already"
                raise ValueError(f"clip {order.clip.id!r}: {reason}")
            self._orders[order.clip.id] = order
            self._to_come = max(0, self._to_come - 1)
            self._tell()

    def wait_for_room(self, most: int, seconds: float) -> bool:
        """Sleep until fewer than `most` clips wait here, for so long at most; whether fewer do."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._orders) < most or self.closed, seconds)

    def cancel(self, clip_id: str) -> bool:
        """Take a clip back. True if the line had not taken it yet; else the line is told."""
        with self._changed:
            waited = self._orders.pop(clip_id, None) is not None
            if not waited:
                self._cancelled.append(clip_id)
            self._tell()
            return waited

    def cancellations(self) -> list[str]:
        """Ids of clips that were taken and are not wanted any more, each once."""
        with self._changed:
            cancelled, self._cancelled = self._cancelled, []
            return cancelled

    def close(self) -> None:
        """Nothing more comes."""
        with self._changed:
            self.closed = True
            self._to_come = 0
            self._tell()

    def wait(self, seconds: float) -> None:
        """Sleep until something has come since the last call, for so long at most."""
        with self._changed:
            self._changed.wait_for(lambda: self._news, seconds)
            self._news = False

    def _tell(self) -> None:
        self._news = True
        self._changed.notify_all()
