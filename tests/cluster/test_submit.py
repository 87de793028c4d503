"""Jobs on a real Ray head with its dashboard and token authentication, through the command line."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

import show1_ray
from show1_ray import metrics
from show1_ray.cli import options_of_render
from show1_ray.cluster import shipment as shipments
from show1_ray.cluster.head import WANTS_TOKEN, check_head
from show1_ray.cluster.shipment import CODE, Files, shipment
from show1_ray.errors import UserError, last_line
from show1_ray.manifest import open_manifest
from show1_ray.pipeline import Pipeline
from show1_ray.pipeline.code import Code
from show1_ray.pipeline.sources import folder_of_manifest
from tests.test_examples import EXAMPLES, FEWER_STEPS, MAGENTA, with_a_bug
from tests.test_render import COUNT, write_manifest

TOKEN = "0123456789abcdef" * 4


@dataclass
class Head:
    """A Ray head: its dashboard's and its metrics' ports, and the environment of whoever may talk to it."""

    port: int
    metrics_port: int
    environment: dict[str, str]
    folder: str = ""
    gcs: str = ""
    """The address that `render` takes."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    (folder / "token").write_text(TOKEN)
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    environment |= {"RAY_ADDRESS": "", "RAY_JOB_STOP_WAIT_TIME_S": "120"}
    gcs = free_port()
    head = Head(free_port(), free_port(), environment, str(folder), f"127.0.0.1:{gcs}")
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--num-cpus=2", f"--port={gcs}"]
    command += [f"--dashboard-port={head.port}", "--include-dashboard=true", f"--temp-dir={folder}"]
    command += [f"--metrics-export-port={head.metrics_port}", "--object-store-memory=200000000"]
    command += [f"--dashboard-agent-listen-port={free_port()}", "--node-ip-address=127.0.0.1"]
    path = f"{Path(sys.executable).parent}:{environment['PATH']}"  # what runs jobs is found by its name
    subprocess.run(command, env={**environment, "PATH": path}, check=True, capture_output=True)
    yield head
    signs = (str(folder), f"127.0.0.1:{gcs}")
    for process in psutil.process_iter(["cmdline"]):
        if any(sign in " ".join(process.info["cmdline"] or ()) for sign in signs):
            process.kill()
    shutil.rmtree(folder, ignore_errors=True)


def submit(head: Head, *arguments: object, **changes: str) -> list[str]:
    return [sys.executable, "-m", "show1_ray", "submit", "--address", head.address, *map(str, arguments)]


def run(head: Head, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        submit(head, *arguments), env=head.environment | environment, capture_output=True, text=True, timeout=600
    )


def rendered(out: Path) -> set[str]:
    return {path.stem for path in out.glob("clips/*/*.mp4")}


def driver_of(out: Path) -> psutil.Process | None:
    """The `render` of a job that writes to `out`."""
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if str(out) in line and "submit" not in line and "render" in line:
            return process
    return None


def wait_until_its_actors_are_gone(head: Head) -> None:
    """Those that a dead driver left: until then a clip may still land."""
    while True:
        raylets = [
            process
            for process in psutil.process_iter(["name", "cmdline"])
            if process.info["name"] == "raylet" and head.folder in " ".join(process.info["cmdline"] or ())
        ]
        assert raylets
        workers = [child for raylet in raylets for child in raylet.children(recursive=True)]
        if not any(re.match(r"ray::(?!IDLE|\w+Agent)\w", title(worker)) for worker in workers):
            return
        time.sleep(0.2)


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""


def exported(head: Head) -> set[str]:
    """Names of our metrics that Prometheus finds."""
    with urllib.request.urlopen(f"http://127.0.0.1:{head.metrics_port}/metrics") as answer:
        text = answer.read().decode()
    return {name for name in metrics.NAMES if f"ray_{name}" in text}


