"""A Ray of this machine's own, as jobs and demos start it: for nobody else to reach."""

from __future__ import annotations

import ipaddress
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from packaging.requirements import Requirement
from ray._private import ray_constants

from show1_ray.cluster.connection import check_shared, cluster
from show1_ray.dataset.lease import Lease
from show1_ray.dataset.storage import Storage
from show1_ray.errors import UserError

PASSWORD = "5165a7e55165a7e5"


@pytest.fixture(scope="module")
def local() -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder, pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_TMPDIR", folder)
        environment.delenv("RAY_AUTH_MODE", raising=False)
        with cluster("local", {"OMP_NUM_THREADS": "3"}) as watch:
            assert watch.inherited == {"OMP_NUM_THREADS": "3"}
            yield
        assert os.environ.get("OMP_NUM_THREADS") != "3"


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


def test_storage_that_stations_do_not_share_is_refused_before_the_first_clip(local, tmp_path):
    message = "a node of the cluster does not read what this machine wrote there: it finds nothing there; give a folder"
    url = f"memory://{tmp_path.name}/out"
    lease = Lease(Storage.at(url))
    with pytest.raises(UserError, match=message) as error:
        check_shared(url, lease.holder.token)
    assert "\n" not in str(error.value)
    lease.release()
    lease = Lease(Storage.at(str(tmp_path / "out")))
    check_shared(str(tmp_path / "out"), lease.holder.token)
    lease.release()


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


JOBS = """
from ray._private import state
from show1_ray.cluster.connection import check_shared, cluster
from show1_ray.dataset.lease import Lease
from show1_ray.dataset.storage import Storage
from show1_ray.errors import UserError

with cluster("local"):
    print(state.jobs())
"""


def test_its_table_of_jobs_has_the_command_line_without_the_password():
    command = [sys.executable, "-c", JOBS, f"https://ada:{PASSWORD}@example.org/m.csv"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "@example.org/m.csv" in said
    assert PASSWORD not in said


def test_its_processes_have_the_environment_that_stations_need(local):
    assert ray.get(ray.remote(lambda: os.environ["OMP_NUM_THREADS"]).remote()) == "3"


def test_it_has_no_processes_that_nobody_asks(local):
    names = " ".join(" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True))
    assert "gcs_server" in names
    for name in ("dashboard.py", "monitor.py"):  # of the API server, the autoscaler and the log
        assert name not in names


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
