"""The page that a report is: facts → HTML, complete in itself. It asks for nothing, from nowhere."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from show1_ray.dataset.report.facts import Facts, Shown
from show1_ray.dataset.report.timeline import BINS, LANES, LOADING, UP, Bar, Lane, Span
from show1_ray.errors import last_line

COLOURS = 8
"""Stages' colours in the style sheet; more stages begin again with the first."""
TICKS = 6
STEPS = [1, 2, 5, 10, 15, 30]
EMBEDDED_BYTES = 12_000_000
"""Of all videos in the page together."""


def page(facts: Facts, now: float) -> str:
    """The report as it stands at `now` (seconds since the epoch)."""
    about, seconds = facts.about, facts.since(now)
    up = facts.timeline.up_seconds(seconds)
    is_running = facts.state == "running"
    done = about.done_before + facts.rendered
    return _template().render(
        about=about,
        facts=facts,
        is_running=is_running,
        written=datetime.fromtimestamp(now, UTC),
        began=datetime.fromtimestamp(about.began, UTC),
        seconds=seconds,
        done=done,
        failed=about.failed_before + facts.failed,
        rejected=about.rejected_before + facts.rejected,
        an_hour=facts.an_hour,
        seconds_left=facts.seconds_left if is_running else None,
        busy=facts.busy_share(now),
        up_seconds=up,
        stages=stage_rows(facts, up),
        rest=rest_of_time(facts, up),
        kinds=_kinds(facts),
        picture=picture(facts, seconds) if facts.timeline.gantt.lanes else None,
        clips=sheet(facts.sheet.clips(), about.format),
    )


@dataclass(frozen=True)
class StageRow:
    """A stage in the table. Seconds are of a clip; `share` is of the stations' time, None for CPU tasks."""

    name: str
    kind: str
    clips: int
    batches: int
    batch_size: float
    mean: float
    p50: float
    p95: float
    loads: int
    share: float | None


def stage_rows(facts: Facts, up_seconds: float) -> list[StageRow]:
    """What each stage did."""
    kinds = _kinds(facts)
    return [
        StageRow(
            name,
            kinds[name],
            times.clips,
            times.batches,
            times.clips / times.batches,
            times.seconds / times.clips,
            times.percentile(50),
            times.percentile(95),
            times.loads,
            min(1.0, times.seconds / up_seconds) if times.on_stations and up_seconds else None,
        )
        for name, times in facts.stages.items()
        if times.batches
    ]


def rest_of_time(facts: Facts, up_seconds: float) -> dict[str, float]:
    """Shares of the stations' time that went into no batch: loading, and the rest."""
    if not up_seconds:
        return {}
    on_stations = [times for times in facts.stages.values() if times.on_stations]
    busy = sum(times.seconds for times in on_stations) / up_seconds
    loading = min(max(0.0, 1 - busy), sum(times.load_seconds for times in on_stations) / up_seconds)
    return {"loading": loading, "idle": max(0.0, 1 - busy - loading)}


@dataclass(frozen=True)
class Box:
    """A rectangle of the chart: position and width in percent, CSS class, tooltip."""

    x: float
    width: float
    kind: str
    title: str


@dataclass(frozen=True)
class DrawnLane:
    """A lane of the Gantt picture: the stations' name, when they were up, what they did."""

    name: str
    up: list[Box]
    bars: list[Box]


@dataclass(frozen=True)
class Picture:
    """Busy share and Gantt over the same time. `layers`: paths of BINS by 1 units, by the class that colours them."""

    bins: float
    layers: list[tuple[str, str]]
    hints: list[Box]
    rows: list[DrawnLane]
    hidden_rows: int
    tick: float
    ticks: list[tuple[float, str]]
    unit: str


def picture(facts: Facts, seconds: float) -> Picture:
    """What the stations did during these seconds."""
    timeline, gantt, kinds = facts.timeline, facts.timeline.gantt, _kinds(facts)
    shares = timeline.shares(seconds)
    end = max(seconds, shares.width / 10)
    count = min(BINS, math.ceil(end / shares.width))
    order = [name for name in [*facts.stages, LOADING] if name in shares.kinds]
    tops = [0.0] * count
    layers = []
    for name in order:
        bottoms, tops = tops, [min(1.0, top + shares.of(name, number)) for number, top in enumerate(tops)]
        layers.append((kinds[name], _layer(bottoms, tops)))
    hints = []
    for number in range(count):
        if not shares.kinds[UP][number]:
            continue
        parts = {name: shares.of(name, number) for name in order}
        busy = min(1.0, sum(share for name, share in parts.items() if name != LOADING))
        first, last = number * shares.width, min(end, (number + 1) * shares.width)
        says = [f"{clock(first)} to {clock(last)}: {busy:.0%} busy", *_parts(parts)]
        hints.append(Box(100 * first / end, 100 * (last - first) / end, "hint", "\n".join(says)))
    rows = []
    for lane in [*gantt.lanes[:LANES], *([gantt.cpu] if gantt.cpu.bars else [])]:
        up = [
            _up(span, timeline.known_until(span.station, end) if span.end is None else span.end, end)
            for span in lane.spans
        ]
        rows.append(DrawnLane(_name(lane), up, [_bar(bar, kinds, end) for bar in gantt.drawn(lane)]))
    ticks, unit = time_axis(end)
    hidden = max(0, len(gantt.lanes) - LANES)
    return Picture(end / shares.width, layers, hints, rows, hidden, gantt.tick, ticks, unit)


