"""A cluster of several nodes, one of which goes away."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.experimental import get_object_locations

from show1_ray.clip import Clip
from show1_ray.line.events import ClipDone, NodeAvoided, StageDone, StationUp
from show1_ray.line.line import Line
from show1_ray.line.spec import FatalError, Order, PlaceError, StageSpec, Tensors
from tests.line.sleepers import Adds, Lands, Outcome, clips, land, settings, spec

FRAMES = 300_000
"""Numbers in a tensor: too many to travel inline, so they lie in the store of the node that made them."""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
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
    cluster.shutdown()


class Counts:
    """The last stage: how many numbers it was given."""

    def __call__(self, clips: list[Clip], tensors: list[Tensors]) -> list[Tensors]:
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
    """Has no network on one node, and writes down where it tried."""

    def __init__(self, node: str, tried: Path) -> None:
        self.node, self.tried = node, tried

    def __call__(self, clips: list[Clip], tensors: list[Tensors]) -> list[Tensors]:
        node = ray.get_runtime_context().get_node_id()
        for clip in clips:
            with (self.tried / clip.id).open("a") as file:
                file.write(f"{node}\n")
        if self.node in (node, "all"):
            raise PlaceError("no network here")
        return super().__call__(clips, tensors)


def test_what_cannot_land_on_a_node_lands_on_another_before_storage_is_called_broken(
    cluster: Cluster, tmp_path: Path
) -> None:
    node = cluster.add_node(num_cpus=1, num_gpus=2, object_store_memory=80_000_000).node_id
    stages = [spec(number) for number in range(3)]
    avoided: list[NodeAvoided] = []

    def run(bad: str, batch: list[Clip]) -> Outcome:
        outcome, build = Outcome(), partial(LandsBut, bad, tmp_path)
        with Line([*stages, replace(land(), build=lambda device: build())], settings()) as line:
            for event in line.run(batch):
                outcome.add(event)
                if isinstance(event, NodeAvoided):
                    avoided.append(event)
        return outcome

    batch = clips(20)
    outcome = run(node, batch)
    outcome.assert_done(batch)
    assert {done.attempts for done in outcome.done.values()} == {1}
    assert {(event.stage, event.reason) for event in avoided} == {("land", "no network here")}
    tried = {path.name: path.read_text().split() for path in tmp_path.iterdir()}
    failed = [name for name, nodes in tried.items() if node in nodes]
    assert failed, "it was tried there"
    assert len(failed) < len(batch) / 2, "and then no more"
    with pytest.raises(FatalError, match=r"^no network here$"):
        run("all", batch[:1])
