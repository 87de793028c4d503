"""What the line tells while it runs. Times are seconds since the epoch, durations are seconds."""

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
    """The only stage that it is for: one that runs on CPUs beside the GPUs."""


@dataclass(frozen=True)
class StationLost:
    """A station is gone; the line asks for another one."""

    station: int
    reason: str
    place: str = ""
    """Its GPU and node, or what is known of them, for people."""

    @property
    def text(self) -> str:
        """For people, in one line."""
        return f"{self.place}: {self.reason}" if self.place else self.reason


@dataclass(frozen=True)
class StationsAwaited:
    """For a while now no station has been up, and the cluster has no place for those that are asked for."""

    text: str
    """For people, in one line."""


@dataclass(frozen=True)
class StationEnded:
    """A station had no work left and was given back."""

    station: int


@dataclass(frozen=True)
class StationShutOut:
    """A station failed where others did not, also with a new process: it gets no work for a time.

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
        """For people, in one line."""
        what = "all stages" if self.stage is None else self.stage
        return f"{self.place} is shut out of {what} for {self.seconds:.0f} s: {self.reason}"


@dataclass(frozen=True)
class StationTriedAgain:
    """A station that was shut out (of `stage`; None: of all) gets work again."""

    station: int
    place: str
    stage: str | None


@dataclass(frozen=True)
class NodeAvoided:
    """A CPU task of a stage failed on a node, and will be tried on another one; this one gets none for a while."""

    node: str
    """Its address."""
    stage: str
    reason: str

    @property
    def text(self) -> str:
        """For people, in one line."""
        return f"{self.stage} failed on node {self.node}; trying another one: {self.reason}"


@dataclass(frozen=True)
class StageBegan:
    """A batch begins. `seconds` is what it is expected to take, `load_seconds` what the stage's loading is before."""

    clips: tuple[str, ...]
    stage: str
    station: int | None
    seconds: float
    load_seconds: float


@dataclass(frozen=True)
class StageRepeated:
    """A batch did not come to its end; its clips wait before the stage again (of a failed batch, by halves)."""

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
    """References to what the stage gave, by clip and name, for clips whose `Order` asks for it."""
    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Plain values that the stage gave, by clip and name."""

    @property
    def batch_size(self) -> int:
        """Clips in the batch."""
        return len(self.clips)


@dataclass(frozen=True)
class ClipDone:
    """A clip has left the line. `result` holds the line's results (by default what the last stage gave), by name."""

    clip: Clip
    result: dict[str, Any]
    seconds: dict[str, float]
    """Seconds in each stage: its share of the batch."""
    batch_sizes: dict[str, int]
    attempts: int
    """1, and one more for each time that it failed alone in its batch."""
    values: dict[str, Any] = field(default_factory=dict)
    """All plain values that the clip got, by name."""


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
    """A stage said that the clip shall not go on: no fault, and nothing behind that stage was paid for it."""

    clip: Clip
    stage: str
    reason: str
    values: dict[str, Any]
    """As in `ClipDone`; those of the verdict are among them."""
    seconds: dict[str, float]
    """Seconds in each stage: its share of the batch."""
    batch_sizes: dict[str, int]
    attempts: int
    """As in `ClipDone`."""


@dataclass(frozen=True)
class ClipCancelled:
    """A clip was cancelled, and nothing of it is in the line any more."""

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
    """It gets no work for a time, because it failed where others did not."""


@dataclass(frozen=True)
class Snapshot:
    """The line at one moment, for a progress display."""

    time: float
    stages: tuple[StageView, ...]
    stations: tuple[StationView, ...]
    starting: int
    """Stations that were asked for and are not up yet."""
    in_flight: int
    done: int
    failed: int
    total: int | None
    busy_share: float
    """Share of the stations' time that went into batches since the first one was up."""
    clips_an_hour: float
    """Clips done, by the time since the run began; what is told anywhere of a job's speed is this."""
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
