"""Where each clip of the line is: the queues before the stages, and what becomes of a batch's clips."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

from show1_ray.clip import Clip
from show1_ray.line.batch_report import BatchReport
from show1_ray.line.faults import Failure
from show1_ray.line.flight import Flight, halves, restart_stage, still_needed
from show1_ray.line.health import Health
from show1_ray.line.keys import LOBBY, Lobby
from show1_ray.line.load import Assignment
from show1_ray.line.schedule import Schedule
from show1_ray.line.spec import Order, StageSpec

MAX_LOSSES = 20
"""Times that tensors of one clip may be lost with their nodes, or its process for want of the node's memory, before it
is given up."""

CHARGED = ("error", "clip", "death", "deadline")
"""Failures that count as attempts of a clip that was alone. Of the others it is given up, too, if it meets them again
and again, but as a rule they are the card's or the node's."""
MOST_TRIES = 4
"""So many times the attempts a clip may fail alone, on cards that are not sound either."""


@dataclass
class Queue:
    """What waits before a stage: clips, by their key, and batches that have to run by themselves."""

    waiting: dict[Hashable, deque[Flight]] = field(default_factory=dict)
    groups: deque[list[Flight]] = field(default_factory=deque)

    def put(self, flight: Flight, key: Hashable, first: bool) -> None:
        """One more clip waits: before the others, or behind them."""
        waiting = self.waiting.setdefault(key, deque())
        (waiting.appendleft if first else waiting.append)(flight)

    def take(self, clips: int, key: Hashable) -> list[Flight]:
        """Those that have waited for longest."""
        waiting = self.waiting.get(key, deque())
        flights = [waiting.popleft() for _ in range(clips)]
        self._forget(key)
        return flights

    def remove(self, flight: Flight, key: Hashable) -> None:
        """It does not wait any more."""
        self.waiting[key].remove(flight)
        self._forget(key)

    def _forget(self, key: Hashable) -> None:
        if not self.waiting.get(key, True):
            del self.waiting[key]


@dataclass(frozen=True)
class GivenUp:
    """A clip that failed for good, and why."""

    flight: Flight
    failure: Failure


class Traffic:
    """All clips in the line. Tells the schedule of every move, so that its counts are always right."""

    def __init__(
        self,
        specs: Sequence[StageSpec],
        schedule: Schedule,
        max_attempts: int,
        results: Collection[str] = (),
        health: Health | None = None,
    ) -> None:
        self.specs = specs
        self.results = frozenset(results or specs[-1].gives)
        """Values that clips have at their end."""
        self.tensors = self.results.intersection(name for spec in specs for name in spec.gives)
        """… of them those that lie in the object store."""
        self.schedule = schedule
        self.health = health or Health()
        self.max_attempts = max_attempts
        self.queues = [Queue() for _ in specs]
        self.flights: dict[str, Flight] = {}
        self.lobby: Lobby[Flight] = Lobby()
        """Clips that were pulled, and are to be let in together with their like."""
        self._looks_ahead = False
        self.cancelled: list[Clip] = []
        """Clips that have left because they were cancelled: for the line to tell, and to clear."""

    def admit(self, source: Iterator[Clip | Order]) -> None:
        """Pull as many clips as there is room for. Raises ValueError for one that is in the line already.

        Where not all clips share batches, it looks ahead by as many as the lobby has room for, and lets those of a kind
        in together; but where someone waits for each clip, in the order in which they come.
        """
        if self.schedule.exhausted:
            return
        room = self.schedule.room()
        has_ended = self._pull(source, room - len(self.lobby))
        if self._looks_ahead and not self.schedule.eager and not has_ended:
            has_ended = self._pull(source, LOBBY - len(self.lobby))
        for flight in self.lobby.take(room):
            key = self._key(flight, 0)
            self.queues[0].put(flight, key, first=False)
            self.schedule.admit(1, key)
        if has_ended:
            self.schedule.expect(len(self.lobby))

    def _pull(self, source: Iterator[Clip | Order], clips: int) -> bool:
        """Clips come into the lobby. Whether there are no more."""
        pulled = 0
        for item in islice(source, max(0, clips)):
            order = item if isinstance(item, Order) else Order(item)
            clip = order.clip
            if clip.id in self.flights:
                raise ValueError(f"clip {clip.id!r} is in the line already")
            flight = Flight(clip, given=order.given, outputs=order.outputs, keys=order.keys)
            self.flights[clip.id] = flight
            self.lobby.put(flight, self._kind(flight))
            self._looks_ahead = self._looks_ahead or bool(order.keys)
            pulled += 1
        return pulled < clips

    def _kind(self, flight: Flight) -> Hashable:
        """Clips of equal kind share batches all the way; None where nobody is asked to."""
        return None if self.schedule.eager or not flight.keys else frozenset(flight.keys.items())

    def key(self, flights: Sequence[Flight]) -> Hashable:
        """What the clips of a batch have in common."""
        return self._key(flights[0], flights[0].stage) if flights else None

    def _key(self, flight: Flight, stage: int) -> Hashable:
        return flight.keys.get(self.specs[stage].name)

    def cancel(self, clip_id: str) -> None:
        """A clip is not wanted any more: if it waits it leaves, if it runs it leaves when its batch is over."""
        flight = self.flights.get(clip_id)
        if flight is None:
            return
        flight.unwanted = True
        if flight.state != "queued":
            return
        if self.lobby.remove(flight, self._kind(flight)):
            self.drop(flight)
            return
        queue, key = self.queues[flight.stage], self._key(flight, flight.stage)
        at = next((index for index, group in enumerate(queue.groups) if flight in group), None)
        if at is None:
            queue.remove(flight, key)
        else:
            queue.groups[at].remove(flight)
            if not queue.groups[at]:
                del queue.groups[at]
        self.schedule.withdraw(flight.stage, at, key)
        self.drop(flight)

    def drop(self, flight: Flight) -> None:
        """A clip that was cancelled leaves."""
        flight.move("cancelled")
        self._forget(flight)
        self.cancelled.append(flight.clip)

    def take(self, assignment: Assignment) -> list[Flight]:
        """The clips of an assignment leave their queue and run."""
        queue = self.queues[assignment.stage]
        if assignment.group is None:
            flights = queue.take(assignment.clips, assignment.key)
        else:
            flights = queue.groups[assignment.group]
            del queue.groups[assignment.group]
        for flight in flights:
            flight.move("running")
        return flights

    def advance(self, flights: Sequence[Flight], report: BatchReport, outputs: Sequence[Any]) -> None:
        """A batch is done: its clips keep what later stages take, and wait before the next stage.

        After the last stage they keep the results, and go on running until they `leave` or are lost. So do those that
        the stage rejects, whatever it is, until they `leave` or are dropped.
        """
        if not flights:
            return
        index = flights[0].stage
        spec = self.specs[index]
        is_last = index + 1 == len(self.specs)
        needed = still_needed(self.specs, index + 1, self.tensors)
        for number, flight in enumerate(flights):
            flight.seconds[spec.name] = report.seconds / len(flights)
            flight.batch_sizes[spec.name] = len(flights)
            given = outputs[number * len(spec.gives) : (number + 1) * len(spec.gives)]
            flight.plain.update(report.plain.get(flight.clip.id, {}))
            if flight.clip.id in report.rejected:
                continue
            flight.tensors.update(zip(spec.gives, given, strict=True))
            flight.tensors = {name: ref for name, ref in flight.tensors.items() if name in needed}
            flight.begin_stage()
            if not is_last:
                self._queue(flight, index + 1, first=False)

    def leave(self, flight: Flight, state: Literal["done", "rejected"] = "done") -> None:
        """A clip is done, or was rejected."""
        flight.move(state)
        self._forget(flight)

    def fail(
        self,
        assignment: Assignment,
        flights: list[Flight],
        failure: Failure,
        card: str | None = None,
        was_sound: bool = True,
    ) -> list[GivenUp]:
        """A batch failed on a card (None: as a CPU task): its clips go elsewhere, by halves, or are given up.

        `was_sound`: whether the card had done well until now, which makes it the clips' fault rather than its own.
        """
        if failure.cause in ("gone", "idle", "load") or failure.loading:
            self.put_back(assignment, flights)
            return []
        guilty = [flight for flight in flights if flight.clip.id == failure.clip_id]
        if guilty:
            self.put_back(assignment, [flight for flight in flights if flight not in guilty])
            flights = guilty
        for flight in flights:
            if card is not None:
                flight.avoid.add(card)
        if len(flights) > 1:
            if failure.cause == "memory" and card is None:
                stage = self.schedule.stages[assignment.stage]
                stage.batch_size = min(stage.batch_size, (len(flights) + 1) // 2)
            for half in halves(flights):
                self._isolate(half)
            return []
        return [given_up for flight in flights for given_up in self._fail_alone(flight, failure, card, was_sound)]

    def _fail_alone(self, flight: Flight, failure: Failure, card: str | None, was_sound: bool) -> list[GivenUp]:
        """A clip is given up when it has failed on so many sound cards, or often enough and there is no other one."""
        if failure.cause == "host":
            return self._lose(flight, failure)
        flight.failures += failure.cause in CHARGED
        flight.tries += 1
        if card is not None:
            flight.alone.add(card)
            flight.sound.update((card,) if was_sound else ())
        limit = self.max_attempts
        if failure.is_permanent:
            return [self._give_up(flight, failure)]
        if failure.cause == "clip":
            limit = min(limit, 2)
        elif failure.cause not in CHARGED:
            limit = max(limit, 2)
        others = card is not None and self.health.others(flight.stage, flight.alone)
        if len(flight.sound) >= limit or flight.tries >= MOST_TRIES * limit or (flight.tries >= limit and not others):
            return [self._give_up(flight, failure)]
        self._isolate([flight])
        return []

    def _lose(self, flight: Flight, failure: Failure) -> list[GivenUp]:
        """The node ran out of memory: not the clip's fault, but tolerated only so often."""
        flight.losses += 1
        if flight.losses > MAX_LOSSES:
            return [self._give_up(flight, failure)]
        self._isolate([flight])
        return []

    def rewind(self, flight: Flight, lost: Sequence[str]) -> list[GivenUp]:
        """Values of a clip are lost: it goes back to the latest stage from which it can go on."""
        flight.losses += 1
        if flight.losses > MAX_LOSSES:
            return [self._give_up(flight, Failure("gone", f"its tensors were lost {flight.losses} times"))]
        for name in lost:
            flight.tensors.pop(name)
        self._leave_stage(flight)
        self._queue(flight, restart_stage(self.specs, flight.stage, flight.tensors, self.tensors))
        return []

    def put_back(self, assignment: Assignment, flights: list[Flight]) -> None:
        """Clips wait again where they were: as a batch of their own if they were one."""
        if assignment.isolated and flights:
            self._isolate(flights)
            return
        for flight in reversed(flights):
            self._queue(flight, assignment.stage)

    def _queue(self, flight: Flight, stage: int, first: bool = True) -> None:
        if flight.unwanted:
            self.drop(flight)
            return
        flight.move("queued", stage)
        key = self._key(flight, stage)
        self.queues[stage].put(flight, key, first)
        self.schedule.add(stage, 1, key)

    def _isolate(self, flights: list[Flight]) -> None:
        for flight in flights:
            if flight.unwanted:
                self.drop(flight)
            else:
                flight.move("queued")
        flights = [flight for flight in flights if not flight.unwanted]
        if not flights:
            return
        stage = flights[0].stage
        self.queues[stage].groups.append(flights)
        self.schedule.isolate(stage, len(flights), self._to_avoid(stage, flights))

    def _to_avoid(self, stage: int, flights: Sequence[Flight]) -> frozenset[str]:
        """Cards that a batch is to be kept from: where its clips have failed, and, where better ones are left, those
        that fail in this stage at present."""
        alone = {card for flight in flights for card in flight.alone}
        for failed in ({card for flight in flights for card in flight.avoid}, alone):
            if failed and self.health.others(stage, failed):
                better = self.health.candidates(stage, failed)
                worse = set(self.health.able(stage, failed)).difference(better) if better else set()
                return frozenset(failed | worse)
        return frozenset()

    def _give_up(self, flight: Flight, failure: Failure) -> GivenUp:
        flight.move("failed")
        self._forget(flight)
        return GivenUp(flight, failure)

    def _leave_stage(self, flight: Flight) -> None:
        if flight.avoid:
            self.health.forget(flight.stage, flight.clip.id)
        flight.begin_stage()

    def _forget(self, flight: Flight) -> None:
        self._leave_stage(flight)
        del self.flights[flight.clip.id]
        flight.tensors.clear()
