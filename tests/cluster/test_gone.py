"""A cluster that goes under a job: one line and exit code 3, whatever of it went; and addresses where there is none."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from show1_ray.cluster.head import check_head
from show1_ray.cluster.watch import GONE_SECONDS, REFUSALS, Verdict
from show1_ray.errors import UserError
from tests.cluster.test_submit import TOKEN, free_port

JOB = """
import asyncio, math, sys, time
from show1_ray.cli import main
from show1_ray.cluster import watch
from show1_ray.cluster.connection import cluster
from show1_ray.clip import Clip
from show1_ray.line import LineSettings, Service, StageSpec

watch.GONE_SECONDS = 3.0

class Slow:
    def __call__(self, clips, tensors):
        time.sleep(0.2)
        return [{"x": 1} for clip in clips]

async def follow(line):
    for number in range(10_000):
        async for event in line.render(Clip(f"clip-{number}", "a")):
            pass
        print("a clip", flush=True)

def job():
    with cluster(sys.argv[1]) as watch:
        stages = [StageSpec("slow", lambda device: Slow(), gives=("x",))]
        with Service(stages, LineSettings(stations=1), math.inf) as line:
            watch.when_gone(line.end)
            asyncio.run(follow(line))
        raise line.error

main(job)
"""


class Head:
    """A Ray head of the test's own, with a token."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_ADDRESS": ""}

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        ray = str(Path(sys.executable).with_name("ray"))
        command = [ray, "start", "--head", "--num-cpus=2", f"--port={self.port}", f"--temp-dir={self.folder}"]
        command += ["--include-dashboard=false", "--object-store-memory=80000000", "--node-ip-address=127.0.0.1"]
        command += [f"--metrics-export-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}"]
        subprocess.run(command, env=self.environment, check=True, capture_output=True)

    def kill(self, what: str = "", number: signal.Signals = signal.SIGKILL) -> None:
        for process in psutil.process_iter(["name", "cmdline"]):
            line = process.info["cmdline"] or []
            is_its = any(str(self.folder) in part or self.address in part for part in line)
            if is_its and what in process.info["name"] and JOB not in line:
                process.send_signal(number)


@pytest.fixture
def head() -> Iterator[Head]:
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        head = Head(Path(folder))
        head.start()
        yield head
        head.kill()


