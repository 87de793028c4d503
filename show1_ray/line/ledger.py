"""What the schedule knows: how many clips wait before each stage, which stations there are, and what they hold.

Counts only: which clips they are is the line's business. Pure: time is passed in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

from show1_ray.line.idle import IdleStations
from show1_ray.line.load import UNKNOWN_TOTAL, Assignment, Group, StageLoad, StationLoad
from show1_ray.line.memory import Caps


class Ledger:
    """Kept right by being told of everything that happens.

    Numbers of stations and stages are ints; `now` is any clock that does not go back, in seconds.
    """

    def __init__(self, stages: Sequence[StageLoad], cpu_slots: int = 4, total: int | None = None) -> None:
        self.stages = list(stages)
        self.stations: dict[int, StationLoad] = {}
        self.cpu_slots = cpu_slots
        """CPU tasks that may run at the same time."""
        self.cpu_running = 0
        self.unadmitted = 0
        self.exhausted = False
        self.closed = False
        self.idle = IdleStations(len(self.stages))
        self.caps = Caps()
        self._sizes: Counter[int | None] = Counter()
        """Stations for one stage each; None: for all that have none of their own."""
        self.open(total)

    @property
    def in_flight(self) -> int:
        """Clips that were admitted and have not left the line."""
        return sum(stage.queued + stage.running for stage in self.stages)

    def open(self, total: int | None) -> None:
        """Begin with `total` clips (None: nobody knows). Raises ValueError if some are in flight."""
        if self.in_flight:
            raise ValueError(f"the line still has {self.in_flight} clips in flight")
        self.unadmitted = UNKNOWN_TOTAL if total is None else total
        self.exhausted = self.closed = False

    def expect(self, clips: int) -> None:
        """So many clips wait to be admitted; whether more will come, nobody knows."""
        self.unadmitted = clips
        self.exhausted = clips == 0

    def exhaust(self) -> None:
        """The manifest has come to its end."""
        self.exhausted = True
        self.unadmitted = 0

    def close(self) -> None:
        """Give stations nothing more; CPU tasks go on."""
        self.exhaust()
        self.closed = True

    def room(self) -> int:
        """How many more clips may be admitted."""
        return 0 if self.exhausted else max(0, self.stages[0].limit - self.in_flight)

    def admit(self, clips: int, key: Hashable = None) -> None:
        """`clips` came from the manifest and wait before the first stage."""
        self.add(0, clips, key)
        self.unadmitted = max(0, self.unadmitted - clips)

    def add(self, stage: int, clips: int, key: Hashable = None) -> None:
        """`clips` wait before `stage`: they were advanced, or put back. They share batches with those of their key."""
        if clips:
            self.stages[stage].counts.add(clips, key)

    def isolate(self, stage: int, clips: int, avoid: frozenset[str] = frozenset()) -> None:
        """`clips` wait before `stage` and have to run as a batch of their own, not on the cards `avoid`."""
        self.stages[stage].groups.append(Group(clips, avoid))
        self.stages[stage].grouped += clips

    def relax(self) -> None:
        """Batches that no station of the line would take may go where they have failed."""
        for index, stage in enumerate(self.stages):
            for group in stage.groups:
                if group.avoid and not any(
                    one.may_run(index) and one.card not in group.avoid for one in self.stations.values()
                ):
                    group.avoid = frozenset()

    def withdraw(self, stage: int, group: int | None, key: Hashable = None) -> None:
        """A clip before `stage` is not wanted any more: one that waits, or one of the group of this index."""
        groups = self.stages[stage].groups
        if group is None:
            self.stages[stage].counts.take(1, key)
            return
        self.stages[stage].grouped -= 1
        if groups[group].clips == 1:
            del groups[group]
        else:
            groups[group].clips -= 1

    def end(self, assignment: Assignment) -> None:
        """A batch is over, well or badly; where its clips go from here is told by `add` and `isolate`."""
        self.stages[assignment.stage].running -= assignment.clips
        if assignment.station is None:
            self.cpu_running -= 1

    def add_station(
        self,
        number: int,
        memory: int,
        host_memory: int,
        now: float,
        pins: tuple[int, ...] | None = None,
        kind: str = "",
        card: str = "",
        own: int | None = None,
    ) -> None:
        """A station is up; it holds nothing and is idle. Stages that do not fit its memory never go there.

        `own`: the stage that it is for, of those that have stations of their own.
        """
        too_big = frozenset(
            index for index, stage in enumerate(self.stages) if stage.on_station and stage.memory > memory
        )
        foreign = frozenset(index for index, stage in enumerate(self.stages) if self._pool(index) != own)
        pins = pins if own is None else (own,)
        self.stations[number] = StationLoad(number, memory, host_memory, pins, kind, too_big, own, foreign, card=card)
        self._sizes[own] += 1
        self.free(number, now)
        del self.idle.freed[number]

    def remove_station(self, number: int) -> StationLoad:
        """A station is gone, with what it held; `return_station` undoes it."""
        station = self.stations.pop(number)
        self._sizes[station.own] -= 1
        self.idle.remove(station)
        for stage in station.held:
            self.stages[stage].holders -= 1
        return station

    def return_station(self, station: StationLoad, now: float) -> None:
        """A station that was taken out is back, with what it held, and idle."""
        self.stations[station.number] = station
        self._sizes[station.own] += 1
        for stage in station.held:
            self.stages[stage].holders += 1
        self.free(station.number, now)

    def too_large(self, number: int, stage: int, clips: int) -> None:
        """A batch of so many clips did not fit a station's memory, although nothing else was there."""
        station, load = self.stations[number], self.stages[stage]
        load.full = load.full or load.batch_size
        cards = [one.card for one in self.stations.values() if one.kind == station.kind]
        self.caps.failed(stage, station.kind, station.card, clips, load.full, cards)
        self._fit(stage)

    def fitted(self, number: int, stage: int, clips: int) -> None:
        """A batch of so many clips fitted a station's memory."""
        load, station = self.stages[stage], self.stations[number]
        if load.full:
            self.caps.did(stage, station.kind, station.card, clips)
            self._fit(stage)

    def _fit(self, stage: int) -> None:
        """Full batches are as large as the station with most room can have them."""
        load = self.stages[stage]
        load.batch_size = max(
            (self.caps.most(stage, one.kind, one.card, load.full) for one in self.stations.values()), default=load.full
        )

    def made_room(self, number: int, stage: int, left: Sequence[int], dropped: Sequence[int]) -> None:
        """A busy station had too little memory for what it was to hold: others left its device, or altogether."""
        station = self.stations[number]
        memory = [one.memory for one in self.stages]
        together = sum(memory[held] for held in {*station.held, stage})
        if len(station.held) > 1 and together <= station.memory:
            station.memory = max(memory[stage], together - 1)
        for one in (*left, *dropped):
            if one in station.held:
                del station.held[one]
                self.stages[one].holders -= 1
                if one in left:
                    station.hosted[one] = None

    def takes(self, stage: int, memory: int, clips: int) -> None:
        """What a stage takes of a device was measured, with a batch of so many clips."""
        load = self.stages[stage]
        if clips < load.measured_at or memory == load.memory:
            return
        load.measured_at, load.memory = clips, memory
        for station in self.stations.values():
            fits = memory <= station.memory or stage in station.held
            if fits != (stage not in station.too_big):
                was_idle = station.idle_since
                if was_idle is not None:
                    self.idle.remove(station)
                station.too_big = station.too_big - {stage} if fits else station.too_big | {stage}
                if was_idle is not None:
                    self.idle.add(station, was_idle)

    def free(self, number: int, now: float) -> None:
        """A station has ended what it did and is idle from `now`."""
        self.idle.add(self.stations[number], now)

    def homeless(self) -> list[int]:
        """Stages that fit none of the stations that are up."""
        stations = self.stations.values()
        return [
            index
            for index, stage in enumerate(self.stages)
            if stage.on_station
            and any(self._pool(index) == station.own for station in stations)
            and all(index in station.too_big for station in stations if self._pool(index) == station.own)
        ]

    def _pool(self, index: int) -> int | None:
        """Whose stations run a stage: its own, or (None) those for all."""
        return index if self.stages[index].own else None
