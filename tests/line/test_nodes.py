"""A cluster of several nodes, some of which go away."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2
from ray.experimental import get_object_locations

from show1_ray.clip import Clip
from show1_ray.line.events import ClipDone, NodeAvoided, StageDone, StationUp
from show1_ray.line.line import Line
from show1_ray.line.spec import FatalError, Order, PlaceError, StageSpec, Values
from tests.line.sleepers import Adds, Lands, Outcome, clips, land, settings, spec

FRAMES = 300_000
"""Numbers in a tensor: too many to travel inline, so they lie in the store of the node that made them."""


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 2,
            "num_gpus": 0,
            "object_store_memory": 150_000_000,
            "_system_config": {"health_check_period_ms": 1000, "health_check_failure_threshold": 3},
        },
    )
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    for node in [*cluster.worker_nodes, cluster.head_node]:  # at once: in peace it has taken 20 seconds
        cluster.remove_node(node, allow_graceful=False)
    cluster.shutdown()


@pytest.fixture
def cluster(shared: Cluster) -> Iterator[Cluster]:
    """A head without GPUs; nodes that a test adds go with it."""
    yield shared
    for node in list(shared.worker_nodes):
        shared.remove_node(node)  # in peace, for the others to know it at once
    shared.wait_for_nodes()


class Counts:
    """The last stage: how many numbers it was given."""

    def __call__(self, clips: list[Clip], tensors: list[Values]) -> list[Values]:
        return [{"numbers": sum(len(tensor) for tensor in given.values())} for given in tensors]


class Elsewhere(Adds):
    """Large tensors, so that they are lost with their node."""

    def __init__(self, number: int, device: str) -> None:
        super().__init__(number, 0.05 if number < 2 else 0.3, FRAMES)


def test_tensors_go_from_station_to_station_and_never_to_the_drivers_node(cluster: Cluster) -> None:
    batch = clips(12)
    nodes = {cluster.add_node(num_gpus=1, num_cpus=1, object_store_memory=150_000_000).node_id for _ in range(2)}
    stages = [spec(number, partial(Elsewhere, number), output_bytes=8 * FRAMES, memory=1) for number in range(2)]
    stages.append(StageSpec("last", lambda device: Counts(), takes=("x0", "x1"), gives=("numbers",), batch_size=4))
    orders = (Order(clip, outputs=frozenset({"x0", "x1"})) for clip in batch)
    tensors, done = [], []
    pinned = settings(station_memory=1, host_memory=0, pinned=True)
    with Line(stages, pinned) as line:
        for event in line.run(orders, total=len(batch)):
            if isinstance(event, StageDone):
                tensors += [ref for given in event.outputs.values() for ref in given.values()]
            if isinstance(event, ClipDone):
                done.append(event.result["numbers"])
        assert done == [2 * FRAMES] * len(batch)
        assert len(tensors) == 2 * len(batch)

        # A fetch by the driver shows in the locations. So would any before it: what a node says comes in order.
        control, *others = tensors
        ray.get(control)
        driver = ray.get_runtime_context().get_node_id()
        while driver not in get_object_locations([control])[control]["node_ids"]:
            time.sleep(0.05)  # what never ends is ended by pytest's timeout
        found = [set(place["node_ids"]) for place in get_object_locations(others).values()]
        assert set().union(*found) == nodes
        assert nodes in found, "some went from one station to the other"


def test_a_removed_node_costs_no_clip_and_no_attempt(cluster: Cluster) -> None:
    batch = clips(24)
    nodes = [cluster.add_node(num_gpus=1, num_cpus=1, object_store_memory=150_000_000) for _ in range(2)]
    stages = [spec(number, partial(Elsewhere, number), output_bytes=8 * FRAMES) for number in range(3)]
    outcome = Outcome()
    places: dict[int, str] = {}
    made: Counter[str] = Counter()
    leaving = None
    with Line([*stages, land()], settings(deadline_floor=30)) as line:
        line.wait_for_stations()
        for event in line.run(batch):
            outcome.add(event)
            if isinstance(event, StationUp):
                places[event.station] = event.node
            if isinstance(event, StageDone) and event.stage == "stage1" and event.station is not None:
                made[places[event.station]] += 1
                if leaving is None and made.most_common(1)[0][1] == 2:  # whichever has made two of the six batches
                    [(name, _)] = made.most_common(1)
                    leaving = next(node for node in nodes if node.node_id == name)
                    cluster.remove_node(leaving, allow_graceful=False)
                    cluster.add_node(num_gpus=1, num_cpus=1, object_store_memory=150_000_000)
    assert leaving is not None
    outcome.assert_done(batch)
    assert {done.attempts for done in outcome.done.values()} == {1}
    assert [lost.reason.split(":")[0] for lost in outcome.lost] == ["gone"]
    again = Counter((name, done.stage) for done in outcome.batches for name in done.clips)
    assert max(again.values()) > 1, "what was lost with the node was rendered again"
    assert {node.node_id for node in nodes} <= set(places.values())


class LandsBut(Lands):
    """Writes down where it tried. Has no network on the node where it does so first, or on none; `made`: or cannot even
    be made there, as where a library is broken.
    """

    def __init__(self, tried: Path, on_none: bool, made: bool = True) -> None:
        self.tried, self.on_none = tried, on_none
        bad = tried / "bad"
        if not made and bad.exists() and ray.get_runtime_context().get_node_id() == bad.read_text():
            raise ImportError("libstorage.so: cannot open shared object file")

    def __call__(self, clips: list[Clip], tensors: list[Values]) -> list[Values]:
        node = ray.get_runtime_context().get_node_id()
        mine = self.tried / f"pid {os.getpid()}"
        mine.write_text(node)
        with suppress(FileExistsError):
            (self.tried / "bad").hardlink_to(mine)
        for clip in clips:
            with (self.tried / clip.id).open("a") as file:
                file.write(f"{node}\n")
        if self.on_none or node == (self.tried / "bad").read_text():
            raise PlaceError("no network here")
        return super().__call__(clips, tensors)


def test_what_cannot_land_on_a_node_lands_on_another_before_storage_is_called_broken(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.add_node(num_cpus=1, num_gpus=2, object_store_memory=80_000_000)
    stages = [spec(number) for number in range(3)]
    avoided: list[NodeAvoided] = []

    def run(on_none: bool, batch: list[Clip], made: bool = True) -> Outcome:
        outcome, build = Outcome(), partial(LandsBut, tmp_path, on_none, made)
        with Line([*stages, replace(land(), build=lambda device: build())], settings()) as line:
            for event in line.run(batch):
                outcome.add(event)
                if isinstance(event, NodeAvoided):
                    avoided.append(event)
        return outcome

    batch = clips(20)
    outcome = run(False, batch)
    outcome.assert_done(batch)
    assert {done.attempts for done in outcome.done.values()} == {1}
    assert {(event.stage, event.reason) for event in avoided} == {("land", "no network here")}
    node = (tmp_path / "bad").read_text()
    failed = [clip.id for clip in batch if node in (tmp_path / clip.id).read_text().split()]
    assert len(failed) < len(batch) / 2, "it was tried there, and then no more"
    avoided.clear()
    outcome = run(False, batch, made=False)
    outcome.assert_done(batch)
    assert {done.attempts for done in outcome.done.values()} == {1}
    assert 1 <= len(avoided) <= 3, "it was tried there, and then no more"
    assert all("libstorage.so" in event.reason for event in avoided)
    with pytest.raises(FatalError, match=r"^no network here$"):
        run(True, batch[:1])


@dataclass
class Doom:
    """At some moment of its life, a station on a node that is labelled with it says so in a file and waits for ever."""

    folder: Path

    def at(self, moment: str) -> None:
        if ray.get_runtime_context().get_node_labels().get("goes") == moment:
            (self.folder / moment).touch()
            time.sleep(3600)

    def memory(self, device: str) -> int:
        self.at("measuring")
        return 1 << 40

    def __call__(self, device: str) -> Adds:
        self.at("loading")
        return Adds(0, 0.01, 10)

    def __reduce__(self) -> tuple[Callable[[Path], Doom], tuple[Path]]:
        return arrived, (self.folder,)


def arrived(folder: Path) -> Doom:
    """It comes to a station before the station is made."""
    doom = Doom(folder)
    doom.at("creating")
    return doom


def preempt(cluster: Cluster, node: Any) -> None:
    """As a cloud's spot node goes: the head is told that it will, and when, and then it does."""
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")  # type: ignore[attr-defined]
    client = ray._private.worker.global_worker.gcs_client  # type: ignore[attr-defined]
    accepted, why = client.drain_node(node.node_id, reason, "spot", int(1000 * time.time()) + 1)
    assert accepted, why
    cluster.remove_node(node, allow_graceful=False)


