"""The stations of a line: started, replaced, ended; how long they were up and busy."""

from __future__ import annotations

import re
import time
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, NamedTuple

import ray

from show1_ray.errors import UserError
from show1_ray.line import pinning
from show1_ray.line.care import Place
from show1_ray.line.faults import Failure, host_kill, is_host_kill
from show1_ray.line.health import Starts
from show1_ray.line.load import Assignment
from show1_ray.line.nodes import Nodes
from show1_ray.line.spec import LineSettings, StageSpec
from show1_ray.line.station import StationInfo, start_station

LANDING_SHARE = 0.25
"""Share of the cluster's CPUs, one at least, that stages with stations of their own leave to what lands clips."""

ANSWER_SECONDS = 5.0
"""What a station says of itself is small and comes with the news that it is up; this is for an answer that does not."""

NEWS_SECONDS = 3.0
"""What a station has taken that came up so lately may not be seen yet."""


class Slot(NamedTuple):
    """The place of a station in the fleet: of the stage that it is for (None: of those for all), and which."""

    own: int | None
    number: int


@dataclass
class StationHandle:
    """A station as the driver sees it. `info` is None until it is up; `slot` passes to the one that replaces it."""

    number: int
    slot: Slot
    actor: Any
    where: ray.ObjectRef
    asked_at: float = 0.0
    died_before: bool = False
    """The one that it replaces died before it did anything."""
    info: StationInfo | None = None
    up_since: float = 0.0
    has_worked: bool = False
    ran: set[tuple[int, int, Hashable]] = field(default_factory=set)
    """Stages, batch sizes and clips' keys that its process has run since it loaded them: what is compiled."""

    def has_run(self, assignment: Assignment, key: Hashable) -> bool:
        """Whether its process has had such a batch already."""
        return (assignment.stage, assignment.clips, key) in self.ran

    def worked(self, assignment: Assignment, key: Hashable) -> None:
        """It has done a batch, or loaded a stage."""
        self.has_worked = True
        if assignment.price:
            self.ran = {one for one in self.ran if one[0] != assignment.stage}
        self.ran.add((assignment.stage, assignment.clips, key))

    @property
    def place(self) -> Place:
        """Where it stands; without GPUs, stations of a node are told apart by their slots."""
        assert self.info is not None
        gpu = f"GPU {self.info.gpu}" if self.info.gpu else ""
        address = _named(self.info.address, self.info.node)
        card = self.info.gpu or "slot " + "/".join(str(part) for part in self.slot if part is not None)
        return Place(f"{self.info.node}/{card}", gpu, self.info.node, address)


