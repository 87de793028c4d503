"""A round of chaos.py: one job with its storage and cluster, and what can be done to them."""

from __future__ import annotations

import collections
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import chaos_stages
import fsspec
import psutil
from faulty_s3 import FaultyS3

CLIPS = {"tiny": 10}
"""Clips of a round; others have 400."""


@dataclass
class Round:
    """One job, from its first start to its end."""

    kind: str
    form: str
    folder: Path
    out: str
    random: random.Random
    proxy: FaultyS3 | None = None
    head: Any = None
    nodes: list[Any] = field(default_factory=list)
    faults: collections.Counter[str] = field(default_factory=collections.Counter)
    exits: collections.Counter[int] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def clips(self) -> int:
        """Of its manifest."""
        return CLIPS.get(self.kind, 400)

    @property
    def storage(self) -> Any:
        """The file system of its dataset, without the proxy."""
        options = {"use_listings_cache": False, "skip_instance_cache": True}
        return (
            fsspec.filesystem("s3", **options, **direct_s3())
            if self.out.startswith("s3:")
            else fsspec.filesystem("file")
        )


def direct_s3() -> dict[str, Any]:
    return {"endpoint_url": f"http://127.0.0.1:{os.environ['CHAOS_S3']}", "key": "testing", "secret": "testing"}


# Faults.


def inflict(this: Round, job: psutil.Popen) -> None:
    """One fault, if there is something that it can be done to."""
    faults: list[tuple[str, Callable[[], bool]]] = [
        *3 * [("station killed", lambda: hit(this, "ray::Station", signal.SIGKILL))],
        ("station stopped for good", lambda: hit(this, "ray::Station", signal.SIGSTOP)),
        ("landing task killed", lambda: hit(this, "ray::run_task", signal.SIGKILL)),
        ("idle worker killed", lambda: hit(this, "ray::IDLE", signal.SIGKILL)),
        ("driver killed", lambda: kill(job)),
        ("driver stopped for 3 s", lambda: pause(job, 3)),
        ("driver interrupted", lambda: interrupt(job)),
    ]
    if this.head is None:
        faults += [("raylet killed", lambda: hit(this, "raylet", signal.SIGKILL))]
        faults += [("GCS killed", lambda: hit(this, "gcs_server", signal.SIGKILL))]
    else:
        faults += [("node left", lambda: leave(this)), ("node came", lambda: come(this))]
        faults += [("GCS killed", lambda: kill_gcs(this)), ("head restarted", lambda: restart_head(this))]
        faults += 3 * [("bad card", lambda: break_card(this))]
    if this.proxy is not None:
        for mode, seconds in (("busy", 3), ("cut", 2), ("reset", 3), ("hang", 60)):
            faults += [(f"S3: {mode} for {seconds} s", partial(misbehave, this, mode, seconds))]
    if this.kind == "disk":
        faults += 2 * [
            ("disk full for 5 s", lambda: fill_disk(this)),
            ("disk read-only for 5 s", lambda: freeze_disk(this)),
        ]
    name, fault = this.random.choice(faults)
    with suppress(psutil.Error):
        if fault():
            this.faults[name] += 1


