"""What the program prints: foreign text escaped, no secret, and all of it in one way."""

from __future__ import annotations

import ast
import io
import json
import logging
import threading
import warnings
from pathlib import Path

import pytest
from rich.table import Table

import show1_ray
from show1_ray.output import Console, Lines, as_json, take_over
from tests.fuzzing import SHOWN, Case, Outcome, run

SECRET = "correct horse battery"
WILD = f"a\x1b[31m\x7f\u202e[red]{SECRET}"
SAFE = "a\\x1b[31m\\x7f\\u202e[red]***"


def test_nothing_in_the_package_prints_beside_this_module():
    package = Path(show1_ray.__file__).parent
    for path in package.rglob("*.py"):
        if path.name == "output.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.relative_to(package)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("print", "typer.echo", "typer.secho", "rich.print", "logging.basicConfig"), where
                assert not called.endswith(("stdout.write", "stderr.write")), where
            if isinstance(node, ast.ImportFrom) and node.module == "rich.console":
                assert "Console" not in [name.name for name in node.names], where


@pytest.mark.parametrize("terminal", [False, True])
def test_tables_and_text_of_a_console_are_escaped_and_no_markup(monkeypatch, terminal):
    monkeypatch.setenv("SOME_TOKEN", SECRET)
    file = io.StringIO()
    console = Console(file=file, width=120, force_terminal=terminal, color_system=None)
    table = Table(WILD, box=None, title=WILD)
    table.add_row(WILD)
    console.print(WILD, table)
    assert file.getvalue().replace("\x1b[0m", "").count(SAFE) == 4
    assert not SHOWN.search(file.getvalue().replace("\x1b[0m", ""))


def test_json_stays_json(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", 'quo"ted\\secret')
    text = as_json({"error": "x\x1b\x7f\u202e", "list": [('quo"ted\\secret', 1)]})
    assert not SHOWN.search(text)
    assert json.loads(text) == {"error": "x\x1b\x7f\u202e", "list": [["***", 1]]}


def test_a_log_that_comes_in_pieces_is_shown_line_by_line(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", SECRET)
    file = io.StringIO()
    lines = Lines(file)
    for piece in ("one\ntwo \x1b", "[31m, corr", "ect horse", " battery\nthr", "ee"):
        lines.write(piece)
    assert file.getvalue() == "one\ntwo \\x1b[31m, ***\n"
    lines.end()
    lines.end()
    assert file.getvalue() == "one\ntwo \\x1b[31m, ***\nthree\n"


def test_warnings_logs_and_threads_of_libraries_are_written_as_the_rest_is(monkeypatch, capsys):
    monkeypatch.setenv("SOME_TOKEN", SECRET)
    for owner, name in ((logging, "lastResort"), (threading, "excepthook"), (warnings, "showwarning")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # put back afterwards
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    take_over()

    def fail() -> None:
        raise RuntimeError(WILD)

    try:
        fail()
    except RuntimeError:
        logging.getLogger("somebody").exception("logged %s", WILD)
    warnings.showwarning(WILD, UserWarning, "x.py", 1)
    thread = threading.Thread(target=fail, name="t")
    thread.start()
    thread.join()
    said = capsys.readouterr().err
    assert f"logged {SAFE}" in said
    assert f"UserWarning: {SAFE}" in said
    assert "thread t: Traceback" in said
    assert said.count(f"RuntimeError: {SAFE}") == 2
    assert not SHOWN.search(said)


CODE = f'''
from show1_ray import Stage, StageSettings
class Own(Stage):
    """{WILD}"""
    class Settings(StageSettings):
        by: str = {WILD!r}
    takes = gives = {{"video": "f h w c"}}
    def run(self, clips, values): ...
'''.encode()
PIPELINE = json.dumps(
    {"extends": "nano", "description": WILD, "stages": {"own": {"uses": "own:Own", "after": "latent_super_resolution"}}}
).encode()
FILES = {"own.py": CODE, "mine.yaml": PIPELINE, f"{WILD}.csv": b"prompt\n", "m.csv": f"prompt,{WILD}\n,\n".encode()}
FILES["notes.csv"] = f"id,prompt\n{WILD},\n".encode()


@pytest.mark.parametrize(
    "arguments",
    [
        ["stages", "own:Own", "--code", "own.py"],
        ["stages", "own:Own", "--code", "own.py", "--json"],
        ["stages", "--code", "own.py"],
        ["check", "mine.yaml", "--code", "own.py"],
        ["check", "mine.yaml", "--code", "own.py", "--json"],
        ["check", "mine.yaml", "--code", "own.py", "--set", f"own.{WILD}=1"],
        ["plan", "m.csv", "--gpu-type", "cpu"],
        ["plan", "notes.csv", "--gpu-type", "cpu"],
        ["plan", f"{WILD}.csv", "--gpu-type", "cpu"],
        ["render", "m.csv", "--out", WILD],
        ["render", "m.csv", "--out", "out", "--address", WILD],
        ["demo", "--pipeline", WILD],
        ["fetch", WILD],
        ["status", WILD],
        ["submit", "--follow", "x", "--address", WILD],
        [WILD],
        ["render", f"--{WILD}"],
    ],
    ids=lambda arguments: " ".join(one.replace(WILD, "WILD") for one in arguments),
)
def test_no_command_shows_foreign_text_as_it_is(monkeypatch, tmp_path, arguments):
    monkeypatch.setenv("SOME_TOKEN", SECRET)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found: Outcome = run(Case("test", FILES, tuple(arguments)), tmp_path)
    output = found.out + found.err
    assert output.strip()
    assert "Traceback" not in output
    assert not SHOWN.search(output), repr(output)
    if not output.startswith("Usage"):  # then it is what somebody has typed, beside a command's name
        assert SECRET not in output
