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
    """Stops a running job: `stop()` lets running batches finish and land, `stop(now=True)` does not."""

    def __init__(self) -> None:
        self.asked = False
        self._line: Running | None = None

    @contextmanager
    def over(self, line: Running) -> Iterator[None]:
        """`render` sets its line here while it runs."""
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
    """Renders a manifest to a dataset. Clips that are already there are not rendered again.

    Args:
        manifest: Parquet, CSV, TSV, JSON or text (a file, a folder, a glob), at any fsspec URL; see `open_manifest`.
        out: the dataset, a folder at any fsspec URL; see `Dataset`.
        pipeline: a pipeline, its name, or a pipeline file.
        overrides: `stage.key=value` changes to the pipeline; see `Pipeline.load`.
        columns: names of columns in the manifest, where they differ: {"prompt": "caption"}.
        drop: columns of the manifest to leave out.
        code: a Python file, folder or module whose stages the pipeline may use. It is sent to the stations.
        address: a Ray cluster, "auto" or HOST:PORT; None: RAY_ADDRESS, or else this machine.
        gpus: the number of stations, one GPU each; (minimum, maximum): as many as the remaining work can use, requested
            from the cluster's autoscaler and given back; None: all GPUs of the cluster, including those that join
            later, or its CPU cores if it has no GPU.
        limit: render at most this many clips.
        samples: clips per row, with different seeds.
        seed: rows without a seed get one derived from this seed and their id.
        format: one video file per clip, or WebDataset shards.
        save_stages: stages whose frames are saved as well, under `__stages__/`.
        retry_failed: also render clips that failed in an earlier job.
        max_failures: stop if this many clips fail before the first one is done.
        verify: read all existing clips and render those with a wrong checksum again. Otherwise only sizes are compared,
            which finds truncated files and costs a listing.
        allow_private_urls: also read images and videos of the manifest at addresses that are not public, and from local
            files outside the manifest's folder.
        strict_prompts: prompts are refused that are longer than what a text encoder takes; else it is said how many
            are cut.
        dry_run: check everything and report what is left, but render nothing.
        observe: called first with the summary as it stands, then with each event of the line, in the line's thread;
            and from any thread with a `Notice` when something besides the rendering goes wrong.
        control: stops the job.
        line: settings of the line, for tests and experiments.

    Returns:
        What the job did.

    Raises:
        UserError: bad input, refused before anything is rendered; a dataset with another recipe or another writer;
            failing storage.
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
    """The line's order for each clip; `prompts` counts its tokens."""
    for entry in entries:
        counted = {} if prompts is None else prompts.columns(entry.clip.prompt)
        yield order(pipeline, entry.clip, {"extra": {**entry.extra, **counted}})


def take_note(event: Event, dataset: Dataset, summary: Summary) -> None:
    """Records how a clip ended."""
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
    """Notes about a manifest's seeds."""
    notes = []
    if seeds.rule == "low" and entries.has_large_seeds:
        notes.append("seeds from 2**32 on: this dataset uses only their low 32 bits, as the version that began it did")
    shared = entries.shared_seeds()
    if shared:
        about = "about " if entries.unseeded > COUNTED_SEEDS else ""
        notes.append(f"{about}{shared:,} clips without a seed share their noise with another clip: seeds have 32 bits")
    return notes


def origin(pipeline: Pipeline, seeds: Seeds | None = None) -> Origin:
    """What a dataset stores about its pipeline, which must be resolved."""
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
