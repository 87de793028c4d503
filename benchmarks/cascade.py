"""Seconds a clip, TFLOP/s and memory of each stage, with random weights: no Ray, no hub, any device.

    python benchmarks/cascade.py                                        # a tiny cascade, on a CPU
    python benchmarks/cascade.py --pipeline show1-demo --batch-sizes 1,2,4,8   # full size, on a GPU

Each stage is built alone, warmed up, timed at each batch size, and then as the published script runs it: one clip,
window after window, weights brought to the device before each pipeline call and taken off after it. Operations are
counted on the meta device for the very calls that were made; the peak is that of large matrix products, measured in the
same run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from rich.console import Console
from rich.table import Table

from show1_ray.clip import Clip
from show1_ray.models.loading import Checkpoints
from show1_ray.models.random import RandomCheckpoints, write_tiny_cascade
from show1_ray.pipeline import STAGES, Pipeline
from show1_ray.stages.cascade import load_stage
from show1_ray.stages.interpolation import Interpolation
from show1_ray.stages.latent_super_resolution import LatentSuperResolution
from show1_ray.stages.noise import draw_batch, seeded_noise
from show1_ray.stages.operations import counted, operations_of
from show1_ray.stages.stage import Stage, Tensors
from show1_ray.stages.super_resolution import SuperResolution, window_slices
from show1_ray.stages.text import Text


@dataclass(frozen=True)
class Row:
    """One measurement. Seconds, TFLOP and share of the peak are for a clip; memory is the device's peak, in GiB."""

    stage: str
    mode: str
    batch: int
    seconds: float
    tflop: float
    share_of_peak: float
    memory: float | None


def main() -> None:
    arguments = parse()
    torch.set_grad_enabled(False)
    device = torch.device(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        tiny = arguments.pipeline == "tiny"
        pipeline = Pipeline.load(write_tiny_cascade(Path(folder)) if tiny else arguments.pipeline, arguments.set)
        source = Checkpoints if tiny else RandomCheckpoints
        dtype: torch.dtype = getattr(torch, pipeline.dtype)
        peak = matrix_peak(device, dtype)
        report: dict[str, Any] = {
            "command": " ".join(["python", *sys.argv]),
            "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "cpu",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "pipeline": pipeline.name,
            "dtype": pipeline.dtype,
            "peak_tflops": peak / 1e12,
            "rows": [],
        }
        clips = [Clip(f"clip-{i}", f"a red circle moving left, take {i}", seed=i) for i in range(max(arguments.sizes))]
        tensors: list[dict[str, Any]] = [{} for _ in clips]
        for name in STAGES:
            stage = load_stage(pipeline, name, device, source)
            measured = name in arguments.stages
            for size in arguments.sizes if measured else []:
                row = measure(stage, clips[:size], tensors[:size], "batched", peak, arguments.repeats)
                keep(report, row, arguments.out)
            if measured:
                row = measure(stage, clips[:1], tensors[:1], "as published", peak, arguments.repeats)
                keep(report, row, arguments.out)
            # One clip's output serves all: timing does not depend on values, and the large stages take minutes.
            given = stage(clips[:1], tensors[:1])[0]
            tensors = [{**old, **given} for old in tensors]
            del stage
            if device.type == "cuda":
                torch.cuda.empty_cache()
    show(report)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", default="tiny", help="a pipeline's name or file; its checkpoints' sizes are used")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-sizes", default="1,2,4", help="clips a batch")
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--repeats", type=int, default=3, help="timed runs; their median counts")
    parser.add_argument("--set", action="append", default=[], metavar="STAGE.KEY=VALUE")
    parser.add_argument("--out", type=Path, help="JSON, written after each measurement")
    arguments = parser.parse_args()
    arguments.sizes = [int(size) for size in arguments.batch_sizes.split(",")]
    arguments.stages = arguments.stages.split(",")
    return arguments


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of square matrix products: the best of 20 after 5."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = [timed(lambda: a @ b, device) for _ in range(25)]
    return 2 * size**3 / min(times[5:])


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds until the device has done `work`."""
    synchronise(device)
    begin = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - begin


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(
    stage: Stage, clips: Sequence[Clip], tensors: Sequence[Tensors], mode: str, peak: float, repeats: int
) -> Row:
    """Times the stage on a batch."""

    def run() -> None:
        if isinstance(stage, Text | LatentSuperResolution):
            stage.encoder.forget()
        noise = [seeded_noise(clip.seed, stage.dtype) for clip in clips]
        with torch.inference_mode():
            if mode == "as published":
                run_as_published(stage, clips, tensors)
            else:
                stage.run(clips, tensors, noise)

    with counted(stage) as calls:
        run()
    if stage.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = statistics.median(timed(run, stage.device) for _ in range(repeats)) / len(clips)
    memory = torch.cuda.max_memory_allocated() / 2**30 if stage.device.type == "cuda" else None
    operations = sum(count * operations_of(network, *call) for (network, *call), count in calls.items()) / len(clips)
    return Row(stage.name, mode, len(clips), seconds, operations / 1e12, operations / seconds / peak, memory)


def run_as_published(stage: Stage, clips: Sequence[Clip], tensors: Sequence[Tensors]) -> None:
    """As the published script: one clip, window after window, the weights on the device for one pipeline call."""
    noise = [seeded_noise(clips[0].seed, stage.dtype)]
    if isinstance(stage, Interpolation):
        keyframes = tensors[0]["keyframes"]
        for i in range(keyframes.shape[1] - 1):
            with on_device(stage):
                pair = {**tensors[0], "keyframes": keyframes[:, i : i + 2]}
                stage.run(clips, [pair], [seeded_noise(clips[0].seed, stage.dtype)])
    elif isinstance(stage, SuperResolution):
        device, home = stage.device, torch.device("cpu")
        frames = stage.batch(tensors, "frames")
        text = stage.batch(tensors, "prompt_embeds"), stage.batch(tensors, "negative_prompt_embeds")
        stage.to(home).first_frame.unet.to(device)
        first = stage.first_frame(frames[:, :, 0], *text, stage.settings.scale, noise)
        stage.first_frame.unet.to(home)
        shape = (3, stage.settings.window, *first.shape[-2:])
        x, condition_noise = draw_batch(noise, shape, like=frames), draw_batch(noise, shape, like=frames)
        for window in window_slices(frames.shape[2], stage.settings.window, stage.settings.stride):
            stage.unet.to(device)
            video = stage.upscale_window(frames[:, :, window], first, *text, x, condition_noise)
            first = video[:, :, -1]
            stage.unet.to(home)
        stage.to(device)
    else:
        with on_device(stage):
            stage.run(clips, tensors, noise)


@contextlib.contextmanager
def on_device(stage: Stage) -> Iterator[None]:
    """Brings the weights from host memory and takes them back, as accelerate's model offloading does."""
    device = stage.device
    stage.to("cpu")
    stage.to(device)
    yield
    stage.to("cpu")
    stage.to(device)


