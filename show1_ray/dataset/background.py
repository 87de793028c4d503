"""Background writes: one thread, in order, whose errors reach the job."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Background:
    """Runs actions one after the other in a thread."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dataset writer")
        self._actions: list[Future[Any]] = []

    def submit(self, action: Callable[..., Any], *args: Any) -> None:
        """Run `action(*args)` after all that was submitted before."""
        self._actions.append(self._thread.submit(action, *args))

    def check(self) -> None:
        """Raises the first error of the tasks that have run, if any."""
        while self._actions and self._actions[0].done():
            self._actions.pop(0).result()

    def wait(self, down_to: int = 0) -> None:
        """Wait until everything has been run, or all but the last `down_to` actions; raise the first error."""
        while len(self._actions) > down_to:
            self._actions.pop(0).result()

    def stop(self) -> None:
        """Wait for the action that is running, and drop those that have not begun."""
        self._thread.shutdown(cancel_futures=True)