@pytest.mark.timeout(900)  # two jobs one after the other
def test_a_job_is_followed_killed_submitted_again_and_its_dataset_is_complete(head, tiny, tmp_path):
    manifest, out = write_manifest(tmp_path), tmp_path / "out"
    arguments = [manifest, "--out", out, "--pipeline", tiny]
    small = [*arguments, "--set", "latent_super_resolution.batch_size=1"]
    with subprocess.Popen(submit(head, *small), env=head.environment, stdout=subprocess.PIPE, text=True) as first:
        while not (driver := driver_of(out)):
            assert first.poll() is None, "it ended before it was seen"
            time.sleep(0.1)
        while len(rendered(out)) < 2:
            assert first.poll() is None, "it ended before it was killed"
            time.sleep(0.02)
        driver.kill()
        log = first.communicate(timeout=600)[0]
    assert first.returncode == 128 + signal.SIGKILL
    assert f"0 of {COUNT} clips done, {COUNT} to render" in log
    wait_until_its_actors_are_gone(head)
    before = rendered(out)
    assert 2 <= len(before) < COUNT

    second = run(head, *arguments, "--log", "json")
    assert second.returncode == 0, second.stdout + second.stderr
    lines = [json.loads(line) for line in second.stdout.splitlines() if line.startswith("{")]
    again = {line["clip"] for line in lines if line["event"] == "clip done"}
    assert again == {f"clip-{i:02}" for i in range(COUNT)} - before
    assert {line["job"] for line in lines} == set(re.findall(r"^job (raysubmit_\w+);", second.stderr, re.MULTILINE))
    assert sorted(row["id"] for row in pq.read_table(out / "metadata.parquet").to_pylist()) == sorted(rendered(out))
    assert len(rendered(out)) == COUNT

    wanted = set(metrics.NAMES) - {metrics.FAILURES_TOTAL}  # nothing failed
    while not wanted <= exported(head):
        time.sleep(0.5)  # they are exported every few seconds; what never comes is ended by pytest's timeout


def jobs(head: Head) -> str:
    """All that the cluster tells of its jobs: command, environment, metadata."""
    request = urllib.request.Request(f"{head.address}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request) as answer:
        return answer.read().decode()


def test_what_is_shipped_is_this_package_the_manifest_and_the_whole_pipeline(tiny, tmp_path):
    manifest = write_manifest(tmp_path)
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"extends: {tiny}\nstages: {{keyframes: {{steps: 2}}}}\n")
    with shipment(manifest, str(mine), ["keyframes.guidance=2"]) as (folder, manifest_there, pipeline_there):
        assert {path.name for path in folder.iterdir()} == {"show1_ray", "manifest", "mine.yaml"}
        assert (folder / manifest_there).read_bytes() == Path(manifest).read_bytes()
        assert Pipeline.load(folder / pipeline_there).recipe() == Pipeline.load(mine).recipe()
        assert (folder / "show1_ray" / "pipelines" / "nano.yaml").is_file()
        assert not list(folder.rglob("__pycache__"))
    assert not folder.exists()
    with shipment("s3://bucket/prompts.parquet", "nano", []) as (folder, *there):
        assert there == ["s3://bucket/prompts.parquet", "nano"]
        assert {path.name for path in folder.iterdir()} == {"show1_ray"}


def test_code_of_ones_own_is_shipped_with_the_pipeline_that_uses_it(tmp_path):
    (tmp_path / "own.py").write_text(
        "from show1_ray import Stage\nclass Own(Stage):\n    takes = gives = {'video': 'f h w c'}\n"
        "    def run(self, clips, values): ...\n"
    )
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: nano\nstages: {own: {uses: 'own:Own', after: latent_super_resolution}}\n")
    code = Code.at(tmp_path / "own.py")
    with shipment("s3://bucket/prompts.parquet", str(mine), [], code) as (folder, _, pipeline_there):
        there = Pipeline.load(folder / pipeline_there, code=folder / CODE / code.place)
        assert there.recipe() == Pipeline.load(mine, code=code).recipe()
    _, _, _, given = options_of_render(["a.parquet", "--out", "o", "--code", "own.py"])
    assert given == "own.py"


