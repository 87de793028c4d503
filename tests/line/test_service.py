"""The line as a service: clips that come one by one, on real Ray, with stages that obey their clip's prompt."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psutil
import pytest

from show1_ray.clip import Clip
from show1_ray.line.events import ClipDone, ClipFailed, Event, StageDone
from show1_ray.line.service import AHEAD, Began, Ended, FullError, Queued, Repeated, Service, StoppedError
from show1_ray.line.spec import FatalError, StageSpec, Values
from tests.line.sleepers import Adds, clips, expected, references, settings, spec

MAX_WAITING = 6


class Obeys(Adds):
    """Does what prompts say: "fail", "stop everything", or "wait FILE": until there is such a file."""

    def __call__(self, clips: list[Clip], tensors: list[Values]) -> list[Values]:
        for clip in clips:
            word, _, path = clip.prompt.partition(" ")
            if word == "fail":
                raise RuntimeError("boom")
            if word == "stop":
                raise FatalError("the disk is full")
            while word == "wait" and not Path(path).exists():
                Path(path + ".pid").write_text(str(os.getpid()))
                time.sleep(0.01)
        return super().__call__(clips, tensors)


def stages() -> list[StageSpec]:
    return [spec(0), spec(1, lambda device: Obeys(1, 0.01, 1000)), spec(2)]


@pytest.fixture(scope="module")
def line(local_ray: None) -> Iterator[Service]:
    """One station, warm: what waits for it is a batch."""
    with Service(stages(), settings(stations=1, warm=True), MAX_WAITING) as service:
        assert service.warm.wait(60)
        yield service
        assert service.error is None


async def follow(line: Service, clip: Clip, outputs: tuple[str, ...] = ()) -> list[Any]:
    return [event async for event in line.render(clip, outputs)]


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def clip(number: int, prompt: str = "a prompt") -> Clip:
    return Clip(f"clip-{number}", prompt, seed=number)


def value(events: list[Any]) -> int:
    assert isinstance(events[-1], ClipDone)
    return int(events[-1].result["x2"][0])


def test_a_clip_is_followed_through_its_stages_with_the_tensors_that_were_asked_for(line: Service) -> None:
    events = asyncio.run(follow(line, clip(7), ("x0", "x1")))
    assert events[0] == Queued(1)
    names = [(type(event).__name__, event.stage) for event in events[1:-1]]
    assert names == [(kind, f"stage{n}") for n in range(3) for kind in ("Began", "Ended")]
    ended = [event for event in events if isinstance(event, Ended)]
    assert [set(event.tensors) for event in ended] == [{"x0"}, {"x1"}, set()]
    assert (ended[0].tensors["x0"][0], ended[1].tensors["x1"][0]) == (70, 701)
    assert all(event.seconds > 0 for event in ended)
    assert value(events) == expected(clip(7))


def test_clips_of_several_callers_see_their_place_and_share_batches(line: Service, tmp_path: Path) -> None:
    async def several() -> list[list[Any]]:
        first = asyncio.create_task(follow(line, clip(0, f"wait {tmp_path}/go")))
        await until((tmp_path / "go.pid").exists)
        others = [asyncio.create_task(follow(line, clip(number))) for number in range(1, 5)]
        await until(lambda: line.waiting == 4)
        (tmp_path / "go").touch()
        return await asyncio.gather(first, *others)

    first, *others = asyncio.run(several())
    assert value(first) == expected(clip(0))
    assert [events[0] for events in others] == [Queued(1), Queued(2), Queued(3), Queued(4)]
    for number, events in enumerate(others, start=1):
        assert value(events) == expected(clip(number))
        assert {event.clips for event in events if isinstance(event, Began)} == {4}


def test_a_full_queue_refuses_and_a_cancelled_clip_leaves_it(line: Service, tmp_path: Path) -> None:
    async def crowd() -> tuple[list[Any], list[list[Any]]]:
        first = asyncio.create_task(follow(line, clip(0, f"wait {tmp_path}/go")))
        await until((tmp_path / "go.pid").exists)
        others = [asyncio.create_task(follow(line, clip(1 + number))) for number in range(MAX_WAITING)]
        await until(lambda: line.waiting == MAX_WAITING)
        with pytest.raises(FullError, match="6 clips are waiting already"):
            await follow(line, clip(99))
        with pytest.raises(ValueError, match="'clip-3' is in the line already"):
            await follow(line, clip(3))
        others.pop(0).cancel()
        await until(lambda: line.waiting == MAX_WAITING - 1)
        first.cancel()  # it runs: the line forgets it when its batch is over
        others.append(asyncio.create_task(follow(line, clip(1, "once more"))))
        await asyncio.sleep(0)
        (tmp_path / "go").touch()
        rest = await asyncio.gather(*others)
        again = await follow(line, clip(0))
        return again, rest

    again, rest = asyncio.run(crowd())
    assert [value(events) for events in rest] == [expected(clip(number)) for number in (2, 3, 4, 5, 6, 1)]
    assert Queued(1) in rest[0]
    assert value(again) == expected(clip(0))
    assert line.in_line == 0


def test_leaving_the_loop_early_cancels_the_clip(line: Service) -> None:
    async def leave() -> None:
        async with aclosing(line.render(clip(1))) as events:
            async for event in events:
                if isinstance(event, Began):
                    break
        await until(lambda: line.in_line == 0)

    asyncio.run(leave())
    assert not line.line.traffic.flights


def test_a_clip_that_fails_is_told_to_its_author_only(line: Service, tmp_path: Path) -> None:
    async def together() -> list[list[Any]]:
        first = asyncio.create_task(follow(line, clip(0, f"wait {tmp_path}/go")))
        await until((tmp_path / "go.pid").exists)
        batch = [follow(line, clip(1)), follow(line, clip(2, "fail")), follow(line, clip(3))]
        tasks = [asyncio.create_task(one) for one in batch]
        await until(lambda: line.waiting == 3)
        (tmp_path / "go").touch()
        return await asyncio.gather(first, *tasks)

    events = asyncio.run(together())
    failed = events[2][-1]
    assert isinstance(failed, ClipFailed)
    assert (failed.clip.id, failed.stage, failed.attempts) == ("clip-2", "stage1", 3)
    assert failed.error.endswith("RuntimeError: boom")
    for number in (0, 1, 3):
        assert value(events[number]) == expected(clip(number))


def test_the_clips_of_a_killed_station_arrive(line: Service, tmp_path: Path) -> None:
    async def kill() -> list[Any]:
        task = asyncio.create_task(follow(line, clip(0, f"wait {tmp_path}/go")))
        pid = tmp_path / "go.pid"
        await until(lambda: pid.exists() and pid.read_text())
        (tmp_path / "go").touch()
        os.kill(int(pid.read_text()), signal.SIGSTOP)
        os.kill(int(pid.read_text()), signal.SIGKILL)
        return await task

    events = asyncio.run(kill())
    assert value(events) == expected(clip(0))
    repeated = [event for event in events if isinstance(event, Repeated)]
    assert len(repeated) <= 1
    assert all(event.reason.startswith("death") for event in repeated)


def test_a_station_that_died_while_it_was_idle_costs_no_attempt(line: Service, tmp_path: Path) -> None:
    async def kill() -> list[list[Any]]:
        await follow(line, clip(9))
        [station] = line.line.fleet.stations.values()
        assert station.info is not None
        os.kill(station.info.pid, signal.SIGKILL)
        await until(lambda: not psutil.pid_exists(station.info.pid))
        return await asyncio.gather(*(follow(line, clip(number)) for number in range(4)))

    for number, events in enumerate(asyncio.run(kill())):
        assert value(events) == expected(clip(number))
        assert events[-1].attempts == 1
        assert [event.reason.split(":")[0] for event in events if isinstance(event, Repeated)] in ([], ["idle"])
        assert {event.clips for event in events if isinstance(event, Ended)} != {1}, "they are not taken apart"


def test_an_idle_line_sleeps_and_goes_on_when_a_clip_comes(line: Service) -> None:
    assert line._thread.ident is not None
    clock = time.pthread_getcpuclockid(line._thread.ident)
    before = time.clock_gettime(clock)
    time.sleep(2.0)
    assert time.clock_gettime(clock) - before < 0.5
    assert value(asyncio.run(follow(line, clip(1)))) == expected(clip(1))


def test_nothing_is_kept_of_clips_that_are_done(line: Service) -> None:
    async def many(count: int) -> None:
        for number in range(count):
            await follow(line, clip(number), ("x0",))

    asyncio.run(many(1))
    before = references()
    asyncio.run(many(10))
    assert references() <= before + 3
    assert (line.in_line, line.waiting, len(line.line.traffic.flights)) == (0, 0, 0)


def test_a_line_that_knows_how_many_come_fills_its_batches_and_is_fed_as_there_is_room(local_ray: None) -> None:
    bytes_of_a_clip, batch, submitted = 8000, clips(200), 0
    batches: list[StageDone] = []

    async def feed(line: Service) -> list[list[Any]]:
        nonlocal submitted
        tasks = []
        for one in batch:
            await line.room()
            tasks.append(asyncio.create_task(follow(line, one)))
            submitted += 1
            await asyncio.sleep(0)  # it is submitted
            assert submitted - sum(task.done() for task in tasks) <= AHEAD + 24
        line.close()
        told = await asyncio.gather(*tasks)
        await until(line.ended.is_set)
        with pytest.raises(StoppedError, match="it was closed"):
            await line.room()
        return told

    def observe(event: Event) -> None:
        if isinstance(event, StageDone):
            batches.append(event)

    stages = [spec(number, output_bytes=bytes_of_a_clip) for number in range(3)]
    bounds = settings(store_bytes=20 * bytes_of_a_clip)
    with Service(stages, bounds, math.inf, observe, total=len(batch)) as line:
        told = asyncio.run(feed(line))
    assert [value(events) for events in told] == [expected(one) for one in batch]
    early = [event for event in batches if max(event.clips) < "clip-150"]
    assert {len(event.clips) for event in early} == {4}, "nothing runs in part before the end is near"


def test_a_line_that_stops_tells_all_who_wait(local_ray: None) -> None:
    async def stop(line: Service) -> None:
        with pytest.raises(StoppedError, match="the disk is full"):
            await follow(line, clip(1, "stop everything"))
        await until(line.ended.is_set)
        with pytest.raises(StoppedError, match="the disk is full"):
            await follow(line, clip(2))

    with Service(stages(), settings(stations=1)) as line:
        asyncio.run(stop(line))
    assert isinstance(line.error, FatalError)
