"""The report of a job: `report.html` in the dataset, one file that opens anywhere; rewritten while the job runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from show1_ray.clip import Clip
from show1_ray.dataset.background import Background
from show1_ray.dataset.layout import REPORT
from show1_ray.dataset.lease import LeaseError
from show1_ray.dataset.metadata import Row
from show1_ray.dataset.patience import Retries
from show1_ray.dataset.report.facts import PROMPT_CHARACTERS, About, Facts, Shown
from show1_ray.dataset.report.page import page
from show1_ray.dataset.storage import Storage
from show1_ray.errors import Aside, UserError, without_secrets

REPORT_SECONDS = 60.0
"""Between two writes, while the job runs."""
VIDEO_BYTES = 2_000_000
"""Larger clips are not in the page: it links to them."""
SHOWN = ("file_name", "id", "prompt", "seed", "bytes", "width", "height")


class Report:
    """Collects what happens and writes it to WHERE/report.html: at once, every minute, and at the end.

    A context manager, entered when the job begins. Its methods return at once: a thread counts, draws and writes, in
    order. What fails there is no matter of the clips: it is told to `tell`, once, and everything goes on.
    """

    def __init__(
        self,
        storage: Storage,
        about: About,
        *,
        every: float = REPORT_SECONDS,
        clock: Callable[[], float] = time.time,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._storage = storage
        self._every = every
        self._clock = clock
        self._facts = Facts(about)  # the thread's, once it runs
        self._background = Background()
        self._due = -math.inf
        self._ended = False
        self._aside = Aside(REPORT, tell)

    def __enter__(self) -> Self:
        self._write_if_due()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(error, LeaseError):  # the report is another job's now
            self._background.stop()
            return
        if error is not None:
            # That error is what the job is to end with. It may be the storage's: it is not asked for long.
            self._storage = replace(self._storage, retries=Retries(attempts=1))
            self._close(*_ending(error))
        else:
            self._close("done", "")

    def station_up(self, station: int) -> None:
        """A station takes work."""
        self._tell(self._facts.station_up, station, self._clock())

    def station_ended(self, station: int) -> None:
        """A station had no work left and was released."""
        self._tell(self._facts.station_ended, station, self._clock())

    def station_lost(self, station: int, reason: str) -> None:
        """A station is gone, or did not come up."""
        self._tell(self._facts.station_lost, station, without_secrets(reason), self._clock())

    def station_shut_out(self, station: int, reason: str) -> None:
        """A station gets no work for a time."""
        self._tell(self._facts.station_shut_out, station, without_secrets(reason), self._clock())

    def working(self, stations: Collection[int], an_hour: float = 0.0, seconds_left: float | None = None) -> None:
        """The stations that are in a batch at this moment, the clips an hour, and what is left, as the line tells them.
        To be called often: the report is written on the way.
        """
        self._tell(self._facts.working, stations, an_hour, seconds_left)

    def batch_done(
        self,
        clips: Sequence[str],
        stage: str,
        station: int | None,
        started: float,
        seconds: float,
        load_seconds: float,
    ) -> None:
        """A batch of clips has been through a stage.

        Args:
            clips: their ids.
            stage: one of `About.stages`.
            station: the station's number; None for a CPU task.
            started: when the batch began, in seconds since the epoch.
            seconds: what the batch took.
            load_seconds: what the loading of the stage took before; about 0 where it was there.
        """
        self._tell(self._facts.batch_done, clips, stage, station, started, seconds, load_seconds, self._clock())

    def clip_done(self, row: Row) -> None:
        """A clip has landed: the row that the lander gave."""
        self._tell(self._clip_done, row)

    def clip_failed(self, clip: Clip, stage: str, attempts: int, error: str) -> None:
        """A clip could not be rendered."""
        self._tell(self._facts.clip_failed, clip, stage, attempts, without_secrets(error))

    def clip_rejected(self, clip: Clip, stage: str, reason: str, values: Mapping[str, Any]) -> None:
        """A stage did not let a clip go on; `values` are its plain values by the metadata's columns."""
        self._tell(self._facts.clip_rejected, clip, stage, reason, values)

    def end(self, *, interrupted: bool = False, stopped: str = "") -> None:
        """How a job ended that was interrupted or stopped; `stopped` says why."""
        if interrupted or stopped:
            self._ended = True
            self._tell(self._facts.end, "stopped" if stopped else "interrupted", stopped)

    def _tell(self, action: Callable[..., None], *args: Any) -> None:
        self._background.check()  # forgets what is done
        self._background.submit(self._aside_from_the_job, action, *args)
        self._write_if_due()

    def _write_if_due(self) -> None:
        if self._clock() >= self._due:
            self._due = math.inf  # until it is written: a slow storage does not get a queue
            self._background.submit(self._aside_from_the_job, self._write)

    def _close(self, state: str, reason: str) -> None:
        try:
            if not self._ended:
                self._background.submit(self._facts.end, state, without_secrets(reason))
            self._background.submit(self._aside_from_the_job, self._write)
            self._background.wait()
        finally:
            self._background.stop()

    # In the thread.

    def _aside_from_the_job(self, action: Callable[..., None], *args: Any) -> None:
        try:
            action(*args)
        except Exception as error:  # whatever it is: a report is not worth a job
            self._aside.fail(error)

    def _clip_done(self, row: Row) -> None:
        self._facts.rendered += 1
        if not self._facts.sheet.wants_next():
            return
        shown = {name: row[name] for name in SHOWN} | {"prompt": row["prompt"][:PROMPT_CHARACTERS]}
        try:
            video = self._storage.read(row["file_name"]) if row["bytes"] <= VIDEO_BYTES else None
        except FileNotFoundError:  # a shard has it by now
            return
        self._facts.sheet.add(Shown(shown, video))

    def _write(self) -> None:
        try:
            self._storage.write(REPORT, page(self._facts, self._clock()).encode())
        finally:
            self._due = self._clock() + self._every


def _ending(error: BaseException) -> tuple[str, str]:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", ""
    return "failed", str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
