"""Stages that keep their state on CPUs, in stations of their own beside the GPUs', on real Ray."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from show1_ray.clip import Clip
from show1_ray.errors import UserError
from show1_ray.line.events import StageDone, StationUp
from show1_ray.line.line import Line
from show1_ray.line.pinning import stations_of_stages
from show1_ray.line.spec import StageSpec, Values
from tests.line.sleepers import Adds, Outcome, clips, land, once, settings, spec


class OnCpus(Adds):
    """Notes where it was built, and may kill its process once."""

    def __init__(self, folder: Path, device: str, guilty: int | None = None, seconds: float = 0.01) -> None:
        super().__init__(1, seconds, 1000)
        self.folder, self.guilty = folder, guilty
        gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
        threads = os.environ["OMP_NUM_THREADS"]
        (folder / f"built-{os.getpid()}-{device}-{len(gpus)}-{threads}").touch()

    def render(self, clip: Clip, given: Values) -> Values:
        if clip.seed == self.guilty and once(self.folder, clip):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().render(clip, given)


def stages(folder: Path, **changes: Any) -> list[StageSpec]:
    guilty = changes.pop("guilty", None)
    on_cpus = spec(1, partial(OnCpus, folder, guilty=guilty), on="cpus", **changes)
    return [spec(0), on_cpus, spec(2), land()]


def run(made: list[StageSpec], batch: list[Clip], **changes: object) -> tuple[Outcome, list[StationUp]]:
    outcome, up = Outcome(), []
    with Line(made, settings(**changes)) as line:
        for event in line.run(batch):
            outcome.add(event)
            if isinstance(event, StationUp):
                up.append(event)
    return outcome, up


@pytest.mark.usefixtures("local_ray")
def test_it_is_built_once_a_station_and_has_no_gpu(tmp_path: Path) -> None:
    batch = clips(24)
    outcome, up = run(stages(tmp_path, cpus=2), batch)
    outcome.assert_done(batch)
    (own,) = [event for event in up if event.stage == "stage1"]
    assert [path.name for path in tmp_path.iterdir()] == [f"built-{own.pid}-cpu-0-2"]
    assert {one.stage for one in outcome.batches if one.station == own.station} == {"stage1"}
    assert {one.station for one in outcome.batches if one.stage == "stage1"} == {own.station}


@pytest.mark.usefixtures("local_ray")
def test_a_slow_one_gets_more_stations_and_leaves_cpus_for_landing(tmp_path: Path) -> None:
    outcome, own, taken = Outcome(), list[int](), list[Clip]()

    def until_there_are_three() -> Iterator[Clip]:
        batch = iter(clips(10_000))
        for clip in batch:
            taken.append(clip)
            yield clip
            if len(own) == 3:
                break
        for clip in islice(batch, 60):
            taken.append(clip)
            yield clip

    slow = partial(OnCpus, tmp_path, seconds=0.2)
    made = [spec(0), spec(1, slow, on="cpus", batch_size=1, output_bytes=8000), spec(2), land()]
    with Line(made, settings(store_bytes=160_000)) as line:
        for event in line.run(until_there_are_three()):
            outcome.add(event)
            if isinstance(event, StationUp) and event.stage == "stage1":
                own.append(event.station)
    outcome.assert_done(taken)
    assert len(own) == 3, "of four CPUs one is kept free"


@pytest.mark.usefixtures("local_ray")
def test_where_stations_are_cpu_cores_it_runs_on_those(tmp_path: Path) -> None:
    batch = clips(8)
    outcome, up = run(stages(tmp_path), batch, gpus=False)
    outcome.assert_done(batch)
    assert {event.stage for event in up} == {None}
    ran = {one.station for one in outcome.batches if isinstance(one, StageDone) and one.stage == "stage1"}
    assert ran <= {event.station for event in up}


@pytest.mark.usefixtures("local_ray")
def test_one_that_dies_is_replaced_and_its_clips_are_done(tmp_path: Path) -> None:
    batch = clips(12)
    outcome, up = run(stages(tmp_path, guilty=5), batch)
    outcome.assert_done(batch)
    own = [event.station for event in up if event.stage == "stage1"]
    assert [lost.station for lost in outcome.lost] == own[:1]
    assert len(own) >= 2


@pytest.mark.usefixtures("local_ray")
def test_one_that_no_node_has_the_cpus_for_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="stage stage1: no node has 64 CPUs; 4 are the most"),
        Line(stages(tmp_path, cpus=64), settings()),
    ):
        pass


numbers = st.tuples(st.integers(1, 20), st.integers(0, 6), st.integers(1, 8))


@given(st.lists(numbers, min_size=1, max_size=4), st.integers(0, 64), st.integers(1, 8))
def test_stages_share_the_free_cpus_by_what_they_can_use(
    stages: list[tuple[int, int, int]], free: int, kept: int
) -> None:
    wanted, have, cpus = zip(*stages, strict=True)
    sizes = stations_of_stages(wanted, have, cpus, free, kept)
    taken = sum(cpu * max(0, size - max(has, 1)) for cpu, size, has in zip(cpus, sizes, have, strict=True))
    first = sum(cpu for cpu, has in zip(cpus, have, strict=True) if not has)
    assert all(1 <= size <= want for size, want in zip(sizes, wanted, strict=True))
    assert all(size >= min(want, has) for size, want, has in zip(sizes, wanted, have, strict=True))
    assert taken <= max(0, free - kept - first), "but for the first of each, some CPUs stay free"
