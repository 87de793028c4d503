"""What to do about failing stations: hold, recycle, shut out, try again. No Ray: the line carries it out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from show1_ray.line import events
from show1_ray.line.faults import Failure
from show1_ray.line.health import Change, Health
from show1_ray.line.load import StationLoad
from show1_ray.line.schedule import Schedule

BLAMELESS = ("gone", "idle", "fatal")
"""Failures that say nothing of the card."""
RECYCLED = ("memory", "host", "device", "load", "death", "deadline", "gone", "idle")
"""Failures after which a station's process is ended, if it has not ended by itself."""


@dataclass(frozen=True)
class Place:
    """Where a station stands: its card, as people find it ("GPU 3"), and its node, by Ray's id and by address."""

    card: str
    gpu: str
    node: str
    address: str

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.gpu} of node {self.address}" if self.gpu else f"node {self.address}"


class Care:
    """Keeps the schedule from giving work to cards that are held. `line` stages are told by their numbers.

    After each call `to_replace` holds stations whose process is to be ended and begun anew, with the reason, and `news`
    what is to be told; the caller clears both.
    """

    def __init__(self, schedule: Schedule, health: Health) -> None:
        self.schedule, self.health = schedule, health
        self.places: dict[int, Place] = {}
        self._last: dict[str, tuple[int, Place]] = {}
        """By card, the last station that stood on it."""
        self.benched: dict[int, StationLoad] = {}
        """Stations that get no work at all, taken out of the schedule."""
        self.to_replace: dict[int, str] = {}
        self._due: dict[int, str] = {}
        """To be replaced when their batch is over."""
        self.news: list[events.Event] = []

    def arrive(self, number: int, place: Place, now: float) -> None:
        """A station is up, and in the schedule."""
        self.places[number] = place
        self._last[place.card] = number, place
        self.health.arrive(place.card, place.node, now, self._cannot(self.schedule.stations[number]))
        self._apply(number, now)

    def recount(self) -> None:
        """Stages turned out larger or smaller: other cards may have room for them now."""
        for number, place in self.places.items():
            station = self.benched.get(number) or self.schedule.stations[number]
            self.health.cards[place.card].cannot = self._cannot(station)

    def _cannot(self, station: StationLoad) -> frozenset[int]:
        stages = enumerate(self.schedule.stages)
        return frozenset(index for index, stage in stages if stage.on_station and not station.is_for(index))

    def leave(self, number: int, troubled: bool = False) -> None:
        """A station is gone: takes it out of the schedule."""
        if self.benched.pop(number, None) is None:
            self.schedule.remove_station(number)
        self.to_replace.pop(number, None)
        self._due.pop(number, None)
        self.health.leave(self.places.pop(number).card, troubled)

    def card(self, number: int | None) -> str | None:
        """The card of a station; None for CPU tasks."""
        return None if number is None else self.places[number].card

    def failed(self, number: int, stage: int, clips: Iterable[str], failure: Failure, now: float) -> None:
        """A batch failed on a station, which is still as it was in the schedule; see `free`."""
        if failure.cause in BLAMELESS:
            return
        reason = f"{self.schedule.stages[stage].name}: {failure.last_line}"
        self._do(self.health.failed(self.places[number].card, stage, clips, now, reason, failure.loading), now)

    def succeeded(self, number: int, stage: int, clips: Collection[str], now: float) -> None:
        """A batch is done on a station, or a stage loaded."""
        self._do(self.health.succeeded(self.places[number].card, stage, clips, now), now)

    def free(self, number: int, now: float) -> None:
        """A station has ended what it did: it is idle, unless it is held or has to go."""
        if number in self._due:
            self.to_replace[number] = self._due.pop(number)
        if number not in self.to_replace and number not in self.benched:
            self.schedule.free(number, now)
            self._apply(number, now)

    def tick(self, now: float) -> None:
        """Time has passed: some may be tried again, and nothing waits for a station that will not come."""
        self._do(self.health.tick(now), now)
        if self.health.coming:
            return
        stages = [index for index, stage in enumerate(self.schedule.stages) if stage.on_station]
        self._do(self.health.relieve(stages), now)
        self.schedule.relax()

    def _do(self, changes: Sequence[Change], now: float) -> None:
        for change in changes:
            number, place = self._last[change.card]
            stage = None if change.stage is None else self.schedule.stages[change.stage].name
            if change.what == "shut out":
                told = events.StationShutOut(number, place.node, place.name, stage, change.seconds, change.reason)
                self.news.append(told)
            if change.what == "retry":
                self.news.append(events.StationTriedAgain(number, place.name, stage))
            if number not in self.places:  # its process is being replaced anyway
                continue
            if change.what == "recycle" or (change.what == "retry" and stage is None):
                self._recycle(number, change)
            self._apply(number, now)

    def _recycle(self, number: int, change: Change) -> None:
        there = self.to_replace if self._is_idle(number) else self._due
        there[number] = f"recycled: it failed where others did not: {change.reason}"

    def _is_idle(self, number: int) -> bool:
        return number in self.benched or self.schedule.stations[number].idle_since is not None

    def _apply(self, number: int, now: float) -> None:
        """Let the schedule know what a station may do now."""
        card = self.health.cards[self.places[number].card]
        if number in self.benched:
            if None not in card.holds and number not in self.to_replace:
                self.schedule.return_station(self.benched.pop(number), now)
        elif None in card.holds and self._is_idle(number):
            self.benched[number] = self.schedule.remove_station(number)
        station = self.benched.get(number) or self.schedule.stations[number]
        station.barred = {stage for stage in card.holds if stage is not None}
