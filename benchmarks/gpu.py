"""All that is measured on a GPU, in one run, with random weights of the published sizes: no Ray, no hub.

    python benchmarks/gpu.py OUT                                     # show1-demo and show1-fast, on a GPU
    python benchmarks/gpu.py OUT --pipeline tiny --modes eager       # a tiny cascade, on a CPU

Parts, in this order; each result is written to OUT as it is there, and the same command goes on where it was ended:

    machine    device, versions, the rate of large matrix products (the peak that shares refer to)
    scan       every stage with short loops: each mode, each batch size; memory, first batch, swap
    full       every stage with all its steps: in the best mode and batch that the scan found, as published, and fast
    start      a new process until its first batch is done: without and with what an earlier one compiled
    numerics   fp16 and bf16 against the published code's golden runs (see numerics.py)
    profile    kernels and waits of the stages that stay under half of the peak

Operations are counted for the recipe on the meta device (`stages/operations.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from cascade import matrix_peak, run_as_published, synchronise, timed
from torch.profiler import ProfilerActivity, profile

from show1_ray.clip import Clip
from show1_ray.models.checkpoints import published_or_local_config
from show1_ray.models.loading import Checkpoints
from show1_ray.models.random import RandomCheckpoints, write_tiny_cascade
from show1_ray.pipeline import STAGES, Pipeline
from show1_ray.stages.cascade import load_stage
from show1_ray.stages.noise import seeded_noise
from show1_ray.stages.operations import count_stages
from show1_ray.stages.stage import Stage, Tensors

PARTS = ("machine", "scan", "full", "start", "numerics", "profile")
MODES = {
    "eager": [],
    "channels last": ["channels_last=true"],
    "blocks": ["compile=blocks"],
    "blocks, channels last": ["compile=blocks", "channels_last=true"],
    "graphs": ["compile=graphs"],
}
PUBLISHED = "as published"
LOOPS = ("keyframes", "interpolation", "super_resolution", "super_resolution.first_frame")
NUMERICS = 15
"""Results of numerics.py: five cases in three number formats."""
HALF = 0.5
"""Share of the peak under which a stage is profiled."""


@dataclass
class Run:
    """What the parts share: options, the pipelines, the results so far."""

    options: argparse.Namespace
    device: torch.device
    files: dict[str, str | Path]
    rows: list[dict[str, Any]]

    def pipeline(self, name: str, overrides: Iterable[str] = ()) -> Pipeline:
        """ "exact" or "fast"."""
        return Pipeline.load(self.files[name], [*self.options.set, *overrides])

    def load(self, pipeline: Pipeline, stage: str) -> Stage:
        """A stage on the device, with random weights."""
        return load_stage(pipeline, stage, self.device, Checkpoints if self.options.tiny else RandomCheckpoints)

    def find(self, **wanted: Any) -> list[dict[str, Any]]:
        """Results with these values, without those that failed."""
        good = [row for row in self.rows if "error" not in row]
        return [row for row in good if all(row.get(key) == value for key, value in wanted.items())]

    def keep(self, row: dict[str, Any]) -> None:
        """Writes a result at once."""
        self.rows.append(row)
        with (self.options.out / "rows.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(describe(row), file=sys.stderr, flush=True)

    def short(self) -> list[str]:
        """Overrides that make loops short; the last stage walks a part of its steps."""
        strength = self.pipeline("exact").stages.latent_super_resolution.strength
        steps = self.options.steps
        return [
            *(f"{loop}.steps={steps}" for loop in LOOPS),
            f"latent_super_resolution.steps={-int(-steps // strength)}",
        ]


@torch.no_grad()
def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, str | Path] = {"exact": options.pipeline, "fast": options.fast}
        if options.tiny:
            files = dict.fromkeys(files, write_tiny_cascade(Path(folder)))
        rows_file = options.out / "rows.jsonl"
        rows = [json.loads(line) for line in rows_file.read_text().splitlines()] if rows_file.exists() else []
        run = Run(options, torch.device(options.device), files, rows)
        if options.first_batch:
            first_batch(run)
            return
        options.out.mkdir(parents=True, exist_ok=True)
        for part in options.parts:
            globals()[f"measure_{part}"](run)
            (options.out / "summary.txt").write_text(summary(run))
    print(summary(run))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a folder")
    parser.add_argument("--pipeline", default="show1-demo", help="a pipeline's name or file, or `tiny`")
    parser.add_argument("--fast", default="show1-fast")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--modes", default=";".join(MODES), help="separated by semicolons")
    parser.add_argument("--batch-sizes", default="1,2,4,8", help="clips a batch")
    parser.add_argument("--steps", type=int, default=3, help="of the scan's loops")
    parser.add_argument("--repeats", type=int, default=2, help="timed runs; their median counts")
    parser.add_argument("--set", action="append", default=[], metavar="STAGE.KEY=VALUE")
    parser.add_argument("--first-batch", help=argparse.SUPPRESS)  # STAGE;MODE;BATCH, in a process of its own
    options = parser.parse_args()
    options.tiny = options.pipeline == "tiny"
    options.parts, options.stages = options.parts.split(","), options.stages.split(",")
    options.modes = options.modes.split(";")
    options.sizes = [int(size) for size in options.batch_sizes.split(",")]
    return options


def measure_machine(run: Run) -> None:
    if run.find(part="machine"):
        return
    pipeline, is_gpu = run.pipeline("exact"), run.device.type == "cuda"
    run.keep(
        {
            "part": "machine",
            "device": torch.cuda.get_device_name() if is_gpu else platform.processor() or "cpu",
            "memory": torch.cuda.get_device_properties(run.device).total_memory if is_gpu else 0,
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "diffusers": diffusers.__version__,
            "dtype": pipeline.dtype,
            "peak": matrix_peak(run.device, getattr(torch, pipeline.dtype)),
        }
    )


def measure_scan(run: Run) -> None:
    for name in run.options.stages:
        for mode in run.options.modes if name != "text" else ["eager"]:
            pipeline = run.pipeline("exact", [*run.short(), *settings_of(name, mode)])
            measure_sizes(run, "scan", pipeline, name, mode, run.options.sizes)


def measure_full(run: Run) -> None:
    for name in run.options.stages:
        mode, size = best(run, name)
        pipeline = run.pipeline("exact", settings_of(name, mode))
        measure_sizes(run, "full", pipeline, name, mode, [size])
        measure_sizes(run, "full", run.pipeline("exact"), name, PUBLISHED, [1])
        mode = "blocks" if mode == "graphs" else mode  # graphs do not go with reuse
        measure_sizes(run, "fast", run.pipeline("fast", settings_of(name, mode)), name, mode, [size])


def settings_of(stage: str, mode: str) -> list[str]:
    return [f"{stage}.{setting}" for setting in MODES[mode]]


def best(run: Run, stage: str) -> tuple[str, int]:
    """The mode and batch size of the scan that took least; eager and 1 if there was no scan."""
    rows = run.find(part="scan", stage=stage)
    row: dict[str, Any] = min(rows, key=lambda row: row["seconds"], default={"mode": "eager", "batch": 1})
    return row["mode"], row["batch"]


def measure_sizes(run: Run, part: str, pipeline: Pipeline, name: str, mode: str, sizes: Sequence[int]) -> None:
    """One stage in one mode. What fails is kept as a result too, and the rest goes on: GPU time is short."""
    missing = [size for size in sizes if not run.find(part=part, stage=name, mode=mode, batch=size)]
    if not missing:
        return
    torch._dynamo.reset()
    stage = None
    row: dict[str, Any] = {}
    try:
        begin = time.perf_counter()
        stage = run.load(pipeline, name)
        synchronise(run.device)
        load_seconds = time.perf_counter() - begin
        for size in missing:
            row = {"part": part, "stage": name, "mode": mode, "batch": size}
            run.keep(row | timing(run, stage, pipeline, mode, size) | {"load_seconds": load_seconds})
        if mode == "eager" and run.device.type == "cuda":
            row = {"part": "swap", "stage": name}
            run.keep(row | swap(stage, run.device))
    except Exception as error:
        run.keep({"part": part, "stage": name, "mode": mode, **row, "error": str(error).splitlines()[0][:200]})
        (run.options.out / "errors.txt").open("a").write(traceback.format_exc() + "\n")
    del stage
    if run.device.type == "cuda":
        torch.cuda.empty_cache()


def timing(run: Run, stage: Stage, pipeline: Pipeline, mode: str, size: int) -> dict[str, Any]:
    """Seconds a clip, share of the peak, memory, and what the first batch took."""
    clips, tensors = batch_for(pipeline, size)

    def work() -> None:
        run_batch(stage, clips, tensors, mode == PUBLISHED)

    first = timed(work, run.device)
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = statistics.median(timed(work, run.device) for _ in range(run.options.repeats)) / size
    operations = count_stages(pipeline)[stage.name].operations
    peak = run.find(part="machine")[0]["peak"]
    memory = torch.cuda.max_memory_allocated() / 2**30 if run.device.type == "cuda" else None
    share = operations / seconds / peak
    return {"seconds": seconds, "first": first, "tflop": operations / 1e12, "share": share, "memory": memory}


def batch_for(pipeline: Pipeline, size: int) -> tuple[list[Clip], list[Tensors]]:
    """Clips, and what any stage takes of each, of the recipe's shapes: timing does not depend on values."""
    stages, dtype = pipeline.stages, getattr(torch, pipeline.dtype)
    encoder = published_or_local_config(stages.text.checkpoint, "text_encoder") or {"d_model": 4096}
    small = (stages.keyframes.height, stages.keyframes.width)
    large = tuple(side * stages.super_resolution.scale for side in small)
    shapes = {
        "prompt_embeds": (stages.text.max_tokens, encoder["d_model"]),
        "negative_prompt_embeds": (stages.text.max_tokens, encoder["d_model"]),
        "keyframes": (3, stages.keyframes.frames, *small),
        "frames": (3, pipeline.total_frames, *small),
        "frames_sr": (3, pipeline.total_frames, *large),
    }
    tensors = {name: (torch.rand(shape) * 2 - 1).to(dtype) for name, shape in shapes.items()}
    clips = [Clip(f"clip-{i}", f"a red circle moving left, take {i}", seed=i) for i in range(size)]
    return clips, [tensors] * size


