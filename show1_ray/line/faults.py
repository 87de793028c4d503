"""What kind of fault an error is, told by class and by text where it is alive, through the chain of its causes.

By names and words only: neither torch nor Triton is imported here.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from show1_ray.errors import last_line, without_secrets
from show1_ray.line.spec import FatalError, PlaceError

Cause = Literal[
    "error", "memory", "host", "device", "clip", "fatal", "load", "death", "deadline", "gone", "idle", "place"
]

MOST_CHARACTERS = 20_000
"""Of an error's text: what the driver is told has to travel inline."""

MEMORY_CLASSES = {"OutOfMemoryError", "MemoryError", "_ArrayMemoryError"}
DEVICE_CLASSES = {"AcceleratorError", "CudaError", "DistBackendError", "DistNetworkError", "CUDADriverError"}
"""Errors after which the process cannot use its device, whatever they say; of torch, CuPy and numba."""

MEMORY_TEXT = re.compile(
    r"out of memory|out_of_memory|\bOOM\b|STATUS_ALLOC_FAILED|(failed|unable) to allocate|hipErrorOutOfMemory",
    re.IGNORECASE,
)
DEVICE_NAMES = re.compile(r"\b(CUDA|HIP|XPU|MPS|Triton|GPU|cu[A-Z]\w+)\b|ALLOC_FAILED")
DEVICE_TEXT = re.compile(
    r"""
      \b(CUDA|HIP|XPU|MPS|SYCL|driver)\s+(driver\s+|runtime\s+)?error\b
    | \bTriton\s+Error\s*\[ | \b(cuda|hip)Error[A-Z]\w+ | \bCUDA_ERROR_(?!OUT_OF_MEMORY)\w+
    | \b(cuDNN|cuBLAS(Lt)?|cuFFT|cuSPARSE|cuSOLVER|cuRAND|NCCL|RCCL|MIOpen|hipBLAS(Lt)?|rocBLAS|NVRTC|NVML)\b
      [^\n]{0,40}\b(error|failed|failure|STATUS_\w+)
    | \b(CUDNN|CUBLAS|CUFFT|CUSPARSE|CUSOLVER|CURAND|MIOPEN)_STATUS_(?!SUCCESS)\w+
    | \bnccl(Unhandled|System|Internal|Remote)\w*Error
    | \b(uncorrectable|double[- ]bit)\b[^\n]{0,40}\b(ECC|error|memory) | \bECC\s+error | \bXid\b[^\n]{0,20}\d
    | illegal\ (memory\ access|instruction|address) | (misaligned|invalid)\ (address|device\ address|program\ counter)
    | device[- ]side\ assert | unspecified\ launch\ failure | launch\ (failed|failure|timed\ out)
    | (device|GPU)s?(\(s\))?\ (is|are|was|were|has\ been|have\ been)\ (lost|busy|unavailable|removed|reset)
    | GPU\ has\ fallen\ off\ the\ bus | (all\ )?CUDA-capable\ device | no\ CUDA\ GPUs\ are\ available
    | unable\ to\ determine\ the\ device\ handle | hardware\ stack\ error | NVLink\b[^\n]{0,40}\berror
    """,
    re.IGNORECASE | re.VERBOSE,
)
OF_PROGRAMS = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, NameError, ImportError)
"""Errors that no device raises, whatever prompt stands in their text."""
HOST_KILL_TEXT = re.compile(r"killed due to the node running low on memory|memory monitor", re.IGNORECASE)


@dataclass(frozen=True)
class Failure:
    """Why a batch was not done.

    "error": the stage raised; "memory": it ran out of memory, also while it was loaded; "host": Ray ended the process
    for want of the node's memory; "device": the GPU failed, and the process cannot use it any more; "clip": the stage
    named the clip at fault; "fatal": nothing more can be rendered; "load": the stage could not be loaded; "death": the
    process died; "deadline": it did not return; "gone": the node went away; "idle": the process had died before the
    batch came to it. The last two are nobody's fault. "place": a CPU task could not be done on its `node`.
    """

    cause: Cause
    text: str
    clip_id: str | None = None
    loading: bool = False
    """It came while the stage was loaded: the clips have no part in it."""
    node: str = ""
    """Of "place", and of a CPU task whose stage could not be made: where, by Ray's id."""
    node_is_short: bool = False
    """Ray ended the process for want of the node's memory: nobody's fault, but not the moment for another one."""
    is_permanent: bool = False
    """Another attempt would end the same, as the error itself says."""

    @property
    def last_line(self) -> str:
        """What the text says in the end."""
        return last_line(self.text)


