"""Pending answers: of threads, and results of clips on their way to the driver. The line polls them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import ray

from show1_ray.line.flight import Flight

RESULT_SECONDS = 60.0
"""A clip's result that does not come to the driver within so many seconds is lost."""


@dataclass(frozen=True)
class Result:
    """What the line gives for a clip: values on their way, and until when they are waited for."""

    flight: Flight
    values: list[Future[Any]]
    until: float

    def read(self) -> list[Any] | None:
        """The values; None: they are lost, or out of reach."""
        try:
            return [value.result(timeout=0) for value in self.values]
        except (ray.exceptions.RayError, TimeoutError):
            return None


@dataclass
class Arrivals:
    """Questions that threads answer, each with what is to be done then; and results, by clip."""

    questions: list[tuple[Future[Any], Callable[[Any], None]]] = field(default_factory=list)
    results: dict[str, Result] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.questions) + len(self.results)

    def ask(self, question: Future[Any], then: Callable[[Any], None]) -> None:
        """Do something with an answer, when it is there."""
        self.questions.append((question, then))

    def expect(self, flight: Flight, refs: Sequence[ray.ObjectRef], now: float) -> None:
        """Results of a clip are on their way."""
        self.results[flight.clip.id] = Result(flight, [ref.future() for ref in refs], now + RESULT_SECONDS)

    def answer(self) -> None:
        """Do what waited for answers that have come."""
        heard = [one for one in self.questions if one[0].done()]
        self.questions = [one for one in self.questions if not one[0].done()]
        for question, then in heard:
            then(question.result())

    def arrived(self, now: float) -> list[Result]:
        """Results that are there, or that nobody waits for any more."""
        found = [one for one in self.results.values() if one.until < now or all(value.done() for value in one.values)]
        for one in found:
            del self.results[one.flight.clip.id]
        return found

    def clear(self) -> None:
        """Wait for nothing any more."""
        self.questions.clear()
        self.results.clear()
