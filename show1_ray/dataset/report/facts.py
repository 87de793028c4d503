"""The facts of a report, counted while the job runs, in bounded memory."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from show1_ray.clip import Clip
from show1_ray.dataset.report.timeline import Timeline

MOST_REJECTIONS = 50
MOST_FAILURES = 100
MOST_LOST = 50
SHEET_CLIPS = 12
"""Clips of the contact sheet."""
SAMPLE = 1000
"""Batches of a stage that its percentiles are taken from."""
LOAD_SECONDS = 0.001
"""What takes longer was loaded; a stage that is there is found sooner."""
ERROR_CHARACTERS = 8000
PROMPT_CHARACTERS = 1000


@dataclass(frozen=True)
class About:
    """The job that a report is about. Counts are clips, `began` is seconds since the epoch."""

    out: str
    manifest: str
    pipeline: str
    recipe_hash: str
    format: str
    stages: tuple[str, ...]
    """The line's stages in order."""
    total: int
    began: float
    done_before: int = 0
    failed_before: int = 0
    """Failed in earlier jobs, and skipped in this one."""
    rejected_before: int = 0
    """Rejected in earlier jobs."""
    job: str = ""


@dataclass
class StageTimes:
    """What a stage did in this run. `sample`: seconds per clip of at most SAMPLE random batches."""

    on_stations: bool = True
    clips: int = 0
    batches: int = 0
    seconds: float = 0.0
    loads: int = 0
    load_seconds: float = 0.0
    sample: list[float] = field(default_factory=list)

    def add(self, clips: int, seconds: float, load_seconds: float, choice: random.Random) -> None:
        """A batch."""
        self.clips += clips
        self.batches += 1
        self.seconds += seconds
        self.loads += load_seconds > 0
        self.load_seconds += load_seconds
        if len(self.sample) < SAMPLE:
            self.sample.append(seconds / clips)
        elif (place := choice.randrange(self.batches)) < SAMPLE:
            self.sample[place] = seconds / clips

    def percentile(self, percent: float) -> float:
        """Seconds a clip that so many percent of the batches do not exceed."""
        return sorted(self.sample)[math.ceil(len(self.sample) * percent / 100) - 1] if self.sample else 0.0


@dataclass(frozen=True)
class Failed:
    """A clip that could not be rendered."""

    id: str
    prompt: str
    stage: str
    attempts: int
    error: str


@dataclass(frozen=True)
class LostStation:
    """A station that went, or was shut out; `at` is seconds since the job began."""

    station: int
    at: float
    reason: str


@dataclass(frozen=True)
class Shown:
    """A clip of the contact sheet; `video` is None where the file is too large to be in the page."""

    row: Mapping[str, Any]
    video: bytes | None


