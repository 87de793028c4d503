"""The commands that show pipelines and stages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.table import Table

from show1_ray.errors import UserError, one_line, shown
from show1_ray.output import Console, say, say_json
from show1_ray.pipeline.checkpoints import resolve
from show1_ray.pipeline.file import names
from show1_ray.pipeline.pipeline import Pipeline

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="STAGE.KEY=VALUE", help="Change a setting of the pipeline. Repeatable."),
]
CodeOption = Annotated[
    str | None,
    typer.Option(
        "--code",
        metavar="FILE|FOLDER|MODULE",
        help="Python code with stages for the pipeline (`uses: module:Class`). It runs here and on stations.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def pipelines() -> None:
    """List the pipelines of the package."""
    table = Table("name", "what it renders", "frames", "size", "weights", box=None, pad_edge=False)
    for name in names():
        pipeline = Pipeline.load(name)
        frames, height, width, _ = ("?" if size is None else size for size in pipeline.video_shape.sizes)
        local = all(checkpoint.is_local for checkpoint in pipeline.checkpoints())
        where = "in the package" if local else f"{len(pipeline.checkpoints())} checkpoints on the hub"
        table.add_row(name, pipeline.description, str(frames), f"{width}x{height}", where)
    Console().print(table)


def fetch(
    pipeline: Annotated[str, typer.Argument(metavar="PIPELINE")], changes: SetOption = None, code: CodeOption = None
) -> None:
    """Download the weights of a pipeline, and print the commits to pin it to."""
    loaded = Pipeline.load(pipeline, changes or (), code)
    loaded.fetch()
    for checkpoint in loaded.checkpoints():
        say(f"{checkpoint.repo} {resolve(checkpoint)}")


def stages(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A stage; or MODULE:CLASS with --code.")] = None,
    code: CodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """List the stages, or show the settings, inputs and outputs of one."""
    from show1_ray.pipeline.code import Code
    from show1_ray.pipeline.describe import describe_stage, list_stages

    own = None if code is None else Code.at(code)
    found: Any = list_stages(own) if name is None else describe_stage(name, own)
    if json_output:
        say_json(found)
    elif name is None:
        table = _table("name", "what it does", "from")
        for one in found:
            table.add_row(one["name"], one["description"], one["from"])
        Console().print(table)
    else:
        Console().print(*_stage(found), sep="\n")


def check(
    pipeline: Annotated[str, typer.Argument(metavar="NAME|FILE", help="See `show1-ray pipelines`.")],
    changes: SetOption = None,
    code: CodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """Check a pipeline without loading weights, and show what passes between its stages."""
    from show1_ray.pipeline.describe import check as checked

    found = checked(Pipeline.load(pipeline, changes or (), code))
    if json_output:
        say_json(found)
    else:
        Console().print(*_pipeline(found), sep="\n")


def schema(
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", show_default="standard output", help="Where to write it.")
    ] = None,
) -> None:
    """Write a JSON schema of pipeline files, for completion and hints in editors."""
    from show1_ray.pipeline.describe import schema as pipeline_schema

    text = json.dumps(pipeline_schema(), indent=1)
    if out is None:
        say(text)
    else:
        try:
            out.write_text(text + "\n")
        except (OSError, ValueError) as error:
            raise UserError(f"--out {shown(str(out))}: cannot be written: {one_line(error)}") from None


def _stage(found: dict[str, Any]) -> Iterator[RenderableType]:
    yield f"{found['name']} ({found['class']}, version {found['version']})"
    yield found["description"] + "\n"
    for word in ("takes", "gives"):
        values = ", ".join(f"{name} ({axes})" for name, axes in found[word].items())
        yield f"{word} {values or 'nothing'}"
    for title, rows in (("settings (stages)", found["settings"]), ("settings (execution)", found["execution"])):
        table = _table(title, "type", "default", "meaning")
        for row in rows:
            default = "(needed)" if row["required"] else json.dumps(row["default"])
            table.add_row(row["key"], row["type"], default, row["meaning"])
        yield ""
        yield table
    if found["row_settings"]:
        yield f"\na row of the manifest may change {', '.join(found['row_settings'])}"


def _pipeline(found: dict[str, Any]) -> Iterator[RenderableType]:
    yield f"{found['name']}: {found['description']}".rstrip(": ")
    yield f"{found['dtype']}, {found['fps']:g} frames a second"
    if found["inputs"]:
        yield f"inputs: {', '.join(found['inputs'])}"
    for number, stage in enumerate(found["stages"], 1):
        memory, weights = stage["memory_gib"], stage["weights_bytes"]
        needed = f"{memory:g} GiB of memory" if memory else f"{_bytes(weights)} of weights" if weights else ""
        facts = [f"batches of {stage['batch_size']}", needed, _operations(stage["operations"])]
        uses = "" if stage["uses"] == stage["name"] else f" ({stage['uses']})"
        yield f"{number} {stage['name']}{uses}: {', '.join(filter(None, facts))}"
        values = Table.grid(padding=(0, 2))
        for name, value in stage["takes"].items():
            values.add_row("   takes", name, value["from"], *_shape(value), _bytes(value["bytes"]))
        for name, value in stage["gives"].items():
            values.add_row("   gives", name, "", *_shape(value), _bytes(value["bytes"]))
        yield values
    yield f"the clip is {found['clip']['value']}: {' '.join(_shape(found['clip']))}"
    needed_of: dict[str, list[str]] = {}
    for stage in found["stages"]:
        for need in stage["checkpoints"]:
            said = f"{need['checkpoint']} ({need['licence'] or 'licence not stated'})"
            needed_of.setdefault(said, []).append(stage["name"])
    for checkpoint, whose in needed_of.items():
        yield f"{checkpoint}: {', '.join(dict.fromkeys(whose))}"
    yield from found["notes"]


def _shape(value: dict[str, Any]) -> tuple[str, str]:
    """Axes; sizes and type."""
    sizes = " x ".join("?" if size is None else str(size) for size in value["sizes"])
    return value["axes"], f"{sizes} {value['type'] or ''}".strip()


def _bytes(size: int | None) -> str:
    if size is None:
        return ""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} B"


def _operations(count: float | None) -> str:
    if count is None:
        return ""
    for unit, name in ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP")):
        if count >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count:.0f} FLOP"


def _table(*columns: str) -> Table:
    table = Table(*columns, box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    return table
