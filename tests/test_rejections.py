"""Clips that a stage of somebody's own does not let go on, and plain values: a real job, through the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from show1_ray import render
from show1_ray.dataset import read_status
from tests.own_ray import own_ray

STAGES = '''
import numpy as np
from show1_ray import Reject, Stage, StageSettings

class Draw(Stage):
    """Grey frames, as bright as the seed says."""
    gives = {"video": "f h w c"}

    def run(self, clips, values):
        return [{"video": np.full((4, 16, 16, 3), clip.seed, "uint8")} for clip in clips]

class Judge(Stage):
    """Rejects dark clips."""

    class Settings(StageSettings):
        least: float = 100.0

    takes = {"video": "f h w c"}
    gives = {"brightness": "value", "words": "value"}

    def run(self, clips, values):
        return [self.verdict(clip, float(v["video"].mean())) for clip, v in zip(clips, values)]

    def verdict(self, clip, brightness):
        if brightness < self.settings.least:
            return Reject(f"too dark: {brightness:g}", {"brightness": np.float32(brightness)})
        return {"brightness": np.float32(brightness), "words": len(clip.prompt.split())}
'''
PIPELINE = """
fps: 8
stages:
  draw: {uses: "judging:Draw"}
  look: {uses: "judging:Judge"}
"""
SEEDS = [10, 200, 99, 100, 250]
DARK = {"clip-0", "clip-2"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("judged")
    (folder / "judging.py").write_text(STAGES)
    (folder / "judged.yaml").write_text(PIPELINE)
    rows = [{"id": f"clip-{i}", "prompt": "a grey wall", "seed": seed} for i, seed in enumerate(SEEDS)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with own_ray(2):
        arguments = (str(folder / "prompts.jsonl"), str(folder / "out"), str(folder / "judged.yaml"))
        first = render(*arguments, code=str(folder / "judging.py"))
        again = render(*arguments, code=str(folder / "judging.py"))
    assert (first.rendered, first.rejected, first.failed, first.exit_code) == (3, 2, 0, 0)
    assert (again.rendered, again.rejected, again.rejected_before, again.done_before) == (0, 0, 2, 3)
    return folder


def test_what_is_rejected_is_recorded_with_reason_and_values(folder):
    rows = pq.read_table(folder / "out" / "rejections").to_pylist()
    assert {row["id"]: row["reason"] for row in rows} == {"clip-0": "too dark: 10", "clip-2": "too dark: 99"}
    assert {json.loads(row["values"])["look_brightness"] for row in rows} == {10.0, 99.0}
    assert {row["stage"] for row in rows} == {"look"}


def test_plain_values_are_columns_of_the_metadata(folder):
    rows = pq.read_table(folder / "out" / "metadata.parquet").to_pylist()
    assert {row["id"]: row["look_brightness"] for row in rows} == {"clip-1": 200.0, "clip-3": 100.0, "clip-4": 250.0}
    assert {row["look_words"] for row in rows} == {3}


def test_status_and_report_tell_of_them(folder):
    status = read_status(str(folder / "out"))
    assert (status.done, len(status.rejections), len(status.failures), status.left) == (3, 2, 0, 0)
    command = [sys.executable, "-m", "show1_ray", "status", str(folder / "out")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "3 of 5 clips done, 0 failed, 2 rejected, 0 left" in said
    assert "rejected: clip-2 by look: too dark: 99" in said
    assert "clips were rejected: see `rejections/`" in (folder / "out" / "README.md").read_text()


def test_the_report_of_the_run_that_rejected_says_why(folder):
    with own_ray(2):
        out = str(folder / "once")
        render(str(folder / "prompts.jsonl"), out, str(folder / "judged.yaml"), code=str(folder / "judging.py"))
    page = (folder / "once" / "report.html").read_text()
    assert all(f"too dark: {brightness}" in page for brightness in (10, 99))
    assert not DARK & {path.stem for path in (folder / "once").glob("clips/*/*.mp4")}
