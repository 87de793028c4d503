"""What a job did, in counts."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from show1_ray.dataset import Survey
from show1_ray.dataset.endings import FAILED, read_endings
from show1_ray.dataset.storage import Storage
from show1_ray.errors import last_line
from show1_ray.line.events import ClipFailed

LISTED = 100
"""Failures in a summary."""


@dataclass
class Summary:
    """What a job did. Counts are clips; `clips` is the folder that holds them."""

    out: str
    clips: str = ""
    total: int = 0
    done_before: int = 0
    rendered: int = 0
    failed: int = 0
    rejected: int = 0
    skipped_failures: int = 0
    rejected_before: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    stopped: str = ""
    failures: list[dict[str, str]] = field(default_factory=list)
    """Failures of this run, at most LISTED."""
    failures_before: list[dict[str, str]] = field(default_factory=list)
    """Failures of earlier runs that this run skipped, at most LISTED."""
    notes: list[str] = field(default_factory=list)
    """What whoever starts the job should know, one line each."""

    @property
    def left(self) -> int:
        """Clips that were left to render when the job began."""
        return self.total - self.done_before - self.skipped_failures - self.rejected_before

    def is_hopeless(self, max_failures: int) -> bool:
        """Whether `max_failures` clips have failed before any was done or rejected."""
        return self.failed >= max_failures and not (self.rendered or self.rejected or self.stopped)

    @property
    def exit_code(self) -> int:
        """0: all rendered or rejected; 1: some failed; 130: interrupted, rerun to resume."""
        if self.interrupted:
            return 130
        return 1 if self.failed or self.skipped_failures or self.stopped else 0

    def count_failure(self, event: ClipFailed) -> None:
        """Counts a clip that could not be rendered."""
        self.failed += 1
        if len(self.failures) < LISTED:
            self.failures.append({"id": event.clip.id, "stage": event.stage, "error": event.reason})

    def count_before(self, survey: Survey, storage: Storage) -> None:
        """Counts what the dataset holds already."""
        self.done_before, self.skipped_failures, self.rejected_before = survey.done, survey.failed, survey.rejected
        if survey.skipped:
            known = {failure["id"]: failure for failure in read_endings(storage, FAILED)}
            told = [known[clip_id] for clip_id in survey.skipped if clip_id in known]
            self.failures_before = [
                {"id": one["id"], "stage": one["stage"], "error": last_line(one["error"])} for one in told
            ]

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "exit_code": self.exit_code}