def test_nodes_that_go_before_the_first_batch_do_not_end_a_job_whenever_they_go(
    cluster: Cluster, tmp_path: Path
) -> None:
    batch, outcome, doom = clips(12), Outcome(), Doom(tmp_path)
    moments = ("creating", "measuring", "loading")
    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80_000_000}
    doomed = {moment: cluster.add_node(num_gpus=1, labels={"goes": moment}, **node) for moment in moments}
    named = {one.node_id[:8] for one in doomed.values()}
    stages = [spec(0, doom), spec(1), spec(2), land()]
    # One start that died of itself would end the job.
    with Line(stages, settings(stations=3, max_dead_starts=1, measure_memory=doom.memory)) as line:
        for event in line.run(batch):
            outcome.add(event)
            for moment in [one for one in doomed if (tmp_path / one).exists()]:
                one = doomed.pop(moment)
                preempt(cluster, one) if moment == "loading" else cluster.remove_node(one, allow_graceful=False)
                if not doomed:
                    cluster.add_node(num_gpus=3, **node)
    outcome.assert_done(batch)
    assert {done.attempts for done in outcome.done.values()} == {1}
    # Where the station is not made yet, Ray may find it another place by itself.
    assert len(outcome.lost) >= 2
    assert {lost.place.rpartition("(")[2].rstrip(")") for lost in outcome.lost} <= named
    assert not [lost.reason for lost in outcome.lost if "requesting another" in lost.reason]
