"""The command line, as a person meets it: in processes of its own."""

from __future__ import annotations

import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from show1_ray.cli import app
from show1_ray.pipeline import names


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "show1_ray", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def test_pipelines_lists_those_there_are():
    result = run("pipelines")
    assert result.returncode == 0
    assert all(name in result.stdout for name in names())
    assert "576x320" in result.stdout


def test_without_a_command_it_says_what_there_is():
    result = run()
    assert "render" in result.stdout + result.stderr
    assert "fetch" in result.stdout + result.stderr


def test_help_tells_defaults_that_depend_on_the_machine():
    for command, default in {
        "render": "(this machine)",
        "plan": "(this machine's)",
        "schema": "(standard output)",
    }.items():
        result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
        assert f"[default: {default}]" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "/nowhere/at/all"], "/nowhere/at/all"),
        (["render", "/nowhere.parquet", "--out", "/tmp/x"], "/nowhere.parquet"),
        (["render", "prompts.parquet"], "--out"),
        (["fetch", "show2"], "no pipeline 'show2'"),
        (["rendr"], "rendr"),
    ],
)
def test_bad_usage_ends_with_exit_code_2_and_no_traceback(arguments, message):
    result = run(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_without_a_terminal_progress_is_a_line_and_status_tells_the_rest(tiny, tmp_path):
    prompts = [f"a red circle {i}" for i in range(3)]
    pq.write_table(pa.table({"prompt": prompts}), tmp_path / "prompts.parquet")
    out = str(tmp_path / "out")
    result = run("render", str(tmp_path / "prompts.parquet"), "--out", out, "--pipeline", str(tiny))
    assert result.returncode == 0, result.stderr
    assert "0 of 3 clips done, 3 to render" in result.stderr
    assert "waiting+running: text" in result.stderr
    assert "3 clips rendered" in result.stderr
    assert "\x1b[" not in result.stderr
    status = run("status", out)
    assert status.returncode == 0
    assert "3 of 3 clips done, 0 failed, 0 left" in status.stdout