def test_a_signed_url_is_shipped_but_shown_nowhere(head, tiny, tmp_path):
    write_manifest(tmp_path)
    name = next(tmp_path.glob("*.*")).name
    serve = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{name}?X-Amz-Signature=5165a7e5"
        result = run(head, url, "--out", tmp_path / "out", "--pipeline", tiny, "--dry-run")
        server.shutdown()
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"0 of {COUNT} clips done" in result.stdout
    assert f"{name}?X-Amz-Signature=***" in jobs(head)
    logs = [path for path in Path(head.folder).glob("session_*/logs/**/*") if path.is_file()]
    shown = [result.stdout, result.stderr, jobs(head), *(path.read_text(errors="replace") for path in logs)]
    assert not [text[:200] for text in shown if "5165a7e5" in text]


def test_images_beside_the_manifest_are_shipped_and_what_lies_elsewhere_is_refused(tmp_path, monkeypatch):
    examples = shutil.copytree(EXAMPLES, tmp_path / "job")
    manifest, pipeline, code = examples / "pictures.jsonl", str(examples / "zoom.yaml"), Code.at(examples / "zoom.py")
    pictures = {path.name: path.read_bytes() for path in (examples / "pictures").iterdir()}
    assert len(pictures) == 2

    def shipped(given: object, **files: Any) -> dict[str, bytes]:
        with shipment(str(given), pipeline, [], code, Files(**files)) as (folder, there, _):
            root = folder_of_manifest(str(folder / there))
            entries = open_manifest(str(folder / there), inputs=Pipeline.load(pipeline, code=code).input_columns)
            names = [entry.clip.inputs["picture"] for entry in entries if "://" not in entry.clip.inputs["picture"]]
            return {Path(name).name: Path(root, name).read_bytes() for name in names if Path(root, name).is_file()}

    (tmp_path / "lists").mkdir()
    shutil.copy(manifest, tmp_path / "lists" / "a.jsonl")
    shutil.copytree(examples / "pictures", tmp_path / "lists" / "pictures")
    for given in (manifest, f"file://{manifest}", tmp_path / "lists", tmp_path / "lists" / "*.jsonl"):
        assert shipped(given) == pictures
    assert len(shipped(manifest, limit=1)) == 1

    def refused(**row: str) -> str:
        rows = examples / "rows.jsonl"
        rows.write_text(json.dumps({"id": "a", "prompt": "a", **row}))
        with pytest.raises(UserError) as error:
            shipped(rows)
        assert "\n" not in str(error.value)
        return str(error.value)

    (tmp_path / "secret.png").write_bytes(b"")
    for place in ("../secret.png", f"{tmp_path}/secret.png", f"file://{examples}/pictures/rings.png"):
        told = f"clip 'a': column 'picture' is '{place}', a file of this machine: shipped are those below"
        assert told in refused(picture=place)
    assert "'picture' is empty" in refused()
    rows = examples / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "a", "picture": f"{tmp_path}/secret.png"}))
    assert shipped(rows, allow_private=True)["secret.png"] == b"", "a folder that all nodes may share"
    rows.write_text(json.dumps({"prompt": "a", "picture": "gone.png"}) + '\n{"prompt": "a", "picture": "http://x/a"}')
    assert shipped(rows) == {}, "what is not there costs its clip"

    there = sum(path.stat().st_size for path in Path(show1_ray.__file__).parent.rglob("*.py"))
    monkeypatch.setattr(shipments, "MOST_BYTES", there + sum(map(len, pictures.values())))
    with pytest.raises(UserError, match=r"pictures.jsonl.* MiB can be shipped: put them where all nodes reach them"):
        shipped(manifest)


ON_BOTH_NODES = """

import time
from pathlib import Path

import ray

SEEN = Path({seen!r})


def run(self, clips, values, run=Zoom.run):
    SEEN.mkdir(exist_ok=True)
    (SEEN / ray.get_runtime_context().get_node_id()).touch()
    while len(list(SEEN.iterdir())) < 2:
        time.sleep(0.1)
    return run(self, clips, values)


Zoom.run = run
"""
"""Lets no clip go on before the stage has run on two nodes."""