@pytest.mark.parametrize(
    ("what", "how", "why"),
    [
        ("gcs_server", signal.SIGKILL, r"its head has not answered for \d+ s"),
        ("raylet", signal.SIGKILL, "Ray's process on this machine, the raylet, has ended"),
        ("raylet", signal.SIGSTOP, r"Ray's process on this machine, the raylet, has not answered for \d+ s"),
        ("", signal.SIGKILL, "(its head has been started anew|Ray's process on this machine, the raylet, has ended)"),
    ],
    ids=["the head is killed", "the raylet is killed", "the raylet is stopped", "the head is another one"],
)
def test_a_cluster_that_goes_ends_a_job_with_one_line_and_exit_code_3(head, tmp_path, what, how, why):
    job = [sys.executable, "-c", JOB, head.address]
    pipe = subprocess.PIPE
    with subprocess.Popen(job, env=head.environment, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "a clip\n"
        head.kill(what, how)
        if not what:
            head.start()
        out, errors = process.communicate(timeout=100)
    assert process.returncode == 3, errors
    assert re.fullmatch(
        rf"show1-ray: cluster {head.address} is gone: {why}; rerun the same command to resume\n", errors
    )
    assert set(out.splitlines()) <= {"a clip"}, "what raylets complain of is not for standard output"


LATE = """
import ray
from show1_ray.cluster.connection import cluster

try:
    with cluster("local"):
        raise KeyboardInterrupt  # what of the line still runs in its thread then asks Ray for something:
except KeyboardInterrupt:
    try:
        ray.put(1)
    except Exception as error:
        print(type(error).__name__, ray.is_initialized())
"""


def test_a_thread_that_outlives_the_job_does_not_start_another_ray(tmp_path):
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_ADDRESS": ""}
    job = [sys.executable, "-c", LATE]
    result = subprocess.run(job, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert result.stdout.endswith(" False\n"), result.stdout + result.stderr


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("gcs_server", r"its head has not answered for \d+ s"),
        ("raylet", "Ray's process on this machine, the raylet, has ended"),
    ],
)
def test_a_ray_of_this_machine_that_goes_ends_a_job_in_the_same_way(tmp_path, what, why):
    job, environment = [sys.executable, "-c", JOB, "local"], {**os.environ, "RAY_ADDRESS": ""}
    pipe = subprocess.PIPE
    with subprocess.Popen(job, env=environment, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "a clip\n"
        children = psutil.Process(process.pid).children(recursive=True)
        [victim] = [child for child in children if child.name() == what]
        victim.kill()
        out, errors = process.communicate(timeout=100)
    for child in children:  # Ray's agents would look for it for another minute
        with suppress(psutil.Error):
            child.kill()
    assert process.returncode == 3, errors
    assert re.fullmatch(rf"show1-ray: Ray on this machine is gone: {why}; rerun the same command to resume\n", errors)
    assert set(out.splitlines()) <= {"a clip"}


def test_a_head_is_gone_when_it_has_been_silent_for_long_and_was_asked_several_times():
    verdict = Verdict(answered=0.0)
    for number in range(1, REFUSALS):
        verdict.silent(GONE_SECONDS * number, is_another=False)
        assert verdict.is_open, "a process that was stopped for a while asks again before it decides"
    verdict.silent(GONE_SECONDS * REFUSALS, is_another=False)
    assert verdict.gone
    assert not verdict.is_open


def test_a_head_that_answers_again_is_there():
    verdict = Verdict(answered=0.0)
    for second in range(1, int(GONE_SECONDS)):
        verdict.silent(float(second), is_another=False)
    verdict.seen(GONE_SECONDS, alive=True, raylet="answers")
    verdict.silent(GONE_SECONDS + 10, is_another=False)
    assert not verdict.gone


def test_a_raylet_is_gone_when_it_refuses_again_and_again_or_the_head_says_so():
    verdict = Verdict(answered=0.0)
    for second in range(REFUSALS - 1):
        verdict.seen(float(second), alive=True, raylet="refuses")
    verdict.seen(9.0, alive=True, raylet="answers")
    assert not verdict.gone
    verdict.seen(10.0, alive=False, raylet="answers")
    assert verdict.gone


def test_a_raylet_that_takes_connections_and_says_nothing_is_gone_after_a_while():
    verdict = Verdict(answered=0.0)
    for second in range(1, int(GONE_SECONDS) + 1):
        verdict.seen(float(second), alive=True, raylet="silent")
        assert verdict.is_open
    verdict.seen(GONE_SECONDS + 1, alive=True, raylet="silent")
    assert "has not answered for 25 s" in verdict.gone


def test_another_head_is_known_at_once():
    verdict = Verdict(answered=0.0)
    verdict.silent(1.0, is_another=True)
    assert "anew" in verdict.gone


@pytest.fixture
def dashboard() -> Iterator[int]:
    """The port of a web server, which is what a dashboard is."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer_as_a_web_server, args=(server,), daemon=True).start()
        yield server.getsockname()[1]


def answer_as_a_web_server(server: socket.socket) -> None:
    while True:
        try:
            connection = server.accept()[0]
        except OSError:
            return
        with connection:
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


def render(address: str, out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    prompts = Path(__file__).parents[2] / "examples" / "prompts.parquet"
    command = [sys.executable, "-m", "show1_ray", "render", str(prompts), "--out", str(out), "--address", address]
    where = {**os.environ, "RAY_ADDRESS": "", **environment}
    return subprocess.run(command, env=where, capture_output=True, text=True, timeout=100)


def test_a_dashboards_port_is_refused_in_seconds_with_what_would_be_right_and_leaves_nothing(dashboard, tmp_path):
    out = tmp_path / "new" / "out"
    address = f"127.0.0.1:{dashboard}"
    result = render(address, out, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)
    assert result.returncode == 2
    *_, line = result.stderr.splitlines()
    assert line.startswith(f"show1-ray: --address {address}: a web server answers there and no Ray head; give ")
    assert "127.0.0.1:6379" in line
    assert f"submit --address http://{address}" in line
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == [], "neither the dataset nor the folders around it"


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1:{free}", "no Ray cluster there: .*refused"),
        ("nowhere.invalid:6379", "no Ray cluster there: "),
        ("head", "give auto, .*, or HOST:PORT of a cluster's head, such as head:6379"),
    ],
)
def test_addresses_where_nothing_is_are_told(address, says):
    with pytest.raises(UserError, match=rf"^--address x: .*{says}"):
        check_head(address.format(free=free_port()), "--address x")


ENDED_BY_RAY = """
import sys

import psutil
import ray
from show1_ray.__main__ import main
from show1_ray.cluster.connection import cluster
from show1_ray.output import say

def command():
    with cluster("local", {"OMP_NUM_THREADS": "3"}):
        environment = ray.get(ray.remote(lambda: __import__("os").environ["OMP_NUM_THREADS"]).remote())
        say(environment)
        for child in psutil.Process().children(recursive=True):
            if child.name() == "raylet":
                child.kill()
        while True:
            ray.put(b" " * 1_000_000)

sys.argv = ["show1-ray", "render"]
main(command)
"""
"""A driver that uses the object store while the raylet is killed: Ray ends it, mostly before the watch knows."""


def test_a_driver_that_ray_ends_without_a_word_is_spoken_for(tmp_path):
    job, environment = [sys.executable, "-c", ENDED_BY_RAY], {**os.environ, "RAY_ADDRESS": ""}
    result = subprocess.run(job, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert result.returncode == 3, result.stderr
    assert re.fullmatch("show1-ray: Ray ended this job, [^\n]*; rerun the same command to resume\n", result.stderr)
    assert result.stdout == "3\n", "what stations need stands in the environment of a Ray that is begun for them"
