"""The command line; each command is a thin call into the library."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from show1_ray import pipeline as pipelines_module
from show1_ray.errors import UserError
from show1_ray.pipeline import Pipeline

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
    for checkpoint, resolved in zip(loaded.checkpoints(), loaded.resolved().checkpoints(), strict=True):
        print(f"{checkpoint.repo} {resolved.revision}")


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
