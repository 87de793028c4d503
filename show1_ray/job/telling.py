"""Who gets a job's events besides the dataset: its report, Prometheus, and the caller's `observe`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from show1_ray.cluster.connection import job_name
from show1_ray.dataset import Origin
from show1_ray.dataset.report import About, Report
from show1_ray.dataset.undo import Undo
from show1_ray.errors import Aside, Notice, without_secrets
from show1_ray.job.landing import columns_of
from show1_ray.job.summary import Summary
from show1_ray.line.events import (
    ClipDone,
    ClipFailed,
    ClipRejected,
    Event,
    Snapshot,
    StageDone,
    StationEnded,
    StationLost,
    StationShutOut,
    StationUp,
)
from show1_ray.line.spec import StageSpec
from show1_ray.metrics import Metrics

Told = Event | Summary | Notice
"""What a job's `observe` is called with."""


def report_subject(
    origin: Origin, summary: Summary, manifest: str, format: str, stages: Sequence[StageSpec], began: float
) -> About:
    """Facts for the report; `began` is a time of the monotonic clock."""
    return About(
        out=summary.out,
        manifest=without_secrets(manifest),
        pipeline=origin.name,
        recipe_hash=origin.recipe_hash,
        format=format,
        stages=tuple(stage.name for stage in stages),
        total=summary.total,
        began=time.time() - (time.monotonic() - began),
        done_before=summary.done_before,
        failed_before=summary.skipped_failures,
        rejected_before=summary.rejected_before,
        job=job_name(),
    )


def measured(run: str, tell: Callable[[str], None]) -> Callable[[Event], None]:
    """Counts the line's events for Prometheus. If that fails, it is reported once and the job goes on."""
    aside = Aside("metrics", tell)
    metrics: Metrics | None = None

    def observe(event: Event) -> None:
        nonlocal metrics
        if aside.failed:
            return
        try:
            metrics = metrics or Metrics(run)
            metrics.observe(event)
        except Exception as error:  # whatever it is: numbers are not worth a job
            aside.fail(error)

    return observe


def watching(
    observe: Callable[[Told], None], report: Report, metrics: Callable[[Event], None], undo: Undo
) -> Callable[[Event], None]:
    """`observe`, with the report and the metrics told too. A job that has had a station was not refused."""

    def tell(event: Event) -> None:
        if isinstance(event, StationUp):
            undo.keep()
        tell_report(report, event)
        metrics(event)
        observe(event)

    return tell


def tell_report(report: Report, event: Event) -> None:
    """The line's events, as the report takes them."""
    match event:
        case StationUp():
            report.station_up(event.station)
        case StationLost():
            report.station_lost(event.station, event.text)
        case StationShutOut():
            report.station_shut_out(event.station, event.text)
        case StationEnded():
            report.station_ended(event.station)
        case StageDone():
            report.batch_done(event.clips, event.stage, event.station, event.started, event.seconds, event.load_seconds)
        case ClipDone():
            report.clip_done(event.result["row"])
        case ClipFailed():
            report.clip_failed(event.clip, event.stage, event.attempts, event.error)
        case ClipRejected():
            report.clip_rejected(event.clip, event.stage, event.reason, columns_of(event.values))
        case Snapshot():
            at_work = [station.number for station in event.stations if station.doing is not None]
            report.working(at_work, event.clips_an_hour, event.seconds_left)
