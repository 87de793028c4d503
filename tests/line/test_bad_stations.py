"""Bad cards and bad nodes under a line on real Ray: they cost no clip."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import ray

from show1_ray.clip import Clip
from show1_ray.line import prospects
from show1_ray.line.events import Event, StationsAwaited, StationShutOut, StationUp
from show1_ray.line.line import Line
from show1_ray.line.spec import FatalError, Values
from tests.line.sleepers import Adds, Fails, Outcome, clips, land, settings, spec

pytestmark = pytest.mark.usefixtures("local_ray")


def gpu() -> str:
    """Of this process: Ray hands out numbers, whether there are GPUs or not."""
    return ",".join(ray.get_runtime_context().get_accelerator_ids()["GPU"])


class OnBadCard(Adds):
    """Does `act` on some GPUs, from the batch number `since` of its process on."""

    def __init__(self, number: int, bad: set[str], act: Callable[[], None], since: int = 0) -> None:
        super().__init__(number, 0.01, 1000)
        self.bad, self.act, self.since, self.batches = bad, act, since, 0

    def __call__(self, clips: list[Clip], tensors: list[Values]) -> list[Values]:
        self.batches += 1
        if gpu() in self.bad and self.batches > self.since:
            self.act()
        return super().__call__(clips, tensors)


def on_bad_card(bad: set[str], act: Callable[[], None], number: int, device: str) -> Adds:
    return OnBadCard(number, bad, act)


def raises() -> None:
    raise RuntimeError("boom")


def device_error() -> None:
    try:
        raise RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx")
    except RuntimeError as error:
        raise ValueError("the decoder failed") from error


class Occupant:
    """Has a GPU."""

    def gpu(self) -> str:
        return gpu()


@contextmanager
def only_gpus(count: int, wanted: set[str]) -> Iterator[None]:
    """So many GPUs are free, those that are wanted among them: else a process that starts anew may get another one."""
    occupant: Any = ray.remote(num_gpus=1, num_cpus=0)(Occupant)
    occupants = [occupant.remote() for _ in range(4)]
    numbers = dict(zip(occupants, ray.get([one.gpu.remote() for one in occupants]), strict=True))
    free = sorted(occupants, key=lambda one: numbers[one] not in wanted)[:count]
    for one in free:
        ray.kill(one)
    try:
        yield
    finally:
        for one in occupants:
            ray.kill(one)


def render_all(
    stations: int, least: int, stage: Callable[[int, str], Adds], until_shut_out: bool = False
) -> tuple[Outcome, list[Clip], list[StationShutOut]]:
    """Renders `least` clips, or, `until_shut_out`, until a card is shut out, if that takes more."""
    outcome, told, taken = Outcome(), list[StationShutOut](), list[Clip]()

    def manifest() -> Iterator[Clip]:
        for clip in clips(20_000 if until_shut_out else least):
            if len(taken) >= least and told:
                return
            taken.append(clip)
            yield clip

    stages = [*(spec(number, partial(stage, number)) for number in range(3)), land()]
    with Line(stages, settings(stations=stations, snapshot_seconds=0.05)) as line:
        line.wait_for_stations()
        for event in line.run(manifest()):
            outcome.add(event)
            told += [event] if isinstance(event, StationShutOut) else []
    return outcome, taken, told


@pytest.mark.parametrize(("stations", "bad", "act"), [(4, "1", raises), (2, "0", raises), (4, "2", device_error)])
def test_a_bad_card_costs_no_clip_and_is_named(stations: int, bad: str, act: Callable[[], None]) -> None:
    with only_gpus(stations, {bad}):
        outcome, taken, told = render_all(stations, 400, partial(on_bad_card, {bad}, act), until_shut_out=True)
    outcome.assert_done(taken)
    assert {event.place.split(" of ")[0] for event in told} == {f"GPU {bad}"}
    assert {event.node for event in told} == {ray.nodes()[0]["NodeID"]}
    if act is device_error:
        assert {done.attempts for done in outcome.done.values()} == {1}, "no clip is charged"
        assert any(lost.reason.startswith("device: ") for lost in outcome.lost)
    else:
        assert [lost.reason.split(":")[0] for lost in outcome.lost][:1] == ["recycled"]


def test_a_card_that_is_bad_for_one_stage_costs_no_clip() -> None:
    def stage(number: int, device: str) -> Adds:
        return OnBadCard(number, {"1"} if number == 1 else set(), raises, since=3)

    outcome, taken, told = render_all(4, 400, stage)
    outcome.assert_done(taken)
    assert {event.stage for event in told} <= {"stage1"}


class DoesNotLoad(Adds):
    """Not on some GPUs."""

    def __init__(self, bad: set[str], number: int, device: str) -> None:
        super().__init__(number, 0.01, 1000)
        if gpu() in bad:
            raise OSError("no such driver")


def test_a_card_on_which_a_stage_does_not_load_does_not_end_the_job() -> None:
    with only_gpus(3, {"1"}):
        outcome, taken, told = render_all(3, 60, partial(DoesNotLoad, {"1"}), until_shut_out=True)
    outcome.assert_done(taken)
    assert {event.place.split(" of ")[0] for event in told} == {"GPU 1"}
    assert {done.attempts for done in outcome.done.values()} == {1}


def memory_where_it_comes_up(device: str) -> int:
    if gpu() == "0":
        os._exit(1)
    return 1 << 40


def test_a_card_whose_stations_die_at_once_is_asked_again_after_growing_pauses() -> None:
    outcome, ups = Outcome(), 0
    stages = [spec(0), spec(1, seconds=0.05), spec(2), land()]
    with Line(stages, settings(stations=4, measure_memory=memory_where_it_comes_up, max_dead_starts=2)) as line:
        for event in line.run(clips(200)):
            outcome.add(event)
            ups += isinstance(event, StationUp)
    outcome.assert_done(clips(200))
    assert ups == 3
    assert {lost.reason.split(":")[0] for lost in outcome.lost} == {"it did not start"}
    [node] = ray.nodes()
    named = f"node {node['NodeManagerAddress']} ({node['NodeID'][:8]})"
    assert {lost.place for lost in outcome.lost} == {named}
    pauses = [int(re.findall(r"requesting another in (\d+) s", lost.reason)[0]) for lost in outcome.lost]
    assert pauses == [2**number for number in range(len(pauses))]


def test_what_the_cluster_has_no_place_for_is_told_and_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prospects, "LONELY_SECONDS", 0.5)
    told = list[Event]()
    why = "2 stations wait for a place, with 1 GPU each; the cluster has 4 GPU, 0 of them free, 4 at most on a node"
    with (
        only_gpus(0, set()),
        pytest.raises(FatalError, match=rf"^no station came up in 4 s: {why}$"),
        Line([spec(0), spec(1), spec(2), land()], settings(start_deadline=4)) as one,
    ):
        told.extend(one.run(clips(4)))
    [text] = [event.text for event in told if isinstance(event, StationsAwaited)]
    assert why in text


def test_when_suddenly_everything_fails_the_job_stops_and_the_manifest_does_not_go_to_waste() -> None:
    def breaks(clip: Clip, size: int) -> None:
        raise RuntimeError("the shared folder is gone")

    good, outcome = 60, Outcome()
    stages = [spec(0), spec(1, lambda device: Fails(1, set(range(good, 2000)), breaks)), spec(2), land()]
    with (
        pytest.raises(
            FatalError, match=r"^\d+ of the last 40 clips failed, 0 of the .*: the shared folder is gone; mend"
        ),
        Line(stages, settings(max_attempts=1, store_bytes=40 * 8000)) as one,
    ):
        list(map(outcome.add, one.run(clips(2000))))
    assert set(outcome.done) == {clip.id for clip in clips(good)}
    assert len(outcome.failed) < 100


def test_where_no_station_comes_up_the_job_ends() -> None:
    def dies(device: str) -> int:
        os._exit(1)

    with (
        pytest.raises(FatalError, match=r"a station did not start: .* \(2 times in a row\)"),
        Line([spec(0), spec(1), spec(2), land()], settings(measure_memory=dies, max_dead_starts=2)) as line,
    ):
        list(line.run(clips(4)))