def time_axis(seconds: float) -> tuple[list[tuple[float, str]], str]:
    """Places in percent and labels of at most TICKS + 1 ticks, and the unit that the labels are in."""
    minutes = [step / 60 for step in STEPS] + [m * 10**power for power in range(7) for m in (1, 2, 5)]
    step = next((step for step in minutes if seconds / 60 / step <= TICKS), minutes[-1])
    places = [number * step for number in range(int(seconds / 60 / step + 1e-9) + 1)]
    unit = "minutes" if step >= 1 else "minutes:seconds"
    labels = [f"{place:,.0f}" if step >= 1 else clock(60 * place) for place in places]
    return [(100 * place * 60 / seconds, label) for place, label in zip(places, labels, strict=True)], unit


@dataclass(frozen=True)
class SheetClip:
    """A clip of the contact sheet: `source` is the video itself, `link` the file beside the page; either may lack."""

    row: Mapping[str, Any]
    source: str | None
    link: str | None


def sheet(clips: list[Shown], format: str) -> list[SheetClip]:
    """The clips as the page shows them, of EMBEDDED_BYTES together at most."""
    shown, room = [], EMBEDDED_BYTES
    for clip in clips:
        source = None
        if clip.video is not None and len(clip.video) <= room:
            room -= len(clip.video)
            source = f"data:video/mp4;base64,{base64.b64encode(clip.video).decode()}"
        link = quote(clip.row["file_name"]) if format == "mp4" else None
        shown.append(SheetClip(clip.row, source, link))
    return shown


def clock(seconds: float) -> str:
    """1:02:03 or 2:03, with tenths below ten seconds."""
    if seconds < 10 and round(seconds, 1) % 1:
        return f"0:{seconds:04.1f}"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def short(value: float) -> str:
    """A number in three digits: 0.0120, 1.23, 123."""
    return f"{value:,.0f}" if value >= 99.95 or not value else f"{value:#.3g}"


def script_hash(text: str) -> str:
    """How a Content-Security-Policy names an inline script or style: no other one is let run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _kinds(facts: Facts) -> dict[str, str]:
    """The class of each stage, which colours it."""
    return {name: f"s{number % COLOURS}" for number, name in enumerate(facts.stages)} | {LOADING: LOADING}


def _layer(bottoms: list[float], tops: list[float]) -> str:
    """A stack's layer as a path of steps; runs of nothing are left out."""
    path, number = [], 0
    while number < len(tops):
        if tops[number] - bottoms[number] < 1e-4:
            number += 1
            continue
        first = number
        while number < len(tops) and tops[number] - bottoms[number] >= 1e-4:
            number += 1
        there = "".join(f"V{1 - tops[n]:.4f}H{n + 1}" for n in range(first, number))
        back = "".join(f"V{1 - bottoms[n]:.4f}H{n}" for n in reversed(range(first, number)))
        path.append(f"M{first} {1 - bottoms[first]:.4f}{there}{back}Z")
    return "".join(path)


def _name(lane: Lane) -> str:
    numbers = [str(span.station) for span in lane.spans]
    return ", ".join(numbers if len(numbers) < 3 else [numbers[0], "…", numbers[-1]]) or "CPU"


def _up(span: Span, last: float, end: float) -> Box:
    says = f"station {span.station}: up from {clock(span.begin)}"
    gone = "" if span.end is None else f", {'lost' if span.lost else 'ended'} at {clock(span.end)}"
    return Box(100 * span.begin / end, 100 * (last - span.begin) / end, "lost" if span.lost else "up", says + gone)


def _bar(bar: Bar, kinds: Mapping[str, str], end: float) -> Box:
    total = sum(bar.seconds.values())
    what = "batch" if bar.batches == 1 else f"{bar.batches:,} batches"
    clips = f", {what} of {bar.clips:,}" if bar.batches else ""
    where = "CPU task" if bar.station is None else f"station {bar.station}"
    says = [f"{bar.kind}{clips}", f"{where}, {clock(bar.begin)} to {clock(bar.end)}, {short(total)} s"]
    if len(bar.seconds) > 1:
        says += _parts({name: seconds / total for name, seconds in bar.seconds.items()} if total else {})
    width = min(max(100 * (bar.end - bar.begin) / end, 0.05), 100)
    return Box(100 * bar.begin / end, width, kinds[bar.kind], "\n".join(says))


def _parts(shares: Mapping[str, float]) -> list[str]:
    return [f"{name} {share:.0%}" for name, share in shares.items() if share >= 0.005]


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("show1_ray.dataset.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"clock": clock, "short": short, "last_line": last_line, "script_hash": script_hash}
    return environment.get_template("report.html.j2")
