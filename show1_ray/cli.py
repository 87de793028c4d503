"""The command line; each command is a thin call into the library."""

from __future__ import annotations

import math
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from show1_ray.cluster.leaving import is_stuck
from show1_ray.errors import UserError, last_line, shown
from show1_ray.output import Console, Lines, say, say_json, take_over
from show1_ray.pipeline import Pipeline
from show1_ray.pipeline.commands import CodeOption, JsonOption, SetOption, check, fetch, pipelines, schema, stages
from show1_ray.supervisor import done

if TYPE_CHECKING:
    from show1_ray.job import Control


class Format(StrEnum):
    """How clips are stored."""

    MP4 = "mp4"
    WEBDATASET = "webdataset"


class LogFormat(StrEnum):
    """How a job tells what it does."""

    TEXT = "text"
    JSON = "json"


SHOWN_REJECTIONS = 20
"""Of `status`."""

app = typer.Typer(
    help="Render text-to-video datasets with an assembly line of stages on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ColumnOption = Annotated[
    list[str] | None,
    typer.Option(
        "--column", metavar="prompt=NAME", help="Read `prompt` (or `id`, `seed`, …) from this column. Repeatable."
    ),
]
DropOption = Annotated[str, typer.Option("--drop", metavar="A,B", help="Leave out these columns of the manifest.")]
ManifestArgument = Annotated[str, typer.Argument(help="Parquet, CSV, TSV, JSON or text: a file, folder, glob or URL.")]
GpusOption = Annotated[
    str | None,
    typer.Option(
        metavar="N|MIN:MAX", show_default="all", help="How many GPUs to use; a range grows and shrinks with the work."
    ),
]
AddressOption = Annotated[
    str | None, typer.Option(metavar="auto|HOST:PORT", show_default="this machine", help="A Ray cluster.")
]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Take at most this many clips.")]
SamplesOption = Annotated[int, typer.Option(min=1, help="Clips per row, with different seeds.")]