@dataclass
class Fleet:
    """All stations. Those that are lost are replaced under a new number."""

    specs: list[StageSpec]
    settings: LineSettings
    gpus: bool = False
    size: int = 0
    stations: dict[int, StationHandle] = field(default_factory=dict)
    starting: dict[ray.ObjectRef, StationHandle] = field(default_factory=dict)
    busy_seconds: float = 0.0
    ended_seconds: float = 0.0
    least: int = 1
    most: int = 1
    own: dict[int, int] = field(default_factory=dict)
    """Stages that have stations of their own, and the CPUs of one."""
    later: list[tuple[float, Slot]] = field(default_factory=list)
    """Slots whose next station is asked for at a time, because the last one died at once."""
    judged: set[Slot] = field(default_factory=set)
    """Slots whose station died before it was up, until it is known why."""
    nodes: Nodes = field(default_factory=Nodes)
    starts: Starts = field(default_factory=Starts)
    _specs_ref: Any = None
    _numbers: int = 0

    def start(self) -> None:
        """Ask for all stations. Raises UserError if the cluster has nothing to make one of."""
        self.nodes.start()
        resources, wanted = self.nodes.view.resources, self.settings
        self.gpus = resources.get("GPU", 0) >= 1 if wanted.gpus is None else wanted.gpus
        self._settle_own()
        self._set_bounds()
        if self.least < 1:
            what = "GPU" if self.gpus else f"{wanted.threads} CPUs"
            raise UserError(f"cluster: no {what} for a station; it has {_short(resources)}")
        self._specs_ref = ray.put(self.specs)
        now = time.monotonic()
        self.scale(self.least, (), now)
        self.scale_own(dict.fromkeys(self.own, 1), (), now)

    def _settle_own(self) -> None:
        """Which stages have stations of their own: where the others are CPU cores as well, none."""
        if not self.gpus or not any(spec.on == "station" for spec in self.specs):
            self.gpus = False
            self.specs[:] = [replace(spec, on="station") if spec.on == "cpus" else spec for spec in self.specs]
        self.own = {index: spec.cpus for index, spec in enumerate(self.specs) if spec.on == "cpus"}
        nodes = [node for node in self.nodes.view.nodes.values() if node["Alive"]]
        most = max((node["Resources"].get("CPU", 0) for node in nodes), default=0)
        for index, cpus in self.own.items():
            if cpus > most and not isinstance(self.settings.stations, tuple):
                raise UserError(f"stage {self.specs[index].name}: no node has {cpus} CPUs; {most:g} are the most")

    def scale(self, wanted: int, idle: Sequence[int], now: float, benched: int = 0) -> list[int]:
        """Have `wanted` stations, within the bounds: ask for more, or take requests back and end stations of `idle`.

        Of `benched` stations, which get no work, as many are made good as the cluster has room for. Ray's autoscaler
        sees what is asked for as actors that wait; they go with the driver. Returns those that ended.
        """
        self._set_bounds()
        self.size = min(max(wanted, self.least), self.most)
        if benched and self.settings.stations is not None:
            room = int(self.nodes.view.free.get(self._unit, 0) // self._each)
            self.size += min(benched, max(0, len(self._taken(None)) - self.size) + room)
        return self._resize(None, self.size, idle, now)

    def scale_own(self, wanted: Mapping[int, int], idle: Sequence[int], now: float) -> list[int]:
        """The same for the stages that have stations of their own, of which each can use so many."""
        resources, free = self.nodes.view.resources, self.nodes.view.free
        lately = (one for one in self.stations.values() if now - one.up_since < NEWS_SECONDS)
        slots = [handle.slot for handle in (*self.starting.values(), *lately)]
        unseen = sum(self.own[slot.own] for slot in slots if slot.own is not None)
        sizes = pinning.stations_of_stages(
            list(wanted.values()),
            [len(self._taken(stage)) for stage in wanted],
            [self.own[stage] for stage in wanted],
            free.get("CPU", 0) - unseen,
            max(1.0, LANDING_SHARE * resources.get("CPU", 0)),
        )
        ended = []
        for stage, size in zip(wanted, sizes, strict=True):
            its = [number for number in idle if self.stations[number].slot.own == stage]
            ended += self._resize(stage, size, its, now)
        return ended

    def _taken(self, own: int | None) -> set[Slot]:
        """The slots of a stage's stations (None: of those for all) that have one, or get one."""
        there = [handle.slot for handle in (*self.stations.values(), *self.starting.values())]
        return {slot for slot in (*there, *self.judged, *(slot for _, slot in self.later)) if slot.own == own}

    def _resize(self, own: int | None, size: int, idle: Sequence[int], now: float) -> list[int]:
        taken = self._taken(own)
        free = (slot for slot in (Slot(own, number) for number in count()) if slot not in taken)
        for _ in range(size - len(taken)):
            self.ask(next(free), now)
        surplus = len(taken) - size
        for due in [one for one in reversed(self.later) if one[1].own == own][: max(0, surplus)]:
            self.later.remove(due)
            surplus -= 1
        for ref in [ref for ref, handle in reversed(self.starting.items()) if handle.slot.own == own]:
            if surplus <= 0:
                return []
            ray.kill(self.starting.pop(ref).actor, no_restart=True)
            surplus -= 1
        ended = list(idle[: max(0, surplus)])
        for number in ended:
            self.lose(number, now)
        return ended

    def _set_bounds(self) -> None:
        match self.settings.stations:
            case None:
                self.least = self.most = int(self.nodes.view.resources.get(self._unit, 0) // self._each)
            case int(number):
                self.least = self.most = number
            case (least, most):
                self.least, self.most = least, most

    @property
    def _unit(self) -> str:
        return "GPU" if self.gpus else "CPU"

    @property
    def _each(self) -> int:
        return 1 if self.gpus else self.settings.threads

    def ask(self, slot: Slot, now: float, died_before: bool = False) -> None:
        """Ask for one station."""
        self.judged.discard(slot)
        actor, where, info = start_station(
            self._specs_ref, self.settings, self.gpus, None if slot.own is None else self.own[slot.own]
        )
        self.starting[info] = StationHandle(self._numbers, slot, actor, where, now, died_before)
        self._numbers += 1

    def ask_later(self, slot: Slot, node: str, now: float) -> float:
        """A station died before it did anything: ask for the next one after a pause, which grows by node.

        Returns the seconds.
        """
        self.judged.discard(slot)
        pause = self.starts.count(node, now)
        self.later.append((now + pause, slot))
        return pause

    def ask_due(self, now: float) -> None:
        """Ask for those whose pause is over."""
        due = [one for one in self.later if one[0] <= now]
        self.later = [one for one in self.later if one[0] > now]
        for _, slot in due:
            self.ask(slot, now, died_before=True)

    def coming(self, now: float, patience: float) -> int:
        """How many stations are on their way that are likely to come: asked for so many seconds ago at
        most, or to be asked for as soon."""
        asked = [*(at for at, _ in self.later), *(handle.asked_at for handle in self.starting.values())]
        return len(self.judged) + sum(abs(now - at) < patience for at in asked)

    @property
    def all_died(self) -> bool:
        """Whether none is up that is for a stage, and each that is asked for replaces one that died at once."""
        return any(
            not any(handle.slot.own == own for handle in self.stations.values())
            and all(handle.died_before for handle in self.starting.values() if handle.slot.own == own)
            for own in (None, *self.own)
        )

    @property
    def lonely(self) -> bool:
        """Whether none is up of those for all, or of those for one stage."""
        return {handle.slot.own for handle in self.stations.values()} != {None, *self.own}

    def awaited(self) -> str:
        """What is asked for that the cluster has no place for, where no station is up; "" if all are on their way."""
        pool = next(own for own in (None, *self.own) if all(one.slot.own != own for one in self.stations.values()))
        where = [one.where for one in self.starting.values() if one.slot.own == pool]
        _, waiting = ray.wait(where, num_returns=len(where), timeout=0, fetch_local=False) if where else ([], [])
        if not waiting:
            return ""
        unit, each = (self._unit, self._each) if pool is None else ("CPU", self.own[pool])
        view = self.nodes.view
        most = max((node["Resources"].get(unit, 0) for node in view.nodes.values() if node["Alive"]), default=0)
        whose = "" if pool is None else f" of stage {self.specs[pool].name}"
        there = f"{view.resources.get(unit, 0):g} {unit}, {view.free.get(unit, 0):g} of them free"
        asked = f"{len(waiting)} stations{whose} wait for a place, with {each} {unit} each"
        return f"{asked}; the cluster has {there}, {most:g} at most on a node"

    def up(self, ref: ray.ObjectRef, now: float) -> StationHandle:
        """A station has answered. Raises RayError if it died instead; it is forgotten then."""
        handle = self.starting.pop(ref)
        handle.info = ray.get(ref, timeout=ANSWER_SECONDS)
        handle.up_since = now
        self.stations[handle.number] = handle
        return handle

    def lose(self, number: int, now: float) -> StationHandle:
        """End a station (if it has not ended by itself) and forget it."""
        handle = self.stations.pop(number)
        if handle.slot.own is None:
            self.ended_seconds += now - handle.up_since
        ray.kill(handle.actor, no_restart=True)
        return handle

    def stop(self) -> None:
        """End all stations."""
        for handle in (*self.stations.values(), *self.starting.values()):
            ray.kill(handle.actor, no_restart=True)
        self.stations.clear()
        self.starting.clear()
        self.later.clear()
        self.nodes.stop()

    def host_memory(self, handle: StationHandle) -> int:
        """Bytes of host memory for stages that a station has to put aside: half of its share of the node."""
        if self.settings.host_memory is not None:
            return self.settings.host_memory
        assert handle.info is not None
        resources = self.node(handle.info.node).get("Resources", {})
        stations = resources.get("GPU", 1) if self.gpus else resources.get("CPU", 1) / self.settings.threads
        return int(resources.get("memory", 0) / max(1.0, stations) / 2)

    def pins(self, slot: Slot, memory: int) -> tuple[int, ...]:
        """What the plan pins to the station of a slot: all stations are taken to be like this one."""
        stations = [index for index, spec in enumerate(self.specs) if spec.on == "station"]
        pins = pinning.pin(
            [self.specs[index].seconds for index in stations],
            [self.specs[index].memory for index in stations],
            [memory] * self.size,
        )
        return tuple(stations[index] for index in pins[slot.number])

    def kind(self, handle: StationHandle) -> str:
        """The kind of GPU of a station, as Ray calls it ("A100"); "" where there is none."""
        if handle.slot.own is not None:
            return ""
        assert handle.info is not None
        prefix = "accelerator_type:"
        kinds = (name for name in self.node(handle.info.node).get("Resources", {}) if name.startswith(prefix))
        return next(kinds, "").removeprefix(prefix)

    def node(self, node: str) -> dict[str, Any]:
        """What Ray knows of a node."""
        return self.nodes.view.nodes.get(node, {})

    def death(self, number: int | None, error: Exception, begun: bool) -> Future[Failure]:
        """Why a batch ended with its station's process (None: a task's); `begun`: whether that was alive before."""
        node = None if number is None else self.stations[number].place.node
        return self.nodes.inquire(lambda: self._why(node, error, begun))

    def name(self, node: str) -> str:
        """How people call a node, by Ray's id or by its address; "" if nobody knows which it is."""
        known = self.node(node)
        return f"node {_named(known['NodeManagerAddress'], node) if known else node}" if node else ""

    def stillborn(self, handle: StationHandle, error: Exception) -> Future[tuple[str, Failure]]:
        """Where a station died before it was up ("": nobody knows), and why: "gone" is nobody's fault."""
        self.judged.add(handle.slot)

        def why() -> tuple[str, Failure]:
            node = _node_of(handle, error)
            known = node in self.nodes.view.nodes
            if getattr(error, "preempted", False) or (known and not self.nodes.is_there(node)):
                return node, Failure("gone", str(error))
            return node, host_kill(error) if is_host_kill(error) else Failure("death", str(error))

        return self.nodes.inquire(why)

    def overdue(self) -> Future[Failure]:
        """Why a batch did not return in time: what went away with a node is waited for in vain."""
        text = "it did not return in time"
        return self.nodes.inquire(lambda: Failure("gone" if self.nodes.went_away() else "deadline", text))

    def _why(self, node: str | None, error: Exception, begun: bool) -> Failure:
        if is_host_kill(error):
            return host_kill(error, begun)
        if getattr(error, "preempted", False):
            return Failure("gone", str(error))
        if self.nodes.went_away() if node is None else not self.nodes.is_there(node):
            return Failure("gone", str(error))
        if not begun:
            return Failure("idle", f"the process had died while it had nothing to do: {error}")
        return Failure("death", f"the process died: {error}")

    def busy_share(self, now: float) -> float:
        """Share of the stations' time that went into batches; of those that are for one stage nobody asks."""
        ordinary = [handle for handle in self.stations.values() if handle.slot.own is None]
        up = self.ended_seconds + sum(now - handle.up_since for handle in ordinary)
        return min(1.0, self.busy_seconds / up) if up > 0 else 0.0


def _named(address: str, node: str) -> str:
    """For people: nodes of one machine share its address."""
    return f"{address} ({node[:8]})"


def _node_of(handle: StationHandle, error: Exception) -> str:
    """The node of a station that never came up: what it said itself, or its id or address in Ray's words, or ""."""
    try:
        where: StationInfo = ray.get(handle.where, timeout=0)
        return where.node
    except ray.exceptions.RayError:
        found = re.search(r"\bNode Id: ([0-9a-f]+)", str(error)) or re.search(r"\bip: (\S+)", str(error))
        return found[1] if found else ""


def _short(resources: dict[str, float]) -> str:
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in ("GPU", "CPU"))
