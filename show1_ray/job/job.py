"""One job, from manifest to dataset: the one place where line, stages and dataset meet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from show1_ray.cluster.connection import check_shared, checked_address, cluster, job_name, on_all_nodes
from show1_ray.dataset import Dataset, Origin, Weights, look
from show1_ray.dataset.patience import LISTENER
from show1_ray.dataset.place import check_out
from show1_ray.dataset.report import Report
from show1_ray.dataset.seeds import Seeds, seeds_of
from show1_ray.dataset.storage import Storage
from show1_ray.dataset.undo import Undo, undone_if_refused
from show1_ray.errors import Notice, UserError
from show1_ray.job.landing import columns_of, specs
from show1_ray.job.prompts import Prompts
from show1_ray.job.summary import Summary
from show1_ray.job.telling import Told, measured, report_subject, watching
from show1_ray.line.events import (
    ClipDone,
    ClipFailed,
    ClipRejected,
    Event,
)
from show1_ray.line.line import Line
from show1_ray.line.running import Running
from show1_ray.line.spec import FatalError, LineSettings, Order
from show1_ray.manifest import COUNTED_SEEDS, Columns, Entry, Manifest, open_manifest
from show1_ray.pipeline import Pipeline
from show1_ray.pipeline.lineup import order, saved_frames
from show1_ray.pipeline.recipe import recipe_hash
from show1_ray.pipeline.sources import Sources, folder_of_manifest
from show1_ray.planning.costs import costs_of_job, job_device
from show1_ray.planning.gpus import gauge, memory_for_stages


class Control:
    """Stops a job that runs: `stop()` lets what runs end and land, `stop(now=True)` does not."""

    def __init__(self) -> None:
        self.asked = False
        self._line: Running | None = None

    @contextmanager
    def over(self, line: Running) -> Iterator[None]:
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
    columns: Mapping[str, str] | None = None,
    drop: Sequence[str] = (),
    code: str | Path | None = None,
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
    allow_private_urls: bool = False,
    strict_prompts: bool = False,
    dry_run: bool = False,
    observe: Callable[[Told], None] = lambda event: None,
    control: Control | None = None,
    line: LineSettings | None = None,
) -> Summary:
    """Renders a manifest to a dataset; what is there already is not rendered again.

    Args:
        manifest: Parquet, CSV, TSV, JSON or text (a file, a folder, a glob), at any fsspec URL; see `open_manifest`.
        out: the dataset, a folder at any fsspec URL; see `Dataset`.
        pipeline: a pipeline, its name, or a pipeline file.
        overrides: `stage.key=value` changes to the pipeline; see `Pipeline.load`.
        columns: what the manifest calls columns that are read: {"prompt": "caption"}.
        drop: columns of the manifest that are left out.
        code: a Python file, a folder or a module, whose stages the pipeline may use; stations get it with their stages.
        address: a Ray cluster, "auto" or HOST:PORT. None: what RAY_ADDRESS says, or this machine.
        gpus: stations, a GPU each; (least, most): as many as the work that is left can use, asked of the cluster's
            autoscaler and given back; None: all GPUs of the cluster, also those that join, or its CPU cores where
            there are none.
        limit: clips at most.
        samples: clips for each row, with different seeds.
        seed: rows without a seed get one derived from this one and their id.
        format: single video files, or WebDataset shards.
        save_stages: stages whose frames are saved too, under `__stages__/`: any that gives frames.
        retry_failed: render again what failed in an earlier job.
        max_failures: the job stops if this many clips fail before the first one is done.
        verify: read all clips that are there and render again those whose checksum is wrong; else only their sizes are
            compared, which tells truncated ones and costs a listing.
        allow_private_urls: images and videos of the manifest may also lie at addresses that are not public, and in
            local files outside the manifest's folder.
        strict_prompts: prompts are refused that are longer than what a text encoder takes; else it is said how many
            are cut.
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
    check_out(out, manifest)
    address = checked_address(address)
    if not isinstance(pipeline, Pipeline):
        pipeline = Pipeline.load(pipeline, overrides, code)
    saved_frames(pipeline, list(save_stages))  # refuses others
    entries = open_manifest(
        manifest,
        seed=seed,
        samples=samples,
        limit=limit,
        inputs=pipeline.input_columns,
        columns=Columns(dict(columns or {}), frozenset(drop)),
    )
    pipeline = pipeline.resolved()
    seeds = seeds_of(out, entries.has_large_seeds)
    if seeds.rule == "low":
        entries = entries.with_low_seeds()
    # A cluster may have no GPU yet, and make nodes with some when they are asked for.
    owns_gpu = True if gpus is not None and address != "local" else None
    settings = line or LineSettings(stations=gpus, gpus=owns_gpu, measure_memory=memory_for_stages, gauge=gauge)
    began = time.monotonic()
    summary = Summary(out, f"{out.rstrip('/')}/{'clips' if format == 'mp4' else 'shards'}", total=entries.count)
    summary.notes += [*(f"manifest: {note}" for note in entries.notes), *seed_notes(entries, seeds), *pipeline.notes()]
    about = {"url": manifest, "count": entries.count, "fingerprint": entries.fingerprint}
    sources = Sources(on_all_nodes(folder_of_manifest(manifest)), allow_private_urls)
    place: dict[str, Any] = {
        "sha256": sources.local_sha256,
        "origin": origin(pipeline, seeds),
        "format": format,
        "columns": entries.columns,
    }
    prompts = Prompts(pipeline)
    if strict_prompts:
        prompts.refuse(entries)
    if dry_run:
        survey = look(out, entries, retry_failed=retry_failed, verify=verify, **place)
        summary.count_before(survey, Storage.at(out))
        summary.notes += [] if strict_prompts else prompts.notes(entries)
        observe(summary)
        return summary

    def tell(text: str) -> None:
        observe(Notice(text))

    def run(dataset: Dataset, undo: Undo, control: Control) -> None:
        """Renders what is missing."""
        # Shows licences, and refuses here what stations would stumble over.
        pipeline.fetch() if address == "local" else pipeline.check_access()
        costs = costs_of_job(pipeline, job_device(address, settings))
        stages = specs(pipeline, dataset.lander, save_stages, costs, sources)
        subject = report_subject(dataset.lander.origin, summary, manifest, format, stages, began)
        # The report ends after the cluster: it is told why that has gone, and may have to wait for its storage.
        variables = settings.variables(settings.threads)
        with ExitStack() as after, cluster(address, variables) as watch:
            check_shared(out, dataset.lander.token)
            report = after.enter_context(Report(dataset.lander.storage, subject, tell=tell))
            watched = watching(observe, report, measured(job_name() or out, tell), undo)
            orders = orders_of(pipeline, dataset.missing(entries, retry_failed), prompts)
            running = Running(Line(stages, replace(settings, inherited=watch.inherited)), orders, summary.left)
            watch.when_gone(running.end)
            fill(dataset, running, summary, control, max_failures, watched)
            report.end(interrupted=control.asked, stopped=summary.stopped)

    control = control or Control()
    with (
        LISTENER.told(tell),
        undone_if_refused(out) as undo,
        Dataset.open(out, manifest=about, job=job_name(), verify=verify, **place) as dataset,
    ):
        if not dataset.is_new:
            summary.count_before(dataset.survey(entries, retry_failed), dataset.lander.storage)
        if summary.left and not strict_prompts:
            summary.notes += prompts.notes(entries)
        observe(summary)
        if summary.left:
            run(dataset, undo, control)
        summary.interrupted = control.asked
        summary.seconds = time.monotonic() - began
        if not summary.interrupted and not summary.stopped:
            dataset.finish()
    return summary


