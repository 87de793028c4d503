"""Writes the parts of docs/reference that are generated from the code: the command line, and the stages.

python docs/_reference.py        (`make reference`; a test sees that they are up to date)
"""

from __future__ import annotations

import html
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from show1_ray.pipeline.describe import describe_stage, list_stages

FOLDER = Path(__file__).parent / "reference"
MADE = "<!-- Generated from the code by `make reference`: do not edit. -->\n\n"


def cli() -> str:
    """Typer's own documentation of the commands."""
    command = [sys.executable, "-m", "typer", "show1_ray.cli", "utils", "docs", "--name", "show1-ray"]
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200"}
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    lines = [line.rstrip() for line in html.unescape(text).replace("# `show1-ray`", "# Command line", 1).splitlines()]
    return MADE + "\n".join(lines).strip() + "\n"


def stages() -> str:
    """The stages of the package with their settings, as `show1-ray stages NAME` tells them."""
    text = [MADE + "# Stages of the package\n"]
    text.append("What `show1-ray stages` and `show1-ray stages NAME` show. How a pipeline file uses them:")
    text.append("[Pipeline files](pipeline-files.md).\n")
    for entry in list_stages():
        if entry["from"] == "show1-ray":
            text += stage(describe_stage(entry["name"]))
    return "\n".join(text)


def stage(found: Mapping[str, Any]) -> Iterator[str]:
    """A section."""
    yield f"## {found['name']}\n\n{found['description']}\n"
    for word in ("takes", "gives"):
        values = ", ".join(f"`{name}` ({axes})" for name, axes in found[word].items())
        yield f"{word.capitalize()}: {values or 'only the clip and what the pipeline file names'}.\n"
    yield f"Version {found['version']}."
    if found["row_settings"]:
        names = ", ".join(f"`{name}`" for name in found["row_settings"])
        yield f"A row of the manifest may set: {names}."
    yield ""
    for title, part in (("Settings (`stages`)", "settings"), ("Execution settings (`execution`)", "execution")):
        yield f"### {title} of {found['name']}\n"
        yield from table(("key", "type", "default", "meaning"), map(cells, found[part]))
        yield ""


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """A setting's row."""
    default = "required" if row["required"] else f"`{json.dumps(row['default'])}`"
    return f"`{row['key']}`", row["type"], default, row["meaning"]


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """A table of Markdown."""
    head = tuple(head)
    for row in (head, ("---",) * len(head), *rows):
        yield f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in row)} |"


PAGES = {"cli.md": cli, "stages.md": stages}

if __name__ == "__main__":
    for name, write in PAGES.items():
        (FOLDER / name).write_text(write(), encoding="utf-8")