@app.command()
def render(
    manifest: ManifestArgument,
    out: Annotated[str, typer.Option(metavar="WHERE", help="The dataset: a folder or URL.")],
    pipeline: Annotated[str, typer.Option(metavar="NAME|FILE", help="See `show1-ray pipelines`.")] = "nano",
    address: AddressOption = None,
    gpus: GpusOption = None,
    limit: LimitOption = None,
    samples: SamplesOption = 1,
    seed: Annotated[int, typer.Option(min=0, help="Rows without a seed derive theirs from this one.")] = 0,
    format: Annotated[Format, typer.Option(help="Store video files or WebDataset shards.")] = Format.MP4,
    save_stages: Annotated[str, typer.Option(metavar="A,B", help="Also save the frames of these stages.")] = "",
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Render clips that failed before again.")
    ] = False,
    max_failures: Annotated[
        int, typer.Option(min=1, help="Stop if this many clips fail before the first is done.")
    ] = 20,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare checksums of all clips; render damaged ones again.")
    ] = False,
    allow_private_urls: Annotated[
        bool,
        typer.Option(
            "--allow-private-urls",
            help="Also read images and videos at private addresses and outside the manifest's folder.",
        ),
    ] = False,
    column: ColumnOption = None,
    drop: DropOption = "",
    strict_prompts: Annotated[
        bool, typer.Option("--strict-prompts", help="Refuse prompts that a text encoder would cut.")
    ] = False,
    changes: SetOption = None,
    code: CodeOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything; render nothing.")] = False,
    log: Annotated[
        LogFormat, typer.Option(help="Log a table, or one JSON object per line with job and clip ids.")
    ] = LogFormat.TEXT,
    json_output: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Render a manifest to a dataset. Rerun to resume.

    Exit codes: 0 all clips rendered, 1 some failed, 2 bad input or failing storage, 3 the cluster is gone (rerun to
    resume), 130 interrupted (rerun to resume).
    """
    from show1_ray.cluster.connection import job_name  # Ray, which takes a second
    from show1_ray.job import Control, Summary
    from show1_ray.job import render as render_manifest
    from show1_ray.log import Log
    from show1_ray.manifest import Columns
    from show1_ray.progress import Progress, summary_lines

    console = Console(stderr=True)
    control = Control()
    columns = Columns.said(column or (), drop)

    def observe(event: object) -> None:
        if isinstance(event, Summary):
            console.print(summary_lines(event, before=True))
        else:
            progress.observe(event)

    watch = Log(sys.stderr, job_name() or out) if log == LogFormat.JSON else Progress(console)
    with watch as progress, stopped_by_signals(control, console):
        summary = render_manifest(
            manifest,
            out,
            pipeline,
            overrides=changes or (),
            columns=columns.names,
            drop=sorted(columns.dropped),
            code=code,
            address=address,
            gpus=None if gpus is None else stations_of(gpus),
            limit=limit,
            samples=samples,
            seed=seed,
            format=format.value,
            save_stages=[stage for stage in save_stages.split(",") if stage],
            retry_failed=retry_failed,
            max_failures=max_failures,
            verify=verify,
            allow_private_urls=allow_private_urls,
            strict_prompts=strict_prompts,
            dry_run=dry_run,
            observe=observe,
            control=control,
        )
    if json_output:
        say_json(summary.as_dict())
    elif not dry_run:
        console.print(summary_lines(summary))
    raise typer.Exit(summary.exit_code)


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def submit(
    context: typer.Context,
    manifest: Annotated[
        str | None, typer.Argument(help="As for `render`; local files are shipped with the job.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="WHERE", help="The dataset: a URL that all nodes can reach.")
    ] = None,
    address: Annotated[
        str, typer.Option(metavar="http://HEAD:8265", envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard.")
    ] = "http://127.0.0.1:8265",
    detach: Annotated[bool, typer.Option("--detach", help="Print the job's id instead of following the job.")] = False,
    follow: Annotated[str | None, typer.Option(metavar="JOB", help="Follow a submitted job.")] = None,
    status: Annotated[str | None, typer.Option(metavar="JOB", help="Show the state of a job.")] = None,
    stop: Annotated[str | None, typer.Option(metavar="JOB", help="Stop a job; resubmit to resume it.")] = None,
) -> None:
    """Submit a manifest to a cluster and follow the job. Takes all options of `render`. Resubmit to resume."""
    from show1_ray.cluster.submit import Cluster
    from show1_ray.cluster.submit import submit as submit_manifest

    asked = [job for job in (follow, status, stop) if job is not None]
    if len(asked) + (manifest is not None) != 1:
        raise typer.BadParameter("give a MANIFEST, or one of --follow, --status and --stop")
    if manifest is None:
        refuse_extra(context)
    if status is not None:
        job = Cluster(address).job(status)
        say(f"{job.id}: {job.status}{'' if job.exit_code is None else f' (exit code {job.exit_code})'}")
        raise typer.Exit(0)
    if stop is not None:
        Cluster(address).stop(stop)
        raise typer.Exit(0)
    if follow is None:
        if manifest is None or out is None:
            raise typer.BadParameter("--out is missing")
        options, pipeline, changes, code = options_of_render([manifest, "--out", out, *context.args])
        follow = submit_manifest(manifest, out, address, options, pipeline, changes, code)
        if detach:
            say(follow)
            raise typer.Exit(0)
        say(f"job {follow}; Ctrl-C leaves it running, `show1-ray submit --stop {follow}` stops it", file=sys.stderr)
    raise typer.Exit(Cluster(address).follow(follow, Lines(sys.stdout)))


def refuse_extra(context: typer.Context) -> None:
    """Raises typer.BadParameter for arguments that nobody asked for."""
    if context.args:
        raise typer.BadParameter(f"{context.args[0]}: not with --follow, --status or --stop")


def options_of_render(arguments: list[str]) -> tuple[list[str], str, list[str], str | None]:
    """Checks the arguments of a `render` that will run elsewhere.

    Returns:
        The options but for --out, --pipeline, --set and --code; the pipeline; its changes; its code.

    Raises:
        click.UsageError: `render` would not take them; UserError: a wrong --gpus or --column.
    """
    from show1_ray.manifest import Columns

    command = typer.main.get_command(app).commands["render"]  # type: ignore[attr-defined]
    with command.make_context("render", list(arguments)) as context:
        given = dict(context.params)
    if given["address"] is not None:
        raise UserError("--address: give it only once: the address of the cluster's dashboard")
    if given["gpus"] is not None:
        stations_of(given["gpus"])
    Columns.said(given["column"] or (), given["drop"])
    options = []
    for parameter in command.params:
        value = given[parameter.name]
        apart = ("manifest", "out", "pipeline", "address", "changes", "code")
        if parameter.name in apart or value == parameter.default:
            continue
        flag = parameter.opts[-1]
        if isinstance(value, list | tuple):
            options += [one for each in value for one in (flag, str(each))]
            continue
        options += [flag] if value is True else [flag, value.value if isinstance(value, StrEnum) else str(value)]
    return options, given["pipeline"], list(given["changes"] or ()), given["code"]


@app.command()
def status(
    where: Annotated[str, typer.Argument(metavar="WHERE", help="A dataset.")],
    verify: Annotated[bool, typer.Option("--verify", help="Compare checksums of all clips.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Show a dataset's progress and failures. Exits with 1 if files are missing, damaged or foreign."""
    from show1_ray.dataset import read_status

    status = read_status(where, verify)
    if json_output:
        say_json(asdict(status))
        raise typer.Exit(0 if status.is_sound else 1)
    rejected = f"{len(status.rejections)} rejected, " if status.rejections else ""
    ended = f"{len(status.failures)} failed, {rejected}{status.left} left"
    say(f"{where}: {status.done} of {status.count} clips done, {ended}")
    if status.others:
        say(f"{status.others} of these {status.count} are not in the last manifest, {status.manifest}")
    say(f"pipeline {status.pipeline}, recipe {status.recipe_hash}, {status.format}, {status.bytes / 2**20:.1f} MiB")
    if status.holder is not None:
        say(f"being written by {status.holder}")
    for failure in status.failures:
        say(f"failed: {failure.id} in {failure.stage} after {failure.attempts} attempts: {last_line(failure.error)}")
    for rejection in status.rejections[:SHOWN_REJECTIONS]:
        say(f"rejected: {rejection.id} by {rejection.stage}: {rejection.reason}")
    if len(status.rejections) > SHOWN_REJECTIONS:
        say(f"… and {len(status.rejections) - SHOWN_REJECTIONS} more: all of them are in rejections/")
    for lost in status.lost:
        say(f"lost: {lost}; `render` renders it again")
    for damaged in status.damaged:
        say(f"damaged: {damaged}; `render --verify` renders it again")
    for foreign in status.foreign:
        say(f"not part of this dataset: {foreign}")
    raise typer.Exit(0 if status.is_sound else 1)


