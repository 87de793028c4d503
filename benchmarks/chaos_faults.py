"""A round of chaos.py: one job with its storage and cluster, and what can be done to them."""

from __future__ import annotations

import collections
import os
import random
import shutil
import signal
import subprocess
import tempfile
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

CLIPS = {"folder": 250, "s3": 250, "disk": 250, "nodes": 300, "tiny": 30}
QUICK_CLIPS = 60
"""Clips of a round."""
KILL, STOP = signal.SIGKILL, signal.SIGSTOP

CLUSTERED = {"nodes", "s3", "disk"}
"""Kinds of rounds whose job goes to a cluster that is there: of three nodes, or of one. Others start their own Ray."""
ENDING = {"driver killed", "GCS killed", "GCS stopped for good", "head restarted"}
ENDING_ALONE = {"raylet killed", "raylet stopped for good"}
"""On one node."""
LONG = ("for good", "for 60 s", "GCS killed")
"""Found out by a deadline, or by waiting."""


@dataclass
class Round:
    """One job, from its first start to its end."""

    kind: str
    form: str
    folder: Path
    out: str
    random: random.Random
    clips: int
    count: int
    """Faults at most."""
    quick: bool
    """Whether nothing is to be done that takes half a minute."""
    proxy: FaultyS3 | None = None
    head: Any = None
    nodes: list[Any] = field(default_factory=list)
    short: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="c", dir="/tmp")))
    """Ray's folder: sockets' paths must be short."""
    undo: list[tuple[float, str, Callable[[], object]]] = field(default_factory=list)
    """When what was done is undone, its subject, and how."""
    faults: collections.Counter[str] = field(default_factory=collections.Counter)
    exits: collections.Counter[int] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    is_doomed: bool = False
    """Whether the start of the job that runs must end, because of what was done last: no more is done to it."""
    left: collections.Counter[str] = field(default_factory=collections.Counter)
    """What starts of the job left behind, by kind: the most that was seen at once."""

    @property
    def storage(self) -> Any:
        """The file system of its dataset, without the proxy."""
        options = {"use_listings_cache": False, "skip_instance_cache": True}
        is_s3 = self.out.startswith("s3:")
        return fsspec.filesystem("s3", **options, **direct_s3()) if is_s3 else fsspec.filesystem("file")

    def later(self, seconds: float, subject: str, act: Callable[[], object]) -> bool:
        """Does something after a while, or at once when the job has ended."""
        self.undo.append((time.monotonic() + seconds, subject, act))
        return True

    def is_busy(self, subject: str) -> bool:
        """Whether something was done to it that is not undone yet."""
        return any(one == subject for _, one, _ in self.undo)

    def undo_until(self, now: float) -> None:
        """Undoes what is due."""
        due = [act for end, _, act in self.undo if end <= now]
        self.undo = [one for one in self.undo if one[0] > now]
        for act in due:
            with suppress(psutil.Error):
                act()


def direct_s3() -> dict[str, Any]:
    return {"endpoint_url": f"http://127.0.0.1:{os.environ['CHAOS_S3']}", "key": "testing", "secret": "testing"}


# Faults.


def inflict(this: Round, job: psutil.Popen) -> None:
    """One fault, of those that there is something for."""
    faults = {
        name: fault
        for name, fault in possible(this, job).items()
        if not (this.quick and any(long in name for long in LONG))
    }
    while faults:
        name, (_, fault) = choice = this.random.choices(list(faults.items()), [w for w, _ in faults.values()])[0]
        del faults[choice[0]]
        with suppress(psutil.Error):
            if fault():
                this.faults[name] += 1
                this.is_doomed = this.is_doomed or name in ENDING or (name in ENDING_ALONE and this.kind != "nodes")
                return


def possible(this: Round, job: psutil.Popen) -> dict[str, tuple[float, Callable[[], bool]]]:
    """Faults with their weights. What ends a job is rarer: it costs a start."""
    station, landing, idle = "ray::Station", "ray::run_task", "ray::IDLE"
    faults: dict[str, tuple[float, Callable[[], bool]]] = {
        "station killed": (5, lambda: hit(this, station, KILL)),
        "station stopped for 3 s": (5, lambda: hit(this, station, STOP, 3)),
        "station stopped for good": (0.5, lambda: hit(this, station, STOP)),
        "landing killed": (6, lambda: hit(this, landing, KILL)),
        "landing stopped for 3 s": (4, lambda: hit(this, landing, STOP, 3)),
        "landing stopped for good": (0.5, lambda: hit(this, landing, STOP)),
        "idle worker killed": (3, lambda: hit(this, idle, KILL)),
        "idle worker stopped for 3 s": (4, lambda: hit(this, idle, STOP, 3)),
        "idle worker stopped for good": (0.5, lambda: hit(this, idle, STOP)),
        "driver stopped for 3 s": (3, lambda: stop(this, job, 3)),
        "driver killed": (0.6, lambda: kill(job)),
        "driver interrupted": (0.6, lambda: interrupt(job)),
        "raylet killed": (0.35, lambda: hit(this, "raylet", KILL)),
        "raylet stopped for 3 s": (3, lambda: hit(this, "raylet", STOP, 3)),
        "raylet stopped for good": (0.25, lambda: hit(this, "raylet", STOP)),
        "GCS killed": (0.6, lambda: hit(this, "gcs_server", KILL)),
        "GCS stopped for 3 s": (3, lambda: hit(this, "gcs_server", STOP, 3)),
        "GCS stopped for good": (0.2, lambda: hit(this, "gcs_server", STOP)),
    }
    if this.head is not None:
        faults["head restarted"] = (1, lambda: restart_cluster(this))
    if this.kind == "nodes":
        faults["node left"] = (3, lambda: leave(this))
        faults["node came"] = (3, lambda: come(this))
        faults["bad card"] = (8, lambda: break_card(this))
    if this.proxy is not None:
        for mode, seconds, weight in (("busy", 3, 10), ("cut", 2, 10), ("reset", 3, 10), ("hang", 60, 2)):
            faults[f"S3: {mode} for {seconds} s"] = (weight, partial(misbehave, this, mode, seconds))
    if this.kind == "disk":
        faults["disk full for 4 s"] = (10, lambda: fill_disk(this))
        faults["disk read-only for 4 s"] = (10, lambda: freeze_disk(this))
    return faults


