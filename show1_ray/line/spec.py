"""What the line is told: its stages, and how it is to run them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Tensors = dict[str, Any]
StageObject = Callable[[Sequence[Any], Sequence[Tensors]], Sequence[Tensors]]
"""`stage(clips, tensors) -> tensors`: one dict a clip, in the order of the clips.

May have a method `to(device)`: `to("cpu")` gives the device back and keeps the weights in host memory, `to("cuda:0")`
comes back. Without it, a stage that has to make room is dropped and built again.
"""


class FatalError(Exception):
    """Raised by a stage when no clip can be rendered any more (the disk is full): the line stops with this message."""


@dataclass(frozen=True)
class StageSpec:
    """One stage of the line: how it is built, what it costs, what it takes and gives.

    The numbers are guesses: measurements replace seconds and output bytes as they come.
    """

    name: str
    build: Callable[[str], StageObject]
    """device ("cuda:0" or "cpu") -> stage. Runs on the station and loads the weights."""
    takes: tuple[str, ...] = ()
    """Names of the tensors that it needs of each clip, given by stages before it."""
    gives: tuple[str, ...] = ()
    batch_size: int = 1
    seconds: float = 1.0
    """Seconds a clip."""
    load_seconds: float = 1.0
    """Seconds of the first build on a station (from disk)."""
    swap_seconds: float = 1.0
    """Seconds to bring it back from host memory."""
    memory: int = 0
    """Bytes on the device: weights, and the working set of a full batch."""
    output_bytes: int = 0
    """Bytes in the object store of what it gives for one clip."""
    on: Literal["station", "cpu"] = "station"
    """"cpu": a stateless Ray task on CPU cores, which keeps no station waiting."""


@dataclass(frozen=True)
class LineSettings:
    """How the line runs its stages. The defaults suit a cluster with GPUs."""

    stations: int | None = None
    """Number of stations; None: one for each GPU of the cluster or, without GPUs, as many as `threads` allows."""
    gpus: bool | None = None
    """Whether stations own a GPU each; None: if the cluster has any."""
    threads: int = 1
    """CPU threads of a station (without GPUs: also the cores it reserves)."""
    station_memory: int | None = None
    """Bytes of stages that a station holds on its device; None: nine tenths of the GPU, or of its share of the host."""
    host_memory: int | None = None
    """Bytes of stages that a station keeps in host memory besides; None: its share of the host."""
    store_bytes: int | None = None
    """Bytes of the object store for clips in flight; None: half of what the cluster has."""
    pinned: bool = False
    """Keep every stage where the plan puts it, whatever the queues look like (for comparison)."""
    cpu_tasks: int = 4
    """Batches of "cpu" stages that run at the same time."""
    max_attempts: int = 3
    """Times that a clip may be at fault alone in its batch before it fails."""
    deadline_factor: float = 10.0
    """A batch may take this many times the stage's usual time …"""
    deadline_floor: float = 60.0
    """… but always this many seconds …"""
    first_deadline: float = 1800.0
    """… and this many where the stage is loaded, or has not been measured yet."""
    start_deadline: float = 900.0
    """Seconds within which a station's process has to come up before the line asks for another."""
    max_station_starts: int = 5
    """Stations that may die in a row before any batch ends: then the line gives up."""
    snapshot_seconds: float = 0.5
    """Seconds between two snapshots."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of the stations."""
