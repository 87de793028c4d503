"""One job, from manifest to dataset: the one place where line, stages and dataset meet."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from show1_ray.clip import Clip
from show1_ray.costs import Costs, costs_of_job
from show1_ray.dataset import Dataset, Lander, Origin, Rendering, StorageError, Weights, look
from show1_ray.dataset.report import About, Report
from show1_ray.dataset.storage import Storage
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
from show1_ray.line.line import Line
from show1_ray.line.spec import RENDERING, FatalError, LineSettings, Order, StageSpec
from show1_ray.manifest import Entry, open_manifest
from show1_ray.metrics import Metrics
from show1_ray.models.checkpoints import published_or_local_config
from show1_ray.pipeline import STAGES, Pipeline
from show1_ray.profile import CPU, local_gpu

STAGES_SHARE = 0.92
"""The part of a GPU's memory that stages may take; the rest is CUDA's own."""

LAND_SECONDS = 0.05
"""What it takes to write a clip's file, until the line has measured it."""

FRAMES_OF = {"keyframes": "keyframes", "interpolation": "frames", "super_resolution": "frames_sr"}
"""Stages whose frames can be saved, and the tensors that hold them."""


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

    @property
    def exit_code(self) -> int:
        """0: all rendered; 1: some failed; 130: interrupted, and to be resumed by the same command."""
        if self.interrupted:
            return 130
        return 1 if self.failed or self.skipped_failures or self.stopped else 0

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "exit_code": self.exit_code}


class Control:
    """Stops a job that runs: `stop()` lets what runs end and land, `stop(now=True)` does not."""

    def __init__(self) -> None:
        self.asked = False
        self._line: Line | None = None

    @contextmanager
    def over(self, line: Line) -> Iterator[None]:
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
    dry_run: bool = False,
    observe: Callable[[Event | Summary], None] = lambda event: None,
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
        dry_run: check everything, say what is left, render nothing.
        observe: called with each of the line's events, and first with the summary as it stands.
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
        survey = look(out, entries, retry_failed=retry_failed, **place)
        summary.done_before, summary.skipped_failures = survey.done, survey.failed
        observe(summary)
        return summary
    with Dataset.open(out, manifest=about, job=job_name(), **place) as dataset:
        if not dataset.is_new:
            survey = dataset.survey(entries, retry_failed)
            summary.done_before, summary.skipped_failures = survey.done, survey.failed
        left = summary.total - summary.done_before - summary.skipped_failures
        observe(summary)
        if left:
            # Shows licences, and refuses here what stations would stumble over.
            pipeline.fetch() if address == "local" else pipeline.check_access()
            costs = costs_of_job(pipeline, job_device(address, settings))
            stages = specs(pipeline, dataset.lander, save_stages, costs)
            with cluster(address), Line(stages, settings) as running:
                check_shared(out)
                subject = report_subject(dataset.lander.origin, summary, manifest, format, stages, began)
                metrics = Metrics(job_name() or out)
                with Report(dataset.lander.storage, subject) as report, (control or Control()).over(running):

                    def tell(event: Event | Summary) -> None:
                        tell_report(report, event)
                        metrics.observe(event)
                        observe(event)

                    missing = dataset.missing(entries, retry_failed)
                    _run(running, missing, left, dataset, summary, tell, max_failures)
                    report.end(interrupted=control is not None and control.asked, stopped=summary.stopped)
        summary.interrupted = control is not None and control.asked
        summary.seconds = time.monotonic() - began
        if not summary.interrupted and not summary.stopped:
            dataset.finish()
    return summary


def _run(
    line: Line,
    entries: Iterable[Entry],
    left: int,
    dataset: Dataset,
    summary: Summary,
    observe: Callable[[Event | Summary], None],
    max_failures: int,
) -> None:
    """Drains the line into the dataset."""
    orders = (Order(entry.clip, {"extra": entry.extra}) for entry in entries)
    try:
        for event in line.run(orders, total=left):
            match event:
                case ClipDone():
                    dataset.record(event.result["row"])
                    summary.rendered += 1
                case ClipFailed():
                    dataset.record_failure(event.clip, event.stage, event.attempts, event.error)
                    summary.failed += 1
                    last_line = event.error.strip().rpartition("\n")[2]
                    if len(summary.failures) < 100:
                        summary.failures.append({"id": event.clip.id, "stage": event.stage, "error": last_line})
                    if summary.failed >= max_failures and not summary.rendered and not summary.stopped:
                        summary.stopped = f"the first {summary.failed} clips failed; the last with: {last_line}"
                        line.stop()
            observe(event)
    except FatalError as error:
        raise UserError(str(error)) from error


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


