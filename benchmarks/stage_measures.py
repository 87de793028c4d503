"""What gpu.py measures of one stage that is loaded: time, memory, swaps, kernels."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from cascade import as_published, run_as_published, timed
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from show1_ray.clip import Clip
from show1_ray.pipeline import Pipeline
from show1_ray.pipeline.checkpoints import published_or_local_config
from show1_ray.planning.costs import count_stages
from show1_ray.show1.execution import prepare
from show1_ray.show1.settings import Execution
from show1_ray.show1.super_resolution import SuperResolution
from show1_ray.stages.noise import seeded_noise
from show1_ray.stages.torch_stage import Tensors, TorchStage

FEATURES: dict[str, dict[str, Any]] = {
    "eager": {},
    "channels last": {"channels_last": True},
    "fused": {"fused": True},
    "blocks": {"compile": "blocks"},
    "graphs": {"compile": "graphs"},
    "cudnn benchmark": {},  # torch's own switch
}
"""Execution settings by their name in a mode."""


def switch(stage: TorchStage, mode: str, done: Sequence[str] = ("eager",)) -> list[str]:
    """Brings a stage from the features that it has to those of `mode`, which has them too; returns the latter."""
    features = mode.split(", ")
    settings = [FEATURES[feature] for feature in features if feature not in done]
    prepare(stage, Execution(**{key: value for setting in settings for key, value in setting.items()}))
    torch.backends.cudnn.benchmark = "cudnn benchmark" in features
    return features


def set_recipe(stage: TorchStage, pipeline: Pipeline) -> None:
    """Lets a loaded stage do what another pipeline of the same networks says."""
    settings: Any = getattr(pipeline.stages, stage.name)
    stage.settings = settings  # type: ignore[attr-defined]
    if isinstance(stage, SuperResolution):
        stage.first_frame.settings = settings.first_frame


def timing(
    stage: TorchStage,
    pipeline: Pipeline,
    short: Pipeline,
    size: int,
    device: torch.device,
    repeats: int,
    published: bool = False,
    reference: dict[int, torch.Tensor] | None = None,
) -> dict[str, Any]:
    """Seconds and TFLOP a clip, memory, and what the first batch took.

    Args:
        stage: on the device.
        pipeline: what it does.
        short: the same with short loops: the first batch.
        size: clips a batch.
        device: where.
        repeats: timed batches; their median counts.
        published: as the published script runs it. Without a first batch: transfers take longer than that loses.
        reference: the UNet's first predictions by batch size; where one is there, this one is compared with it.
    """
    row: dict[str, Any] = {}
    batch = batch_for(pipeline, size)

    def work() -> None:
        run_batch(stage, *batch, device if published else None)

    with as_published(stage) if published else nullcontext():
        if not published:
            set_recipe(stage, short)
            with first_prediction(stage) as predictions:
                row["first"] = timed(work, device)
            if reference is not None and predictions:
                exact = reference.setdefault(size, predictions[0])
                row["difference"] = ((predictions[0] - exact).norm() / exact.norm()).item()
        set_recipe(stage, pipeline)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        row["seconds"] = statistics.median(timed(work, device) for _ in range(repeats)) / size
    row["tflop"] = count_stages(pipeline)[stage.name].operations / 1e12
    row["memory"] = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    return row


@contextmanager
def first_prediction(stage: TorchStage) -> Iterator[list[torch.Tensor]]:
    """What a stage's UNet gives when it is called first: later calls go where rounding leads them."""
    given: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if not given:
            given.append((output if isinstance(output, torch.Tensor) else output.sample).float())

    hooks = [stage.networks["unet"].register_forward_hook(keep)] if "unet" in stage.networks else []
    yield given
    for hook in hooks:
        hook.remove()


class _SeenError(Exception):
    """A UNet was called."""