class Sheet:
    """A choice of clips, evenly from first to last, however many there will be; up to twice SHEET_CLIPS are kept."""

    def __init__(self) -> None:
        self._kept: list[Shown] = []
        self._count = 0
        self._stride = 1

    def wants_next(self) -> bool:
        """Whether the next clip is to be added; counts it."""
        wanted = self._count % self._stride == 0
        self._count += 1
        return wanted

    def add(self, clip: Shown) -> None:
        """A clip that was wanted."""
        self._kept.append(clip)
        if len(self._kept) == 2 * SHEET_CLIPS:
            del self._kept[1::2]
            self._stride *= 2

    def clips(self) -> list[Shown]:
        """At most SHEET_CLIPS."""
        count = min(SHEET_CLIPS, len(self._kept))
        return [self._kept[place * len(self._kept) // count] for place in range(count)]


@dataclass(frozen=True)
class RejectedClip:
    """A clip that a stage did not let go on; `values` in words."""

    id: str
    prompt: str
    stage: str
    reason: str
    values: str


class Facts:
    """Everything that a report shows. Times are seconds since the epoch unless stated otherwise."""

    def __init__(self, about: About) -> None:
        self.about = about
        self.stages = {name: StageTimes() for name in about.stages}
        self.timeline = Timeline()
        self.sheet = Sheet()
        self.rendered = 0
        self.an_hour = 0.0
        self.seconds_left: float | None = None
        self.failed = 0
        self.failures: list[Failed] = []
        self.rejected = 0
        self.rejections: list[RejectedClip] = []
        self.lost: deque[LostStation] = deque(maxlen=MOST_LOST)
        self.stations_lost = 0
        self.shut_out: deque[LostStation] = deque(maxlen=MOST_LOST)
        self.state = "running"
        self.reason = ""
        self._choice = random.Random(0)

    def station_up(self, station: int, now: float) -> None:
        """A station is up."""
        self.timeline.station_up(station, self.since(now))

    def station_ended(self, station: int, now: float) -> None:
        """A station was given back."""
        self.timeline.station_gone(station, self.since(now), lost=False)

    def station_lost(self, station: int, reason: str, now: float) -> None:
        """A station is gone, or did not come up."""
        self.timeline.station_gone(station, self.since(now), lost=True)
        self.lost.append(LostStation(station, self.since(now), reason[-ERROR_CHARACTERS:]))
        self.stations_lost += 1

    def station_shut_out(self, station: int, reason: str, now: float) -> None:
        """A station gets no work for a time, because it failed where others did not."""
        self.shut_out.append(LostStation(station, self.since(now), reason[-ERROR_CHARACTERS:]))

    def working(self, stations: Collection[int], an_hour: float = 0.0, seconds_left: float | None = None) -> None:
        """See `Timeline.working`; and how fast the line is, by its own account, which progress displays show too."""
        self.timeline.working(stations)
        self.an_hour, self.seconds_left = an_hour, seconds_left

    def batch_done(
        self,
        clips: Sequence[str],
        stage: str,
        station: int | None,
        started: float,
        seconds: float,
        load_seconds: float,
        now: float,
    ) -> None:
        """A batch of clips has been through a stage, on a station or as a CPU task."""
        if load_seconds < LOAD_SECONDS:
            load_seconds = 0.0
        times = self.stages[stage]
        times.on_stations = station is not None
        times.add(len(clips), seconds, load_seconds, self._choice)
        # Nodes' clocks differ: what is done has ended by now.
        end = self.since(min(started + seconds, now))
        begin = max(0.0, end - seconds)
        self.timeline.batch(stage, station, begin, end, min(load_seconds, begin), len(clips))

    def clip_failed(self, clip: Clip, stage: str, attempts: int, error: str) -> None:
        """Counts a clip that could not be rendered."""
        self.failed += 1
        if len(self.failures) < MOST_FAILURES:
            text = error.strip()
            cut = f"…{text[-ERROR_CHARACTERS:]}" if len(text) > ERROR_CHARACTERS else text
            self.failures.append(Failed(clip.id, clip.prompt[:PROMPT_CHARACTERS], stage, attempts, cut))

    def clip_rejected(self, clip: Clip, stage: str, reason: str, values: Mapping[str, Any]) -> None:
        """A stage did not let a clip go on."""
        self.rejected += 1
        if len(self.rejections) < MOST_REJECTIONS:
            said = ", ".join(f"{name} {shown(value)}" for name, value in values.items())
            prompt, reason, said = (text[:PROMPT_CHARACTERS] for text in (clip.prompt, reason, said))
            self.rejections.append(RejectedClip(clip.id, prompt, stage, reason, said))

    def end(self, state: str, reason: str = "") -> None:
        """The job is over: "done", "interrupted", "stopped" or "failed", and why."""
        self.state, self.reason = state, reason[-ERROR_CHARACTERS:]

    @property
    def left(self) -> int:
        """Clips of the manifest that are neither done, nor failed, nor rejected."""
        about = self.about
        before = about.done_before + about.failed_before + about.rejected_before
        return max(0, about.total - before - self.rendered - self.failed - self.rejected)

    def busy_share(self, now: float) -> float:
        """Share of the stations' time that went into batches."""
        up = self.timeline.up_seconds(self.since(now))
        busy = sum(times.seconds for times in self.stages.values() if times.on_stations)
        return min(1.0, busy / up) if up > 0 else 0.0

    def since(self, now: float) -> float:
        """Seconds from the job's beginning to `now`."""
        return max(0.0, now - self.about.began)


def shown(value: Any) -> str:
    """A plain value for people."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
