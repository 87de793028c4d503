"""A line that renders a whole manifest: in a thread of its own, fed by another, its events told in the caller's."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator

from show1_ray.line.events import Event
from show1_ray.line.inbox import Inbox
from show1_ray.line.line import Line
from show1_ray.line.spec import Order

AHEAD = 1000
"""Orders that are read before the line has room for them."""


class Running:
    """Runs a line, which is begun and ended here.

    Reading orders may block (a manifest lies somewhere), and so may what is done with events: neither holds the line
    up. Where the line itself is held up by a cluster that has gone, `end` ends what waits for it.

    Args:
        line: to run.
        orders: what to render; their ids differ.
        total: how many these are.
    """

    def __init__(self, line: Line, orders: Iterable[Order], total: int) -> None:
        self.line = line
        self._orders = orders
        self._inbox = Inbox(total)
        self._told: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()

    def events(self) -> Iterator[Event]:
        """Everything that happens, to the end. If it is not read to the end, the line ends at once.

        Raises:
            Exception: what stopped the line, what reading the orders raised, or what `end` was given.
        """
        for name, act in (("line", self._run), ("orders", self._feed)):
            threading.Thread(target=act, name=name, daemon=True).start()
        try:
            while (told := self._told.get()) is not None:
                if isinstance(told, BaseException):
                    raise told
                yield told
        finally:
            self.stop(now=True)
            self._inbox.close()

    def stop(self, now: bool = False) -> None:
        """As `Line.stop`: may be called from anywhere."""
        self.line.stop(now)

    def end(self, error: Exception) -> None:
        """The line cannot go on, whatever its thread waits for: `events` raises this. May be called from anywhere."""
        self.stop(now=True)
        self._told.put(error)

    def _run(self) -> None:
        try:
            with self.line:
                for event in self.line.run(self._inbox):
                    self._told.put(event)
        except BaseException as error:
            self._told.put(error)
        else:
            self._told.put(None)

    def _feed(self) -> None:
        try:
            for order in self._orders:
                while not self._inbox.wait_for_room(AHEAD, 1.0):
                    pass
                if self._inbox.closed:
                    return
                self._inbox.put(order)
        except BaseException as error:
            self._told.put(error)
        finally:
            self._inbox.close()
