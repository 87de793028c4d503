"""Measured costs of a pipeline's stages on one device, stored as JSON beside the pipeline file."""

from __future__ import annotations

import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from show1_ray.clip import Clip
from show1_ray.errors import UserError, one_line
from show1_ray.line.spec import Rejected
from show1_ray.pipeline import Pipeline
from show1_ray.pipeline.adapter import OnArrays
from show1_ray.pipeline.checkpoints import CheckpointError
from show1_ray.pipeline.lineup import blueprints
from show1_ray.pipeline.wiring import INPUTS
from show1_ray.planning.gpus import same_device

FOLDER = "profiles"
CPU = "cpu"
LIBRARIES = ("diffusers", "transformers", "accelerate", "safetensors", "tokenizers", "triton")
"""What stages compute with besides torch, where they do."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BatchCost(_Record):
    """A stage at one batch size: seconds per clip, and bytes on the device (see `Profile.memory`)."""

    size: int = Field(ge=1)
    seconds: float = Field(gt=0)
    memory: int


class StageProfile(_Record):
    """One stage.

    Attributes:
        load_seconds: from disk to the device, libraries being imported already.
        leave_seconds, swap_seconds: to host memory, and back.
        weights: bytes on the device.
        batches: by batch size, ascending.
    """

    load_seconds: float
    leave_seconds: float
    swap_seconds: float
    weights: int
    batches: tuple[BatchCost, ...] = Field(min_length=1)


class Profile(_Record):
    """What `measure` found.

    Attributes:
        pipeline, recipe_hash, dtype: of the pipeline, resolved.
        kind: "cuda" or "cpu".
        device: the GPU's name as torch gives it, or the CPU's.
        device_memory: bytes that the GPU has; 0 for a CPU.
        memory: what `BatchCost.memory` is: "peak" of what torch had allocated on the GPU, or the "weights" alone.
        threads: of torch, on the CPU.
        import_seconds: a new process needs until torch and the networks' libraries are imported.
        versions: of Python, torch and the libraries that compute.
        stages: by name.
    """

    pipeline: str
    recipe_hash: str
    dtype: str
    kind: Literal["cuda", "cpu"]
    device: str
    device_memory: int
    memory: Literal["peak", "weights"]
    threads: int
    import_seconds: float
    versions: dict[str, str]
    stages: dict[str, StageProfile]

    @property
    def gpu_type(self) -> str:
        """What `--gpu-type` calls the device."""
        return CPU if self.kind == "cpu" else self.device


def measure(pipeline: Pipeline, device: str, batch_sizes: Sequence[int] = (), repeats: int = 3) -> Profile:
    """Runs the real stages, one after the other, on clips that flow from stage to stage; without Ray.

    Args:
        pipeline: whose weights are fetched where they are not there yet.
        device: "cpu" (with one thread, as a station has) or a GPU, "cuda:0".
        batch_sizes: clips a batch; a GPU that runs out of memory is not asked for larger ones. Default: 1, 2, 4, 8 and
            1 on a CPU, where the clips of a batch are computed one by one.
        repeats: timed runs of each batch, after one that is not timed; their median counts.

    Raises:
        UserError: no such device; weights that are not to be had; a stage that has no room for the smallest batch.
    """
    import torch

    kind = device.partition(":")[0]
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", device) or (kind == "cuda" and not torch.cuda.is_available()):
        raise UserError(f"--device {device or repr(device)}: torch finds no such device here; give cpu or cuda:0")
    sizes = sorted(batch_sizes or ((1,) if kind == "cpu" else (1, 2, 4, 8)))
    resolved = pipeline.resolved()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        stages = _measure_stages(pipeline, device, sizes, repeats)
        import_seconds = _import_seconds()
    finally:
        torch.set_num_threads(threads)
    return Profile(
        pipeline=pipeline.name,
        recipe_hash=resolved.recipe_hash(),
        dtype=pipeline.dtype,
        kind=kind,
        device=torch.cuda.get_device_name(device) if kind == "cuda" else cpu_name(),
        device_memory=torch.cuda.get_device_properties(device).total_memory if kind == "cuda" else 0,
        memory="peak" if kind == "cuda" else "weights",
        threads=1,
        import_seconds=import_seconds,
        versions=_versions(),
        stages=stages,
    )


def _measure_stages(pipeline: Pipeline, device: str, sizes: Sequence[int], repeats: int) -> dict[str, StageProfile]:
    import torch

    found = {}
    inputs, given = example(pipeline)
    for blueprint in blueprints(pipeline):
        name, place = blueprint.context.name, "cpu" if blueprint.execution.device == "cpu" else device
        before = 0
        if place != "cpu":
            torch.cuda.empty_cache()  # what the stage before held
            before = torch.cuda.memory_allocated(place)
        begin = time.perf_counter()
        stage = blueprint.build(place)
        _synchronise(place)
        load_seconds = time.perf_counter() - begin
        weights = stage.stage.loaded_bytes()
        if weights is None:
            weights = 0 if place == "cpu" else torch.cuda.memory_allocated(place) - before
        # One clip's values serve all: how long a stage takes does not depend on what they are.
        batches, output = _measure_batches(stage, place, inputs, given, sizes, repeats, weights)
        leave_seconds, swap_seconds = _swap(stage, place, load_seconds) if place != "cpu" else (0.0, 0.0)
        found[name] = StageProfile(
            load_seconds=load_seconds,
            leave_seconds=leave_seconds,
            swap_seconds=swap_seconds,
            weights=weights,
            batches=tuple(batches),
        )
        given |= output
        del stage
    return found


def example(pipeline: Pipeline) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs of a clip to measure with: defaults, or some of the kind; and those that stages take, by line name."""
    kinds = {"text": "a red circle", "int": 1, "float": 1.0}
    files = {"image": np.full((256, 256, 3), 127, np.uint8), "video": np.full((8, 256, 256, 3), 127, np.uint8)}
    inputs = {
        one.name: kinds[one.kind] if one.default is None else one.default
        for one in pipeline.inputs
        if not one.is_file and (one.setting is None or one.default is not None)
    }
    known = {**inputs, **{one.name: files[one.kind] for one in pipeline.inputs if one.is_file}}
    taken = {ref.line: ref.name for stage in pipeline.wired() for ref in stage.takes.values() if ref.stage == INPUTS}
    return inputs, {line: known[name] for line, name in taken.items()}


