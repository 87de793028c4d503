"""What an error is told to be, by class and by text; failure rates and dead starts."""

from __future__ import annotations

import pytest
import ray
import torch

from show1_ray.line.faults import MOST_CHARACTERS, failure, is_host_kill
from show1_ray.line.health import FailureRate, Starts
from show1_ray.line.spec import FatalError


class TritonError(RuntimeError):
    """Another library's."""


class OutOfResources(Exception):  # noqa: N818 - so it is called
    """As Triton's, by its name."""


DEVICE = [
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    RuntimeError("Triton Error [CUDA]: misaligned address"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("CUDNN_STATUS_INTERNAL_ERROR"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, opa)`"),
    RuntimeError("NCCL error in: ProcessGroupNCCL.cpp:1275, unhandled cuda error"),
    RuntimeError("ncclInternalError: Internal check failed."),
    torch.AcceleratorError("CUDA error: unspecified launch failure"),
    torch.AcceleratorError("whatever it says"),
    torch.distributed.DistBackendError("the watchdog got stuck"),
    RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    RuntimeError("Uncorrectable NVLink error detected during the execution"),
    RuntimeError("NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus."),
    RuntimeError("device-side assert triggered"),
    RuntimeError("CUDA-capable device(s) is/are busy or unavailable"),
    RuntimeError(
        "Unexpected error from cudaGetDeviceCount(): Error 802: system not yet initialized, cudaErrorSystemNotReady"
    ),
    RuntimeError("No CUDA GPUs are available"),
    RuntimeError("HIP error: the operation cannot be performed in the present state"),
    RuntimeError("The GPU device is lost"),
    OSError("CUDA_ERROR_ILLEGAL_ADDRESS"),
]
MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError("Unable to allocate 7.45 GiB for an array"),
]
PLAIN = [
    ValueError("prompt 'a rocket: launch failed, the GPU is lost, CUDA error' is too long"),
    RuntimeError("prompt 'a man who has run out of memory' is empty"),
    RuntimeError("shapes (3, 4) and (5, 6) do not match"),
    KeyError("cuda"),
    OutOfResources("out of resource: shared memory, Required: 262144, Hardware limit: 101376"),
    FileNotFoundError("no such file: cudnn.so"),
]


@pytest.mark.parametrize(
    ("errors", "cause"), [(DEVICE, "device"), (MEMORY, "memory"), (PLAIN, "error")], ids=["device", "memory", "plain"]
)
def test_errors_are_told_by_class_and_by_text(errors: list[Exception], cause: str) -> None:
    assert {str(error): failure(error).cause for error in errors} == {str(error): cause for error in errors}


@pytest.mark.parametrize("error", [*DEVICE, *MEMORY])
def test_they_are_told_through_the_chain_of_causes(error: Exception) -> None:
    bare = failure(error).cause
    for outer in (caused(ValueError("the decoder failed"), error), met(TritonError("while cleaning up"), error)):
        assert failure(outer).cause == bare
        assert failure(ExceptionGroup("stages", [KeyError("a"), outer])).cause == bare
    wrapped = ray.exceptions.RayTaskError("decode", "Traceback …", error)
    assert failure(wrapped).cause == bare
    assert failure(error, loading=True).cause == bare


def caused(outer: Exception, inner: Exception) -> Exception:
    """`raise outer from inner`."""
    outer.__cause__ = inner
    return outer


def met(outer: Exception, inner: Exception) -> Exception:
    """`outer` is raised while `inner` is handled."""
    outer.__context__ = inner
    return outer


def test_what_came_of_handling_an_error_is_what_counts() -> None:
    broken = met(RuntimeError("CUDA error: an illegal memory access was encountered"), MEMORY[0])
    assert failure(broken).cause == "device"


def test_a_fatal_error_and_a_clip_at_fault_are_found_in_the_chain_too() -> None:
    class NamedError(ArithmeticError):
        clip_id = "clip-7"

    named = failure(caused(RuntimeError("outer"), NamedError("NaN")))
    assert (named.cause, named.clip_id) == ("clip", "clip-7")
    fatal = failure(caused(RuntimeError("outer"), FatalError("disk full")))
    assert (fatal.cause, fatal.text) == ("fatal", "disk full")


def test_a_text_of_any_length_travels_inline() -> None:
    assert len(failure(ValueError("x" * 10**7)).text) < MOST_CHARACTERS + 10


def test_what_rays_memory_monitor_ends_is_told_from_what_dies_otherwise() -> None:
    killed = "Task was killed due to the node running low on memory."
    died = "Some common causes include: (1) the process was killed by the OOM killer due to high memory usage"
    assert is_host_kill(ray.exceptions.OutOfMemoryError(killed))
    assert not is_host_kill(ray.exceptions.WorkerCrashedError())
    assert not is_host_kill(ray.exceptions.RayActorError(error_msg=died))


def test_a_failure_rate_far_above_what_was_seen_before_is_an_alarm() -> None:
    rate = FailureRate()
    for number in range(1000):
        rate.count(failed=number % 100 == 0)
    assert not rate.alarm()
    seen = []
    for _ in range(30):
        rate.count(failed=True)
        seen.append(rate.alarm())
    first = next(number for number, text in enumerate(seen) if text)
    assert first == 19
    assert seen[first] == "20 of the last 40 clips failed, 10 of the 980 before them"


def test_a_manifest_that_always_had_many_bad_rows_is_none() -> None:
    rate = FailureRate()
    for number in range(1000):
        rate.count(failed=number % 2 == 0)
        assert not rate.alarm()


def test_pauses_between_dead_starts_grow_by_node_and_are_forgotten() -> None:
    starts = Starts()
    assert [starts.count("a", 10.0 * number) for number in range(5)] == [1, 2, 4, 8, 16]
    assert starts.count("b", 50.0) == 1
    assert max(starts.count("a", 60.0 + number) for number in range(100)) == 300
    assert starts.count("a", 10_000.0) == 1