def tell_report(report: Report, event: Event | Summary) -> None:
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
            report.working([station.number for station in event.stations if station.doing is not None])


def origin(pipeline: Pipeline) -> Origin:
    """What a dataset keeps of the pipeline that makes it; `pipeline` must be resolved."""
    weights = [Weights(one.name, one.revision or "", one.licence or "") for one in pipeline.checkpoints()]
    return Origin(
        name=pipeline.name,
        pipeline={"name": pipeline.name, **pipeline.recipe(), "execution": pipeline.execution.model_dump(mode="json")},
        recipe=pipeline.recipe(),
        recipe_hash=pipeline.recipe_hash(),
        fps=pipeline.fps,
        weights=weights,
    )


def specs(
    pipeline: Pipeline, lander: Lander, save_stages: Sequence[str] = (), costs: Costs | None = None
) -> list[StageSpec]:
    """The pipeline's stages as the line sees them, and the landing of clips behind them; costs default to a CPU's."""
    saved = {stage: FRAMES_OF[stage] for stage in save_stages}
    land = StageSpec(
        name="land",
        build=lambda device: Land(lander, saved),
        takes=("video", *saved.values()),
        values=("extra", RENDERING),
        gives=("row",),
        on="cpu",
        seconds=LAND_SECONDS,
    )
    return [*stage_specs(pipeline, costs or costs_of_job(pipeline, CPU)), land]


def stage_specs(pipeline: Pipeline, costs: Costs) -> list[StageSpec]:
    """The pipeline's stages as the line sees them."""
    from show1_ray.stages.cascade import STAGE_CLASSES  # torch, which takes seconds

    sizes = output_bytes(pipeline)
    return [
        StageSpec(
            name=name,
            build=partial(build_stage, pipeline, name),
            takes=tuple(STAGE_CLASSES[name].takes),
            gives=tuple(STAGE_CLASSES[name].gives),
            batch_size=getattr(pipeline.execution, name).batch_size,
            seconds=costs[name].seconds,
            load_seconds=costs[name].load_seconds,
            swap_seconds=costs[name].swap_seconds,
            memory=costs[name].memory,
            output_bytes=sizes[name],
        )
        for name in STAGES
    ]


def job_device(address: str, settings: LineSettings) -> str | None:
    """What the stations of a job compute on, as far as this machine knows: for `costs_of_job`."""
    if settings.gpus is False:
        return CPU
    return local_gpu() or (CPU if address == "local" else None)


def output_bytes(pipeline: Pipeline) -> dict[str, int]:
    """Bytes of what each stage gives for a clip, from the recipe's geometry."""
    stages, item = pipeline.stages, 4 if pipeline.dtype == "float32" else 2
    encoder = published_or_local_config(stages.text.checkpoint, "text_encoder") or {"d_model": 4096}
    pixels = 3 * stages.keyframes.height * stages.keyframes.width
    last = stages.latent_super_resolution
    return {
        "text": 2 * stages.text.max_tokens * encoder["d_model"] * item,
        "keyframes": stages.keyframes.frames * pixels * item,
        "interpolation": pipeline.total_frames * pixels * item,
        "super_resolution": pipeline.total_frames * pixels * stages.super_resolution.scale**2 * item,
        "latent_super_resolution": pipeline.total_frames * 3 * last.height * last.width,
    }


def memory_for_stages(device: str) -> int:
    """Bytes of a station's device that its stages may take: most of a GPU's; host memory is not counted."""
    if device == "cpu":
        return sys.maxsize
    import torch

    return int(STAGES_SHARE * torch.cuda.get_device_properties(device).total_memory)


