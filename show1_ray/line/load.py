"""The state that the schedule decides on: stages and stations as plain counts, and what it hands out."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

UNKNOWN_TOTAL = 10**6
"""Clips that are taken to be still to come while nobody knows how many there are."""


@dataclass
class StageLoad:
    """One stage: its prices (seconds, replaced by measurements) and the clips that stand before it."""

    name: str
    batch_size: int
    seconds: float
    load_seconds: float = 0.0
    swap_seconds: float = 0.0
    memory: int = 0
    on_station: bool = True
    limit: int = UNKNOWN_TOTAL
    """At most this many clips may be in this stage or beyond it."""
    waiting: int = 0
    groups: deque[int] = field(default_factory=deque)
    """Sizes of batches that have to run by themselves: what a failed batch was split into."""
    running: int = 0
    holders: int = 0
    ready_since: float | None = None

    @property
    def queued(self) -> int:
        """Clips before this stage, those in groups of their own included."""
        return self.waiting + sum(self.groups)


@dataclass
class StationLoad:
    """One station: the stages on its device (the last one used is the last) and in its host memory."""

    number: int
    memory: int
    host_memory: int
    pins: tuple[int, ...] | None = None
    """The only stages that it may run; None: any."""
    held: dict[int, None] = field(default_factory=dict)
    hosted: dict[int, None] = field(default_factory=dict)
    idle_since: float | None = None

    def may_run(self, stage: int) -> bool:
        """Whether the plan allows `stage` here."""
        return self.pins is None or stage in self.pins


@dataclass(frozen=True)
class Assignment:
    """What a station (None: a CPU task) is to run: a batch of `clips` of `stage`; 0 clips: only load it.

    Before, the stages `evict` go from the device to host memory, and `drop` from the station altogether.
    `price` is the expected number of seconds until the stage is on the device.
    """

    station: int | None
    stage: int
    clips: int
    isolated: bool = False
    evict: tuple[int, ...] = ()
    drop: tuple[int, ...] = ()
    price: float = 0.0
