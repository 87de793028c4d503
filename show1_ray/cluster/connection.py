"""The Ray cluster of a job: connecting to it or starting it, and what it must share with this machine."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Any

import ray
from ray._private import ray_constants, services
from ray._private.node import Node
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from show1_ray.cluster.head import ANSWER_SECONDS, WANTS_TOKEN, check_form, check_head, explained
from show1_ray.cluster.leaving import leave
from show1_ray.cluster.watch import ClusterGoneError, Watch
from show1_ray.dataset.lease import is_seen
from show1_ray.dataset.place import SHARED
from show1_ray.dataset.storage import Storage, StorageError
from show1_ray.errors import UserError, one_line, shown, without_secrets
from show1_ray.line import gcs

LEVEL = "RAY_BACKEND_LOG_LEVEL"
NOTHING: Mapping[str, str] = MappingProxyType({})
PATIENCE = "RAY_gcs_rpc_server_reconnect_timeout_s"


def on_all_nodes(folder: str) -> str:
    """A folder by a name that is right on each node: the working directory of a job is shipped to a place of each
    node's own, where its processes are begun, so that what lies below it is named from there.
    """
    here = Path.cwd()
    if not job_name() or not here.name.startswith("_ray_pkg_") or not Path(folder).is_relative_to(here):
        return folder
    return str(Path(folder).relative_to(here))


def checked_address(address: str | None) -> str:
    """Where Ray is: `address`, what RAY_ADDRESS says, or "local" for one of our own on this machine.

    Raises:
        UserError: an address of the thin client or of a dashboard, or none at all.
    """
    where = named(address)
    if address is None:
        address = os.environ.get("RAY_ADDRESS") or "local"
    if address not in ("auto", "local"):
        check_form(address, where)
    return address


def named(address: str | None) -> str:
    """How to name an address in an error: by the option or variable that it comes from."""
    if address is not None:
        return f"--address {address or shown(address)}"
    given = os.environ.get("RAY_ADDRESS")
    return f"RAY_ADDRESS={given}" if given else "Ray on this machine"


@contextmanager
def cluster(address: str, variables: Mapping[str, str] = NOTHING) -> Iterator[Watch]:
    """Connects to Ray, or starts it on this machine; a connection that was there before stays.

    Args:
        address: of `checked_address`.
        variables: environment variables that the processes of a Ray that is started here shall have.

    Yields:
        What watches over it, and knows which environment variables its processes have.

    Raises:
        UserError: no cluster there.
        ClusterGoneError: it was there, and is not any more; in place of whatever the block raised on account of that.
    """
    if ray.is_initialized():
        with watched(address) as watch:
            yield watch
        return
    early = True
    had = variables if address == "local" else NOTHING
    try:
        with interrupted_at_the_end(), in_environment(had):
            connect(address)
        with watched(address) as watch:
            watch.inherited = had
            yield watch
        early = False
    finally:
        leave(early)


@contextmanager
def watched(address: str) -> Iterator[Watch]:
    """Watches the cluster; see `cluster`."""
    watch = Watch("Ray on this machine" if address == "local" else f"cluster {address}")
    try:
        yield watch
    except ClusterGoneError:
        raise
    except Exception as error:
        if (gone := watch.cause()) is None:
            raise
        raise gone from error
    finally:
        watch.stop()


@contextmanager
def in_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Processes started within this block inherit these environment variables."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def connect(address: str) -> None:
    """As `cluster`, for good."""
    where = named(None) if address in ("local", os.environ.get("RAY_ADDRESS")) else named(address)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with ExitStack() as begun:
            if address == "local":
                begun.enter_context(on_loopback())
                begun.enter_context(bare())
            else:
                found = _found(address)
                check_head(found, where)
                if _is_on_loopback(found):
                    begun.enter_context(on_loopback())
                begun.enter_context(only_what_is_fatal())
            begun.enter_context(patient())
            begun.enter_context(entrypoint_without_secrets())
            dashboard = False if address == "local" else None
            ray.init(address=address, include_dashboard=dashboard, log_to_driver=False, logging_level=logging.ERROR)
    except UserError:
        raise
    except Exception as error:  # Ray raises this very class where it does not come up in time
        what = "it does not start" if address == "local" else "no Ray cluster there"
        told = explained(error)
        raise UserError(f"{where}: {told if told.startswith(WANTS_TOKEN) else f'{what}: {told}'}") from None
    _keep_quiet()
    # Ray has put one in its place that ends the process.
    if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)


@contextmanager
def instead(owner: Any, **values: Any) -> Iterator[None]:
    """Attributes of Ray's own are these within the block."""
    before = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def on_loopback() -> AbstractContextManager[None]:
    """A Ray of this machine's own that is begun within this block listens on 127.0.0.1 alone, all processes of it.

    Otherwise they listen on all interfaces, where only Ray's token keeps others from running code here. Ray has no
    option for this (it replaces a loopback `_node_ip_address` by another), but knows the case: on macOS and Windows a
    local Ray is on loopback, by this constant. It must not be so where any other cluster is joined.
    """
    return instead(ray_constants, ENABLE_RAY_CLUSTER=False)


