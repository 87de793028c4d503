"""The benchmarks run, and count what they say they count."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet3DConditionModel

from show1_ray.models import VideoUNet
from show1_ray.models.random import published_config, without_unknown
from show1_ray.pipeline import STAGES

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def cascade():
    spec = importlib.util.spec_from_file_location("cascade_benchmark", BENCHMARKS / "cascade.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("repo", "kind", "sample", "text", "tera"),
    [  # a call with guidance; operations counted by hand of the published networks
        ("show-1-base", VideoUNet, (2, 3, 8, 40, 64), 4096, 10.5),
        ("show-1-interpolation", VideoUNet, (2, 7, 5, 40, 64), 4096, 6.5),
        ("IF-II-L-v1.0", UNet2DConditionModel, (2, 6, 160, 256), 4096, 3.9),
        ("show-1-sr1", VideoUNet, (2, 6, 8, 160, 256), 4096, 26.2),
        ("show-1-sr2", UNet3DConditionModel, (2, 4, 29, 40, 72), 1024, 51.7),
    ],
)
def test_operations_of_the_published_networks(cascade, repo, kind, sample, text, tera):
    config = published_config(repo, "unet")
    if kind is UNet3DConditionModel:
        config = {**without_unknown(kind, config), "attention_head_dim": 64}
    with torch.device("meta"):
        network = kind.from_config(config).half()
    labels = [("class_labels", ((2,), torch.int64))] if config.get("class_embed_type") else []
    shapes = [(sample, torch.float16), ((), torch.int64), ((2, 77, text), torch.float16)]
    assert cascade.operations_of(network, shapes, labels) / 1e12 == pytest.approx(tera, abs=0.051)


def test_the_cascade_benchmark_measures_every_stage_in_both_modes(tmp_path):
    out = tmp_path / "report.json"
    command = [
        sys.executable,
        str(BENCHMARKS / "cascade.py"),
        "--batch-sizes",
        "2",
        "--repeats",
        "1",
        "--out",
        str(out),
    ]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = json.loads(out.read_text())["rows"]
    assert [(row["stage"], row["mode"]) for row in rows] == [
        (stage, mode) for stage in STAGES for mode in ("batched", "as published")
    ]
    assert all(row["seconds"] > 0 and row["tflop"] > 0 for row in rows)
    by = {(row["stage"], row["mode"]): row["tflop"] for row in rows}
    assert by["interpolation", "batched"] == pytest.approx(by["interpolation", "as published"], rel=0.01)
    assert "in all, s/clip" in printed
