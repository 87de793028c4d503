"""Progress of the line: counts, and the snapshot for a progress display."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from show1_ray.line.events import Snapshot, StageView, StationView
from show1_ray.line.fleet import Fleet
from show1_ray.line.load import Assignment, StationLoad
from show1_ray.line.schedule import Schedule


@dataclass
class Counts:
    """Clips done, failed and rejected in this run."""

    total: int | None = None
    done: int = 0
    failed: int = 0
    rejected: int = 0
    next_snapshot: float = 0.0
    began: float = 0.0

    def begin(self, total: int | None, now: float) -> None:
        """A run begins."""
        self.total, self.done, self.failed, self.rejected, self.began = total, 0, 0, 0, now

    def count(self, done: int = 0, failed: int = 0, rejected: int = 0) -> None:
        """Clips have left the line."""
        self.done += done
        self.failed += failed
        self.rejected += rejected

    def clips_an_hour(self, now: float) -> float:
        """Clips done, by the time since the run began, the stations' start included, as `plan` counts them too."""
        return 3600.0 * self.done / (now - self.began) if now > self.began else 0.0

    def snapshot(
        self,
        schedule: Schedule,
        fleet: Fleet,
        running: Mapping[int | None, Assignment],
        now: float,
        benched: Mapping[int, StationLoad],
    ) -> Snapshot:
        """The line at this moment. `running`: what each station does; `benched`: those that get nothing to do."""
        names = [stage.name for stage in schedule.stages]
        stations = []
        for number, station in sorted({**schedule.stations, **benched}.items()):
            doing = running.get(number)
            stations.append(
                StationView(
                    number,
                    tuple(names[stage] for stage in station.held),
                    names[doing.stage] if doing else None,
                    doing.clips if doing else 0,
                    number in benched,
                )
            )
        share = fleet.busy_share(now)
        known = self.total is not None and share > 0 and schedule.stations
        return Snapshot(
            time.time(),
            tuple(StageView(s.name, s.queued, s.running, s.holders, s.seconds, s.batch_size) for s in schedule.stages),
            tuple(stations),
            len(fleet.starting),
            schedule.in_flight,
            self.done,
            self.failed,
            self.total,
            share,
            self.clips_an_hour(now),
            schedule.seconds_left() / share if known else None,
            self.rejected,
        )
