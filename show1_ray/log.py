"""A job's log for machines: one JSON object per line, with the job and the clips that it concerns."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, TextIO

from show1_ray.errors import Notice
from show1_ray.line.events import (
    ClipDone,
    ClipFailed,
    ClipRejected,
    NodeAvoided,
    Snapshot,
    StageDone,
    StationEnded,
    StationLost,
    StationsAwaited,
    StationShutOut,
    StationTriedAgain,
    StationUp,
)
from show1_ray.output import as_json, say

SNAPSHOT_SECONDS = 30.0


class Log:
    """Writes the line's events to `file`. A context manager, as `Progress`; `observe` is called with each event.

    Each line has `time` (UTC), `job`, `event` and what the event is about: `clip` or `clips` (ids), `stage`, `station`,
    `seconds`, `error`. How the line stands is told every 30 seconds, as `progress`.
    """

    def __init__(self, file: TextIO, job: str) -> None:
        self.file, self.job = file, job
        self._next_snapshot = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.flush()

    def observe(self, event: object) -> None:
        """Writes what is worth it."""
        match event:
            case Notice():
                self.write("notice", text=event.text)
            case NodeAvoided():
                self.write("node avoided", node=event.node, stage=event.stage, error=event.reason)
            case StationUp():
                self.write("station up", station=event.station, node=event.node)
            case StationLost():
                self.write("station lost", station=event.station, place=event.place, error=event.reason)
            case StationsAwaited():
                self.write("stations awaited", text=event.text)
            case StationShutOut():
                what = {"station": event.station, "node": event.node, "place": event.place, "stage": event.stage}
                self.write("station shut out", **what, seconds=event.seconds, error=event.reason)
            case StationTriedAgain():
                self.write("station tried again", station=event.station, place=event.place, stage=event.stage)
            case StationEnded():
                self.write("station ended", station=event.station)
            case StageDone():
                seconds = round(event.seconds, 3)
                self.write("batch", clips=event.clips, stage=event.stage, station=event.station, seconds=seconds)
            case ClipDone():
                self.write("clip done", clip=event.clip.id, attempts=event.attempts)
            case ClipFailed():
                what = {"clip": event.clip.id, "stage": event.stage, "attempts": event.attempts}
                self.write("clip failed", **what, error=event.error)
            case ClipRejected():
                self.write("clip rejected", clip=event.clip.id, stage=event.stage, reason=event.reason)
            case Snapshot() if time.monotonic() >= self._next_snapshot:
                self._next_snapshot = time.monotonic() + SNAPSHOT_SECONDS
                counts = {"done": event.done, "failed": event.failed, "rejected": event.rejected, "total": event.total}
                self.write("progress", **counts, in_flight=event.in_flight, busy_share=round(event.busy_share, 3))

    def write(self, event: str, **about: Any) -> None:
        """One line."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        say(as_json({"time": now, "job": self.job, "event": event, **about}), self.file)
