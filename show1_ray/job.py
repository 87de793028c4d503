"""One job, from manifest to dataset: the one place where line, stages and dataset meet."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from show1_ray.cluster.connection import check_shared, checked_address, cluster, job_name
from show1_ray.dataset import Dataset, Origin, Survey, Weights, look
from show1_ray.dataset.compaction import read_failures
from show1_ray.dataset.patience import LISTENER
from show1_ray.dataset.report import About, Report
from show1_ray.dataset.report.page import last_line
from show1_ray.dataset.storage import Storage
from show1_ray.dataset.undo import Undo, undone_if_refused
from show1_ray.errors import UserError
from show1_ray.line.events import (
    ClipDone,
    ClipFailed,
    Event,
    Snapshot,
    StageDone,
    StationEnded,
    StationLost,
    StationUp,
)
from show1_ray.line.service import ClipEvent, Service, StoppedError
from show1_ray.line.spec import FatalError, LineSettings, Order, StageSpec
from show1_ray.manifest import Entry, open_manifest
from show1_ray.metrics import Metrics
from show1_ray.notice import Aside, Notice
from show1_ray.pipeline import Pipeline
from show1_ray.pipeline.lineup import FRAMES_OF, job_device, memory_for_stages, specs
from show1_ray.planning.costs import costs_of_job

LISTED = 100
"""Failures in a summary."""


@dataclass
class Summary:
    """What a job did. Counts are clips; `clips` is the folder that has them."""

    out: str
    clips: str = ""
    total: int = 0
    done_before: int = 0
    rendered: int = 0
    failed: int = 0
    skipped_failures: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    stopped: str = ""
    failures: list[dict[str, str]] = field(default_factory=list)
    """Of this run, at most LISTED."""
    failures_before: list[dict[str, str]] = field(default_factory=list)
    """Of earlier ones, skipped in this run, at most LISTED."""

    @property
    def exit_code(self) -> int:
        """0: all rendered; 1: some failed; 130: interrupted, and to be resumed by the same command."""
        if self.interrupted:
            return 130
        return 1 if self.failed or self.skipped_failures or self.stopped else 0

    def count_failure(self, event: ClipFailed) -> None:
        """A clip could not be rendered."""
        self.failed += 1
        if len(self.failures) < LISTED:
            self.failures.append({"id": event.clip.id, "stage": event.stage, "error": event.reason})

    def count_before(self, survey: Survey, storage: Storage) -> None:
        """What is there already."""
        self.done_before, self.skipped_failures = survey.done, survey.failed
        if survey.skipped:
            known = {failure["id"]: failure for failure in read_failures(storage)}
            told = [known[clip_id] for clip_id in survey.skipped if clip_id in known]
            self.failures_before = [
                {"id": one["id"], "stage": one["stage"], "error": last_line(one["error"])} for one in told
            ]

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "exit_code": self.exit_code}


Told = Event | Summary | Notice
"""What the `observe` of a job is told."""


class Control:
    """Stops a job that runs: `stop()` lets what runs end and land, `stop(now=True)` does not."""

    def __init__(self) -> None:
        self.asked = False
        self._line: Service | None = None

    @contextmanager
    def over(self, line: Service) -> Iterator[None]:
        """`render` hands its line over as long as it runs."""
        self._line = line
        try:
            yield
        finally:
            self._line = None

    def stop(self, now: bool = False) -> None:
        """May be called from a signal handler or another thread.

        Raises:
            KeyboardInterrupt: there is no line yet, or none any more: nothing runs that could land.
        """
        if self._line is None:
            raise KeyboardInterrupt
        self.asked = True
        self._line.stop(now)


def render(
    manifest: str,
    out: str,
    pipeline: str | Pipeline = "nano",
    *,
    overrides: Sequence[str] = (),
    address: str | None = None,
    gpus: int | tuple[int, int] | None = None,
    limit: int | None = None,
    samples: int = 1,
    seed: int = 0,
    format: Literal["mp4", "webdataset"] = "mp4",
    save_stages: Sequence[str] = (),
    retry_failed: bool = False,
    max_failures: int = 20,
    verify: bool = False,
    dry_run: bool = False,
    observe: Callable[[Told], None] = lambda event: None,
    control: Control | None = None,
    line: LineSettings | None = None,
) -> Summary:
    """Renders a manifest to a dataset; what is there already is not rendered again.

    Args:
        manifest: Parquet (a file, a folder, a glob), CSV or JSON Lines, at any fsspec URL; see `open_manifest`.
        out: the dataset, a folder at any fsspec URL; see `Dataset`.
        pipeline: a pipeline, its name, or a pipeline file.
        overrides: `stage.key=value` changes to the pipeline; see `Pipeline.load`.
        address: a Ray cluster, "auto" or HOST:PORT. None: what RAY_ADDRESS says, or this machine.
        gpus: stations, a GPU each; (least, most): as many as the work that is left can use, asked of the cluster's
            autoscaler and given back; None: all GPUs of the cluster, also those that join, or its CPU cores where
            there are none.
        limit: clips at most.
        samples: clips for each row, with different seeds.
        seed: rows without a seed get one derived from this one and their id.
        format: single video files, or WebDataset shards.
        save_stages: stages whose frames are saved too, under `__stages__/`; see `FRAMES_OF`.
        retry_failed: render again what failed in an earlier job.
        max_failures: the job stops if this many clips fail before the first one is done.
        verify: read all clips that are there and render again those whose checksum is wrong; else only their sizes are
            compared, which tells truncated ones and costs a listing.
        dry_run: check everything, say what is left, render nothing.
        observe: called with each of the line's events, in the line's thread, and first with the summary as it stands;
            and, from any thread, with a `Notice` of what went wrong beside the rendering.
        control: stops the job.
        line: how the line runs, for tests and experiments.

    Returns:
        What was done.

    Raises:
        UserError: bad input, refused before anything is rendered; a dataset of another recipe or with another writer;
            storage that fails.
    """
    if not isinstance(pipeline, Pipeline):
        pipeline = Pipeline.load(pipeline, overrides)
    for stage in save_stages:
        if stage not in FRAMES_OF:
            raise UserError(f"--save-stages {stage}: no such stage; there are {', '.join(FRAMES_OF)}")
    address = checked_address(address)
    entries = open_manifest(manifest, seed=seed, samples=samples, limit=limit)
    pipeline = pipeline.resolved()
    # A cluster may have no GPU yet, and make nodes with some when they are asked for.
    owns_gpu = True if gpus is not None and address != "local" else None
    settings = line or LineSettings(stations=gpus, gpus=owns_gpu, measure_memory=memory_for_stages)
    began = time.monotonic()
    summary = Summary(out, f"{out.rstrip('/')}/{'clips' if format == 'mp4' else 'shards'}", total=entries.count)
    about = {"url": manifest, "count": entries.count, "fingerprint": entries.fingerprint}
    place: dict[str, Any] = {"origin": origin(pipeline), "format": format, "columns": entries.columns}
    if dry_run:
        survey = look(out, entries, retry_failed=retry_failed, verify=verify, **place)
        summary.count_before(survey, Storage.at(out))
        observe(summary)
        return summary

    def tell(text: str) -> None:
        observe(Notice(text))

    def run(dataset: Dataset, undo: Undo, control: Control) -> None:
        """Renders what is missing."""
        # Shows licences, and refuses here what stations would stumble over.
        pipeline.fetch() if address == "local" else pipeline.check_access()
        costs = costs_of_job(pipeline, job_device(address, settings))
        stages = specs(pipeline, dataset.lander, save_stages, costs)
        subject = report_subject(dataset.lander.origin, summary, manifest, format, stages, began)
        with cluster(address):
            check_shared(out)
            with Report(dataset.lander.storage, subject, tell=tell) as report:
                watched = watching(observe, report, measured(job_name() or out, tell), undo)
                running = Service(stages, settings, max_waiting=math.inf, observe=watched, total=left)
                fill(dataset, running, dataset.missing(entries, retry_failed), summary, control, max_failures)
                report.end(interrupted=control.asked, stopped=summary.stopped)

    control = control or Control()
    with (
        LISTENER.told(tell),
        undone_if_refused(out) as undo,
        Dataset.open(out, manifest=about, job=job_name(), verify=verify, **place) as dataset,
    ):
        if not dataset.is_new:
            summary.count_before(dataset.survey(entries, retry_failed), dataset.lander.storage)
        left = summary.total - summary.done_before - summary.skipped_failures
        observe(summary)
        if left:
            run(dataset, undo, control)
        summary.interrupted = control.asked
        summary.seconds = time.monotonic() - began
        if not summary.interrupted and not summary.stopped:
            dataset.finish()
    return summary


def fill(
    dataset: Dataset,
    line: Service,
    entries: Iterable[Entry],
    summary: Summary,
    control: Control,
    max_failures: int = 20,
) -> None:
    """Renders `entries` into the dataset, through a line of its own, which is begun and ended here.

    Raises:
        UserError: what stopped the line, or the dataset's storage fails.
    """
    with line, control.over(line):
        _wait_for(_follow_all(line, entries, dataset, summary, max_failures), line)
    if isinstance(line.error, FatalError):
        raise UserError(str(line.error)) from line.error
    if line.error is not None:
        raise line.error


async def _follow_all(
    line: Service, entries: Iterable[Entry], dataset: Dataset, summary: Summary, max_failures: int
) -> None:
    """Follows each clip to its end; all end early if the line does."""

    async def follow(events: AsyncIterable[ClipEvent]) -> None:
        with suppress(StoppedError):
            async for event in events:
                match event:
                    case ClipDone():
                        dataset.record(event.result["row"])
                        summary.rendered += 1
                    case ClipFailed():
                        dataset.record_failure(event.clip, event.stage, event.attempts, event.error)
                        summary.count_failure(event)
                        if summary.failed >= max_failures and not summary.rendered and not summary.stopped:
                            failed = f"the first {summary.failed} clips failed"
                            summary.stopped = f"{failed}; the last with: {event.reason}"
                            line.stop()

    try:
        async with asyncio.TaskGroup() as clips:
            with suppress(StoppedError):
                for entry in entries:
                    await line.room()
                    clips.create_task(follow(line.render(Order(entry.clip, {"extra": entry.extra}))))
            line.close()
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


def _wait_for(following: Coroutine[Any, Any, None], line: Service) -> None:
    """Runs it to its end, also where an asyncio loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(following)
        return
    with ThreadPoolExecutor(1) as thread:
        try:
            thread.submit(asyncio.run, following).result()
        except BaseException:  # Ctrl-C comes here, not there
            line.stop(now=True)
            raise


