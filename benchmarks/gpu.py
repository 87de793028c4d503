"""All that is measured on a GPU, in one run, with random weights of the published sizes: no Ray, no hub.

    python benchmarks/gpu.py OUT                                     # show1-demo and show1-fast, on a GPU
    python benchmarks/gpu.py OUT --pipeline tiny --modes eager       # a tiny cascade, on a CPU

Parts, in this order; each result is written to OUT as it is there, and the same command goes on where it was ended:

    machine    device, versions, the rate of large matrix products (the peak that shares refer to)
    start      all stages at once, each in a new process, until two batches are done: nothing was compiled before
    restart    the same, with what those compiled
    stages     each stage, see below
    numerics   fp16 and bf16 against the published code's golden runs (see numerics.py)

What is measured of a stage, which is loaded once:

    short      in each mode, at each batch size, with short loops: seconds, memory, the first batch, and by how much the
               output differs from the first mode's
    swap       to host memory and back
    published  all steps as the published script runs them: one clip, window after window, weights come and go
    profile    in the last mode: which kernels take the time, and what waits for the device
    exact      in the last mode, at its batch size: all steps
    fast       the same for the pipeline with fewer operations

Modes build on one another: what "channels last" lays out, "channels last, blocks" compiles. Operations are counted for
the recipe on the meta device (`stages/operations.py`).
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import psutil
import torch
from cascade import as_published, matrix_peak, run_as_published, synchronise, timed
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from show1_ray.clip import Clip
from show1_ray.models.checkpoints import published_or_local_config
from show1_ray.models.loading import Checkpoints
from show1_ray.models.random import RandomCheckpoints, write_tiny_cascade
from show1_ray.pipeline import STAGES, Pipeline
from show1_ray.settings import Execution
from show1_ray.stages.cascade import load_stage
from show1_ray.stages.compilation import prepare
from show1_ray.stages.noise import seeded_noise
from show1_ray.stages.operations import count_stages
from show1_ray.stages.stage import Stage, Tensors
from show1_ray.stages.super_resolution import SuperResolution

PARTS = ("machine", "start", "restart", "stages", "numerics")
MEASURES = ("short", "swap", "published", "profile", "exact", "fast")
MODES = ("eager", "channels last", "channels last, blocks")
FEATURES: dict[str, dict[str, Any]] = {
    "channels last": {"channels_last": True},
    "blocks": {"compile": "blocks"},
    "graphs": {"compile": "graphs"},
}
"""Execution settings by their name in a mode; "cudnn benchmark" is torch's own switch."""
PUBLISHED = "as published"
LOOPS = ("keyframes", "interpolation", "super_resolution", "super_resolution.first_frame")
ALL_KINDS = 10
"""Steps after which `show1-fast` has made each kind of step: guided or not, whole or with reused features."""
NUMERICS = 15
"""Results of numerics.py: five cases in three number formats."""