@app.command()
def sheet(
    where: Annotated[str, typer.Argument(metavar="WHERE", help="A dataset.")],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="A .png; or a .gif or .webp, in which the clips play.")
    ] = Path("sheet.png"),
    count: Annotated[int, typer.Option(min=1, help="Show at most this many clips.")] = 12,
) -> None:
    """Make a picture of a dataset's clips."""
    from show1_ray.dataset.contact_sheet import write_sheet

    shown = write_sheet(where, out, count, tell=lambda text: say(text, sys.stderr))
    say(f"{out}: {shown} clips")


for command in (pipelines, stages, check, schema, fetch):
    app.command()(command)


@app.command()
def demo(
    pipeline: Annotated[str, typer.Option(metavar="NAME|FILE", help="See `show1-ray pipelines`.")] = "nano",
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0 for any free one.")] = 7860,
    address: AddressOption = None,
    auth: Annotated[
        str | None,
        typer.Option(
            metavar="@FILE",
            envvar="SHOW1_RAY_AUTH",
            show_envvar=True,
            help="A file with the `user:password` that the page asks for. Without the @, the process list shows it.",
        ),
    ] = None,
    changes: SetOption = None,
    code: CodeOption = None,
) -> None:
    """Serve a web page where people type prompts and watch clips being made. Needs the extra `demo`."""
    from show1_ray.demo.server import serve

    serve(pipeline, overrides=changes or (), code=code, host=host, port=port, address=address, auth=auth)