def report_subject(
    origin: Origin, summary: Summary, manifest: str, format: str, stages: Sequence[StageSpec], began: float
) -> About:
    """What the report is about; `began` is of the monotonic clock."""
    return About(
        out=summary.out,
        manifest=manifest,
        pipeline=origin.name,
        recipe_hash=origin.recipe_hash,
        format=format,
        stages=tuple(stage.name for stage in stages),
        total=summary.total,
        began=time.time() - (time.monotonic() - began),
        done_before=summary.done_before,
        failed_before=summary.skipped_failures,
        job=job_name(),
    )


def measured(run: str, tell: Callable[[str], None]) -> Callable[[Event], None]:
    """What counts the line's events for Prometheus. Where that does not work, it is said once and the job goes on."""
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
            report.station_lost(event.station, event.reason)
        case StationEnded():
            report.station_ended(event.station)
        case StageDone():
            report.batch_done(event.clips, event.stage, event.station, event.started, event.seconds, event.load_seconds)
        case ClipDone():
            report.clip_done(event.result["row"])
        case ClipFailed():
            report.clip_failed(event.clip, event.stage, event.attempts, event.error)
        case Snapshot():
            at_work = [station.number for station in event.stations if station.doing is not None]
            report.working(at_work, event.clips_an_hour, event.seconds_left)


def origin(pipeline: Pipeline) -> Origin:
    """What a dataset keeps of the pipeline that makes it; `pipeline` must be resolved."""
    weights = [Weights(one.name, one.revision or "", one.licence or "") for one in pipeline.checkpoints()]
    return Origin(
        name=pipeline.name,
        pipeline={"name": pipeline.name, **pipeline.document(portable=True)},
        recipe=pipeline.recipe(),
        recipe_hash=pipeline.recipe_hash(),
        fps=pipeline.fps,
        weights=weights,
    )
