"""Specifications of the line: its stages, and how to run them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from show1_ray.clip import Clip
from show1_ray.errors import UserError
from show1_ray.line.memory import Gauge

Values = dict[str, Any]


@dataclass(frozen=True)
class Rejected:
    """What a stage answers for a clip that shall not go on: why, for people, and the plain values that say so."""

    reason: str
    plain: Mapping[str, Any] = field(default_factory=dict)


StageObject = Callable[[list[Clip], list[Values]], Sequence[Values | Rejected]]
"""`stage(clips, tensors) -> tensors`: one dict or one `Rejected` per clip, in the order of the clips.

It may have a method `to(device)`: `to("cpu")` frees the device and keeps the weights in host memory,
`to("cuda:0")` moves them back. A stage without it is dropped when it has to make room, and built again later.
"""


@dataclass(frozen=True)
class Order:
    """A clip to render, with small values that stages may take: they stay with the driver."""

    clip: Clip
    given: dict[str, Any] = field(default_factory=dict)
    outputs: frozenset[str] = frozenset()
    """Intermediate values whose references come with `StageDone`, for the clip's follower."""
    keys: Mapping[str, Hashable] = field(default_factory=dict)
    """By stage: only clips with equal keys share a batch there."""


RENDERING = "rendering"
"""A value that any stage may take: how the clip has been rendered, `{"seconds", "batch_sizes", "attempts"}`."""
ALL_PLAIN = "plain"
"""A value that any stage may take: all plain values of the clip from earlier stages, by name."""


class FatalError(Exception):
    """Raised by a stage when no more clips can be rendered (the disk is full): the line stops."""


class PlaceError(FatalError):
    """Raised by a "cpu" stage for what may be this node's fault (no network): other nodes are tried first."""


@dataclass(frozen=True)
class StageSpec:
    """One stage of the line: how it is built, what it costs, what it takes and gives.

    Seconds and bytes are guesses that measurements replace.
    """

    name: str
    build: Callable[[str], StageObject]
    """Device ("cuda:0" or "cpu") -> stage. Runs on the station and loads the weights."""
    takes: tuple[str, ...] = ()
    """Names of the tensors that it needs for each clip, given by earlier stages."""
    values: tuple[str, ...] = ()
    """Names of further values that it takes: from the clip's `Order`, plain values of earlier stages, `RENDERING`, or
    `ALL_PLAIN`."""
    gives: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    """Names of small values (text, numbers) that it also gives: they stay with the driver and need no fetch."""
    batch_size: int = 1
    seconds: float = 1.0
    """Seconds per clip."""
    load_seconds: float = 1.0
    """Seconds of the first build on a station (from disk)."""
    swap_seconds: float = 1.0
    """Seconds to bring it back from host memory."""
    memory: int = 0
    """Bytes on the device: weights and the working set of a full batch. 0: not known until measured."""
    output_bytes: int = 0
    """Bytes of its outputs for one clip in the object store. 0: not known until measured."""
    on: Literal["station", "cpu", "cpus"] = "station"
    """"cpu": a stateless Ray task, which keeps no station waiting; built anew for each batch. "cpus": stations of its
    own, of `cpus` CPUs each, beside those that own GPUs; where stations are CPU cores, it runs on those."""
    cpus: int = 1
    """CPUs of one of its own stations."""


@dataclass(frozen=True)
class LineSettings:
    """How the line runs its stages."""

    stations: int | tuple[int, int] | None = None
    """How many; or a minimum and a maximum, as the remaining work can use; None: one for each GPU of the cluster, as
    they come and go, or, without GPUs, one for each `threads` CPUs."""
    gpus: bool | None = None
    """Whether each station owns a GPU; None: yes, if the cluster has any."""
    threads: int = 1
    """CPU threads of a station; without GPUs, also the CPUs that it reserves."""
    station_memory: int | None = None
    """Bytes that stages may take on a station's device; None: ask `measure_memory`."""
    measure_memory: Callable[[str], int] | None = None
    """Device -> bytes for stages, called on each station; None: stages always fit."""
    gauge: Callable[[str], Gauge | None] | None = None
    """Device -> a gauge of its memory, on each station; measurements replace `StageSpec.memory`."""
    host_memory: int | None = None
    """Bytes of stages that a station may also keep in host memory; None: its share of the node."""
    store_bytes: int | None = None
    """Bytes of the object store for clips in flight; None: half of the cluster's."""
    warm: bool = False
    """Let idle stations load all stages that fit before any clip needs them."""
    pinned: bool = False
    """Keep every stage where the plan puts it, whatever the queues look like; for comparison."""
    cpu_tasks: int = 4
    """How many batches of "cpu" stages may run at the same time; the number of stations, if that is larger."""
    max_attempts: int = 3
    """How often a clip may fail alone in its batch, on different stations if possible, before it is given up."""
    shut_out_seconds: float = 60.0
    """How long a card that fails where others do not, even after a restart, gets no work; doubled each time that it
    fails again."""
    deadline_factor: float = 10.0
    """A batch may take this many times the stage's usual time …"""
    deadline_floor: float = 60.0
    """… or this many seconds, whichever is more …"""
    first_deadline: float = 1800.0
    """… plus this many if the stage must be loaded first, has not been measured, or may have to compile for a batch
    size that is new to the station."""
    idle_seconds: float = 10.0
    """A station that has been idle this long ends, if there are more than the remaining work can use."""
    start_deadline: float = 1800.0
    """Seconds without any station after which the line gives up."""
    max_dead_starts: int = 5
    """The line gives up after this many stations in a row die or fail to load a stage, with no batch done anywhere."""
    snapshot_seconds: float = 0.5
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of the stations."""
    inherited: Mapping[str, str] = field(default_factory=dict)
    """Environment variables that all of the cluster's processes have. A station that needs no others takes a process
    that Ray has begun already; for any other one is begun, which takes a second."""

    def variables(self, cores: int) -> dict[str, str]:
        """Environment variables of a station with so many CPU threads."""
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(cores))
        return {**threads, **self.environment}


def check(specs: Sequence[StageSpec], results: Sequence[str] = ()) -> None:
    """Raise UserError if the stages do not fit together, or if nobody gives one of `results`."""
    if not specs:
        raise UserError("line: no stages")
    names = [spec.name for spec in specs]
    given: set[str] = set()
    plain: set[str] = set()
    for spec in specs:
        missing = [name for name in spec.takes if name not in given]
        if missing:
            raise UserError(f"stage {spec.name} takes {missing[0]!r}, which no stage before it gives")
        if names.count(spec.name) > 1:
            raise UserError(f"stage {spec.name}: there are {names.count(spec.name)} of that name")
        if spec.batch_size < 1:
            raise UserError(f"stage {spec.name}: batch size {spec.batch_size} is less than 1")
        if spec.cpus < 1:
            raise UserError(f"stage {spec.name}: {spec.cpus} CPUs are less than 1")
        twice = next((name for name in (*spec.gives, *spec.plain) if name in given | plain), None)
        if twice is not None:
            raise UserError(f"stage {spec.name} gives {twice!r}, which a stage before it gives already")
        given.update(spec.gives)
        plain.update(spec.plain)
    for name in results:
        if name not in given | plain:
            raise UserError(f"line: no stage gives {name!r}, which is to be its result")