@pytest.fixture
def second_node(head: Head) -> None:
    """A node besides the head's, which ends with it."""
    command = [str(Path(sys.executable).with_name("ray")), "start", f"--address={head.gcs}", "--num-cpus=1"]
    command += [f"--temp-dir={head.folder}/b"]  # of one that nodes share each cleans away what is the other's
    command += ["--node-ip-address=127.0.0.2", "--object-store-memory=80000000"]
    command += [f"--metrics-export-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}"]
    path = f"{Path(sys.executable).parent}:{head.environment['PATH']}"
    subprocess.run(command, env={**head.environment, "PATH": path}, check=True, capture_output=True)


@pytest.mark.timeout(900)  # two jobs
def test_the_examples_on_two_nodes_with_code_and_images_that_are_shipped(head, second_node, tmp_path, monkeypatch):
    examples = shutil.copytree(EXAMPLES, tmp_path / "examples")
    monkeypatch.chdir(examples)
    fewer = [argument for change in FEWER_STEPS for argument in ("--set", change)]
    mine = ["--pipeline", "mine.yaml", "--code", "brighten.py", "--limit", 1, *fewer]
    done = run(head, "prompts.parquet", "--out", tmp_path / "mine", *mine)
    assert done.returncode == 0, done.stdout + done.stderr
    [row] = pq.read_table(tmp_path / "mine" / "metadata.parquet").to_pylist()
    assert row["seconds_brighten"] >= 0
    assert rendered(tmp_path / "mine") == {row["id"]}

    buggy, line = with_a_bug(examples, tmp_path)
    buggy.write_text(buggy.read_text() + ON_BOTH_NODES.format(seen=str(tmp_path / "nodes")))
    (examples / "pictures" / "magenta.png").write_bytes(MAGENTA)
    with Path("pictures.jsonl").open("a") as rows:
        for name in ("magenta", "gone"):
            rows.write(json.dumps({"id": name, "prompt": "a", "picture": f"pictures/{name}.png"}) + "\n")
    zoom = ["--pipeline", "zoom.yaml", "--code", buggy, "--samples", 2]
    zoom += ["--set", "execution.zoom.cpus=1"]
    done = run(head, "pictures.jsonl", "--out", tmp_path / "zoom", *zoom)
    assert done.returncode == 1, done.stdout + done.stderr
    assert len(list((tmp_path / "nodes").iterdir())) == 2
    assert rendered(tmp_path / "zoom") == {f"{name}-{sample}" for name in ("stripes", "rings") for sample in range(2)}
    failures = list((tmp_path / "zoom" / "failures").glob("*.parquet"))
    told = {row["id"]: last_line(row["error"]) for row in pq.read_table(failures[0]).to_pylist()}
    assert len(told) == 4
    assert re.match(rf"stage zoom: .*/zoom\.py, line {line}, in zoomed: AttributeError: ", told["magenta-0"])
    assert "column 'picture' 'pictures/gone.png' cannot be read here: No such file" in told["gone-0"]