def failure(error: BaseException, loading: bool = False) -> Failure:
    """What came of a batch, or of a stage's loading, that raised."""
    chain = list(causes(error))
    fatal = next((one for one in chain if isinstance(one, FatalError)), None)
    if fatal is not None:
        return Failure("place" if isinstance(fatal, PlaceError) else "fatal", without_secrets(str(fatal)))
    # Hidden here: the driver does not know the tokens of this node.
    text = without_secrets(shortened("".join(traceback.format_exception(error)).strip()))
    named = (getattr(one, "clip_id", None) for one in chain)
    clip_id = next((name for name in named if isinstance(name, str)), None)
    # The outermost that speaks of the device: what came of handling the others.
    cause: Cause = "load" if loading else "error" if clip_id is None else "clip"
    for one in chain:
        if is_out_of_memory(one) or is_of_device(one):
            cause = "memory" if is_out_of_memory(one) else "device"
            break
    is_permanent = cause == "clip" and any(getattr(one, "is_permanent", False) is True for one in chain)
    return Failure(cause, text, clip_id if cause == "clip" else None, loading, is_permanent=is_permanent)


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and all that led to it: `raise … from`, what was being handled, members of groups, Ray's wrapping."""
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop(0)
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        left += [getattr(one, "cause", None), one.__cause__]
        if not one.__suppress_context__:
            left.append(one.__context__)
        if isinstance(one, BaseExceptionGroup):
            left += one.exceptions


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device's or the host's memory was too little: of torch, Triton's driver, CUDA's libraries, Python."""
    if _names(error) & MEMORY_CLASSES:
        return True
    # A prompt that says "out of memory" may stand in any message: only what speaks of a device, too, is believed.
    text = _own_text(error)
    return bool(MEMORY_TEXT.search(text)) and (_is_from_device_library(error) or bool(DEVICE_NAMES.search(text)))


def is_of_device(error: BaseException) -> bool:
    """Whether the device failed, after which a process is not to be trusted.

    `triton.runtime.errors.OutOfResources` is none: a kernel wants more shared memory or registers than this kind of
    GPU has, which the process survives and another process would meet again.
    """
    if "OutOfResources" in _names(error):
        return False
    if _names(error) & DEVICE_CLASSES:
        return True
    return not isinstance(error, OF_PROGRAMS) and bool(DEVICE_TEXT.search(_own_text(error)))


def is_host_kill(error: BaseException) -> bool:
    """Whether Ray's memory monitor ended the process, for the node's sake."""
    if any(type(one).__name__ == "OutOfMemoryError" for one in causes(error)):
        return True
    return bool(HOST_KILL_TEXT.search(str(error)))


def host_kill(error: BaseException, begun: bool = True) -> Failure:
    """What `is_host_kill`, with a last line that says so: Ray's own is a page of advice."""
    text = f"{error}\nthe node had too little memory, and Ray ended the process"
    return Failure("host" if begun else "idle", shortened(text), node_is_short=True)


def shortened(text: str) -> str:
    """A text without its middle, if it is very long."""
    if len(text) <= MOST_CHARACTERS:
        return text
    half = MOST_CHARACTERS // 2
    return f"{text[:half]}\n…\n{text[-half:]}"


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _is_from_device_library(error: BaseException) -> bool:
    return (type(error).__module__ or "").partition(".")[0] in ("torch", "triton", "cupy", "numba", "jax", "jaxlib")


def _own_text(error: BaseException) -> str:
    """What the error itself says; of one of Ray's that wraps another, nothing: the other is in the chain."""
    return "" if getattr(error, "cause", None) is not None else str(error)