@dataclass
class Run:
    """What the parts share: options, the pipelines, the results so far."""

    options: argparse.Namespace
    device: torch.device
    files: dict[str, str | Path]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def pipeline(self, name: str, steps: int = 0) -> Pipeline:
        """ "exact" or "fast"; with `steps`, every loop walks as many."""
        overrides = [*self.options.set]
        if steps:
            overrides += [f"{loop}.steps={steps}" for loop in LOOPS]
            latent = Pipeline.load(self.files[name], overrides).stages.latent_super_resolution
            overrides += [f"latent_super_resolution.steps={-int(-steps // latent.strength)}"]
        return Pipeline.load(self.files[name], overrides)

    def short(self, name: str) -> Pipeline:
        """A pipeline with short loops."""
        return self.pipeline(name, ALL_KINDS if name == "fast" else self.options.steps)

    def load(self, stage: str) -> Stage:
        """A stage on the device, with random weights."""
        source = Checkpoints if self.options.tiny else RandomCheckpoints
        return load_stage(self.pipeline("exact"), stage, self.device, source)

    def modes(self, stage: str) -> list[str]:
        """A text encoder is run as it is."""
        return ["eager"] if stage == "text" else self.options.modes

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

    @contextmanager
    def keeping_failures(self, **row: Any) -> Iterator[None]:
        """What fails is a result too, and the rest goes on: GPU time is short."""
        try:
            yield
        except Exception as error:
            self.keep({**row, "error": (str(error) or repr(error)).splitlines()[0][:200]})
            with (self.options.out / "errors.txt").open("a") as file:
                file.write(traceback.format_exc() + "\n")


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
        if options.first_batches:
            first_batches(run, options.first_batches)
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
    parser.add_argument("--measures", default=",".join(MEASURES))
    parser.add_argument("--modes", default=";".join(MODES), help="separated by semicolons")
    parser.add_argument("--batch-sizes", default="1,4", help="clips a batch, of all modes but the last")
    parser.add_argument("--batch", type=int, default=4, help="clips a batch of the last mode")
    parser.add_argument("--steps", type=int, default=3, help="of short loops")
    parser.add_argument("--repeats", type=int, default=1, help="timed runs; their median counts")
    parser.add_argument("--set", action="append", default=[], metavar="STAGE.KEY=VALUE")
    parser.add_argument("--first-batches", metavar="STAGE", help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args()
    options.tiny = options.pipeline == "tiny"
    for name in ("parts", "stages", "measures"):
        setattr(options, name, getattr(options, name).split(","))
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


def measure_start(run: Run, part: str = "start") -> None:
    """The stages' processes run side by side, as the stations of a node do that start together."""
    names = [name for name in run.options.stages if not run.find(part=part, stage=name)]
    processes = {}
    for name in names:
        command = [sys.executable, *sys.argv, "--first-batches", name]
        processes[name] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for name, process in processes.items():
        output, errors = process.communicate()
        with run.keeping_failures(part=part, stage=name):
            if process.returncode:
                raise RuntimeError(errors.strip().splitlines()[-1])
            mode = run.modes(name)[-1]
            run.keep({"part": part, "stage": name, "mode": mode, **json.loads(output.splitlines()[-1])})


def measure_restart(run: Run) -> None:
    measure_start(run, "restart")


def first_batches(run: Run, name: str) -> None:
    """A station's beginning, in the last mode: load, first batch, second batch, first batch of the fast pipeline.

    Loops are short.
    """
    seconds = {"imports": process_age()}
    begin = time.perf_counter()
    stage = run.load(name)
    switch(stage, run.modes(name)[-1])
    synchronise(run.device)
    seconds["load"] = time.perf_counter() - begin
    for which, kind in (("first", "exact"), ("second", "exact"), ("fast first", "fast")):
        pipeline = run.short(kind)
        set_recipe(stage, pipeline)
        batch = batch_for(pipeline, run.options.batch)
        seconds[which] = timed(lambda batch=batch: run_batch(stage, *batch), run.device)
    print(json.dumps(seconds))


def process_age() -> float:
    """Seconds since the process began."""
    return time.time() - psutil.Process().create_time()


def measure_stages(run: Run) -> None:
    for name in run.options.stages:
        wanted = [job for job in jobs(run, name) if not run.find(**job)]
        if not wanted:
            continue
        with run.keeping_failures(part="load", stage=name):
            measure_stage(run, name, wanted)
        torch._dynamo.reset()
        if run.device.type == "cuda":
            torch.cuda.empty_cache()


def jobs(run: Run, name: str) -> Iterator[dict[str, Any]]:
    """What shall be measured of a stage, as results begin."""
    *_, last = modes = run.modes(name)
    for mode in modes:
        for size in [run.options.batch] if mode == last and len(modes) > 1 else run.options.sizes:
            yield {"part": "short", "stage": name, "mode": mode, "batch": size}
        if mode == modes[0]:
            yield {"part": "swap", "stage": name, "mode": mode}
            yield {"part": "published", "stage": name, "mode": mode, "batch": 1}
    for part in ("profile", "exact", "fast"):
        yield {"part": part, "stage": name, "mode": last, "batch": run.options.batch}


def measure_stage(run: Run, name: str, wanted: Sequence[dict[str, Any]]) -> None:
    """Measures what is wanted of a stage, in order."""
    stage = run.load(name)
    reference: dict[int, Any] = {}  # the first mode's output by batch size
    done: list[str] = []
    for job in (job for job in wanted if job["part"] in run.options.measures):
        with run.keeping_failures(**job):
            done = switch(stage, job["mode"], done)
            if job["part"] == "swap":
                if run.device.type == "cuda":
                    run.keep(job | swap(stage, run.device))
            elif job["part"] == "profile":
                run.keep(job | profiled(run, stage, job["batch"]))
            else:
                run.keep(job | timing(run, stage, job["part"], job["batch"], reference))


def switch(stage: Stage, mode: str, done: Sequence[str] = ("eager",)) -> list[str]:
    """Brings a stage from the features that it has to those of `mode`, which has them too; returns the latter."""
    features = mode.split(", ")
    settings = [FEATURES.get(feature, {}) for feature in features if feature not in done]
    prepare(stage, Execution(**{key: value for setting in settings for key, value in setting.items()}))
    torch.backends.cudnn.benchmark = "cudnn benchmark" in features
    return features


def set_recipe(stage: Stage, pipeline: Pipeline) -> None:
    """Lets a loaded stage do what another pipeline of the same networks says."""
    settings: Any = getattr(pipeline.stages, stage.name)
    stage.settings = settings  # type: ignore[attr-defined]
    if isinstance(stage, SuperResolution):
        stage.first_frame.settings = settings.first_frame


def timing(run: Run, stage: Stage, part: str, size: int, reference: dict[int, Any]) -> dict[str, Any]:
    """Seconds a clip, share of the peak, memory, and what the first batch (of short loops) took."""
    kind, published = "fast" if part == "fast" else "exact", part == "published"
    short, whole = run.short(kind), run.pipeline(kind)
    pipeline = short if part == "short" else whole
    row: dict[str, Any] = {}
    outputs: list[Any] = []
    batch = batch_for(pipeline, size)

    def work() -> None:
        outputs[:] = run_batch(stage, *batch, run.device if published else None)

    with as_published(stage) if published else nullcontext():
        set_recipe(stage, short)
        row["first"] = timed(work, run.device)
        if part == "short":
            found = torch.cat([tensor.flatten() for given in outputs for tensor in given.values()]).double()
            exact = reference.setdefault(size, found)
            row["difference"] = ((found - exact).norm() / (exact - exact.mean()).norm()).item()
        set_recipe(stage, pipeline)
        if run.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        row["seconds"] = statistics.median(timed(work, run.device) for _ in range(run.options.repeats)) / size
    operations = count_stages(pipeline)[stage.name].operations
    row["tflop"], row["share"] = operations / 1e12, operations / row["seconds"] / run.find(part="machine")[0]["peak"]
    row["memory"] = torch.cuda.max_memory_allocated() / 2**30 if run.device.type == "cuda" else None
    return row


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
    torch.manual_seed(0)
    tensors = {name: (torch.rand(shape) * 2 - 1).to(dtype) for name, shape in shapes.items()}
    clips = [Clip(f"clip-{i}", f"a red circle moving left, take {i}", seed=i) for i in range(size)]
    return clips, [tensors] * size


def run_batch(
    stage: Stage, clips: Sequence[Clip], tensors: Sequence[Tensors], published_on: torch.device | None = None
) -> list[dict[str, torch.Tensor]]:
    """One batch, as it is or as published on a device."""
    encoder = getattr(stage, "encoder", None)
    if encoder is not None:
        encoder.forget()
    with torch.inference_mode():
        if published_on is not None:
            return run_as_published(stage, clips, tensors, published_on)
        return stage.run(clips, tensors, [seeded_noise(clip.seed, stage.dtype) for clip in clips])


def swap(stage: Stage, device: torch.device) -> dict[str, Any]:
    """Seconds to leave and to enter, the first time and then; the rate of the latter."""
    seconds = []
    for _ in range(2):
        seconds.append((timed(stage.leave, device), timed(lambda: stage.enter(device), device)))
    weights = sum(t.numel() * t.element_size() for network in stage.networks.values() for t in network.parameters())
    (first_leave, first_enter), (leave, enter) = seconds
    again = {"leave": leave, "enter": enter, "rate": weights / enter}
    return {"first_leave": first_leave, "first_enter": first_enter, **again}


def profiled(run: Run, stage: Stage, size: int) -> dict[str, Any]:
    """Where the time of a batch with short loops goes; kernels and waits are written to files."""
    pipeline = run.short("exact")
    set_recipe(stage, pipeline)
    batch, is_gpu = batch_for(pipeline, size), run.device.type == "cuda"
    run_batch(stage, *batch)
    waits = count_waits(run, stage, *batch)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_gpu else [])]) as found:
        seconds = timed(lambda: run_batch(stage, *batch), run.device)
    kernels = [
        (event.self_device_time_total if is_gpu else event.self_cpu_time_total, event.count, event.key)
        for event in found.key_averages()
        if event.device_type == (DeviceType.CUDA if is_gpu else DeviceType.CPU)
    ]
    busy = sum(time for time, _, _ in kernels) / 1e6
    lines = [f"{time / 1e6:10.4f} s {time / 1e6 / busy:6.1%} {count:7} {name[:160]}" for time, count, name in kernels]
    file = run.options.out / f"profile-{stage.name}.txt"
    file.write_text(f"{stage.name}: kernels {busy:.4f} s\n" + "\n".join(sorted(lines, reverse=True)[:60]) + "\n")
    return {"seconds": seconds, "kernels": busy, "waits": waits}


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