@app.command()
def profile(
    pipeline: Annotated[str, typer.Argument(metavar="PIPELINE", help="See `show1-ray pipelines`.")],
    batch_sizes: Annotated[
        str, typer.Option(metavar="1,2,4", show_default="1,2,4,8; on a CPU 1", help="Batch sizes to measure.")
    ] = "",
    device: Annotated[
        str | None, typer.Option(metavar="cpu|cuda:0", show_default="the first GPU, or cpu", help="Where to measure.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, max=1000, help="How often to time each batch.")] = 3,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default="in profiles/ beside the pipeline file", help="Where to store it."),
    ] = None,
    changes: SetOption = None,
    code: CodeOption = None,
) -> None:
    """Measure the time and memory of a pipeline's stages on this machine. `plan` and later jobs use the result."""
    from show1_ray.planning.profile import CPU, check_place, local_gpu, measure, profile_path, save_profile
    from show1_ray.planning.tables import profile_report

    if not re.fullmatch(r"([1-9]\d{0,3}(,[1-9]\d{0,3})*)?", batch_sizes, re.ASCII):
        raise UserError(
            f"--batch-sizes {shown(batch_sizes)}: give numbers of clips with commas between them, such as 1,2,4"
        )
    loaded = Pipeline.load(pipeline, changes or (), code)
    sizes = [int(size) for size in batch_sizes.split(",") if size]
    if out is not None:
        check_place(out)
    if device is None:
        device = "cuda:0" if local_gpu() else CPU
    found = measure(loaded, device, sizes, repeats)
    Console().print(*profile_report(found), sep="\n")
    path = out or profile_path(loaded, found.device)
    save_profile(found, path)
    say(f"saved to {path}")


@app.command()
def plan(
    manifest: ManifestArgument,
    pipeline: Annotated[str, typer.Option(metavar="NAME|FILE", help="See `show1-ray pipelines`.")] = "nano",
    gpus: Annotated[int, typer.Option(min=1, max=4096, help="How many GPUs; with --gpu-type cpu, how many cores.")] = 1,
    gpu_type: Annotated[
        str | None, typer.Option(metavar="NAME|cpu", show_default="this machine's", help="The GPU, such as A100-80G.")
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="The price of a GPU-hour.")] = None,
    profile: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default="stored with the pipeline", help="A profile written by `profile`."),
    ] = None,
    limit: LimitOption = None,
    samples: SamplesOption = 1,
    column: ColumnOption = None,
    drop: DropOption = "",
    changes: SetOption = None,
    code: CodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """Predict the hours, GPU-hours and cost of rendering a manifest, and the best number of GPUs."""
    from show1_ray.manifest import Columns, open_manifest
    from show1_ray.planning.estimate import estimate
    from show1_ray.planning.profile import CPU, local_gpu, read_profile
    from show1_ray.planning.tables import plan_report

    loaded = Pipeline.load(pipeline, changes or (), code)
    given = None if profile is None else read_profile(profile)
    gpu_type = gpu_type or (local_gpu() or CPU if given is None else given.gpu_type)
    if price is not None and not math.isfinite(price):
        raise UserError(f"--price {price}: not a price")
    columns = Columns.said(column or (), drop)
    clips = open_manifest(manifest, samples=samples, limit=limit, inputs=loaded.input_columns, columns=columns).count
    found = estimate(loaded, clips, gpus, gpu_type, price, given)
    if json_output:
        say_json(found.as_dict())
    else:
        Console().print(*plan_report(found), sep="\n")


def stations_of(gpus: str) -> int | tuple[int, int]:
    """ "4" or "1:8". Raises UserError."""
    found = re.fullmatch(r"([1-9]\d{0,4})(?::([1-9]\d{0,4}))?", gpus, re.ASCII)
    if found and found[2] is None:
        return int(found[1])
    if found and int(found[1]) <= int(found[2]):
        return int(found[1]), int(found[2])
    raise UserError(f"--gpus {shown(gpus)}: neither a number nor MIN:MAX with 1 <= MIN <= MAX < 100000")


@contextmanager
def stopped_by_signals(control: Control, console: Console) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) lets what runs end and land; the second one does not."""

    def stop(number: int, frame: object) -> None:
        again = control.asked
        control.stop(now=again)
        console.print("Stopping now" if again else "Finishing running batches; press Ctrl-C again to stop now")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Bad input, a cluster that goes and interruption end the program without a traceback: exit codes 2, 3 and 130.
    Errors of ours keep their traceback, in which secrets are hidden.
    """
    try:
        yield
    except UserError as error:
        say(f"show1-ray: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:
        say(traceback.format_exc().rstrip(), file=sys.stderr)
        sys.exit(1)


def main(command: Callable[[], object] = app) -> None:
    """Runs a command."""
    take_over()
    try:
        with one_line_errors():
            command()
        done(0)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        done(code)
        if is_stuck():  # Ray, which would be waited for
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        raise