class Wire:
    """A TCP connection to the dashboard that can be cut."""

    def __init__(self, port: int) -> None:
        self.target, self.pairs = port, list[tuple[socket.socket, socket.socket]]()
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near = self.server.accept()[0]
            except OSError:
                return
            pair = (near, socket.create_connection(("127.0.0.1", self.target)))
            self.pairs.append(pair)
            for source, sink in (pair, pair[::-1]):
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    @staticmethod
    def _carry(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        sink.close()

    def cut(self) -> int:
        """Cuts all connections; returns how many there were."""
        open_ones = [pair for pair in self.pairs if pair[0].fileno() >= 0]
        for pair in open_ones:
            for end in pair:
                end.shutdown(socket.SHUT_RDWR) if end.fileno() >= 0 else None
        self.pairs.clear()
        return len(open_ones)


@pytest.mark.timeout(900)
def test_a_dropped_connection_is_taken_up_again_and_a_stopped_job_ends_with_130(head, tiny, tmp_path):
    out, wire = tmp_path / "out", Wire(head.port)
    there = Head(wire.port, 0, head.environment)
    arguments = [write_manifest(tmp_path), "--out", out, "--pipeline", tiny, "--samples", 50]
    detached = run(head, *arguments, "--detach", HF_TOKEN="hf_of_this_machine")
    job = detached.stdout.strip()
    assert detached.returncode == 0, detached.stderr
    told = jobs(head)
    assert job in told
    assert "hf_of_this_machine" not in told, "what a job is submitted with can be read in the dashboard"
    command = submit(there, "--follow", job)
    with subprocess.Popen(command, env=head.environment, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        while "to render" not in follower.stdout.readline():
            assert follower.poll() is None, "it ended before it showed anything"
        while not rendered(out):
            time.sleep(0.2)
        assert wire.cut() > 0
        assert "RUNNING" in run(head, "--status", job).stdout
        assert run(head, "--stop", job).returncode == 0
        log = follower.communicate(timeout=600)[0]
    assert follower.returncode == 130
    assert "to render" not in log, "what was shown before the cut is not shown again"
    assert "interrupted; rerun the same command to resume" in log


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "out"], "give a MANIFEST"),
        (["missing.parquet", "--out", "out"], "missing.parquet: no such file"),
        (["{manifest}", "--out", "out", "--gpus", "3:1"], "--gpus '3:1'"),
        (["{manifest}", "--out", "out", "--limitt", "3"], "--limitt"),
        (["{manifest}", "--out", "out", "--pipeline", "nanno"], "nanno"),
        (["--status", "raysubmit_none"], "raysubmit_none"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_with_exit_code_2(head, tmp_path, arguments, message):
    manifest = write_manifest(tmp_path)
    result = run(head, *(argument.format(manifest=manifest) for argument in arguments))
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_render_says_of_tokens_and_dashboards_what_submit_does(head, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    check_head(head.gcs, "--address x")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)
    with pytest.raises(UserError, match=r"^--address x: the cluster wants its token: "):
        check_head(head.gcs, "--address x")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(UserError, match=r"^--address x: the cluster wants its token: .*RAY_AUTH_MODE=token"):
        check_head(head.gcs, "--address x")
    with pytest.raises(UserError, match=rf"^--address x: a web server .* `show1-ray submit --address {head.address}`"):
        check_head(head.address.removeprefix("http://"), "--address x")


@pytest.mark.parametrize(("command", "mode"), [("render", "disabled"), ("demo", "token")])
def test_a_cluster_that_wants_a_token_says_so_in_one_line_and_nothing_is_written(head, tiny, tmp_path, command, mode):
    manifest, out = write_manifest(tmp_path), tmp_path / "new" / "out"
    there = [manifest, "--out", out] if command == "render" else ["--port", 0]
    arguments = [command, *there, "--pipeline", tiny, "--address", head.gcs]
    environment = {**os.environ, "RAY_ADDRESS": "", "RAY_AUTH_MODE": mode, "HOME": str(tmp_path)}  # no token there
    line = [sys.executable, "-m", "show1_ray", *map(str, arguments)]
    result = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=100)
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    *before, said = result.stderr.splitlines()
    assert all("clips done" in line or "licence" in line for line in before), result.stderr
    assert said.startswith(f"show1-ray: --address {head.gcs}: {WANTS_TOKEN}")
    assert said.endswith("RAY_AUTH_MODE=token into the environment") == (mode == "disabled")
    assert not out.parent.exists()


def test_a_job_that_the_cluster_knows_nothing_of_any_more_is_gone(head):
    result = run(head, "--follow", "raysubmit_of_another_head")
    assert result.returncode == 3, result.stderr
    assert "knows nothing of job raysubmit_of_another_head any more" in result.stderr
    assert "token" not in result.stderr


def test_a_wrong_token_and_a_wrong_address_are_named(head, tmp_path):
    wrong = tmp_path / "token"
    wrong.write_text("f" * 64)
    result = run(head, "--status", "x", RAY_AUTH_TOKEN_PATH=str(wrong))
    assert (result.returncode, "wants its token" in result.stderr) == (2, True), result.stderr
    result = run(Head(free_port(), 0, head.environment), "--status", "x")
    assert (result.returncode, "no answer" in result.stderr) == (2, True), result.stderr
