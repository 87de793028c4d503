"""Everything that the program prints: text from outside is escaped, and secrets are hidden.

Foreign are values of manifests and pipeline files, names of files, answers of the hub, of storage and of clusters, and
what stages of somebody's own raise. A test sees that nothing in the package prints beside this module.
"""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
import traceback
import warnings
from typing import Any, TextIO

from rich import console
from rich.text import Text

from show1_ray.errors import hidden, printable

WIDTH = 160
"""Columns, where no terminal says how many there are."""


def say(text: object, file: TextIO | None = None) -> None:
    """A line, or several, on standard output or `file`."""
    print(printable(text), file=file or sys.stdout, flush=True)


def say_json(value: Any) -> None:
    """A value as JSON, on one line of standard output."""
    say(as_json(value))


def as_json(value: Any) -> str:
    """A value as JSON, on one line of ASCII without a control character."""
    return json.dumps(hidden(value)).replace("\x7f", "\\u007f")


class Console(console.Console):
    """Rich's, for tables and live displays: of any text that it is given, what a terminal would obey is escaped, and
    none is markup. Styled text is given as `rich.text.Text`, of nothing foreign.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(soft_wrap=True, markup=False, highlight=False, emoji=False, **options)
        if not self.is_terminal and "width" not in options:
            self.width = WIDTH

    def render_str(self, text: str, **options: Any) -> Text:
        """Everything that is a `str`, in a table's cells too, comes through here."""
        return super().render_str(printable(text), **options)


class Lines:
    """Somebody else's log as it comes, piece by piece: written to `file` line by line, as `say` does."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._begun = file, ""

    def write(self, text: str) -> None:
        """What has come; a line that has not ended waits for its rest."""
        whole, newline, self._begun = (self._begun + text).rpartition("\n")
        if newline:
            say(whole, self._file)

    def end(self) -> None:
        """Nothing more comes."""
        if self._begun:
            say(self._begun, self._file)
            self._begun = ""


def take_over() -> None:
    """Libraries' warnings and the tracebacks of threads, which Python writes to the standard error as they are, are
    written as the rest is. Characters that the terminal's encoding lacks are escaped there.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.lastResort = _Handler(logging.WARNING)
    warnings.showwarning = _tell_warning
    threading.excepthook = _tell_thread


class _Handler(logging.Handler):
    """What nobody else handles."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record), sys.stderr)


def _tell_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    say(warnings.formatwarning(message, category, filename, lineno, line).rstrip(), file or sys.stderr)


def _tell_thread(said: threading.ExceptHookArgs) -> None:
    if said.exc_type is SystemExit:
        return
    name = "a thread" if said.thread is None else f"thread {said.thread.name}"
    text = "".join(traceback.format_exception(said.exc_type, said.exc_value, said.exc_traceback))
    say(f"{name}: {text.rstrip()}", sys.stderr)
