from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from show1_ray.clip import Clip
from show1_ray.errors import UserError
from show1_ray.line.events import ClipDone, StageDone, StationEnded, StationUp
from show1_ray.line.line import Line
from show1_ray.line.pinning import limits
from show1_ray.line.prospects import MANY
from show1_ray.line.spec import RENDERING, FatalError, Order, StageSpec, Values
from tests.line.sleepers import Adds, Fails, Outcome, clips, land, once, render, settings, spec

pytestmark = pytest.mark.usefixtures("local_ray")


class NamedError(ArithmeticError):
    def __init__(self, clip_id: str) -> None:
        super().__init__(f"clip {clip_id}: not finite")
        self.clip_id = clip_id


def test_every_clip_goes_through_every_stage_once() -> None:
    batch = clips(30)
    outcome = render([spec(0), spec(1), spec(2), land()], batch)
    outcome.assert_done(batch)
    seen = Counter((name, done.stage) for done in outcome.batches for name in done.clips)
    assert set(seen.values()) == {1}
    assert len(seen) == 4 * len(batch)
    done = outcome.done["clip-000"]
    assert set(done.seconds) == set(done.batch_sizes) == {"stage0", "stage1", "stage2", "land"}
    assert done.attempts == 1
    last = outcome.snapshots[-1]
    assert (last.done, last.failed, last.total, last.in_flight) == (30, 0, 30, 0)


def test_a_stage_may_take_values_that_came_with_the_clip_and_how_it_was_rendered() -> None:
    class Tells:
        def __call__(self, batch: list[Clip], tensors: list[Values]) -> list[Values]:
            return [{"row": {"extra": given["extra"], **given[RENDERING]}} for given in tensors]

    last = StageSpec("land", lambda device: Tells(), values=("extra", RENDERING), gives=("row",), on="cpu")
    outcome = Outcome()
    with Line([spec(0), last], settings()) as line:
        for event in line.run(Order(clip, {"extra": clip.seed}) for clip in clips(4)):
            outcome.add(event)
    row = outcome.done["clip-003"].result["row"]
    assert row["extra"] == 3
    assert (set(row["seconds"]), row["batch_sizes"], row["attempts"]) == ({"stage0"}, {"stage0": 4}, 1)


def test_clips_are_pulled_from_the_manifest_only_as_there_is_room() -> None:
    pulled = 0

    def manifest() -> object:
        nonlocal pulled
        for clip in clips(200):
            pulled += 1
            yield clip

    outcome = Outcome()
    bytes_of_a_clip = 8000
    stages = [spec(n, output_bytes=bytes_of_a_clip) for n in range(3)]
    with Line([*stages, land()], settings(store_bytes=20 * bytes_of_a_clip)) as line:
        for event in line.run(manifest()):  # type: ignore[arg-type]
            outcome.add(event)
            assert pulled - len(outcome.done) <= 24
    outcome.assert_done(clips(200))


def test_what_clips_take_in_the_store_is_measured_where_nobody_said_it() -> None:
    said, not_said = ([spec(n, output_bytes=size) for n in range(3)] for size in (8000, 0))
    store_bytes = 10 * 8000
    with Line([*not_said, land()], settings(store_bytes=store_bytes)) as line:
        before = [stage.limit for stage in line.schedule.stages]
        assert sum(1 for event in line.run(clips(20)) if isinstance(event, ClipDone)) == 20
        assert [one.output_bytes for one in line.specs[:3]] == [8000, 8000, 8000]
        bytes_of_row = line.specs[3].output_bytes
        measured = [stage.limit for stage in line.schedule.stages]
    wanted = limits([*said, replace(land(), output_bytes=bytes_of_row)], 2, store_bytes)
    assert measured == list(wanted.clips)
    assert max(measured) < min(before)


def test_a_line_with_one_station_and_memory_for_one_stage_swaps() -> None:
    batch = clips(12)
    stages = [spec(number, memory=10) for number in range(3)]
    outcome = render([*stages, land()], batch, stations=1, station_memory=10, host_memory=20)
    outcome.assert_done(batch)
    ran = [one.stage for one in outcome.batches if one.station is not None]
    swapped_in = [two for one, two in pairwise(ran) if one != two]
    assert ran[0] == "stage0"
    assert {"stage1", "stage2"} <= set(swapped_in), "the one station held one stage after the other"