def run_batch(stage: Stage, clips: Sequence[Clip], tensors: Sequence[Tensors], published: bool = False) -> None:
    encoder = getattr(stage, "encoder", None)
    if encoder is not None:
        encoder.forget()
    with torch.inference_mode():
        if published:
            run_as_published(stage, clips, tensors)
        else:
            stage.run(clips, tensors, [seeded_noise(clip.seed, stage.dtype) for clip in clips])


def swap(stage: Stage, device: torch.device) -> dict[str, Any]:
    """Seconds to leave and to enter, the first time and then; the rate of the latter."""
    seconds = []
    for _ in range(2):
        seconds.append((timed(stage.leave, device), timed(lambda: stage.enter(device), device)))
    weights = sum(t.numel() * t.element_size() for network in stage.networks.values() for t in network.parameters())
    (first_leave, first_enter), (leave, enter) = seconds
    again = {"leave": leave, "enter": enter, "rate": weights / enter}
    return {"first_leave": first_leave, "first_enter": first_enter, **again}


def measure_start(run: Run) -> None:
    """Twice with the same, at first empty, cache of compiled code."""
    cache = run.options.out / "inductor"
    for name in run.options.stages:
        mode, size = best(run, name)
        for cached in (False, True):
            if run.find(part="start", stage=name, cached=cached):
                continue
            command = [sys.executable, *sys.argv, "--first-batch", f"{name};{mode};{size}"]
            environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache.resolve())}
            begin = time.perf_counter()
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            row = {"part": "start", "stage": name, "mode": mode, "batch": size, "cached": cached}
            row["seconds"] = time.perf_counter() - begin
            if done.returncode == 0:
                run.keep(row | json.loads(done.stdout.splitlines()[-1]))
            else:
                run.keep(row | {"error": done.stderr[-300:]})