def rays(this: Round) -> list[psutil.Process]:
    """All processes of the round's Ray."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        line, environment = process.info["cmdline"] or [], process.info["environ"] or {}
        of_ray = line and (line[0].startswith("ray::") or "/ray/" in " ".join(line))
        if of_ray and environment.get(chaos_stages.FOLDER) == str(this.folder) and "show1_ray" not in line:
            found.append(process)
    return found


def hit(this: Round, name: str, number: signal.Signals) -> bool:
    victims = []
    for process in rays(this):
        with suppress(psutil.Error):
            if any(name in word for word in process.cmdline()[:2]):
                victims.append(process)
    if victims:
        self_chosen = this.random.choice(victims)
        self_chosen.send_signal(number)
    return bool(victims)


def kill(job: psutil.Popen) -> bool:
    job.kill()
    return True


def interrupt(job: psutil.Popen) -> bool:
    job.send_signal(signal.SIGINT)
    return True


def pause(job: psutil.Popen, seconds: float) -> bool:
    job.suspend()
    time.sleep(seconds)
    job.resume()
    return True


def misbehave(this: Round, mode: Any, seconds: float) -> bool:
    assert this.proxy is not None
    this.proxy.mode = mode
    time.sleep(seconds)
    this.proxy.mode = "good"
    return True


def fill_disk(this: Round) -> bool:
    ballast = this.folder / "disk" / "ballast"
    with suppress(OSError), ballast.open("wb") as file:
        while True:
            file.write(bytes(2**20))
            file.flush()
    time.sleep(5)
    ballast.unlink()
    return True


def freeze_disk(this: Round) -> bool:
    disk = str(this.folder / "disk")
    done = subprocess.run(["mount", "-o", "remount,ro", disk], capture_output=True).returncode == 0
    time.sleep(5)
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    return done


def break_card(this: Round) -> bool:
    """One card of a node fails from now on, until another one does."""
    (this.folder / "bad").write_text(f"{this.random.choice([this.head, *this.nodes]).node_id}:0")
    return True


def heal(this: Round) -> None:
    (this.folder / "bad").unlink(missing_ok=True)
    if this.proxy is not None:
        this.proxy.mode = "good"


# The cluster of three nodes.


def restart_cluster(this: Round) -> None:
    from ray.cluster_utils import Cluster

    end_ray(this)
    os.environ[chaos_stages.FOLDER] = str(this.folder)
    quick = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}
    resources = {"num_cpus": 2, "num_gpus": 2, "object_store_memory": 100_000_000}
    head = {**resources, "num_gpus": 0, "_system_config": quick, "temp_dir": str(ray_folder(this))}
    this.head = Cluster(initialize_head=True, head_node_args=head)
    this.nodes = [this.head.add_node(**resources) for _ in range(2)]
    this.head.node_id = this.head.head_node.node_id


def restart_head(this: Round) -> bool:
    """The cluster is another one from now on."""
    restart_cluster(this)
    return True


def is_up(cluster: Any) -> bool:
    return (
        cluster.head_node is not None
        and cluster.head_node.any_processes_alive()
        and not cluster.head_node.dead_processes()
    )


def leave(this: Round) -> bool:
    if len(this.nodes) < 2:
        return False
    this.head.remove_node(this.nodes.pop(this.random.randrange(len(this.nodes))), allow_graceful=False)
    return True


def come(this: Round) -> bool:
    if len(this.nodes) > 2:
        return False
    this.nodes.append(this.head.add_node(num_cpus=2, num_gpus=2, object_store_memory=100_000_000))
    return True


def kill_gcs(this: Round) -> bool:
    this.head.head_node.kill_gcs_server()
    return True


def ray_folder(this: Round) -> Path:
    """Sockets' paths must be short."""
    return Path("/tmp") / f"c{os.getpid()}{this.folder.name}"


def end_ray(this: Round) -> None:
    if this.head is not None:
        with suppress(Exception):
            this.head.shutdown()
        this.head, this.nodes = None, []
    for process in rays(this):
        with suppress(psutil.Error):
            process.kill()


def end_tree(job: psutil.Popen) -> None:
    with suppress(psutil.Error):
        for child in job.children(recursive=True):
            child.kill()
        job.kill()


def clean_up(this: Round) -> None:
    end_ray(this)
    if this.proxy is not None:
        this.proxy.close()
    if this.kind == "disk":
        subprocess.run(["umount", "-l", this.folder / "disk"], check=False)
    if not this.wrong:
        shutil.rmtree(this.folder, ignore_errors=True)
    shutil.rmtree(ray_folder(this), ignore_errors=True)
