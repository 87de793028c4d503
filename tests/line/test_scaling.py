"""Stations come and go with the work and with the nodes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from show1_ray.clip import Clip
from show1_ray.line.events import StageDone, StationUp
from show1_ray.line.line import Line
from show1_ray.line.pinning import limits
from tests.line.autoscaling import AutoscalingCluster
from tests.line.sleepers import Outcome, clips, land, settings, spec


@pytest.fixture
def autoscaling() -> Iterator[AutoscalingCluster]:
    cluster = AutoscalingCluster(most=3, idle_minutes=0.02)
    ray.init(address=cluster.address, log_to_driver=False, _node_ip_address="127.0.0.1")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_the_autoscaler_gives_nodes_up_to_the_most_and_gets_them_back(autoscaling: AutoscalingCluster) -> None:
    outcome, taken = Outcome(), clips(2000)
    worked: set[int] = set()

    def until_all_work() -> Iterator[Clip]:
        for clip in taken:
            if len(worked) == 3:
                return
            yield clip

    with Line([spec(0), spec(1, seconds=0.1), spec(2), land()], settings(stations=(1, 3), idle_seconds=1.0)) as line:
        for event in line.run(until_all_work()):
            outcome.add(event)
            if isinstance(event, StageDone) and event.station is not None:
                worked.add(event.station)
    outcome.assert_done(taken[: len(outcome.done)])
    assert len(worked) == 3
    assert not outcome.lost
    while [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]:
        time.sleep(0.5)  # what never ends is ended by pytest's timeout


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 150_000_000})
    cluster.add_node(num_gpus=1, num_cpus=1, object_store_memory=150_000_000, labels={"size": "large"})
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    for node in [*cluster.worker_nodes, cluster.head_node]:  # at once: in peace it has taken 20 seconds
        cluster.remove_node(node, allow_graceful=False)
    cluster.shutdown()


@pytest.fixture
def cluster(shared: Cluster) -> Iterator[Cluster]:
    """A head and one node with a GPU; nodes that a test adds go with it."""
    before = shared.list_all_nodes()
    yield shared
    for node in set(shared.list_all_nodes()) - set(before):
        shared.remove_node(node)  # in peace, for the others to know it at once
    shared.wait_for_nodes()


def test_a_node_that_joins_is_used(cluster: Cluster) -> None:
    outcome, taken, joined = Outcome(), clips(2000), None
    nodes: dict[int, str] = {}
    worked: set[str] = set()

    def until_it_works() -> Iterator[Clip]:
        for clip in taken:
            if joined is not None and joined.node_id in worked:
                return
            yield clip

    with Line([spec(0), spec(1, seconds=0.3), spec(2), land()], settings(stations=None)) as line:
        store_bytes = line.crew.store_bytes
        for event in line.run(until_it_works()):
            outcome.add(event)
            if isinstance(event, StationUp):
                nodes[event.station] = event.node
            if isinstance(event, StageDone) and event.station is not None:
                worked.add(nodes[event.station])
                joined = joined or cluster.add_node(num_gpus=1, num_cpus=1, object_store_memory=150_000_000)
    outcome.assert_done(taken[: len(outcome.done)])
    assert joined is not None
    assert joined.node_id in worked
    assert line.crew.store_bytes == store_bytes + 75_000_000, "half of what it brought"
    bounds = limits(line.specs, line.fleet.size, line.crew.store_bytes, line.traffic.results)
    assert [stage.limit for stage in line.schedule.stages] == list(bounds.clips)


def memory_of_node(device: str) -> int:
    """Of the node's label."""
    return 100 if ray.get_runtime_context().get_node_labels().get("size") == "large" else 10


def test_a_stage_runs_only_where_it_fits_and_costs_are_kept_by_kind_of_gpu(cluster: Cluster) -> None:
    cluster.add_node(
        num_gpus=1,
        num_cpus=1,
        object_store_memory=150_000_000,
        labels={"size": "small"},
        resources={"accelerator_type:T4": 1},
    )
    batch, outcome = clips(24), Outcome()
    large: set[int] = set()
    stages = [spec(0, memory=1), spec(1, memory=50), spec(2, memory=1, seconds=0.2), land()]
    with Line(stages, settings(stations=2, measure_memory=memory_of_node)) as line:
        line.wait_for_stations()
        for event in line.run(batch):
            outcome.add(event)
            if isinstance(event, StationUp) and event.memory == 100:
                large.add(event.station)
        kinds = [set(stage.kinds) for stage in line.schedule.stages[:3]]
    outcome.assert_done(batch)
    where = {name: {b.station for b in outcome.batches if b.stage == name} for name in ("stage1", "stage2")}
    assert where["stage1"] == large
    assert len(where["stage2"]) == 2
    assert kinds[1] == {""}
    assert kinds[2] == {"", "T4"}


DRIVER = """
import sys
import ray
from show1_ray.line.line import Line
from tests.line.sleepers import clips, land, settings, spec
ray.init(address=sys.argv[1], log_to_driver=False)
with Line([spec(0, seconds=1.0), spec(1), spec(2), land()], settings(stations=3)) as line:
    for _ in line.run(clips(1000)):
        pass
"""


def test_nothing_stays_asked_for_when_the_driver_is_killed(cluster: Cluster) -> None:
    def states() -> list[str]:
        return [actor["State"] for actor in ray._private.state.actors().values()]

    def wait_for(wanted: Callable[[list[str]], bool]) -> None:
        while not wanted(states()):
            assert driver.poll() in (None, -signal.SIGKILL)
            time.sleep(0.2)

    command = [sys.executable, "-c", DRIVER, cluster.address]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as driver:
        # One GPU: one station is up, two are asked for.
        wait_for(lambda found: found.count("ALIVE") >= 1 and found.count("PENDING_CREATION") >= 2)
        driver.kill()
    wait_for(lambda found: set(found) == {"DEAD"})
