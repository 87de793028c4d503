"""What must be true of a command, whatever it is given; see `fuzz_cases.py`."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import signal
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from show1_ray.cli import app, main

COMMAND = typer.main.get_command(app)  # what `app()` makes anew each time
CPU_SECONDS, SECONDS = 15.0, 90.0
"""A case that takes longer hangs."""
SHOWN = re.compile(r"[^\n\x20-\x7e\xa0-\U0010ffff]")
"""What no output should have."""


@dataclass(frozen=True)
class Case:
    """Files (name → bytes) and a command."""

    kind: str
    files: dict[str, bytes]
    arguments: tuple[str, ...]
    may_write: tuple[str, ...] = ()
    """Files that the command is to make where it succeeds."""

    def __repr__(self) -> str:
        return f"Case({self.kind!r}, {sorted(self.files)}, {[one[:80] for one in self.arguments]})"


@dataclass
class Outcome:
    """What came of a case."""

    code: Any
    out: str
    err: str
    before: dict[str, Any] = field(repr=False, default_factory=dict)
    after: dict[str, Any] = field(repr=False, default_factory=dict)
    hung: bool = False


def tried(case: Case) -> tuple[str, str]:
    """Runs a case in a folder of its own: what is wrong with what it did ("" for nothing), and the exit code."""
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        outcome = run(case, Path(folder))
    return _fault(case, outcome), str(outcome.code)


def fault_of(case: Case) -> str:
    """What is wrong with what a case did; "" for nothing."""
    return tried(case)[0]


def _fault(case: Case, outcome: Outcome) -> str:
    output = outcome.out + outcome.err
    if outcome.hung:
        return f"took more than {CPU_SECONDS:.0f} s of CPU, or {SECONDS:.0f} s"
    if "Traceback" in output or outcome.code not in (0, 1, 2):
        return f"a traceback, or exit code {outcome.code}: {output[-1500:]}"
    if case.kind == "refused" and outcome.code != 2:
        return f"not refused: exit code {outcome.code}: {output[-500:]}"
    if found := SHOWN.search(output):
        return f"{found[0]!r} in the output: {output[:300]!r}"
    if outcome.code == 2 and not output.strip():
        return "refused without a word"
    changed = {
        name for name in {**outcome.before, **outcome.after} if outcome.before.get(name) != outcome.after.get(name)
    }
    if changed - set(case.may_write if outcome.code == 0 else ()):
        return f"exit code {outcome.code}, and {sorted(changed)[:3]} changed"
    return ""


def run(case: Case, folder: Path) -> Outcome:
    """The command, in this process, in `folder`, which has the case's files and some that are always there."""
    for name, data in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (folder / "folder").mkdir(exist_ok=True)
    (folder / "loop").symlink_to("loop")
    (folder / "nothing").symlink_to("is-not-there")
    out, err = Stream("strict"), Stream("backslashreplace")
    outcome = Outcome(None, "", "", before=listing(folder))
    here = Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), watched(outcome):
            main(lambda: COMMAND(args=list(case.arguments), prog_name="show1-ray"))
        outcome.code = 0
    except SystemExit as end:
        outcome.code = end.code
    except TimeoutError:
        outcome.hung = True
    finally:
        os.chdir(here)
    outcome.out, outcome.err, outcome.after = out.text(), err.text(), listing(folder)
    return outcome


class Stream(io.TextIOWrapper):
    """What standard output and standard error are, in memory."""

    def __init__(self, errors: str) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", errors=errors)

    def text(self) -> str:
        """All that was written."""
        self.flush()
        return self.buffer.getvalue().decode()  # type: ignore[attr-defined]


@contextlib.contextmanager
def watched(outcome: Outcome) -> Iterator[None]:
    """Raises TimeoutError in the main thread where a case takes too long."""

    def late(*_: object) -> None:
        outcome.hung = True
        raise TimeoutError

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, late) for number in (signal.SIGALRM, signal.SIGPROF)}
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def listing(folder: Path) -> dict[str, Any]:
    """Everything below a folder: what it is, and of files the content."""
    found: dict[str, Any] = {}
    for root, folders, files in os.walk(folder):
        for name in folders + files:
            path = Path(root) / name
            relative = str(path.relative_to(folder))
            if path.is_symlink():
                found[relative] = ("link", os.readlink(path))  # noqa: PTH115
            else:
                found[relative] = ("folder",) if path.is_dir() else (path.stat().st_mtime_ns, hash(path.read_bytes()))
    return found


def written(case: Case) -> str:
    """A case to look at and to repeat."""
    files = {
        name: base64.b64encode(data).decode() if len(data) > 400 else repr(data) for name, data in case.files.items()
    }
    return json.dumps(
        {"kind": case.kind, "arguments": [one[:300] for one in case.arguments], "files": files}, indent=1
    )[:6000]
