"""Whether there is any use in going on: a line ends where stations die again and again, none comes up, or suddenly
everything fails. No Ray: what happened goes in, time too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from show1_ray.errors import last_line
from show1_ray.line.faults import Failure
from show1_ray.line.health import FailureRate
from show1_ray.line.spec import FatalError, LineSettings

LONELY_SECONDS = 30.0
"""Without any station for so long, it is told what the line waits for."""
MANY = 4
"""A stage that has not loaded so many times as often as it may does not load anywhere."""


class Prospects:
    """What has gone wrong since something last went well. Times are seconds of any clock that does not go back."""

    def __init__(self, settings: LineSettings) -> None:
        self._most, self._start_deadline = settings.max_dead_starts, settings.start_deadline
        self._dead: Counter[str] = Counter()
        """Of each stage, failures to load in a row; of "", stations that died before they did anything."""
        self._rate = FailureRate()
        self._alone_since: float | None = None
        self._told_alone = False

    def works(self) -> None:
        """A station has done a batch."""
        self._dead[""] = 0

    def loads(self, stage: str) -> None:
        """A stage is loaded somewhere."""
        self._dead[stage] = 0

    def does_not_load(self, stage: str, why: str, others_do: bool) -> None:
        """A stage could not be loaded; whether there are cards that have not failed in it.

        Raises FatalError if that has happened too often in a row.
        """
        if others_do and self._dead[stage] < MANY * self._most:
            self._dead[stage] += 1
        else:
            self._count(stage, f"stage {stage} does not load: {why}")

    def died(self, text: str, to_all: bool) -> None:
        """A station died before it did anything; `to_all`: it is so with all there are.

        Raises FatalError if that has happened too often in a row, and to all: where others do well, it is the cards'
        fault.
        """
        self._count("", text, to_all)

    def _count(self, what: str, text: str, to_all: bool = True) -> None:
        self._dead[what] += 1
        if self._dead[what] >= self._most and to_all:
            raise FatalError(f"{last_line(text)} ({self._dead[what]} times in a row)")

    def alone(self, is_alone: bool, awaited: Callable[[], str], now: float) -> str:
        """Whether there is no station now; `awaited` tells what is waited for. Returns what is to be told, if anything.

        Raises FatalError if there has been none for too long.
        """
        if not is_alone or self._alone_since is None:
            self._alone_since, self._told_alone = now, False
        seconds = now - self._alone_since
        if seconds > self._start_deadline:
            why = awaited()
            raise FatalError(f"no station came up in {self._start_deadline:g} s" + (f": {why}" if why else ""))
        if seconds <= LONELY_SECONDS or self._told_alone:
            return ""
        self._told_alone = True
        why = awaited()
        end = f"given up after {self._start_deadline / 60:.0f} min"
        return f"no station is up after {seconds:.0f} s: {why}; {end}" if why else ""

    def left(self, failure: Failure | None = None) -> str:
        """A clip has left the line, done or given up. Returns why the line should stop, if it should."""
        self._rate.count(failed=failure is not None)
        alarm = "" if failure is None else self._rate.alarm()
        if failure is None or not alarm:
            return ""
        advice = "mend what broke, then run the same command with --retry-failed"
        return f"{alarm}, the last with: {failure.last_line}; {advice}"
