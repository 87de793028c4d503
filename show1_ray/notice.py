"""What a job tells besides the line's events: that something beside the rendering went wrong, and the job goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Notice:
    """One line for people."""

    text: str


class Aside:
    """Something that a job does besides rendering (its report, its metrics): where it fails, that is said once, and the
    job goes on.
    """

    def __init__(self, what: str, tell: Callable[[str], None]) -> None:
        self._what = what
        self._tell = tell
        self.failed = False

    def fail(self, error: Exception) -> None:
        """It does not work."""
        if not self.failed:
            self.failed = True
            reason = " ".join(str(error).split()) or type(error).__name__
            self._tell(f"{self._what}: {reason}; the job goes on")
