"""The driver in a child process, which the command's own process stands for: real processes and signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import pytest

from show1_ray.supervisor import ENDED

SUPERVISED = """
import os, signal, sys, time
from show1_ray.supervisor import command_pid, done, supervise

supervise()

def wait_for_two():
    came = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: came.append(number))
    print("ready", os.getpid(), command_pid(), flush=True)
    while signal.SIGTERM not in came:
        time.sleep(0.01)
    print(*map(int, came), flush=True)
    done(130)
    sys.exit(130)

"""
WAITS = SUPERVISED + "wait_for_two()"


@contextmanager
def begun(source: str) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", source]
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        yield process
        process.kill()


def child_of(process: subprocess.Popen[str]) -> psutil.Process:
    """The driver, once it is ready."""
    assert process.stdout is not None
    ready, number, command = process.stdout.readline().split()
    assert ready == "ready"
    assert int(number) != process.pid == int(command), "a dataset's lease tells the process that somebody has started"
    return psutil.Process(int(number))


@pytest.mark.parametrize(
    ("end", "code", "told"),
    [
        ("done(0)", 0, ""),
        ("done(2); sys.exit(2)", 2, ""),
        ("done(0); os._exit(1)", 0, ""),
        ("os._exit(1)", 3, f"{ENDED}\n"),
        ("signal.signal(signal.SIGABRT, signal.SIG_DFL); os.abort()", 3, f"{ENDED}\n"),
        ("os._exit(7)", 7, ""),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, ""),
    ],
)
def test_it_ends_as_the_driver_does_and_tells_what_that_could_not(end: str, code: int, told: str) -> None:
    with begun(SUPERVISED + end) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (code, "", told)


@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_a_signal_comes_through_once(send: Callable[[int, int], None]) -> None:
    with begun(WAITS) as process:
        child_of(process)
        send(process.pid, signal.SIGINT)
        send(process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert sorted(out.split()) == sorted([str(int(signal.SIGINT)), str(int(signal.SIGTERM))])


def test_what_is_stopped_from_the_terminal_stands_still_until_it_is_continued() -> None:
    with begun(WAITS) as process:
        child = child_of(process)
        process.send_signal(signal.SIGTSTP)
        while {child.status(), psutil.Process(process.pid).status()} != {psutil.STATUS_STOPPED}:
            assert process.poll() is None
        process.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 130


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_killed_it_takes_the_driver_with_it() -> None:
    with begun(WAITS) as process:
        child = child_of(process)
        process.kill()
        process.communicate(timeout=60)
        child.wait(timeout=60)
    assert not child.is_running()
