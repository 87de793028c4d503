"""The stations that a line has: started, replaced, ended; how long they were up and busy."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import ray

from show1_ray.errors import UserError
from show1_ray.line import gcs, plan
from show1_ray.line.spec import LineSettings, StageSpec
from show1_ray.line.station import Failure, StationInfo, is_out_of_memory, start_station

GONE_LATELY = 60.0
"""Seconds within which tasks die, or are noticed to have died, of a node that went away."""


@dataclass
class StationHandle:
    """A station as the driver sees it. `info` is None until it is up; `slot` passes to the one that replaces it."""

    number: int
    slot: int
    actor: Any
    info: StationInfo | None = None
    up_since: float = 0.0
    has_worked: bool = False


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
    _specs_ref: Any = None
    _numbers: int = 0
    _gone_since: dict[str, float] = field(default_factory=dict)

    def start(self) -> None:
        """Ask for all stations. Raises UserError if the cluster has nothing to make one of."""
        resources, wanted = gcs.resources(), self.settings
        self.gpus = resources.get("GPU", 0) >= 1 if wanted.gpus is None else wanted.gpus
        self._set_bounds()
        if self.least < 1:
            what = "GPU" if self.gpus else f"{wanted.threads} CPUs"
            raise UserError(f"cluster: no {what} for a station; it has {_short(resources)}")
        self._specs_ref = ray.put(self.specs)
        self._gone_since = {node["NodeID"]: -math.inf for node in gcs.nodes() if not node["Alive"]}
        self.scale(self.least, (), time.monotonic())

    def scale(self, wanted: int, idle: Sequence[int], now: float) -> list[int]:
        """Have `wanted` stations, within the bounds: ask for more, or take requests back and end stations of `idle`.

        Ray's autoscaler sees what is asked for as actors that wait; they go with the driver. Returns those that ended.
        """
        self._set_bounds()
        self.size = min(max(wanted, self.least), self.most)
        taken = {handle.slot for handle in (*self.stations.values(), *self.starting.values())}
        free = (slot for slot in count() if slot not in taken)
        for _ in range(self.size - len(taken)):
            self.ask(next(free))
        surplus = len(taken) - self.size
        for ref in reversed(list(self.starting)):
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
                resources = gcs.resources()
                each = 1 if self.gpus else self.settings.threads
                self.least = self.most = int(resources.get("GPU" if self.gpus else "CPU", 0) // each)
            case int(number):
                self.least = self.most = number
            case (least, most):
                self.least, self.most = least, most

    def ask(self, slot: int) -> None:
        """Ask for one station."""
        actor, info = start_station(self._specs_ref, self.settings, self.gpus)
        self.starting[info] = StationHandle(self._numbers, slot, actor)
        self._numbers += 1

    def up(self, ref: ray.ObjectRef, now: float) -> StationHandle:
        """A station has answered. Raises RayError if it died instead; it is forgotten then."""
        handle = self.starting.pop(ref)
        handle.info = ray.get(ref)
        handle.up_since = now
        self.stations[handle.number] = handle
        return handle

    def lose(self, number: int, now: float) -> StationHandle:
        """End a station (if it has not ended by itself) and forget it."""
        handle = self.stations.pop(number)
        self.ended_seconds += now - handle.up_since
        ray.kill(handle.actor, no_restart=True)
        return handle

    def stop(self) -> None:
        """End all stations."""
        for handle in (*self.stations.values(), *self.starting.values()):
            ray.kill(handle.actor, no_restart=True)
        self.stations.clear()
        self.starting.clear()

    def host_memory(self, handle: StationHandle) -> int:
        """Bytes of host memory for stages that a station has to put aside: half of its share of the node."""
        if self.settings.host_memory is not None:
            return self.settings.host_memory
        assert handle.info is not None
        resources = self.node(handle.info.node).get("Resources", {})
        stations = resources.get("GPU", 1) if self.gpus else resources.get("CPU", 1) / self.settings.threads
        return int(resources.get("memory", 0) / max(1.0, stations) / 2)

    def pins(self, slot: int, memory: int) -> tuple[int, ...]:
        """What the plan pins to the station of a slot: all stations are taken to be like this one."""
        stations = [index for index, spec in enumerate(self.specs) if spec.on == "station"]
        pins = plan.pin(
            [self.specs[index].seconds for index in stations],
            [self.specs[index].memory for index in stations],
            [memory] * self.size,
        )
        return tuple(stations[index] for index in pins[slot])

    def kind(self, handle: StationHandle) -> str:
        """The kind of GPU of a station, as Ray calls it ("A100"); "" where there is none."""
        assert handle.info is not None
        prefix = "accelerator_type:"
        kinds = (name for name in self.node(handle.info.node).get("Resources", {}) if name.startswith(prefix))
        return next(kinds, "").removeprefix(prefix)

    def node(self, node: str) -> dict[str, Any]:
        """What Ray knows of a node."""
        return next((known for known in gcs.nodes() if known["NodeID"] == node), {})

    def death(self, station: int | None, error: Exception, begun: bool, now: float) -> Failure:
        """Why a batch ended with its station's process (None: a task's); `begun`: whether that was alive before."""
        if begun and is_out_of_memory(error):
            return Failure("memory", str(error))
        if self.node_went_away(now) if station is None else self._is_gone(self.stations[station], error):
            return Failure("gone", str(error))
        if not begun:
            return Failure("idle", f"the process had died while it had nothing to do: {error}")
        return Failure("death", f"the process died: {error}")

    def _is_gone(self, handle: StationHandle, error: Exception) -> bool:
        """Whether a station was lost with its node, or was preempted: no fault of what it ran."""
        if getattr(error, "preempted", False):
            return True
        return handle.info is not None and not _answers(self.node(handle.info.node))

    def node_went_away(self, now: float) -> bool:
        """Whether a node went away lately: what a task that died then ran is not at fault."""
        for node in gcs.nodes():
            if not _answers(node):
                self._gone_since.setdefault(node["NodeID"], now)
        return any(now - since < GONE_LATELY for since in self._gone_since.values())

    def busy_share(self, now: float) -> float:
        """Share of the stations' time that went into batches."""
        up = self.ended_seconds + sum(now - handle.up_since for handle in self.stations.values())
        return min(1.0, self.busy_seconds / up) if up > 0 else 0.0


def _answers(node: dict[str, Any]) -> bool:
    """Whether a node is there. Ray itself takes a while to notice that one is not."""
    if not node.get("Alive", False):
        return False
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=5.0).close()
    except OSError:
        return False
    return True


def _short(resources: dict[str, float]) -> str:
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in ("GPU", "CPU"))