def measure_numerics(run: Run) -> None:
    if len(run.find(part="numerics")) == NUMERICS:
        return
    sys.path.insert(0, str(Path(__file__).parent.parent))  # of the golden runs, in tests/
    from numerics import differences

    with run.keeping_failures(part="numerics"):
        for row in differences(run.device):
            if not run.find(part="numerics", case=row["case"], dtype=row["dtype"]):
                run.keep({"part": "numerics", **row})


def describe(row: dict[str, Any]) -> str:
    return "  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{value}" for key, value in row.items())


def summary(run: Run) -> str:
    """The results as text."""
    lines = []
    for machine in run.find(part="machine"):
        lines += [", ".join(f"{key} {value}" for key, value in machine.items() if key not in ("part", "peak"))]
        lines += [f"peak of matrix products: {machine['peak'] / 1e12:.4g} TFLOP/s", ""]
    lines += [
        f"{'part':10}{'stage':24}{'mode':24}{'batch':>6}{'s/clip':>9}{'PFLOP':>8}{'of peak':>9}{'GiB':>7}{'first':>8}"
        f"{'differs':>9}"
    ]
    lines += [timing_line(row) for row in run.rows if row["part"] in ("short", "published", "exact", "fast", "load")]
    exact = run.find(part="exact")
    for part in ("exact", "published", "fast"):
        rows = run.find(part=part)
        if {row["stage"] for row in rows} >= set(STAGES):
            total = sum(row["seconds"] for row in rows)
            times = total / sum(row["seconds"] for row in exact)
            lines.append(f"{part}, s a clip in all: {total:.4g}, {times:.2f} times exact's")
    for part in ("swap", "start", "restart", "profile", "numerics"):
        lines += ["", *(describe(row) for row in run.rows if row["part"] == part)]
    return "\n".join(lines) + "\n"


def timing_line(row: dict[str, Any]) -> str:
    head = f"{row['part']:10}{row['stage']:24}{row.get('mode', ''):24}{row.get('batch', ''):>6}"
    if "error" in row:
        return f"{head}  {row['error']}"
    memory = "" if row["memory"] is None else f"{row['memory']:.1f}"
    share, differs = f"{row['share']:.1%}", f"{row['difference']:.1e}" if "difference" in row else ""
    return f"{head}{row['seconds']:9.4g}{row['tflop'] / 1e3:8.3g}{share:>9}{memory:>7}{row['first']:8.3g}{differs:>9}"


if __name__ == "__main__":
    main()
