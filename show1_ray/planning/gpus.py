"""Datasheets of GPUs, by the names that people and torch use; and the memory that a GPU has for stages."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

from show1_ray.errors import UserError

GIB = 2**30
STAGES_SHARE = 0.92
"""The share of a GPU's memory that stages may use; the rest is CUDA's own."""


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    Attributes:
        name: what `--gpu-type` calls it.
        half: TFLOP/s of dense matrix products in float16 or bfloat16 that are summed in single precision.
        single: TFLOP/s in float32, without TF32.
        gib: memory in GiB as torch reports it, a little less than on the box.
        source: where the rates are from.
        also: other names, among them those of torch; without "NVIDIA", as `_plain` makes them.
    """

    name: str
    half: float
    single: float
    gib: float
    source: str
    also: tuple[str, ...] = ()

    @property
    def memory(self) -> int:
        """Bytes."""
        return int(self.gib * GIB)

    def rate(self, dtype: str) -> float:
        """Operations per second in `dtype`."""
        return (self.single if dtype == "float32" else self.half) * 1e12


GPUS = (
    Gpu("T4", 65, 8.1, 14.6, "NVIDIA T4 datasheet", ("t416gb",)),
    Gpu("L4", 121, 30.3, 22.0, "NVIDIA L4 datasheet", ("l424gb",)),
    Gpu("A10G", 70, 31.5, 22.1, "NVIDIA A10G datasheet", ("a10g24gb",)),
    Gpu(
        "A100-40G",
        312,
        19.5,
        39.4,
        "NVIDIA A100 datasheet",
        ("a10040gb", "a100sxm440gb", "a100pcie40gb", "a10040gbpcie"),
    ),
    Gpu(
        "A100-80G",
        312,
        19.5,
        79.1,
        "NVIDIA A100 datasheet",
        ("a10080gb", "a100sxm480gb", "a100pcie80gb", "a10080gbpcie"),
    ),
    Gpu("L40S", 362, 91.6, 44.4, "NVIDIA L40S datasheet", ("l40s48gb",)),
    Gpu(
        "H100",
        989,
        67,
        79.1,
        "NVIDIA H100 datasheet (SXM)",
        ("h10080g", "h10080gb", "h10080gbhbm3", "h100sxm", "h100sxm5"),
    ),
    Gpu("H200", 989, 67, 139.8, "NVIDIA H200 datasheet (SXM)", ("h200141gb", "h200sxm")),
    Gpu("B200", 2250, 75, 178.3, "NVIDIA Blackwell architecture brief (HGX B200)", ("b200180gb", "b200192gb")),
    Gpu("RTX4090", 165.2, 82.6, 23.6, "NVIDIA Ada architecture paper", ("4090",)),
)


def find_gpu(name: str) -> Gpu:
    """The GPU of a name: ours, torch's ("NVIDIA A100-SXM4-80GB") or a usual one, in any case.

    Raises:
        UserError: none of that name.
    """
    gpu = known_gpu(name)
    if gpu is None:
        raise UserError(f"GPU {name}: not known; there are {', '.join(gpu.name for gpu in GPUS)} and cpu")
    return gpu


def known_gpu(name: str) -> Gpu | None:
    """Like `find_gpu`, but None for a name that is not known."""
    plain = _plain(name)
    return next((gpu for gpu in GPUS if plain in (_plain(gpu.name), *gpu.also)), None)


def memory_for_stages(device: str) -> int:
    """Bytes of a station's device that its stages may take: most of a GPU's; host memory is not counted.

    For a GPU it imports torch: stations ask, and need it anyway.
    """
    if device == "cpu":
        return sys.maxsize
    import torch

    return int(STAGES_SHARE * torch.cuda.get_device_properties(device).total_memory)


class TorchGauge:
    """What this process has of a GPU's memory, as torch counts it. See `show1_ray.line.memory.Gauge`."""

    def __init__(self, device: str) -> None:
        import torch

        self._cuda, self._device, self._reserved = torch.cuda, device, 0

    def used(self) -> int:
        """Bytes that tensors have."""
        return int(self._cuda.memory_allocated(self._device))

    def restart(self) -> None:
        """Begin to look for the most."""
        self._cuda.reset_peak_memory_stats(self._device)
        self._reserved = self._cuda.memory_reserved(self._device)

    def most(self) -> int:
        """Bytes since `restart`: of tensors, or what was taken from the GPU for them, holes included."""
        taken = self._cuda.max_memory_reserved(self._device) - self._reserved
        return int(max(self._cuda.max_memory_allocated(self._device), self.used() + taken))

    def release(self) -> None:
        """Frees the memory that torch caches."""
        self._cuda.empty_cache()


def gauge(device: str) -> TorchGauge | None:
    """What measures the memory that stages take of a station's device; None: nothing does, on CPUs."""
    return None if device == "cpu" else TorchGauge(device)


def same_device(one: str, other: str) -> bool:
    """Whether two names mean the same kind of device."""
    kinds = known_gpu(one), known_gpu(other)
    return kinds[0] is kinds[1] if any(kinds) else _plain(one) == _plain(other)


def _plain(name: str) -> str:
    return re.sub(r"nvidia|tesla|geforce|[^a-z0-9]", "", name.lower())