def fill(
    dataset: Dataset,
    line: Running,
    summary: Summary,
    control: Control,
    max_failures: int = 20,
    observe: Callable[[Event], None] = lambda event: None,
) -> None:
    """Runs a line, and records in the dataset how its clips end.

    Args:
        dataset: that is written.
        line: with what is to be rendered.
        summary: counts what ends.
        control: stops the line.
        max_failures: the line stops if so many clips fail before the first one is done.
        observe: is told each event, before what it says is recorded.

    Raises:
        UserError: what stopped the line, the manifest has changed, or the dataset's storage fails.
    """
    try:
        with control.over(line):
            for event in line.events():
                observe(event)
                take_note(event, dataset, summary)
                if isinstance(event, ClipFailed) and summary.is_hopeless(max_failures):
                    summary.stopped = f"the first {summary.failed} clips failed; the last with: {event.reason}"
                    line.stop()
    except FatalError as error:
        raise UserError(str(error)) from error


def orders_of(pipeline: Pipeline, entries: Iterable[Entry], prompts: Prompts | None = None) -> Iterator[Order]:
    """What the line is given of each clip; `prompts` counts its tokens."""
    for entry in entries:
        counted = {} if prompts is None else prompts.columns(entry.clip.prompt)
        yield order(pipeline, entry.clip, {"extra": {**entry.extra, **counted}})


def take_note(event: Event, dataset: Dataset, summary: Summary) -> None:
    """Records how a clip has ended."""
    match event:
        case ClipDone():
            dataset.record(event.result["row"])
            summary.rendered += 1
        case ClipRejected():
            dataset.record_rejection(event.clip, event.stage, event.reason, columns_of(event.values))
            summary.rejected += 1
        case ClipFailed():
            dataset.record_failure(event.clip, event.stage, event.attempts, event.error)
            summary.count_failure(event)


def seed_notes(entries: Manifest, seeds: Seeds) -> list[str]:
    """What should be known of a manifest's seeds."""
    notes = []
    if seeds.rule == "low" and entries.has_large_seeds:
        notes.append("seeds from 2**32 on: this dataset was begun when only their low 32 bits counted, and keeps to it")
    shared = entries.shared_seeds()
    if shared:
        about = "about " if entries.unseeded > COUNTED_SEEDS else ""
        notes.append(f"{about}{shared:,} clips without a seed get the noise of another one: seeds have 32 bits")
    return notes


def origin(pipeline: Pipeline, seeds: Seeds | None = None) -> Origin:
    """What a dataset keeps of the pipeline that makes it; `pipeline` must be resolved."""
    seeds = seeds or Seeds()
    recipe = seeds.recipe(pipeline.recipe())
    weights = [Weights(one.name, one.revision or "", one.licence or "") for one in pipeline.checkpoints()]
    return Origin(
        name=pipeline.name,
        pipeline={"name": pipeline.name, **pipeline.document(portable=True)},
        recipe=recipe,
        recipe_hash=recipe_hash(recipe),
        fps=pipeline.fps,
        weights=weights,
        seed_rule=seeds.rule,
    )