def _measure_batches(
    stage: OnArrays,
    device: str,
    inputs: Mapping[str, Any],
    given: Mapping[str, Any],
    sizes: Sequence[int],
    repeats: int,
    weights: int,
) -> tuple[list[BatchCost], Mapping[str, Any]]:
    """What batches of a stage cost, and what it gives for a clip.

    Raises:
        UserError: it has no room for the smallest batch, or rejects all clips.
    """
    import torch

    batches: list[BatchCost] = []
    take, output = 0, None
    for size in sizes:
        seconds = []
        try:
            for repeat in range(1 + repeats):
                # New prompts each time: texts that were encoded lately are kept.
                clips = [
                    Clip(f"clip-{take + i}", f"a red circle moving left, take {take + i}", seed=i, inputs=inputs)
                    for i in range(size)
                ]
                take += size
                if repeat == 1 and device != "cpu":
                    torch.cuda.reset_peak_memory_stats(device)
                begin = time.perf_counter()
                results = stage(clips, [given] * size)
                _synchronise(device)
                seconds.append((time.perf_counter() - begin) / size)
                output = next((result for result in results if not isinstance(result, Rejected)), output)
                rejected = next((result for result in results if isinstance(result, Rejected)), None)
        except torch.cuda.OutOfMemoryError:
            if not batches:
                raise UserError(f"stage {stage.name}: {device} has too little memory for a batch of {size}") from None
            torch.cuda.empty_cache()
            break
        memory = weights if device == "cpu" else torch.cuda.max_memory_allocated(device)
        batches.append(BatchCost(size=size, seconds=statistics.median(seconds[1:]), memory=memory))
    if output is None:
        reason = rejected.reason if rejected else ""
        raise UserError(
            f"stage {stage.name}: it rejects all clips of the profile ({reason}), so that the stages behind it cannot "
            "be measured: make it more lenient with --set"
        )
    return batches, output


def _swap(stage: OnArrays, device: str, load_seconds: float) -> tuple[float, float]:
    """Seconds to host memory and back, the second time: the first also makes the copy there. A stage that cannot do so
    is dropped, and loaded again.
    """
    move = getattr(stage, "to", None)
    if move is None:
        return 0.0, load_seconds
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        move("cpu")
        left = time.perf_counter()
        move(device)
        seconds.append((left - begin, time.perf_counter() - left))
    return seconds[-1]


def _synchronise(device: str) -> None:
    import torch

    if device != "cpu":
        torch.cuda.synchronize(device)


