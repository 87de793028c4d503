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
               UNet's first prediction differs from that in the first mode
    swap       to host memory and back
    exact      in the last mode, at its batch size: all steps
    fast       the same for the pipeline with fewer operations
    alone      by how much the UNet's first prediction of a clip in a batch differs from that of the clip alone
    profile    in the last mode: which kernels take the time, and what waits for the device
    published  all steps as the published script runs them: one clip, window after window, weights come and go

Modes build on one another: what "channels last" lays out, "channels last, blocks" compiles. Operations are counted for
the recipe on the meta device (`stages/operations.py`).
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import psutil
import torch
from cascade import matrix_peak, synchronise, timed
from stage_measures import alone, batch_for, profiled, run_batch, set_recipe, swap, switch, timing

from show1_ray.pipeline import Pipeline
from show1_ray.show1.cascade import load_stage
from show1_ray.show1.loading import Checkpoints
from show1_ray.show1.random import RandomCheckpoints, write_tiny_cascade
from show1_ray.show1.stages import STAGES
from show1_ray.stages.torch_stage import TorchStage

PARTS = ("machine", "start", "restart", "stages", "numerics")
MEASURES = ("short", "swap", "exact", "fast", "alone", "profile", "published")
MODES = ("eager", "fused")
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

    def recipes(self, part: str) -> tuple[Pipeline, Pipeline]:
        """What a part of the measurements does, and the same with short loops."""
        kind = "fast" if part == "fast" else "exact"
        short = self.short(kind)
        return (short if part == "short" else self.pipeline(kind)), short

    @property
    def peak(self) -> float:
        """Operations a second of large matrix products."""
        return self.find(part="machine")[0]["peak"]

    def load(self, stage: str) -> TorchStage:
        """A stage on the device, with random weights."""
        source = Checkpoints if self.options.tiny else RandomCheckpoints
        return load_stage(self.pipeline("exact"), stage, self.device, source)

    def modes(self, stage: str) -> list[str]:
        """A text encoder is run as it is."""
        return ["eager"] if stage == "text" else self.options.modes

    def batch(self, stage: str) -> int:
        """Clips a batch of the last mode."""
        return self.options.batch.get(f"={stage}", self.options.batch.get("", 4))

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
    parser.add_argument("--batch", action="append", metavar="[STAGE=]CLIPS", help="of the last mode; default: 4")
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
    options.batch = {stage: int(size) for stage, _, size in (("=" + b).rpartition("=") for b in options.batch or ["4"])}
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
        batch = batch_for(pipeline, run.batch(name))
        seconds[which] = timed(functools.partial(run_batch, stage, *batch), run.device)
    print(json.dumps(seconds))


def process_age() -> float:
    """Seconds since the process began."""
    return time.time() - psutil.Process().create_time()


def measure_stages(run: Run) -> None:
    for name in run.options.stages:
        wanted = [job for job in jobs(run, name) if job["part"] in run.options.measures and not run.find(**job)]
        published = [job for job in wanted if job["part"] == "published"]  # with a network that nothing was done to
        for group in ([job for job in wanted if job not in published], published):
            if group:
                with run.keeping_failures(part="load", stage=name):
                    measure_stage(run, name, group)
                torch._dynamo.reset()
                if run.device.type == "cuda":
                    torch.cuda.empty_cache()


def jobs(run: Run, name: str) -> Iterator[dict[str, Any]]:
    """What shall be measured of a stage, as results begin."""
    *_, last = modes = run.modes(name)
    for mode in modes:
        for size in [run.batch(name)] if mode == last and len(modes) > 1 else run.options.sizes:
            yield {"part": "short", "stage": name, "mode": mode, "batch": size}
        if mode == modes[0]:
            yield {"part": "swap", "stage": name, "mode": mode}
    for part in ("exact", "fast", "alone", "profile"):
        if part != "alone" or name != "text":
            yield {"part": part, "stage": name, "mode": last, "batch": run.batch(name)}
    yield {"part": "published", "stage": name, "mode": modes[0], "batch": 1}


def measure_stage(run: Run, name: str, wanted: Sequence[dict[str, Any]]) -> None:
    """Measures what is wanted of a stage, in order."""
    stage = run.load(name)
    reference: dict[int, Any] = {}  # the first mode's output by batch size
    done: list[str] = []
    for job in wanted:
        with run.keeping_failures(**job):
            done = switch(stage, job["mode"], done)
            if job["part"] == "swap":
                if run.device.type == "cuda":
                    run.keep(job | swap(stage, run.device))
            elif job["part"] == "alone":
                run.keep(job | alone(stage, run.short("exact"), job["batch"]))
            elif job["part"] == "profile":
                pipeline = run.short("exact")
                run.keep(job | profiled(stage, pipeline, job["batch"], run.device, run.options.out))
            else:
                row = timing(
                    stage,
                    *run.recipes(job["part"]),
                    job["batch"],
                    run.device,
                    run.options.repeats,
                    published=job["part"] == "published",
                    reference=reference if job["part"] == "short" else None,
                )
                run.keep(job | row | {"share": row["tflop"] * 1e12 / row["seconds"] / run.peak})


def measure_numerics(run: Run) -> None:
    """Of networks as they are, and fused."""
    sys.path.insert(0, str(Path(__file__).parent.parent))  # of the golden runs, in tests/
    from numerics import differences

    for fused in (False, True):
        if len(run.find(part="numerics", fused=fused)) < NUMERICS:
            with run.keeping_failures(part="numerics"):
                for row in differences(run.device, fused):
                    run.keep({"part": "numerics", "fused": fused, **row})


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
    lines += [timing_line(row) for row in run.rows if row["part"] in ("short", "exact", "fast", "published", "load")]
    for part in ("exact", "published", "fast"):
        rows = run.find(part=part)
        if {row["stage"] for row in rows} >= set(STAGES):
            lines.append(f"{part}, s a clip in all: {sum(row['seconds'] for row in rows):.4g}")
    for part in ("alone", "swap", "start", "restart", "profile", "numerics"):
        lines += ["", *(describe(row) for row in run.rows if row["part"] == part)]
    return "\n".join(lines) + "\n"


def timing_line(row: dict[str, Any]) -> str:
    head = f"{row['part']:10}{row['stage']:24}{row.get('mode', ''):24}{row.get('batch', ''):>6}"
    if "error" in row:
        return f"{head}  {row['error']}"
    memory = "" if row["memory"] is None else f"{row['memory']:.1f}"
    first = f"{row['first']:.3g}" if "first" in row else ""
    share, differs = f"{row['share']:.1%}", f"{row['difference']:.1e}" if row.get("difference") else ""
    return f"{head}{row['seconds']:9.4g}{row['tflop'] / 1e3:8.3g}{share:>9}{memory:>7}{first:>8}{differs:>9}"


if __name__ == "__main__":
    main()