def test_more_stations_than_clips_split_what_there_is() -> None:
    batch = clips(2)
    outcome = Outcome()
    with Line([spec(0), spec(1), spec(2, seconds=0.5), land()], settings(stations=4)) as line:
        line.wait_for_stations()
        for event in line.run(batch):
            outcome.add(event)
    outcome.assert_done(batch)
    assert {done.batch_size for done in outcome.batches if done.stage == "stage2"} == {1}


def test_stations_without_work_end_in_the_tail_down_to_the_least() -> None:
    batch, ended = clips(17), 0
    stages = [spec(0), spec(1), spec(2, seconds=1.0, batch_size=1), land()]
    outcome = Outcome()
    with Line(stages, settings(stations=(2, 4), idle_seconds=0.5)) as line:
        sizes = []
        for event in line.run(batch):
            outcome.add(event)
            ended += isinstance(event, StationEnded)
            sizes.append(len(line.fleet.stations))
    outcome.assert_done(batch)
    assert max(sizes) > 2
    assert sizes[-1] >= 2
    assert ended == max(sizes) - sizes[-1]
    assert not outcome.lost


def test_a_clip_that_raises_fails_alone_after_three_attempts() -> None:
    def act(clip: Clip, size: int) -> None:
        raise RuntimeError(f"boom {clip.seed}")

    batch = clips(12)
    stages = [spec(0), spec(1, lambda device: Fails(1, {5}, act)), spec(2), land()]
    outcome = render(stages, batch)
    outcome.assert_done(batch, failed={"clip-005"})
    failed = outcome.failed["clip-005"]
    assert (failed.stage, failed.attempts) == ("stage1", 3)
    assert "RuntimeError: boom 5" in failed.error
    assert not outcome.lost


def test_a_clip_that_an_error_names_is_tried_on_another_station_and_then_given_up() -> None:
    def act(clip: Clip, size: int) -> None:
        raise NamedError(clip.id)

    batch = clips(12)
    stages = [spec(0), spec(1, lambda device: Fails(1, {5}, act)), spec(2), land()]
    outcome = render(stages, batch)
    outcome.assert_done(batch, failed={"clip-005"})
    assert outcome.failed["clip-005"].attempts == 2