def build_stage(pipeline: Pipeline, name: str, device: str) -> OnArrays:
    """Loads a stage on a station."""
    from show1_ray.stages.cascade import load_stage

    return OnArrays(load_stage(pipeline, name, device))


class OnArrays:
    """A stage whose tensors come and go as NumPy arrays, which Ray's object store shares without copying."""

    def __init__(self, stage: Any) -> None:
        self.stage = stage

    def __call__(self, clips: Sequence[Clip], arrays: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """See `Stage.__call__`."""
        given = [{name: to_tensor(array) for name, array in clip.items()} for clip in arrays]
        return [{name: to_array(tensor) for name, tensor in clip.items()} for clip in self.stage(clips, given)]

    def to(self, device: str) -> None:
        """See `Stage.to`; what the device does not need any more, others may have."""
        import torch

        self.stage.to(device)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def to_tensor(array: Any) -> Any:
    """The tensor of an array out of the object store, whose memory is read-only; see `to_array`."""
    import torch

    tensor = torch.from_numpy(array.copy())
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.int16 else tensor


def to_array(tensor: Any) -> Any:
    """A tensor's array. NumPy has no bfloat16: it travels as the int16 of the same bits."""
    import torch

    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).contiguous().numpy()


def to_uint8(frames: np.ndarray) -> np.ndarray:
    """C F H W in [−1, 1], of `to_array` → F H W C, uint8, without waiting for torch."""
    if frames.dtype == np.int16:  # bfloat16 is the upper half of a single
        frames = (frames.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    levels = (frames.astype(np.float32) * 0.5 + 0.5).clip(0, 1) * 255
    return levels.astype(np.uint8).transpose(1, 2, 3, 0)


class Land:
    """The end of the line: frames become a file of the dataset, and a row."""

    def __init__(self, lander: Lander, saved: Mapping[str, str]) -> None:
        self.lander, self.saved = lander, saved

    def __call__(self, clips: Sequence[Clip], arrays: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Takes each clip's `video` (F H W 3, uint8), `extra` and `rendering`; gives its `row`.

        Raises:
            FatalError: the storage fails, after retries.
        """
        return [{"row": self._land(clip, given)} for clip, given in zip(clips, arrays, strict=True)]

    def _land(self, clip: Clip, given: Mapping[str, Any]) -> dict[str, Any]:
        try:
            for stage, name in self.saved.items():
                self.lander.save_stage(clip, stage, to_uint8(given[name]))
            return self.lander(clip, given["video"], Rendering(**given[RENDERING]), given["extra"])
        except StorageError as error:
            raise FatalError(str(error)) from error


def checked_address(address: str | None) -> str:
    """Where Ray is: `address`, what RAY_ADDRESS says, or "local" for one of our own on this machine.

    Raises:
        UserError: an address of the thin client.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith("ray://"):
        raise UserError(f"--address {address}: jobs run on the cluster, not through a client; see `ray job submit`")
    return address


@contextmanager
def cluster(address: str) -> Iterator[None]:
    """Connects to Ray, or starts it on this machine; a connection that was there before stays.

    Raises:
        UserError: no cluster there.
    """
    if ray.is_initialized():
        yield
        return
    try:
        dashboard = False if address == "local" else None
        ray.init(address=address, include_dashboard=dashboard, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise UserError(f"--address {address}: no Ray cluster there: {' '.join(str(error).split())}") from None
    try:
        yield
    finally:
        ray.shutdown()


def check_shared(out: str) -> None:
    """Sees that every node finds the dataset, where it is a folder of a file system: clips land on any node.

    Raises:
        UserError: a node does not.
    """
    storage = Storage.at(out)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if not storage.is_local or len(nodes) < 2:
        return
    look = ray.remote(num_cpus=0)(lambda: bool(storage.sizes("")))
    strategies = [NodeAffinitySchedulingStrategy(node, soft=True) for node in nodes]
    found = ray.get([look.options(scheduling_strategy=strategy).remote() for strategy in strategies])
    if not all(found):
        raise UserError(f"--out {out}: not all nodes of the cluster share this folder; give a URL that they do")


def job_name() -> str:
    """How this job is called where another one is refused: the Ray job's id, if it is one."""
    return os.environ.get("RAY_JOB_SUBMISSION_ID", "")