def keep(report: dict[str, Any], row: Row, out: Path | None) -> None:
    report["rows"].append(asdict(row))
    print(f"{row.stage}, {row.mode}, batch {row.batch}: {row.seconds:.3f} s a clip", file=sys.stderr)
    if out:
        out.write_text(json.dumps(report, indent=1) + "\n")


def show(report: dict[str, Any]) -> None:
    """The table, and what a clip takes in all: batched (each stage's best) against as published."""
    rows = [Row(**row) for row in report["rows"]]
    table = Table("stage", "mode", "batch", "s/clip", "TFLOP/clip", "TFLOP/s", "of peak", "GiB", box=None)
    totals = {"batched": 0.0, "as published": 0.0}
    for name in dict.fromkeys(row.stage for row in rows):
        mine = [row for row in rows if row.stage == name]
        for row in mine:
            memory = "" if row.memory is None else f"{row.memory:.1f}"
            rate = row.tflop / row.seconds
            cells = (
                f"{row.seconds:.4g}",
                f"{row.tflop:.4g}",
                f"{rate:.4g}",
                f"{row.share_of_peak:.0%}",
                memory,
            )
            table.add_row(name, row.mode, str(row.batch), *cells)
        for mode in totals:
            totals[mode] += min((row.seconds for row in mine if row.mode == mode), default=0.0)
    console = Console(width=110)
    console.print(
        f"{report['pipeline']} ({report['dtype']}) on {report['device']}, "
        f"{report['threads']} threads, torch {report['torch']}"
    )
    console.print(f"peak of matrix products: {report['peak_tflops']:.4g} TFLOP/s")
    console.print(table)
    ratio = totals["as published"] / totals["batched"]
    console.print(
        f"in all, s/clip: batched {totals['batched']:.4g}, as published {totals['as published']:.4g}: {ratio:.2f} times"
    )


if __name__ == "__main__":
    main()
