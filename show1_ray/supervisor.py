"""A command's driver in a process of its own, so that somebody is left to tell how it ended.

Ray's C++ part ends the process that uses its object store when this machine's raylet has just been killed: exit code 1,
without a word, and before any Python code of that process could notice. Imports nothing of Ray's.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import NoReturn

ENDED = "show1-ray: Ray ended this job, as it does when this machine's raylet dies; rerun the same command to resume"
"""What is told in place of a driver that could not."""
EXIT_CODE = 3

_PASSED_ON = {
    signal.SIGABRT,
    signal.SIGCONT,
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
}
_PR_SET_PDEATHSIG = 1


_saying: list[int] = []
"""In the child, the pipe that takes its exit code."""


def supervise() -> None:
    """Goes on in a child process, which has to call `done`.

    This process waits, and ends with the exit code that was given there, or by the signal that ended the child. Where
    that ended before its work was done, and by itself, it is told in one line, and the exit code is 3.

    To the outside they are one process: signals are passed on, each once (the child is in a process group of its own,
    out of the terminal's reach), Ctrl-Z stops and SIGCONT continues both, and neither outlives the other.
    """
    if not hasattr(os, "fork"):
        return
    reading, writing = os.pipe()
    awaited = _PASSED_ON | {signal.SIGCHLD, signal.SIGTSTP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _become_child(parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _saying.append(writing)
        return
    os.close(writing)
    status = _wait(child, awaited)
    if said := os.read(reading, 1):
        os._exit(said[0])
    code = os.waitstatus_to_exitcode(status)
    if code in (1, -signal.SIGABRT):
        from show1_ray.output import say  # Rich, which takes a moment

        say(ENDED, sys.stderr)
        os._exit(EXIT_CODE)
    if code < 0:
        _end_by(signal.Signals(-code))
    os._exit(code)


def command_pid() -> int:
    """The process that people know this one by: the command's, where that supervises it."""
    return os.getppid() if _saying else os.getpid()


def done(code: int) -> None:
    """The work of this process is done, with this exit code; says so to whoever supervises it, if anybody does."""
    while _saying:
        writing = _saying.pop()
        os.write(writing, bytes([code % 256]))
        os.close(writing)


def _become_child(parent: int) -> None:
    os.setpgid(0, 0)
    # A terminal may be set so that what is not in its foreground must not write to it.
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has ended already
            os._exit(1)


def _wait(child: int, awaited: set[signal.Signals]) -> int:
    """Passes signals on until the child has ended; how it did, as `os.waitpid` says it."""
    while True:
        number = signal.sigwait(awaited)
        if number == signal.SIGCHLD:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return status
        elif number == signal.SIGTSTP:
            os.kill(child, signal.SIGSTOP)
            os.kill(os.getpid(), signal.SIGSTOP)
        else:
            os.kill(child, number)


def _end_by(number: signal.Signals) -> NoReturn:
    """Ends as somebody does whom a signal ends, which is what a shell and Ray's job look at."""
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os._exit(128 + number)