def alone(stage: TorchStage, pipeline: Pipeline, size: int) -> dict[str, Any]:
    """What the first clip's half without guidance gets in a batch and alone: the difference's norm over the norm."""
    calls: list[Any] = []

    def keep(module: torch.nn.Module, inputs: Any, named: Any) -> None:
        calls.append((inputs, named))
        raise _SeenError

    set_recipe(stage, pipeline)
    unet = stage.networks["unet"]
    hook = unet.register_forward_pre_hook(keep, with_kwargs=True)
    with suppress(_SeenError):
        run_batch(stage, *batch_for(pipeline, size))
    hook.remove()
    (sample, timestep, text), named = calls[0]
    found = []
    with torch.inference_mode():
        for rows in (slice(None), slice(0, 1)):
            output = unet(sample[rows], timestep, text[rows], **{name: given[rows] for name, given in named.items()})
            found.append((output if isinstance(output, torch.Tensor) else output.sample)[0].float())
    return {"difference": ((found[1] - found[0]).norm() / found[0].norm()).item()}


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
    stage: TorchStage, clips: Sequence[Clip], tensors: Sequence[Tensors], published_on: torch.device | None = None
) -> None:
    """One batch, as it is or as published on a device."""
    encoder = getattr(stage, "encoder", None)
    if encoder is not None:
        encoder.forget()
    with torch.inference_mode():
        if published_on is not None:
            run_as_published(stage, clips, tensors, published_on)
        else:
            stage.run(clips, tensors, [seeded_noise(clip.generator_seed, stage.dtype) for clip in clips])


def swap(stage: TorchStage, device: torch.device) -> dict[str, Any]:
    """Seconds to leave and to enter, the first time and then; the rate of the latter."""
    seconds = []
    for _ in range(2):
        seconds.append((timed(stage.leave, device), timed(lambda: stage.enter(device), device)))
    weights = sum(t.numel() * t.element_size() for network in stage.networks.values() for t in network.parameters())
    (first_leave, first_enter), (leave, enter) = seconds
    again = {"leave": leave, "enter": enter, "rate": weights / enter}
    return {"first_leave": first_leave, "first_enter": first_enter, **again}


def profiled(stage: TorchStage, pipeline: Pipeline, size: int, device: torch.device, out: Path) -> dict[str, Any]:
    """Where a batch's time goes; kernels, torch's operations by shapes, and waits are written to files in `out`."""
    set_recipe(stage, pipeline)
    batch, is_gpu = batch_for(pipeline, size), device.type == "cuda"
    run_batch(stage, *batch)
    waits = count_waits(stage, *batch, out) if is_gpu else None
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_gpu else [])]
    with profile(activities=kinds, record_shapes=True) as found:
        seconds = timed(lambda: run_batch(stage, *batch), device)
    kernels = [
        (event.self_device_time_total if is_gpu else event.self_cpu_time_total, event.count, event.key)
        for event in found.key_averages()
        if event.device_type == (DeviceType.CUDA if is_gpu else DeviceType.CPU)
    ]
    busy = sum(time for time, _, _ in kernels) / 1e6
    lines = [f"{time / 1e6:10.4f} s {time / 1e6 / busy:6.1%} {count:7} {name[:160]}" for time, count, name in kernels]
    file = out / f"profile-{stage.name}.txt"
    file.write_text(f"{stage.name}: kernels {busy:.4f} s\n" + "\n".join(sorted(lines, reverse=True)[:60]) + "\n")
    (out / f"shapes-{stage.name}.txt").write_text(by_shape(found, is_gpu))
    return {"seconds": seconds, "kernels": busy, "waits": waits}


def by_shape(found: profile, is_gpu: bool) -> str:
    """Torch's operations by the shapes that they are given, with the time of their kernels."""
    lines = []
    for event in found.key_averages(group_by_input_shape=True):
        time = event.self_device_time_total if is_gpu else event.self_cpu_time_total
        if time and event.device_type == DeviceType.CPU:
            lines.append((time, f"{time / 1e6:10.4f} s {event.count:7} {event.key} {str(event.input_shapes)[:160]}"))
    return "\n".join(line for _, line in sorted(lines, reverse=True)[:80]) + "\n"


def count_waits(stage: TorchStage, clips: Sequence[Clip], tensors: Sequence[Tensors], out: Path) -> int:
    """How often a batch waits for the GPU: its end does, loops should not."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        run_batch(stage, clips, tensors)
        torch.cuda.set_sync_debug_mode("default")
    waits = [warning for warning in caught if "synchronizing" in str(warning.message)]
    places = sorted({f"{warning.filename}:{warning.lineno}" for warning in waits})
    (out / f"waits-{stage.name}.txt").write_text("\n".join(places) + "\n")
    return len(waits)
