"""What drives a job computes nothing of it: it waits for no library of networks, and needs none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from show1_ray import Pipeline

HEAVY = ("torch", "diffusers", "transformers")
RENDERS = """
import json, sys, tempfile
import show1_ray
from show1_ray.line.events import StageDone

stages = []
def observe(event):
    if isinstance(event, StageDone):
        stages.append(event.stage)

if __name__ == "__main__":
    manifest, out, pipeline = sys.argv[1:]
    summary = show1_ray.render(manifest, out, pipeline, gpus=1, observe=observe)
    heavy = [name for name in sys.modules if name.partition(".")[0] in ("torch", "diffusers", "transformers")]
    print(json.dumps({"rendered": summary.rendered, "stages": stages, "heavy": heavy}))
"""


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"prompt": "a red circle moving left"}) + "\n")
    return path


def run(*command: object) -> subprocess.CompletedProcess[str]:
    """A Python of its own, without a cluster that the environment names."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, env=environment, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def test_a_dry_run_imports_no_library_of_networks(manifest, tmp_path):
    job = ["-m", "show1_ray", "render", manifest, "--out", tmp_path / "out", "--pipeline", "nano", "--dry-run"]
    imported = {
        line.rpartition("|")[2].strip().partition(".")[0]
        for line in run("-X", "importtime", *job).stderr.splitlines()
        if line.startswith("import time:")
    }
    assert "show1_ray" in imported
    assert not imported.intersection(HEAVY)


def test_the_driver_of_a_job_has_imported_none_when_it_has_rendered(manifest, tmp_path, tiny):
    script = tmp_path / "job.py"
    script.write_text(RENDERS)
    found = json.loads(run(script, manifest, tmp_path / "out", tiny).stdout.splitlines()[-1])
    assert found["rendered"] == 1
    assert found["stages"][0] == "text"
    assert found["heavy"] == []


COUNTS = """
import json, sys
from show1_ray import Pipeline
from show1_ray.planning.costs import costs_of_job

costs = costs_of_job(Pipeline.load(sys.argv[1]), "A100-80G")
print(json.dumps({"memory": {name: cost.memory for name, cost in costs.items()}, "torch": "torch" in sys.modules}))
"""


def test_weights_that_only_torch_can_count_are_counted_in_another_process(tiny):
    found = json.loads(run("-c", COUNTS, tiny).stdout)
    weights = Pipeline.load(tiny).weights()
    assert not found["torch"]
    assert found["memory"]["text"] == int(1.2 * weights["text"])
    assert found["memory"]["keyframes"] == 3 * weights["keyframes"]
