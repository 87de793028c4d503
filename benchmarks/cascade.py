"""Seconds a clip, TFLOP/s and memory of each stage, with random weights: no Ray, no hub, any device.

    python benchmarks/cascade.py                                        # a tiny cascade, on a CPU
    python benchmarks/cascade.py --pipeline show1-demo --batch-sizes 1,2,4,8   # full size, on a GPU

Each stage is built alone, warmed up, timed at each batch size, and then as the published script runs it: one clip,
window after window, weights brought to the device before each pipeline call and taken off after it, convolutions over
frames in 3D, the VAE one frame at a time. Operations are counted on the meta device for the very calls that were made;
the peak is that of large matrix products, measured in the same run.
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from show1_ray.clip import Clip
from show1_ray.pipeline import Pipeline
from show1_ray.show1.cascade import load_stage
from show1_ray.show1.interpolation import Interpolation
from show1_ray.show1.latent_super_resolution import LatentSuperResolution
from show1_ray.show1.loading import Checkpoints
from show1_ray.show1.random import RandomCheckpoints, write_tiny_cascade
from show1_ray.show1.stages import STAGES
from show1_ray.show1.super_resolution import SuperResolution, window_slices
from show1_ray.show1.temporal import TemporalConv
from show1_ray.show1.text import Text
from show1_ray.stages.noise import Noise, draw_batch, seeded_noise
from show1_ray.stages.operations import counted, operations_of
from show1_ray.stages.torch_stage import Tensors, TorchStage


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
    stage: TorchStage, clips: Sequence[Clip], tensors: Sequence[Tensors], mode: str, peak: float, repeats: int
) -> Row:
    """Times the stage on a batch."""
    device = stage.device

    def run() -> None:
        if isinstance(stage, Text | LatentSuperResolution):
            stage.encoder.forget()
        noise = [seeded_noise(clip.generator_seed, stage.dtype) for clip in clips]
        with torch.inference_mode():
            if mode == "as published":
                run_as_published(stage, clips, tensors, device)
            else:
                stage.run(clips, tensors, noise)

    with as_published(stage) if mode == "as published" else contextlib.nullcontext():
        with counted(stage) as calls:
            run()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = statistics.median(timed(run, device) for _ in range(repeats)) / len(clips)
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    operations = sum(count * operations_of(network, *call) for (network, *call), count in calls.items()) / len(clips)
    return Row(stage.name, mode, len(clips), seconds, operations / 1e12, operations / seconds / peak, memory)


@contextlib.contextmanager
def as_published(stage: TorchStage) -> Iterator[None]:
    """Weights at home in host memory, convolutions over frames in 3D, the VAE one frame at a time."""
    device = stage.device
    convolutions = [
        layer for network in stage.networks.values() for layer in network.modules() if isinstance(layer, TemporalConv)
    ]
    for layer in convolutions:
        layer.__class__ = nn.Conv3d  # type: ignore[assignment]
    frames = 0
    if isinstance(stage, LatentSuperResolution):
        frames, stage.vae_frames = stage.vae_frames, 1
    stage.to("cpu")
    try:
        yield
    finally:
        for layer in convolutions:
            layer.__class__ = TemporalConv
        if isinstance(stage, LatentSuperResolution):
            stage.vae_frames = frames
        stage.to(device)


def run_as_published(
    stage: TorchStage, clips: Sequence[Clip], tensors: Sequence[Tensors], device: torch.device
) -> list[dict[str, Tensor]]:
    """As the published script: one clip, window after window; weights come to the device for one pipeline call and go
    home after it, as accelerate's model offloading lets them. Call it within `as_published`.
    """
    noise = [seeded_noise(clips[0].generator_seed, stage.dtype)]
    if isinstance(stage, Interpolation):
        keyframes = tensors[0]["keyframes"]
        pairs = [keyframes[:, i : i + 2] for i in range(keyframes.shape[1] - 1)]
        given = []
        for pair in pairs:
            with on_device(stage.networks.values(), stage, device):
                window_noise = [seeded_noise(clips[0].generator_seed, stage.dtype)]
                given += stage.run(clips, [{**tensors[0], "keyframes": pair}], window_noise)
        return [{"frames": torch.cat([given[0]["frames"], *(g["frames"][:, 1:] for g in given[1:])], dim=1)}]
    if isinstance(stage, SuperResolution):
        return [{"frames_sr": upscale_as_published(stage, tensors, noise, device)}]
    with on_device(stage.networks.values(), stage, device):
        return stage.run(clips, tensors, noise)


def upscale_as_published(
    stage: SuperResolution, tensors: Sequence[Tensors], noise: Sequence[Noise], device: torch.device
) -> Tensor:
    """The first frame, then window after window: 3 F H W."""
    stage.device = device
    frames = stage.batch(tensors, "frames")
    text = stage.batch(tensors, "prompt_embeds"), stage.batch(tensors, "negative_prompt_embeds")
    with on_device([stage.first_frame.unet], stage, device):
        first = stage.first_frame(frames[:, :, 0], *text, stage.settings.scale, noise)
    shape = (3, stage.settings.window, *first.shape[-2:])
    x, condition_noise = draw_batch(noise, shape, like=frames), draw_batch(noise, shape, like=frames)
    video = torch.zeros(*frames.shape[:3], *first.shape[-2:], device=device, dtype=frames.dtype)
    for window in window_slices(frames.shape[2], stage.settings.window, stage.settings.stride):
        with on_device([stage.unet], stage, device):
            part = stage.upscale_window(frames[:, :, window], first, *text, x, condition_noise)
        video[:, :, window], first = part, part[:, :, -1]
    return video[0].cpu()


@contextlib.contextmanager
def on_device(networks: Iterable[nn.Module], stage: TorchStage, device: torch.device) -> Iterator[None]:
    """Brings weights from host memory and takes them back."""
    networks = list(networks)
    for network in networks:
        network.to(device)
    stage.device = device
    yield
    for network in networks:
        network.to("cpu")


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
