"""The command line; each command is a thin call into the library."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from show1_ray import pipeline as pipelines_module
from show1_ray.errors import UserError
from show1_ray.models.checkpoints import resolve
from show1_ray.pipeline import Pipeline

if TYPE_CHECKING:
    from show1_ray.render import Control


class Format(StrEnum):
    """How clips are stored."""

    MP4 = "mp4"
    WEBDATASET = "webdataset"


app = typer.Typer(
    help="Render text-to-video datasets: the Show-1 cascade as an assembly line on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="STAGE.KEY=VALUE", help="Change a setting of the pipeline."),
]


@app.command()
def render(
    manifest: Annotated[str, typer.Argument(help="Parquet, CSV or JSON Lines; a file, a folder or a glob; any URL.")],
    out: Annotated[str, typer.Option(metavar="WHERE", help="The dataset: a folder, any URL.")],
    pipeline: Annotated[str, typer.Option(metavar="NAME|FILE", help="See `show1-ray pipelines`.")] = "nano",
    address: Annotated[
        str | None, typer.Option(metavar="auto|HOST:PORT", help="A Ray cluster. [default: this machine]")
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs to use. [default: all]")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Clips at most.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Clips for each row, with different seeds.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seeds of rows without one are derived from it.")] = 0,
    format: Annotated[Format, typer.Option(help="Video files, or WebDataset shards.")] = Format.MP4,
    save_stages: Annotated[str, typer.Option(metavar="A,B", help="Save these stages' frames too.")] = "",
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Render again what failed before.")] = False,
    max_failures: Annotated[int, typer.Option(min=1, help="Stop if this many fail before one is done.")] = 20,
    changes: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, render nothing.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="The summary as JSON on standard output.")] = False,
) -> None:
    """Render a manifest to a dataset. Run it again to render what is missing."""
    from show1_ray.progress import Progress, summary_lines  # Ray, which takes a second
    from show1_ray.render import Control, Summary
    from show1_ray.render import render as render_manifest

    console = Console(stderr=True)
    control = Control()

    def observe(event: object) -> None:
        if isinstance(event, Summary):
            console.print(summary_lines(event, before=True), highlight=False, markup=False, soft_wrap=True)
        else:
            progress.observe(event)

    with Progress(console) as progress, stopped_by_signals(control, console):
        summary = render_manifest(
            manifest,
            out,
            pipeline,
            overrides=changes or (),
            address=address,
            gpus=gpus,
            limit=limit,
            samples=samples,
            seed=seed,
            format=format.value,
            save_stages=[stage for stage in save_stages.split(",") if stage],
            retry_failed=retry_failed,
            max_failures=max_failures,
            dry_run=dry_run,
            observe=observe,
            control=control,
        )
    if json_output:
        print(json.dumps(summary.as_dict()))
    elif not dry_run:
        console.print(summary_lines(summary), highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(summary.exit_code)


@app.command()
def status(
    where: Annotated[str, typer.Argument(metavar="WHERE", help="A dataset.")],
    json_output: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """What of a dataset is done, what failed and why, what is left."""
    from show1_ray.dataset import read_status

    status = read_status(where)
    if json_output:
        print(json.dumps(asdict(status)))
        return
    print(f"{where}: {status.done} of {status.count} clips done, {len(status.failures)} failed, {status.left} left")
    print(f"pipeline {status.pipeline}, recipe {status.recipe_hash}, {status.format}, {status.bytes / 2**20:.1f} MiB")
    if status.holder is not None:
        print(f"being written by {status.holder}")
    for failure in status.failures:
        reason = failure.error.strip().rpartition("\n")[2]
        print(f"failed: {failure.id} in {failure.stage} after {failure.attempts} attempts: {reason}")


@app.command()
def pipelines() -> None:
    """The pipelines there are."""
    table = Table("name", "what it renders", "frames", "size", "weights", box=None, pad_edge=False)
    for name in pipelines_module.names():
        pipeline = Pipeline.load(name)
        last = pipeline.stages.latent_super_resolution
        local = all(checkpoint.is_local for checkpoint in pipeline.checkpoints())
        where = "in the package" if local else f"{len(pipeline.checkpoints())} checkpoints on the hub"
        table.add_row(name, pipeline.description, str(pipeline.total_frames), f"{last.width}x{last.height}", where)
    Console().print(table)


@app.command()
def fetch(pipeline: Annotated[str, typer.Argument(metavar="PIPELINE")], changes: SetOption = None) -> None:
    """Download everything that a pipeline needs, and print the commits that it is pinned to."""
    loaded = Pipeline.load(pipeline, changes or ())
    loaded.fetch()
    for checkpoint in loaded.checkpoints():
        print(f"{checkpoint.repo} {resolve(checkpoint)}")


@contextmanager
def stopped_by_signals(control: Control, console: Console) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) lets what runs end and land; the second one does not."""

    def stop(number: int, frame: object) -> None:
        again = control.asked
        control.stop(now=again)
        console.print("stopping at once" if again else "stopping when what runs is done; once more to stop at once")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Bad input and interruption end the program without a traceback: exit codes 2 and 130."""
    try:
        yield
    except UserError as error:
        print(f"show1-ray: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def main(command: Callable[[], object] = app) -> None:
    """What the `show1-ray` script calls."""
    with one_line_errors():
        command()
