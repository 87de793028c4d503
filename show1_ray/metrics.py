"""Prometheus metrics of a job. Ray's agents export them, each name with `ray_` before it."""

from __future__ import annotations

from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from show1_ray.line.events import ClipDone, ClipFailed, ClipRejected, Snapshot, StageDone

CLIPS_TOTAL = "show1_clips_total"
STAGE_CLIPS = "show1_stage_clips"
STAGE_DONE_TOTAL = "show1_stage_done_total"
BATCH_SECONDS = "show1_batch_seconds"
BUSY_SHARE = "show1_busy_share"
STATIONS = "show1_stations"
IN_FLIGHT = "show1_in_flight"
FAILURES_TOTAL = "show1_failures_total"
BYTES_TOTAL = "show1_bytes_total"
NAMES = (
    CLIPS_TOTAL,
    STAGE_CLIPS,
    STAGE_DONE_TOTAL,
    BATCH_SECONDS,
    BUSY_SHARE,
    STATIONS,
    IN_FLIGHT,
    FAILURES_TOTAL,
    BYTES_TOTAL,
)

BOUNDARIES = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]
"""Seconds; of the histogram's buckets."""


class Metrics:
    """What the line's events say, as metrics with the label `run` (Prometheus keeps `job` for itself). Ray has to be
    initialized.

    Clips done, failed and rejected, in all and by stage; clips that wait and run, by stage; seconds a batch; the busy
    share of the stations (0 to 1), their number, those asked for; clips in flight; bytes of videos landed.
    """

    def __init__(self, run: str) -> None:
        self._labels = {"run": run}

        def keys(*names: str) -> dict[str, Any]:
            return {"tag_keys": ("run", *names)}

        self._clips = Counter(CLIPS_TOTAL, "Clips that left the line: done, failed or rejected.", **keys("state"))
        self._stage_clips = Gauge(STAGE_CLIPS, "Clips before a stage, or in it.", **keys("stage", "state"))
        self._stage_done = Counter(STAGE_DONE_TOTAL, "Clips that a stage has done.", **keys("stage"))
        self._batch_seconds = Histogram(
            BATCH_SECONDS, "Seconds that a batch took.", boundaries=BOUNDARIES, **keys("stage")
        )
        self._busy_share = Gauge(BUSY_SHARE, "Share of the stations' time that went into batches.", **keys())
        self._stations = Gauge(STATIONS, "Stations that are up, or asked for.", **keys("state"))
        self._in_flight = Gauge(IN_FLIGHT, "Clips in the line.", **keys())
        self._failures = Counter(FAILURES_TOTAL, "Clips that a stage failed on.", **keys("stage"))
        self._bytes = Counter(BYTES_TOTAL, "Bytes of videos landed.", **keys())

    def observe(self, event: object) -> None:
        """Takes note of one of the line's events."""
        match event:
            case StageDone():
                self._stage_done.inc(len(event.clips), self._with(stage=event.stage))
                self._batch_seconds.observe(max(event.seconds, 1e-6), self._with(stage=event.stage))
            case ClipDone():
                self._clips.inc(1, self._with(state="done"))
                self._bytes.inc(event.result["row"]["bytes"], self._labels)
            case ClipFailed():
                self._clips.inc(1, self._with(state="failed"))
                self._failures.inc(1, self._with(stage=event.stage))
            case ClipRejected():
                self._clips.inc(1, self._with(state="rejected"))
            case Snapshot():
                self._observe_snapshot(event)

    def _observe_snapshot(self, snapshot: Snapshot) -> None:
        for stage in snapshot.stages:
            self._stage_clips.set(stage.waiting, self._with(stage=stage.name, state="waiting"))
            self._stage_clips.set(stage.running, self._with(stage=stage.name, state="running"))
        self._busy_share.set(snapshot.busy_share, self._labels)
        self._stations.set(len(snapshot.stations), self._with(state="up"))
        self._stations.set(snapshot.starting, self._with(state="starting"))
        self._in_flight.set(snapshot.in_flight, self._labels)

    def _with(self, **labels: str) -> dict[str, str]:
        return {**self._labels, **labels}
