"""The crew: stations are requested, come up, are lost and replaced, and the floor is kept informed."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import ray

from show1_ray.errors import UserError
from show1_ray.line import events
from show1_ray.line.arrivals import Arrivals
from show1_ray.line.faults import Failure
from show1_ray.line.fleet import Fleet, StationHandle
from show1_ray.line.floor import Floor
from show1_ray.line.prospects import Prospects
from show1_ray.line.spec import LineSettings

SCALING_SECONDS = 1.0
"""How often the line reconsiders how many stations it should have."""
COMING_SECONDS = 60.0
"""A station that was asked for so long ago is not waited for any more by what has failed on all others."""
ANY_MEMORY = 1 << 60


class Crew:
    """Keeps fleet and floor in step. `tell` is given what is to be told; what takes long goes through `arrivals`."""

    def __init__(
        self,
        fleet: Fleet,
        floor: Floor,
        settings: LineSettings,
        arrivals: Arrivals,
        prospects: Prospects,
        tell: Callable[[events.Event], None],
    ) -> None:
        self.fleet, self.floor, self.settings = fleet, floor, settings
        self._arrivals, self._prospects, self._tell = arrivals, prospects, tell
        self._next_scaling = 0.0
        self.store_bytes = self._store_bytes()
        """Of the object store, for clips in flight."""
        floor.limit(fleet.size, self.store_bytes)

    def scale(self, now: float) -> None:
        """Adjusts the number of stations to the remaining work, if it is time to."""
        if now < self._next_scaling:
            return
        self._next_scaling = now + SCALING_SECONDS
        fleet, schedule, care = self.fleet, self.floor.schedule, self.floor.care
        self.count_coming(now)
        care.tick(now)
        self.heed(now)
        fleet.ask_due(now)
        before = fleet.size
        idle = schedule.idle.since(now - self.settings.idle_seconds)
        ordinary = [number for number in idle if fleet.stations[number].slot.own is None]
        ended = fleet.scale(schedule.useful_stations(), ordinary, now, len(care.benched))
        wanted = {stage: schedule.useful_stations(stage) for stage in fleet.own}
        for number in (*ended, *fleet.scale_own(wanted, idle, now)):
            care.leave(number)
            self._tell(events.StationEnded(number))
        store = self._store_bytes()
        if fleet.size != before or store != self.store_bytes:
            self.store_bytes = store
            schedule.cpu_slots = max(self.settings.cpu_tasks, fleet.size)
            self.limit()

    def limit(self) -> None:
        """Bounds the clips in flight by their current size."""
        self.floor.limit(self.fleet.size, self.store_bytes)

    def _store_bytes(self) -> int:
        """It grows and shrinks with the cluster."""
        if self.settings.store_bytes is not None:
            return self.settings.store_bytes
        return int(self.fleet.nodes.view.resources.get("object_store_memory", 0) / 2)

    def count_coming(self, now: float) -> None:
        """How many stations are on their way: what failing clips may wait for."""
        self.floor.health.coming = self.fleet.coming(now, COMING_SECONDS)

    def up(self, ref: ray.ObjectRef, now: float) -> None:
        """A station has answered, or died before it could. Raises UserError if a stage fits none of those there are."""
        handle = self.fleet.starting[ref]
        try:
            self.fleet.up(ref, now)
        except ray.exceptions.RayError as error:
            self._arrivals.ask(self.fleet.stillborn(handle, error), partial(self._did_not_start, handle))
            return
        assert handle.info is not None
        memory, own, place = handle.info.memory, handle.slot.own, handle.place
        if memory is None or own is not None:
            memory = ANY_MEMORY
        pins = self.fleet.pins(handle.slot, memory) if self.settings.pinned and own is None else None
        kind, host_memory = self.fleet.kind(handle), self.fleet.host_memory(handle)
        self.floor.schedule.add_station(handle.number, memory, host_memory, now, pins, kind, place.card, own)
        self.floor.care.arrive(handle.number, place, now)
        self._check_room()
        stage = None if own is None else self.floor.specs[own].name
        self._tell(events.StationUp(handle.number, handle.info.node, handle.info.pid, memory, stage))

    def _check_room(self) -> None:
        schedule = self.floor.schedule
        homeless = [self.floor.specs[index] for index in schedule.homeless()]
        if homeless and not self.fleet.starting:
            most = max(station.memory for station in schedule.stations.values())
            names = ", ".join(f"{spec.name} ({spec.memory / 1e9:.1f} GB)" for spec in homeless)
            raise UserError(f"stations: {most / 1e9:.1f} GB, the most that one has, are too little for {names}")

    def _did_not_start(self, handle: StationHandle, found: tuple[str, Failure]) -> None:
        (node, failure), now = found, time.monotonic()
        reason, place = f"it did not start: {failure.last_line}", self.fleet.name(node)
        if failure.cause == "gone":
            self._tell(events.StationLost(handle.number, reason, place))
            self.fleet.ask(handle.slot, now)
            return
        pause = self.fleet.ask_later(handle.slot, node, now)
        self._tell(events.StationLost(handle.number, f"{reason} (requesting another in {pause:.0f} s)", place))
        if failure.cause == "death":
            self._prospects.died(f"a station did not start: {failure.last_line}", self.fleet.all_died)

    def heed(self, now: float) -> None:
        """Acts on failing stations, and reports it."""
        care = self.floor.care
        for number, reason in list(care.to_replace.items()):
            self.replace(number, reason, True, now)
        for event in care.news:
            self._tell(event)
        care.news.clear()

    def replace(self, number: int, reason: str, troubled: bool, now: float, after_a_pause: bool = False) -> None:
        """Ends a station and requests another: at once, or after a pause if it died before doing anything."""
        self.floor.care.leave(number, troubled)
        handle: StationHandle = self.fleet.lose(number, now)
        if after_a_pause or (troubled and not handle.has_worked):
            pause = self.fleet.ask_later(handle.slot, handle.place.node, now)
            reason += f" (asked for again in {pause:.0f} s)"
        else:
            self.fleet.ask(handle.slot, now)
        self._tell(events.StationLost(number, reason, handle.place.name))

    def watch(self, now: float) -> None:
        """Checks that there are stations. Raises FatalError if there have been none for too long."""
        if text := self._prospects.alone(self.fleet.lonely, self.fleet.awaited, now):
            self._tell(events.StationsAwaited(text))
