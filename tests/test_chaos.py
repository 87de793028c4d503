"""A short form of benchmarks/chaos.py: random faults over jobs, and every clip is there once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).parent.parent / "benchmarks" / "chaos.py"


@pytest.mark.timeout(600)  # a job that hangs is told after 300 s
def test_no_fault_loses_or_doubles_a_clip_or_makes_a_job_hang(tmp_path):
    log = tmp_path / "log.jsonl"
    command = [sys.executable, str(CHAOS), "--quick", "--faults=16", "--faults-a-round=8", "--rounds=folder,s3"]
    result = subprocess.run([*command, f"--log={log}"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr + result.stdout
    rounds = [json.loads(line) for line in log.read_text().splitlines()]
    assert {(one["kind"], one["form"]) for one in rounds[:2]} == {("folder", "mp4"), ("s3", "webdataset")}
    assert all(one["exits"]["0"] == 1 and not one["wrong"] for one in rounds)
    assert sum(sum(one["faults"].values()) for one in rounds) >= 16