def test_a_clip_that_kills_its_process_each_time_fails_alone() -> None:
    def act(clip: Clip, size: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    batch = clips(12)
    stages = [spec(0), spec(1, lambda device: Fails(1, {5}, act)), spec(2), land()]
    outcome = render(stages, batch)
    outcome.assert_done(batch, failed={"clip-005"})
    assert outcome.failed["clip-005"].attempts == 3
    deaths = [lost for lost in outcome.lost if lost.reason.startswith("death")]
    assert len(deaths) in (4, 5), "a batch of 2, of 4 before it if that was full, and three times alone"


def test_after_an_error_of_the_device_the_station_is_started_afresh() -> None:
    def act(clip: Clip, size: int) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    batch = clips(8)
    stages = [spec(0), spec(1, lambda device: Fails(1, {5}, act)), spec(2), land()]
    outcome = render(stages, batch, max_attempts=1)
    outcome.assert_done(batch, failed={"clip-005"})
    assert outcome.lost
    assert all(lost.reason.startswith("device: ") for lost in outcome.lost)


def test_a_clip_that_never_returns_fails_alone_at_its_deadline() -> None:
    def act(clip: Clip, size: int) -> None:
        time.sleep(3600)

    batch = clips(8)
    stages = [spec(0), spec(1, lambda device: Fails(1, {5}, act)), spec(2), land()]
    outcome = render(stages, batch, deadline_floor=2.0, first_deadline=5.0, max_attempts=2)
    outcome.assert_done(batch, failed={"clip-005"})
    assert "did not return in time" in outcome.failed["clip-005"].error


def test_out_of_memory_makes_batches_smaller_and_starts_the_station_afresh() -> None:
    class OutOfMemoryError(RuntimeError):
        pass

    def act(clip: Clip, size: int) -> None:
        if size > 2:
            raise OutOfMemoryError("CUDA out of memory")

    batch = clips(24)
    stages = [spec(0), spec(1, lambda device: Fails(1, set(range(24)), act)), spec(2), land()]
    outcome = render(stages, batch)
    outcome.assert_done(batch)
    assert max(done.batch_size for done in outcome.batches if done.stage == "stage1") == 2
    assert outcome.lost
    assert all(lost.reason.startswith("memory: ") for lost in outcome.lost)
    assert {view.name: view.batch_size for view in outcome.snapshots[-1].stages}["stage1"] == 2


def test_a_station_killed_in_mid_batch_is_replaced_and_its_clips_are_done() -> None:
    taken: list[Clip] = []
    outcome = Outcome()
    pids: dict[int, int] = {}
    killed: list[int] = []

    def until_it_is_replaced() -> Iterator[Clip]:
        for clip in clips(10_000):
            if len(pids) == 3:
                return
            taken.append(clip)
            yield clip

    bytes_of_a_clip = 8000
    stages = [spec(number, output_bytes=bytes_of_a_clip, seconds=0.3 if number == 2 else 0.01) for number in range(3)]
    with Line([*stages, land()], settings(snapshot_seconds=0.1, store_bytes=20 * bytes_of_a_clip)) as line:
        for event in line.run(until_it_is_replaced()):
            outcome.add(event)
            if isinstance(event, StationUp):
                pids[event.station] = event.pid
            if outcome.snapshots and not killed:
                busy = [s.number for s in outcome.snapshots[-1].stations if s.doing == "stage2" and s.clips]
                if busy:
                    os.kill(pids[busy[0]], signal.SIGKILL)
                    killed.append(busy[0])
    outcome.assert_done(taken)
    assert [lost.station for lost in outcome.lost] == killed
    assert len(pids) == 3
    assert {done.attempts for done in outcome.done.values()} == {1}


def test_a_task_that_dies_on_a_cpu_runs_again(tmp_path: Path) -> None:
    class Dies:
        def __call__(self, batch: list[Clip], tensors: list[Values]) -> list[Values]:
            if batch[0].seed == 3 and once(tmp_path, batch[0]):
                os.kill(os.getpid(), signal.SIGKILL)
            return [{"row": {"id": c.id, "value": int(t["x2"][0])}} for c, t in zip(batch, tensors, strict=True)]

    last = StageSpec("land", lambda device: Dies(), takes=("x2",), gives=("row",), batch_size=1, on="cpu")
    batch = clips(6)
    outcome = render([spec(0), spec(1), spec(2), last], batch)
    outcome.assert_done(batch)
    assert outcome.done["clip-003"].attempts == 2


def test_a_fatal_error_stops_the_line() -> None:
    def act(clip: Clip, size: int) -> None:
        raise FatalError("disk full: /clips")

    stages = [spec(0), spec(1, lambda device: Fails(1, {5}, act)), spec(2), land()]
    with pytest.raises(FatalError, match=r"^disk full: /clips$"):
        render(stages, clips(12))


def test_a_stage_that_does_not_load_stops_the_line() -> None:
    def build(device: str) -> Adds:
        raise OSError("weights.safetensors: no such file")

    stages = [spec(0), spec(1, build), spec(2), land()]
    with pytest.raises(
        FatalError, match=r"stage stage1 does not load: .*no such file \((\d+) times in a row\)$"
    ) as end:
        render(stages, clips(12), max_dead_starts=3)
    times = int(str(end.value).split("(")[-1].split()[0])
    assert 3 <= times < MANY * 3, "it is not given up while one of the two stations may still load it"


def test_a_stopped_line_ends_what_runs_and_starts_nothing_more() -> None:
    outcome = Outcome()
    with Line([spec(0), spec(1), spec(2, seconds=0.3), land()], settings()) as line:
        for event in line.run(clips(40)):
            outcome.add(event)
            if isinstance(event, StageDone) and event.stage == "stage2":
                line.stop()
    landed = {name for done in outcome.batches if done.stage == "stage2" for name in done.clips}
    assert set(outcome.done) == landed
    assert 0 < len(landed) <= 4 * 4, "of each of 2 stations, the batch that ended and the one after it"


def test_a_stop_at_once_does_not_wait_for_what_runs() -> None:
    outcome = Outcome()
    with Line([spec(0), spec(1), spec(2, seconds=1000), land()], settings()) as line:
        for event in line.run(clips(8)):
            outcome.add(event)
            if len(outcome.batches) == 4:
                line.stop(now=True)
    assert not outcome.done


def test_stages_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(UserError, match="stage stage1 takes 'x0', which no stage before it gives"):
        Line([spec(1)])
    with pytest.raises(UserError, match="stage stage0: batch size 0 is less than 1"):
        Line([spec(0, batch_size=0)])


def test_a_stage_too_big_for_a_station_is_refused() -> None:
    with pytest.raises(UserError, match=r"0.0 GB, the most that one has, are too little for stage0 \(2.0 GB\)"):
        render([spec(0, memory=2 * 10**9), spec(1), spec(2), land()], clips(2), station_memory=100)
