"""`show1-ray demo` in a process of its own, with a Ray of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "show1_ray", "demo", *options]


@contextmanager
def begun(line: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A command line, just begun. Nothing of it is left behind, nor of its Ray."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        environment = {**os.environ, "RAY_TMPDIR": folder, "PYTHONFAULTHANDLER": "1"}
        process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=environment)
        try:
            yield process
        finally:
            if process.poll() is None:
                for member in family(process.pid):
                    member.kill()
            process.communicate()


@contextmanager
def serving(*options: str) -> Iterator[tuple[str, int]]:
    """The command with its page open: the page's address, and the process's id. Ended as Ctrl-C ends it."""
    with begun(command("--port", "0", *options)) as process:
        said = said_until(process, "http://")
        yield said.split()[-1], process.pid
        process.send_signal(signal.SIGINT)
        assert end_of(process) == (0, "", [])


def said_until(process: subprocess.Popen[str], what: str) -> str:
    """What the command says until it says `what`, which it has to."""
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if what in line:
            return said
    raise AssertionError(f"it ended, and said: {said}")


def end_of(process: subprocess.Popen[str], within: float = 120.0) -> tuple[int, str, list[psutil.Process]]:
    """Waits for its end: the exit code, what it said meanwhile, and what does not end of all that it had started.

    Raises:
        AssertionError: it has not ended `within` so many seconds; says where its threads are.
    """
    started: set[psutil.Process] = set()
    late = time.monotonic() + within
    while process.poll() is None and time.monotonic() < late:
        with suppress(psutil.NoSuchProcess):
            started.update(family(process.pid))
        time.sleep(0.02)
    assert process.stderr is not None
    if process.poll() is None:
        process.send_signal(signal.SIGABRT)  # Python's fault handler, which `begun` has asked for, answers
        process.wait()
        for member in started:  # they write to where it wrote
            with suppress(psutil.NoSuchProcess):
                member.kill()
        raise AssertionError(f"it does not end: {process.stderr.read()}")
    _, left = psutil.wait_procs(started, timeout=30)
    return process.returncode, process.stderr.read(), left


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it has started."""
    process = psutil.Process(pid)
    return [*process.children(recursive=True), process]


def stations(pid: int, title: str = "ray::Station") -> list[psutil.Process]:
    """The stations of the line that a process runs; Ray's title says what each does."""
    return [member for member in family(pid) if title in " ".join(member.cmdline())]