def _import_seconds() -> float:
    """Of a new process, until it has imported what this one has for its stages."""
    kinds = {"torch", *LIBRARIES, "show1_ray"}
    names = [name for name in sys.modules if name.partition(".")[0] in kinds]
    code = """
import contextlib, importlib, sys
for name in sys.stdin.read().split():
    with contextlib.suppress(Exception):
        importlib.import_module(name)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(place for place in sys.path if place)}
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], input=" ".join(names), text=True, check=True, env=environment)
    return time.perf_counter() - begin


def _versions() -> dict[str, str]:
    import torch

    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for name in LIBRARIES:
        if name in sys.modules:
            with suppress(PackageNotFoundError):
                versions[name] = version(name)
    return versions | ({"cuda": torch.version.cuda} if torch.version.cuda else {})


@lru_cache
def cpu_name() -> str:
    """The CPU's name, with the number of its cores left out: "CPU AMD EPYC"."""
    found = None
    if Path("/proc/cpuinfo").is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"CPU {found[1] if found else platform.processor() or platform.machine()}"


@lru_cache
def local_gpu() -> str | None:
    """The name of this machine's first GPU as torch gives it, without importing torch or touching the GPU."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=name", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.splitlines()[0].strip() if answer.returncode == 0 and answer.stdout.strip() else None


def profile_path(pipeline: Pipeline, device: str) -> Path:
    """Where the profile of a pipeline on a device is stored: in `profiles/` beside the pipeline file."""
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    folder = pipeline.file.parent if pipeline.file else Path()
    return folder / FOLDER / f"{pipeline.name}.{slug}.json"


def kept_profiles(pipeline: Pipeline) -> list[Path]:
    """The files of all stored profiles of a pipeline, with any recipe."""
    return sorted(profile_path(pipeline, "").parent.glob(f"{pipeline.name}.*.json"))


def save_profile(profile: Profile, path: Path) -> None:
    """Writes a profile.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(profile.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}): say where with --out FILE") from None


def check_place(path: Path) -> None:
    """Raises UserError if a profile would overwrite a file that is not one."""
    if path.is_dir():
        raise UserError(f"--out {path}: a folder; name a file")
    if path.exists() and path.stat().st_size:
        try:
            read_profile(path)
        except UserError:
            raise UserError(
                f"--out {path}: a file that is no profile of this version; remove it, or name another"
            ) from None


def read_profile(path: Path) -> Profile:
    """Reads what `save_profile` wrote.

    Raises:
        UserError: no such file, or no profile.
    """
    try:
        return Profile.model_validate_json(path.read_text())
    except OSError as error:
        raise UserError(f"profile {path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise UserError(f"profile {path}: {where or 'the file'}: {fault['msg']}; measure it again") from None
    except ValueError as error:  # bytes that are no text; a name that no file can have
        raise UserError(f"profile {path}: cannot be read: {one_line(error)}") from None


def find_profile(pipeline: Pipeline, device: str | None) -> tuple[Profile | None, list[str]]:
    """The profile that is kept of a pipeline on a device.

    Args:
        pipeline: what it must have been measured with: the same recipe.
        device: a GPU's name or type; "cpu" is any CPU, before all this one; None any GPU.

    Returns:
        The profile or None, and a sentence for each one that was ignored.

    Raises:
        UserError: a file that is no profile.
    """
    candidates = []
    for path in kept_profiles(pipeline):
        profile = read_profile(path)
        is_gpu = profile.kind == "cuda"
        if is_gpu if device is None else same_device(device, profile.device if is_gpu else CPU):
            candidates.append((profile.kind == "cpu" and profile.device != cpu_name(), path, profile))
    ignored: list[str] = []
    for _, path, profile in sorted(candidates, key=lambda candidate: candidate[:2]):
        reason = mismatch(pipeline, profile)
        if reason is None:
            return profile, ignored
        ignored.append(f"profile {path} is ignored: {reason}")
    return None, ignored


def mismatch(pipeline: Pipeline, profile: Profile) -> str | None:
    """Why a profile does not apply to a pipeline; None if it does."""
    try:
        recipe = pipeline.resolved().recipe_hash()
    except CheckpointError as error:
        return f"its recipe cannot be compared with the pipeline's: {error}"
    if profile.recipe_hash != recipe:
        return f"it was measured with recipe {profile.recipe_hash}, and this is {recipe}"
    stages = [stage.name for stage in pipeline.wired()]
    if stages != list(profile.stages):
        return f"it was measured with the stages {', '.join(profile.stages)}, and this has {', '.join(stages)}"
    return None
