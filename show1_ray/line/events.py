"""Events of the line. Times are seconds since the epoch, durations are seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from show1_ray.clip import Clip
from show1_ray.errors import last_line


@dataclass(frozen=True)
class StationUp:
    """A station is up and takes work."""

    station: int
    node: str
    pid: int
    memory: int
    stage: str | None = None
    """The only stage that it runs, if that is one on CPUs beside the GPUs."""


@dataclass(frozen=True)
class StationLost:
    """A station is gone; the line requests another one."""

    station: int
    reason: str
    place: str = ""
    """Its GPU and node, as far as they are known, for people."""

    @property
    def text(self) -> str:
        """One line for people."""
        return f"{self.place}: {self.reason}" if self.place else self.reason


@dataclass(frozen=True)
class StationsAwaited:
    """No station has been up for a while, and the cluster has no room for the requested ones."""

    text: str
    """One line for people."""


@dataclass(frozen=True)
class StationEnded:
    """A station had no work left and was released."""

    station: int


@dataclass(frozen=True)
class StationShutOut:
    """A station failed where others did not, even after a restart: it gets no work for a while.

    `place` names its GPU and node for people; `stage` None: in no stage.
    """

    station: int
    node: str
    place: str
    stage: str | None
    seconds: float
    reason: str

    @property
    def text(self) -> str:
        """One line for people."""
        what = "all stages" if self.stage is None else self.stage
        return f"{self.place} is shut out of {what} for {self.seconds:.0f} s: {self.reason}"


@dataclass(frozen=True)
class StationTriedAgain:
    """A station that was shut out (of `stage`; None: of all stages) gets work again."""

    station: int
    place: str
    stage: str | None


@dataclass(frozen=True)
class NodeAvoided:
    """A CPU task of a stage failed on a node and will run on another; this node gets none for a while."""

    node: str
    """Its address."""
    stage: str
    reason: str

    @property
    def text(self) -> str:
        """One line for people."""
        return f"{self.stage} failed on node {self.node}; trying another one: {self.reason}"


@dataclass(frozen=True)
class StageBegan:
    """A batch begins. It is expected to take `seconds`, after `load_seconds` of loading the stage."""

    clips: tuple[str, ...]
    stage: str
    station: int | None
    seconds: float
    load_seconds: float


@dataclass(frozen=True)
class StageRepeated:
    """A batch did not finish; its clips wait before the stage again (after a failure, in halves)."""

    clips: tuple[str, ...]
    stage: str
    reason: str


@dataclass(frozen=True)
class StageDone:
    """A batch is done. `station` is None for a stage that runs as a CPU task."""

    clips: tuple[str, ...]
    stage: str
    station: int | None
    seconds: float
    load_seconds: float
    started: float
    outputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """References to the stage's outputs, by clip and name, for clips whose `Order` requests them."""
    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Plain values from the stage, by clip and name."""

    @property
    def batch_size(self) -> int:
        """Clips in the batch."""
        return len(self.clips)


@dataclass(frozen=True)
class ClipDone:
    """A clip is done. `result` holds the line's results by name; by default, the last stage's outputs."""

    clip: Clip
    result: dict[str, Any]
    seconds: dict[str, float]
    """Seconds in each stage: its share of the batch."""
    batch_sizes: dict[str, int]
    attempts: int
    """1, plus 1 for each time that it failed alone in its batch."""
    values: dict[str, Any] = field(default_factory=dict)
    """All plain values of the clip, by name."""


@dataclass(frozen=True)
class ClipFailed:
    """A clip is given up."""

    clip: Clip
    stage: str
    attempts: int
    error: str

    @property
    def reason(self) -> str:
        """The error's last line."""
        return last_line(self.error)


@dataclass(frozen=True)
class ClipRejected:
    """A stage rejected the clip. That is not a failure, and later stages never saw it."""

    clip: Clip
    stage: str
    reason: str
    values: dict[str, Any]
    """As in `ClipDone`, including those of the `Reject`."""
    seconds: dict[str, float]
    """Seconds in each stage: its share of the batch."""
    batch_sizes: dict[str, int]
    attempts: int
    """As in `ClipDone`."""


@dataclass(frozen=True)
class ClipCancelled:
    """A clip was cancelled, and nothing of it is left in the line."""

    clip: Clip


@dataclass(frozen=True)
class StageView:
    """One stage in a snapshot."""

    name: str
    waiting: int
    running: int
    stations: int
    """Stations that hold it."""
    seconds: float
    batch_size: int


@dataclass(frozen=True)
class StationView:
    """One station in a snapshot. `doing` is None if it is idle."""

    number: int
    holds: tuple[str, ...]
    doing: str | None
    clips: int
    shut_out: bool = False
    """It gets no work for a while, because it failed where others did not."""


@dataclass(frozen=True)
class Snapshot:
    """The line at one moment, for a progress display."""

    time: float
    stages: tuple[StageView, ...]
    stations: tuple[StationView, ...]
    starting: int
    """Requested stations that are not up yet."""
    in_flight: int
    done: int
    failed: int
    total: int | None
    busy_share: float
    """Share of the stations' time spent in batches since the first one was up."""
    clips_an_hour: float
    """Clips done divided by the time since the run began: the speed of a job wherever one is shown."""
    seconds_left: float | None = None
    rejected: int = 0


Event = (
    StationUp
    | StationLost
    | StationEnded
    | StationShutOut
    | StationsAwaited
    | StationTriedAgain
    | NodeAvoided
    | StageBegan
    | StageRepeated
    | StageDone
    | ClipDone
    | ClipFailed
    | ClipRejected
    | ClipCancelled
    | Snapshot
)

__all__ = [
    "ClipCancelled",
    "ClipDone",
    "ClipFailed",
    "ClipRejected",
    "Event",
    "NodeAvoided",
    "Snapshot",
    "StageBegan",
    "StageDone",
    "StageRepeated",
    "StageView",
    "StationEnded",
    "StationLost",
    "StationShutOut",
    "StationTriedAgain",
    "StationUp",
    "StationView",
    "StationsAwaited",
]