def bare() -> AbstractContextManager[None]:
    """A Ray that is begun within this block has neither an API server, nor what asks for nodes and what shows logs: a
    job's own has no use for them, and waits two seconds for them (`benchmarks/start.py`).
    """
    unused = [name for name in ("start_api_server", "start_monitor", "start_log_monitor") if hasattr(Node, name)]
    return instead(Node, **dict.fromkeys(unused, lambda self, **options: None))


def entrypoint_without_secrets() -> AbstractContextManager[None]:
    """Ray keeps this process's command line, for all who see the cluster: without passwords and signatures of URLs."""
    said = ray._private.utils.get_entrypoint_name
    return instead(ray._private.utils, get_entrypoint_name=lambda: without_secrets(said()))


def _is_on_loopback(address: str) -> bool:
    """Whether a head that answers at HOST:PORT does so on loopback alone, as one of `on_loopback`: Ray would go to this
    machine's other address instead, and wait there without end.
    """
    host, _, port = address.rpartition(":")
    if not services.is_localhost(host.strip("[]")):
        return False
    try:
        socket.create_connection((services.get_node_ip_address(), int(port)), ANSWER_SECONDS).close()
    except OSError:
        return True
    return False


def _found(address: str) -> str:
    """HOST:PORT, also of "auto": the cluster that this machine is a part of."""
    if address != "auto":
        return address
    return str(services.canonicalize_bootstrap_address_or_die(address))


def patient() -> AbstractContextManager[None]:
    """Ray's C++ part, begun within this block, leaves it to the watch to say that the head is gone: by itself it ends
    the process after 60 s, exit code 1, also while a slow storage is still being written to.
    """
    return in_environment({} if PATIENCE in os.environ else {PATIENCE: "600"})


@contextmanager
def only_what_is_fatal() -> Iterator[None]:
    """Ray's C++ part, begun within this block, writes to the standard error only what ends the process. What it says
    besides, while a cluster goes, is told in a line of our own. That it was asked to be quiet it says, too: this is
    left out, by another process, which outlives this one should Ray end it here.
    """
    if LEVEL in os.environ:
        yield
        return
    kept = os.dup(2)
    try:
        command = ["grep", "--line-buffered", "--invert-match", f"environment variable {LEVEL}"]
        with (
            in_environment({LEVEL: "fatal"}),
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=kept) as sieve,
        ):
            assert sieve.stdin is not None
            os.dup2(sieve.stdin.fileno(), 2)
            try:
                yield
            finally:
                os.dup2(kept, 2)
    finally:
        os.close(kept)


def _keep_quiet() -> None:
    """Ray prints what raylets complain of, dozens of lines of their state among it, to standard output, where a job's
    summary goes. What of that matters to a job, the line tells by itself.
    """
    worker = ray._private.worker
    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda *args, **options: None


@contextmanager
def interrupted_at_the_end() -> Iterator[None]:
    """Ctrl-C takes effect when the block has ended; the second one at once.

    Ray forks, and what is raised in a fork's hooks is lost, with logging's lock, which is held there.
    """
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return
    first: list[FrameType | None] = []

    def later(number: int, frame: FrameType | None) -> None:
        if first:
            before(number, frame)
        first.append(frame)

    signal.signal(signal.SIGINT, later)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if first:
        before(signal.SIGINT, first[0])


def check_shared(out: str, token: str) -> None:
    """Sees that a process on every node reads what this one wrote: clips land on any node.

    Args:
        out: the dataset, of whatever kind of storage; a folder of the only node is this machine's.
        token: of the lease that lies there.

    Raises:
        UserError: a node does not find it, or may not read it.
    """
    storage = Storage.at(out)
    nodes = [node["NodeID"] for node in gcs.nodes() if node["Alive"]]
    if storage.is_local and len(nodes) < 2:
        return
    look = ray.remote(num_cpus=0)(_seen)
    strategies = [NodeAffinitySchedulingStrategy(node, soft=True) for node in nodes]
    found = ray.get([look.options(scheduling_strategy=strategy).remote(storage, token) for strategy in strategies])
    problem = next((reason for reason in found if reason), None)
    if problem is not None and storage.is_local:
        raise UserError(f"--out {out}: not all nodes of the cluster share this folder; give a URL that they do")
    if problem is not None:
        raise UserError(
            f"--out {out}: a node of the cluster does not read what this machine wrote there: {problem}; "
            f"give {SHARED}, with credentials that all nodes have"
        )


def _seen(storage: Storage, token: str) -> str:
    """Why a node does not see the lease with a token; "" where it does."""
    try:
        return "" if is_seen(storage, token) else "it finds nothing there"
    except (StorageError, ImportError) as error:
        return one_line(error)


def job_name() -> str:
    """The name of this job for messages to others: the Ray job's id, if it is one."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))  # what Ray's Jobs API gives a driver
    return str(config.get("metadata", {}).get("job_submission_id", ""))
