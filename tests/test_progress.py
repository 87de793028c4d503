"""What a person sees while a job runs."""

from __future__ import annotations

import io
import json

import pytest

from show1_ray import progress
from show1_ray.clip import Clip
from show1_ray.line.events import (
    ClipFailed,
    Snapshot,
    StageView,
    StationLost,
    StationsAwaited,
    StationShutOut,
    StationView,
)
from show1_ray.log import Log
from show1_ray.output import Console
from show1_ray.progress import Progress


def snapshot(done: int = 3, starting: int = 0) -> Snapshot:
    stages = (StageView("keyframes", 5, 4, 2, 1.25, 4), StageView("super_resolution", 0, 0, 1, 7.5, 2))
    stations = (StationView(0, ("keyframes",), "keyframes", 4), StationView(1, ("super_resolution",), None, 0))
    return Snapshot(0.0, stages, stations, starting, 9, done, 1, 40, 0.875, 120.0, 3723.0)


def shown(terminal: bool, *events: object) -> str:
    file = io.StringIO()
    with Progress(Console(file=file, force_terminal=terminal, width=120, color_system=None)) as watch:
        for event in events:
            watch.observe(event)
    return file.getvalue()


def test_a_terminal_shows_stages_queues_stations_pace_and_time_left():
    text = shown(True, snapshot())
    head, titles, keyframes, super_resolution = [line for line in text.splitlines() if " " in line][-4:]
    for part in ("3 of 40 clips", "1 failed", "120/h", "1:02:03 left", "88% busy", "9 in flight", "2 stations"):
        assert part in head
    assert titles.split() == ["stage", "waiting", "running", "s/clip", "batch", "stations"]
    assert keyframes.split() == ["keyframes", "5", "4", "1.2", "4", "█"]
    assert super_resolution.split() == ["super_resolution", "·", "·", "7.5", "2", "░"]


def test_without_a_terminal_there_is_a_line_every_30_seconds(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    file = io.StringIO()
    with Progress(Console(file=file, width=120)) as watch:
        for done in range(61):
            watch.observe(snapshot(done))
            now[0] += 1.0
    lines = file.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["0", "30", "60"]
    assert "keyframes 5+4, super_resolution 0+0" in lines[0]


def test_stations_that_were_asked_for_are_told():
    assert "2 stations (3 more requested)" in shown(False, snapshot(starting=3))


def test_failures_and_lost_stations_are_told_in_a_line_each():
    failed = ClipFailed(Clip("clip-1", "a [red] circle", seed=1), "keyframes", 3, "Traceback\nValueError: [boom]")
    out = StationShutOut(5, "f00", "GPU 3 of node 10.0.0.7 (f00)", "keyframes", 60.0, "keyframes: boom")
    lost = StationLost(4, "gone: it was preempted", "GPU 1 of node 10.0.0.7 (f00)")
    text = shown(False, failed, lost, out, StationsAwaited("no station is up after 30 s: …"))
    assert text.splitlines() == [
        "clip clip-1 failed in keyframes: ValueError: [boom]",
        "station 4 lost: GPU 1 of node 10.0.0.7 (f00): gone: it was preempted",
        "station 5: GPU 3 of node 10.0.0.7 (f00) is shut out of keyframes for 60 s: keyframes: boom",
        "no station is up after 30 s: …",
    ]


@pytest.mark.parametrize("count", [1, 3])
def test_a_log_for_machines_names_job_and_clips(count):
    file = io.StringIO()
    with Log(file, "job-7") as log:
        for number in range(count):
            log.observe(ClipFailed(Clip(f"clip-{number}", "a\ncircle", seed=1), "keyframes", 3, "a\nb"))
            log.observe(snapshot())
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [line["clip"] for line in lines if line["event"] == "clip failed"] == [f"clip-{n}" for n in range(count)]
    assert {line["job"] for line in lines} == {"job-7"}
    assert [line["event"] for line in lines].count("progress") == 1