def first_batch(run: Run) -> None:
    """A station's beginning: load, first batch, second batch; loops are as short as the scan's."""
    name, mode, size = run.options.first_batch.split(";")
    pipeline = run.pipeline("exact", [*run.short(), *settings_of(name, mode)])
    clips, tensors = batch_for(pipeline, int(size))
    begin = time.perf_counter()
    stage = run.load(pipeline, name)
    synchronise(run.device)
    seconds = {"load": time.perf_counter() - begin}
    for which in ("first", "second"):
        seconds[which] = timed(lambda: run_batch(stage, clips, tensors), run.device)
    print(json.dumps(seconds))


def measure_numerics(run: Run) -> None:
    if len(run.find(part="numerics")) == NUMERICS:
        return
    sys.path.insert(0, str(Path(__file__).parent.parent))  # of the golden runs, in tests/
    from numerics import differences

    for row in differences(run.device):
        if not run.find(part="numerics", case=row["case"], dtype=row["dtype"]):
            run.keep({"part": "numerics", **row})


def measure_profile(run: Run) -> None:
    """Where the time goes, and what waits for the device inside a stage, for those that stay under `HALF`."""
    for name in run.options.stages:
        rows = [row for row in run.find(part="full", stage=name) if row["mode"] != PUBLISHED]
        if not rows or rows[0]["share"] >= HALF or run.find(part="profile", stage=name):
            continue
        mode, size = rows[0]["mode"], rows[0]["batch"]
        pipeline = run.pipeline("exact", [*run.short(), *settings_of(name, mode)])
        stage = run.load(pipeline, name)
        clips, tensors = batch_for(pipeline, size)
        run_batch(stage, clips, tensors)
        waits = count_waits(run, stage, clips, tensors)
        is_gpu = run.device.type == "cuda"
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_gpu else [])]) as found:
            run_batch(stage, clips, tensors)
            synchronise(run.device)
        by = "self_cuda_time_total" if is_gpu else "self_cpu_time_total"
        (run.options.out / f"profile-{name}.txt").write_text(found.key_averages().table(sort_by=by, row_limit=25))
        run.keep({"part": "profile", "stage": name, "mode": mode, "batch": size, "waits": waits})
        del stage


