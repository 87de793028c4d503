"""The benchmarks run, and count what they say they count."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet3DConditionModel

from show1_ray.errors import UserError
from show1_ray.pipeline import Pipeline
from show1_ray.show1 import VideoUNet
from show1_ray.show1.random import published_config, without_unknown, write_tiny_cascade
from show1_ray.show1.stages import STAGES

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def cascade():
    return load_benchmark("cascade")


def load_benchmark(name):
    if str(BENCHMARKS) not in sys.path:  # they import one another, as scripts do
        sys.path.append(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", BENCHMARKS / f"{name}.py")
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


def test_the_fast_benchmark_pairs_clips_and_goes_on_where_it_ended(tiny, tmp_path, capsys):
    fast, out = load_benchmark("fast"), tmp_path / "fast.jsonl"
    exact, other = Pipeline.load(tiny), Pipeline.load(tiny, ["keyframes.reuse={every: 2, levels: 1}"])
    [first] = fast.compare(exact, other, 1, 7, out)
    pairs = list(fast.compare(exact, other, 3, 7, out))
    assert pairs[0] == first
    assert len(pairs) == 3
    assert [json.loads(line) for line in out.read_text().splitlines()[1:]] == pairs
    assert all(0 < pair["psnr"] < 100 for pair in pairs)
    with pytest.raises(UserError, match="pairs of other pipelines"):
        list(fast.compare(exact, exact, 1, 7, out))
    fast.print_comparison(exact, exact, list(fast.compare(exact, exact, 2, 7)))
    printed = capsys.readouterr().out
    assert "2 clips, the same prompts and seeds" in printed
    assert "PSNR between the two: median 100.00 dB" in printed
    assert "more than 2 points lost: nowhere" in printed


def test_the_fast_benchmark_counts_operations_without_weights(tmp_path, monkeypatch, capsys):
    fast = load_benchmark("fast")
    faster = tmp_path / "faster.yaml"
    faster.write_text("extends: show1-demo\nstages: {keyframes: {steps: 25}}\n")  # of 75
    monkeypatch.setattr(sys, "argv", ["fast.py", "--exact", "show1-demo", "--fast", str(faster), "--count", "0"])
    fast.main()
    shares = {line.split()[0]: line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:]}
    assert [shares["keyframes"], shares["interpolation"], shares["all"]] == ["33.3%", "100.0%", "95.1%"]


def test_the_split_benchmark_tells_where_a_card_cannot(monkeypatch, capsys):
    split = load_benchmark("split")
    monkeypatch.setattr(sys, "argv", ["split.py"])
    monkeypatch.setattr(split, "CLIPS", 16)
    split.main()
    rows = [line.split()[-5:] for line in capsys.readouterr().out.splitlines() if line.startswith("Wan 2.2 A14B")]
    assert [row[-1] for row in rows[:2]] == ["cannot", rows[1][-1]]
    assert rows[1][0] == rows[1][3] == "cannot"  # whole, or both experts in one stage, on 48 GB
    assert float(rows[-1][-1]) > float(rows[-1][1])  # apart against offloaded, with little host memory


def test_a_paired_difference_is_that_of_the_clips_that_changed():
    fast = load_benchmark("fast")
    outcomes = [([True, True], [True, False]), ([False], [True]), ([True], [False]), ([True], [False])]
    pairs = [{"exact": {"right": {"colour": a}}, "fast": {"right": {"colour": b}}} for a, b in outcomes]
    row = fast.paired_difference(pairs, "colour")
    assert (row["exact"], row["fast"], row["points"]) == (80, 40, -40)
    assert (row["worse"], row["better"]) == (3, 1)
    assert row["low"] < -40 < row["high"]


def test_the_gpu_benchmark_measures_all_parts_and_goes_on_where_it_ended(tmp_path, monkeypatch):
    gpu, out = load_benchmark("gpu"), tmp_path / "out"
    command = [str(BENCHMARKS / "gpu.py"), str(out), "--pipeline", "tiny", "--device", "cpu", "--stages", "keyframes"]
    command += ["--modes", "eager;fused", "--batch-sizes", "1,2", "--batch", "keyframes=2", "--steps", "2"]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(importlib.import_module("numerics"), "CASES", ("sr1_image",))  # the quickest

    def run(*options: str) -> list[dict]:
        monkeypatch.setattr(sys, "argv", [*command, *options])
        gpu.main()
        return [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]

    first = run("--parts", "machine,stages", "--measures", "short")
    rows = run("--set", "keyframes.reuse={every: 2, levels: 1}", "--parts", "machine,start,stages,numerics")
    assert rows[: len(first)] == first
    assert not [row for row in rows if "error" in row]
    short = [(row["mode"], row["batch"]) for row in rows if row["part"] == "short"]
    assert short == [("eager", 1), ("eager", 2), ("fused", 2)]
    assert 0 < first[-1]["difference"] < 1e-4
    timed = [row for row in rows if row["part"] in ("short", "exact", "fast", "published")]
    assert [row["part"] for row in timed[3:]] == ["exact", "fast", "published"]
    assert all(row["seconds"] > 0 and row["tflop"] > 0 and row["share"] > 0 for row in timed)
    (start,) = (row for row in rows if row["part"] == "start")
    assert start["mode"] == "fused"
    assert min(start["load"], start["first"], start["fast first"]) > 0
    numerics = [row for row in rows if row["part"] == "numerics"]
    assert [row["fused"] for row in numerics] == [False] * 3 + [True] * 3
    worst = {dtype: max(row["rms"] for row in numerics if row["dtype"] == dtype) for dtype in ("float32", "float16")}
    assert worst["float32"] < 1e-3 < worst["float16"]
    assert "aten::" in (out / "profile-keyframes.txt").read_text()
    assert "of peak" in (out / "summary.txt").read_text()


def test_a_measurement_that_fails_is_a_result_and_is_tried_again(tmp_path):
    gpu, tiny = load_benchmark("gpu"), write_tiny_cascade(tmp_path / "tiny")
    options = argparse.Namespace(
        out=tmp_path, set=[], tiny=True, repeats=1, steps=2, stages=["keyframes"], measures=["short"], modes=["eager"],
        sizes=[1], batch={},
    )  # fmt: skip
    machine = {"part": "machine", "peak": 1e12}
    run = gpu.Run(options, torch.device("cpu"), {"exact": tiny, "fast": tiny}, [machine])
    weights = tmp_path / "tiny" / "show-1-base" / "unet"
    weights.rename(tmp_path / "away")
    gpu.measure_stages(run)
    assert "unet" in run.rows[1]["error"]
    assert run.find(stage="keyframes") == []
    (tmp_path / "away").rename(weights)
    gpu.measure_stages(run)
    assert [row["seconds"] > 0 for row in run.find(stage="keyframes")] == [True]
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == run.rows[1:]


@pytest.mark.parametrize(("form", "per_part", "listings"), [("webdataset", 7, 0), ("mp4", 7, 2 * 256)])
def test_the_resume_benchmark_counts_one_request_a_part(form, per_part, listings):
    """The build before read a part six times and deleted it alone, and listed 256 folders twice: counted at full size
    (`results/resume.txt`). A fifth of that is what is allowed."""
    resume = load_benchmark("resume")
    options = argparse.Namespace(clips=1200, parts=120, form=form, latency=0.0)
    with resume.Store(options) as store:
        store.fill()
        rows = resume.run(store, BENCHMARKS.parent)
    assert rows["status"]["of"]["GET"] == 120 + 2  # and dataset.json, and the lease
    job = [rows[phase] for phase in ("open", "survey", "finish")]
    assert sum(row["requests"] for row in job) * 5 <= per_part * 120 + listings
    assert sum(row["of"].get("DELETE", 0) for row in job) == 1  # the lease
    assert all(row["of"].get("DELETE many", 0) <= 1 for row in job)
    table = resume.table({"old": rows, "new": rows}, options)
    assert "old / new, job: requests 1.0, seconds 1.0, cpu 1.0, mb 1.0" in table
