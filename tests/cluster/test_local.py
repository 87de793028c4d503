"""A Ray of this machine's own, as jobs and demos start it: for nobody else to reach."""

from __future__ import annotations

import ipaddress
import os
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from packaging.requirements import Requirement
from ray._private import ray_constants

from show1_ray.cluster.connection import cluster


@pytest.fixture(scope="module")
def local() -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder, pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_TMPDIR", folder)
        environment.delenv("RAY_AUTH_MODE", raising=False)
        with cluster("local"):
            yield


@ray.remote(num_cpus=0)
class Station:
    def environment(self) -> str:
        return os.environ.get("RAY_AUTH_MODE", "")


def listening(process: psutil.Process) -> Iterator[tuple[str, str]]:
    """Addresses where a process listens, with its name."""
    try:
        for one in process.net_connections("inet"):
            if one.status == psutil.CONN_LISTEN:
                yield process.name(), one.laddr.ip
    except psutil.NoSuchProcess:
        return


def test_all_processes_of_it_listen_on_loopback_alone(local):
    station = Station.remote()
    ray.get([station.environment.remote(), ray.remote(lambda: None).remote()])
    me = psutil.Process()
    agents: set[str] = set()
    while not {"ray::DashboardA", "ray::RuntimeEnv"} <= {name[:15] for name in agents}:  # the last ones to listen
        found = [one for process in (me, *me.children(recursive=True)) for one in listening(process)]
        agents = {name for name, _ in found}
        assert [one for one in found if not on_loopback(one[1])] == []
    assert {"gcs_server", "raylet"} <= agents
    assert any(name.startswith("ray::Station") for name in agents)


def on_loopback(address: str) -> bool:
    where = ipaddress.ip_address(address)
    return (getattr(where, "ipv4_mapped", None) or where).is_loopback


def test_it_asks_for_a_token_in_all_its_processes(local):
    assert ray.get(Station.remote().environment.remote()) == "token"


def test_clusters_are_joined_with_the_machines_own_address(local):
    assert ray_constants.ENABLE_RAY_CLUSTER, "once the local one has begun"


def test_the_oldest_ray_that_is_allowed_has_a_token_for_local_ones():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    (needed,) = [one for one in map(Requirement, project["dependencies"]) if one.name == "ray"]
    assert not needed.specifier.contains("2.59.9"), "before 2.60 it begins without"
    assert needed.specifier.contains(ray.__version__)