def count_waits(run: Run, stage: Stage, clips: Sequence[Clip], tensors: Sequence[Tensors]) -> int | None:
    """How often a batch waits for the GPU: its end does, loops should not."""
    if run.device.type != "cuda":
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        run_batch(stage, clips, tensors)
        torch.cuda.set_sync_debug_mode("default")
    waits = [warning for warning in caught if "synchronizing" in str(warning.message)]
    places = sorted({f"{warning.filename}:{warning.lineno}" for warning in waits})
    (run.options.out / f"waits-{stage.name}.txt").write_text("\n".join(places) + "\n")
    return len(waits)


def describe(row: dict[str, Any]) -> str:
    return "  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{value}" for key, value in row.items())


def summary(run: Run) -> str:
    """The results as text."""
    lines = []
    for machine in run.find(part="machine"):
        lines += [", ".join(f"{key} {value}" for key, value in machine.items() if key not in ("part", "peak"))]
        lines += [f"peak of matrix products: {machine['peak'] / 1e12:.4g} TFLOP/s", ""]
    header = (
        f"{'part':6}{'stage':26}{'mode':24}{'batch':>6}{'s/clip':>10}{'PFLOP':>9}{'of peak':>9}{'GiB':>7}{'first':>8}"
    )
    lines += [header, *(timing_line(row) for row in run.rows if row["part"] in ("scan", "full", "fast"))]
    published = run.find(part="full", mode=PUBLISHED)
    exact = [row for row in run.find(part="full") if row["mode"] != PUBLISHED]
    for name, rows in ("exact", exact), ("as published", published), ("fast", run.find(part="fast")):
        if {row["stage"] for row in rows} >= set(STAGES):
            total = sum(row["seconds"] for row in rows)
            times = total / sum(row["seconds"] for row in exact)
            lines.append(f"{name}, s a clip in all: {total:.4g}, {times:.2f} times exact's")
    for part in ("swap", "start", "profile", "numerics"):
        lines += ["", *(describe(row) for row in run.find(part=part))]
    return "\n".join(lines) + "\n"


def timing_line(row: dict[str, Any]) -> str:
    head = f"{row['part']:6}{row['stage']:26}{row['mode']:24}{row.get('batch', ''):>6}"
    if "error" in row:
        return f"{head}  {row['error']}"
    memory = "" if row["memory"] is None else f"{row['memory']:.1f}"
    share = f"{row['share']:.1%}"
    return f"{head}{row['seconds']:10.4g}{row['tflop'] / 1e3:9.3g}{share:>9}{memory:>7}{row['first']:8.3g}"


if __name__ == "__main__":
    main()