def rays(this: Round) -> list[psutil.Process]:
    """All processes of the round's Ray."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        line, environment = process.info["cmdline"] or [], process.info["environ"] or {}
        of_ray = line and (line[0].startswith("ray::") or "/ray/" in " ".join(line))
        if of_ray and environment.get(chaos_stages.FOLDER) == str(this.folder) and "chaos_job" not in " ".join(line):
            found.append(process)
    return found


def named(this: Round, name: str) -> list[psutil.Process]:
    """Those of the round's Ray that are called so."""
    found = []
    for process in rays(this):
        with suppress(psutil.Error):
            if any(name in word for word in process.cmdline()[:2]):
                found.append(process)
    return found


def hit(this: Round, name: str, number: signal.Signals, seconds: float = 0) -> bool:
    """Sends one of them a signal; `seconds` later it goes on."""
    victims = [process for process in named(this, name) if process.status() != psutil.STATUS_STOPPED]
    if victims:
        victim = this.random.choice(victims)
        victim.send_signal(number)
        if seconds:
            this.later(seconds, str(victim.pid), victim.resume)
    return bool(victims)


def kill(job: psutil.Popen) -> bool:
    job.kill()
    return True


def interrupt(job: psutil.Popen) -> bool:
    job.send_signal(signal.SIGINT)
    return True


def stop(this: Round, job: psutil.Popen, seconds: float) -> bool:
    """Stops the driver, a child of the command's process, or that itself where it is young."""
    driver = next(iter(job.children()), job)
    driver.suspend()
    return this.later(seconds, "driver", driver.resume)


def misbehave(this: Round, mode: Any, seconds: float) -> bool:
    assert this.proxy is not None
    if this.is_busy("storage"):
        return False
    this.proxy.mode = mode
    return this.later(seconds, "storage", partial(setattr, this.proxy, "mode", "good"))


def fill_disk(this: Round) -> bool:
    if this.is_busy("storage"):
        return False
    ballast = this.folder / "disk" / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        for size in (2**20, 1):  # to the last byte
            with suppress(OSError):
                while True:
                    file.write(bytes(size * 4096))
    return this.later(4, "storage", ballast.unlink)


def freeze_disk(this: Round) -> bool:
    if this.is_busy("storage"):
        return False
    remount = ["mount", "-o", "remount,ro", str(this.folder / "disk")]
    if subprocess.run(remount, capture_output=True).returncode:  # a file is just being written
        return False
    remount[2] = "remount,rw"
    return this.later(4, "storage", lambda: subprocess.run(remount, check=True))


def break_card(this: Round) -> bool:
    """One card of a node fails from now on, until another one does or the job ends."""
    if not this.nodes:
        return False
    bad = f"{this.random.choice(this.nodes).node_id}:{this.random.randrange(2)}"
    (this.folder / "bad").write_text(bad)
    return True


def heal(this: Round) -> None:
    """All but the cluster is as it was."""
    (this.folder / "bad").unlink(missing_ok=True)
    this.undo_until(float("inf"))


# The cluster: of three nodes, or of one.


def restart_cluster(this: Round) -> bool:
    """The cluster is another one from now on."""
    from ray.cluster_utils import Cluster

    end_ray(this)
    os.environ[chaos_stages.FOLDER] = str(this.folder)
    quick = {"health_check_period_ms": 1000, "health_check_failure_threshold": 5}
    head: dict[str, Any] = {"num_cpus": 2, "num_gpus": 0, "object_store_memory": 150_000_000}
    head |= {"_system_config": quick, "temp_dir": str(this.short), "include_dashboard": False}
    this.head = Cluster(initialize_head=True, head_node_args=head)
    this.nodes = [add_node(this) for _ in range(2 if this.kind == "nodes" else 0)]
    return True


def add_node(this: Round) -> Any:
    return this.head.add_node(num_cpus=2, num_gpus=2, object_store_memory=100_000_000)


def is_up(this: Round) -> bool:
    """Whether there is a cluster, whole as far as its processes tell."""
    if this.head is None or this.head.head_node is None or this.head.head_node.dead_processes():
        return False
    stopped = [one for name in ("raylet", "gcs_server") for one in named(this, name) if one.status() == "stopped"]
    return not stopped and bool(this.nodes or this.kind != "nodes")


def leave(this: Round) -> bool:
    if len(this.nodes) < 2:
        return False
    this.head.remove_node(this.nodes.pop(this.random.randrange(len(this.nodes))), allow_graceful=False)
    return True


def come(this: Round) -> bool:
    if len(this.nodes) > 2 or not is_up(this):
        return False
    with suppress(Exception):  # the head is going
        this.nodes.append(add_node(this))
        return True
    return False


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
    """Ends all that is left; what the job said is kept where something was wrong."""
    end_ray(this)
    if this.proxy is not None:
        this.proxy.close()
    if this.kind == "disk":
        subprocess.run(["umount", "-l", this.folder / "disk"], check=False)
    if not this.wrong:
        shutil.rmtree(this.folder, ignore_errors=True)
        shutil.rmtree(this.short, ignore_errors=True)
