"""The state that the schedule decides on: stages and stations as plain counts, and assignments."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from show1_ray.line.keys import Counts

if TYPE_CHECKING:
    from show1_ray.line.spec import StageSpec

UNKNOWN_TOTAL = 10**6
"""Clips that are taken to be still to come while nobody knows how many there are."""


SMOOTHING = 0.3
"""Weight of a new measurement in the running mean of a stage's seconds."""


KEYS_KNOWN = 1000
"""Batch keys of a stage whose seconds are remembered."""


@dataclass
class Cost:
    """What a stage costs on one kind of GPU: seconds a clip, to load it from disk, to bring it from host memory."""

    seconds: float
    load_seconds: float
    swap_seconds: float
    measured: bool = False
    """Whether `seconds` is no guess any more."""


@dataclass
class Group:
    """Clips that have to run as a batch of their own: what a failed batch was split into."""

    clips: int
    avoid: frozenset[str] = frozenset()
    """Cards that this batch is not for: it failed there."""


@dataclass
class StageLoad:
    """One stage: its prices (seconds, replaced by measurements) and the clips that stand before it.

    `seconds`, `load_seconds` and `swap_seconds` are those of all stations together; see `on` for one kind of them.
    """

    name: str
    batch_size: int
    seconds: float
    load_seconds: float = 0.0
    swap_seconds: float = 0.0
    memory: int = 0
    """Bytes on a device: as it was said, and then as it was measured."""
    on_station: bool = True
    limit: int = UNKNOWN_TOTAL
    """At most this many clips may be in this stage or beyond it."""
    counts: Counts = field(default_factory=Counts)
    """Clips before it that are free to share batches, by their key."""
    groups: deque[Group] = field(default_factory=deque)
    """Batches that have to run by themselves."""
    grouped: int = 0
    """Clips in `groups`."""
    full: int = 0
    """The batch size that was asked for; `batch_size` is smaller where no station has room for that. 0: the same."""
    measured_at: int = 0
    """Clips of the largest batch whose memory was measured."""
    running: int = 0
    holders: int = 0
    ready_since: float | None = None
    kinds: dict[str, Cost] = field(default_factory=dict)
    """What was measured, by the stations' kind."""
    own: bool = False
    """It has stations of its own, on CPUs, and never runs on the others."""
    by_key: dict[Hashable, float] = field(default_factory=dict)
    """Seconds a clip of the clips' keys, as measured last; of the last `KEYS_KNOWN` of them."""

    def on(self, kind: str) -> Cost:
        """What it costs on stations of this kind: what all have measured, as long as these have not."""
        return self.kinds.get(kind) or Cost(self.seconds, self.load_seconds, self.swap_seconds)

    @property
    def measured(self) -> bool:
        """Whether any station has run it."""
        return any(cost.measured for cost in self.kinds.values())

    def measure(self, kind: str, seconds: float, key: Hashable = None) -> None:
        """A station of this kind took so long for each clip of a batch."""
        if key is not None:
            self.by_key.pop(key, None)
            self.by_key[key] = seconds
            while len(self.by_key) > KEYS_KNOWN:
                del self.by_key[next(iter(self.by_key))]
        self.seconds += (seconds - self.seconds) * (SMOOTHING if self.measured else 1.0)
        cost = self.kinds.setdefault(kind, self.on(kind))
        cost.seconds += (seconds - cost.seconds) * (SMOOTHING if cost.measured else 1.0)
        cost.measured = True

    def measure_load(self, kind: str, seconds: float, from_host: bool) -> None:
        """A station of this kind took so long to load the stage, or to bring it back."""
        for cost in (self, self.kinds.setdefault(kind, self.on(kind))):
            if from_host:
                cost.swap_seconds = seconds
            else:
                cost.load_seconds = seconds

    @property
    def waiting(self) -> int:
        """Clips before this stage that are free to share batches."""
        return self.counts.total

    @property
    def queued(self) -> int:
        """Clips before this stage, those in groups of their own included."""
        return self.counts.total + self.grouped


def load_of(spec: StageSpec, limit: int = UNKNOWN_TOTAL) -> StageLoad:
    """A stage as the schedule sees it, before anything is measured and before a clip stands there."""
    return StageLoad(
        spec.name,
        spec.batch_size,
        spec.seconds,
        spec.load_seconds,
        spec.swap_seconds,
        spec.memory,
        spec.on != "cpu",
        limit,
        own=spec.on == "cpus",
    )


@dataclass
class StationLoad:
    """One station: the stages on its device (the last one used is the last) and in its host memory."""

    number: int
    memory: int
    host_memory: int
    pins: tuple[int, ...] | None = None
    """The only stages that it may run; None: any."""
    kind: str = ""
    """Of its GPU."""
    too_big: frozenset[int] = frozenset()
    """Stages that do not fit its memory."""
    own: int | None = None
    """The stage that it is for, if that has stations of its own."""
    foreign: frozenset[int] = frozenset()
    """Stages that belong to stations of another sort."""
    held: dict[int, None] = field(default_factory=dict)
    hosted: dict[int, None] = field(default_factory=dict)
    kept: set[int] = field(default_factory=set)
    """Stages that came back to the device and keep their copy in host memory."""
    idle_since: float | None = None
    card: str = ""
    """What it stands on, whatever process runs there: a GPU of a node."""
    barred: set[int] = field(default_factory=set)
    """Stages that it is not to run for now, because they failed there."""

    def may_run(self, stage: int) -> bool:
        """Whether the plan allows `stage` here, it fits, and it is not barred."""
        return stage not in self.barred and self.is_for(stage)

    def is_for(self, stage: int) -> bool:
        """The same, but for what is barred."""
        closed = stage in self.too_big or stage in self.foreign
        return not closed and (self.pins is None or stage in self.pins)

    def hold(self, stage: int, memory: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Put a stage on the device, where it is the last one used. `memory` is that of all stages.

        Returns:
            Stages that go from the device to host memory for it, the one not used for longest first; and those that
            go altogether.
        """
        evict: list[int] = []
        drop: list[int] = []
        self.held.pop(stage, None)
        if stage in self.hosted:
            del self.hosted[stage]
            self.kept.add(stage)
        taken = memory[stage] + sum(memory[held] for held in self.held)
        while taken > self.memory and self.held:
            oldest = next(iter(self.held))
            del self.held[oldest]
            taken -= memory[oldest]
            self.hosted[oldest] = None
            self.kept.discard(oldest)
            evict.append(oldest)
        while self.hosted and sum(memory[one] for one in (*self.hosted, *self.kept)) > self.host_memory:
            oldest = next(iter(self.hosted))
            del self.hosted[oldest]
            drop.append(oldest)
        self.held[stage] = None
        return tuple(left for left in evict if left not in drop), tuple(drop)


@dataclass(frozen=True)
class Assignment:
    """What a station (None: a CPU task) is to run: a batch of `clips` of `stage`; 0 clips: only load it.

    Before, the stages `evict` go from the device to host memory, and `drop` from the station altogether.
    `price` is the expected number of seconds until the stage is on the device.
    """

    station: int | None
    stage: int
    clips: int
    group: int | None = None
    """The index of the stage's group that is the batch; None: of the clips that wait."""
    evict: tuple[int, ...] = ()
    drop: tuple[int, ...] = ()
    price: float = 0.0
    kind: str = ""
    """Of the station's GPU."""
    key: Hashable = None
    """Of the clips."""

    @property
    def isolated(self) -> bool:
        """Whether the batch had to run by itself."""
        return self.group is not None
