"""Tokens, keys, passwords and signatures of URLs reach nothing that is written: real jobs and a real demo, searched."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from show1_ray.errors import HIDDEN, UserError, printable, without_secrets
from show1_ray.manifest import open_manifest
from show1_ray.pipeline.inputs import unsigned_value

SIGNATURE = "5165a7e5" * 8
PASSWORD = "sesame-of-the-page"
SECRETS = {
    "HF_TOKEN": "hf_aRecognisableHubToken01",
    "RAY_AUTH_TOKEN": "c0ffee42" * 8,
    "AWS_ACCESS_KEY_ID": "AKIARECOGNISABLE9999",
    "AWS_SECRET_ACCESS_KEY": "recognisable/Secret+Key",
    "AWS_SESSION_TOKEN": "recognisable-session",
    "SHOW1_RAY_AUTH": f"ada:{PASSWORD}",
}
KNOWN = [value.removeprefix("ada:") for value in (*SECRETS.values(), SIGNATURE)]
CODE = """
import os
import numpy as np
from show1_ray import Stage

class Leak(Stage):
    gives = {"video": "f h w c"}
    def run(self, clips, values):
        for clip in clips:
            if clip.prompt == "fail":
                raise RuntimeError(f"{dict(os.environ)}")
        return [{"video": np.zeros((4, 32, 32, 3), "uint8")} for _ in clips]
"""
SOURCE = f"https://example.com/a.png?X-Amz-Credential=x&X-Amz-Signature={SIGNATURE}"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def signed(tmp_path: Path) -> Iterator[str]:
    """The URL of a manifest that only who has its signature can read."""
    (tmp_path / "served").mkdir()
    rows = [{"id": "a", "prompt": "black", "source": SOURCE}, {"id": "b", "prompt": "fail", "source": SOURCE}]
    (tmp_path / "served/m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "served"))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/m.jsonl?X-Amz-Signature={SIGNATURE}"
        server.shutdown()


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def begun(folder: Path, ray_folder: Path, *arguments: object) -> Iterator[tuple[subprocess.Popen[str], set[str]]]:
    """A command that has all the secrets; and command lines of what it starts, which are looked at all the time.

    What it starts has its own command line, which its user typed, until it has become another program.
    """
    (folder / "own.py").write_text(CODE)
    (folder / "own.yaml").write_text("stages: {leak: {uses: 'own:Leak'}}\nexecution: {leak: {device: cpu}}\n")
    command = [sys.executable, "-m", "show1_ray", *map(str, arguments), "--pipeline", "own.yaml", "--code", "own.py"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_", "HF_"))}
    environment |= {**SECRETS, "RAY_TMPDIR": str(ray_folder), "HOME": str(folder), "PYTHONFAULTHANDLER": "1"}
    pipe = subprocess.PIPE
    lines: set[str] = set()
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        over = threading.Event()

        def look() -> None:
            while not over.wait(0.1):
                with suppress(psutil.Error):
                    for child in psutil.Process(process.pid).children(recursive=True):
                        with suppress(psutil.Error):
                            if (line := child.cmdline()) != command:
                                lines.add(" ".join(line))

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield process, lines
        finally:
            over.set()
            thread.join()
            if process.poll() is None:
                process.send_signal(signal.SIGINT)


def told_in(folder: Path) -> dict[str, list[str]]:
    """Files below a folder that have a secret, and which."""
    found: dict[str, list[str]] = {}
    for path in folder.rglob("*"):
        with suppress(OSError):
            data = path.read_bytes() if path.is_file() else b""
            if secrets := [secret for secret in KNOWN if secret.encode() in data]:
                found[str(path)] = secrets
    return found


def in_text(text: str) -> list[str]:
    return [secret for secret in KNOWN if secret in text]


def test_a_job_tells_no_secret_though_a_stage_fails_with_all_of_them(signed, tmp_path, ray_folder):
    work = tmp_path / "work"
    work.mkdir()
    with begun(work, ray_folder, "render", signed, "--out", "out", "--log", "json") as (process, lines):
        out, err = process.communicate(timeout=250)
    assert process.returncode == 1, err
    assert HIDDEN in err, "the stage's error is told, with its traceback"
    assert in_text(out + err) == []
    assert in_text("\n".join(lines)) == []
    assert any("raylet" in line for line in lines)
    assert list(ray_folder.glob("**/logs/gcs_server.out"))
    assert told_in(work) == {}
    assert told_in(ray_folder) == {}
    for command in (["status", "out"], ["status", "out", "--json"]):
        said = subprocess.run(
            [sys.executable, "-m", "show1_ray", *command], cwd=work, capture_output=True, text=True, timeout=100
        )
        assert "RuntimeError" in said.stdout
        assert in_text(said.stdout + said.stderr) == []


def test_a_demo_tells_no_secret(tmp_path, ray_folder):
    pytest.importorskip("gradio", reason="the extra [demo] is not installed")
    with begun(tmp_path, ray_folder, "demo", "--port", 0) as (process, lines):
        assert process.stderr is not None
        said = ""
        while "http://" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=100)
    assert (process.returncode, in_text(out + said + err), in_text("\n".join(lines))) == (0, [], [])
    assert told_in(tmp_path) == {}
    assert told_in(ray_folder) == {}


@pytest.mark.parametrize(
    "url",
    [
        "https://h/p.parquet?X-Amz-Credential=AKIA%2F20260101&X-Amz-Signature={}&x=1",
        "https://h/p.parquet?se=2026&sp=r&sig={}",
        "https://h/p.parquet?q-sign-algorithm=sha1&q-signature={}",
        "https://h/p.parquet?GoogleAccessId=a&Signature={}",
        "https://h/p.parquet?OSSAccessKeyId=a&security-token={}",
        "https://h/p.parquet?pwd={}",
        "https://h/p.parquet#access_token={}",
        "https://ada:{}@h/p.parquet",
        "https://ada:{},;&x@h/p.parquet",
        "https://{}@h/p.parquet",
        "s3://key:{}@bucket/p.parquet",
    ],
)
def test_what_a_url_has_of_credentials_is_hidden_by_its_place(url):
    secret = "k3yThatNobodyShouldSee"
    told = without_secrets(f"manifest {url.format(secret)}: no such file")
    assert secret not in told
    assert ",;&x" not in told
    assert "***" in told
    assert "p.parquet" in told


def test_whatever_a_signature_of_a_manifests_url_is_called_it_is_not_told(monkeypatch):
    monkeypatch.setattr("show1_ray.errors._KEPT", set())
    with pytest.raises(UserError) as error:
        open_manifest("https://127.0.0.1:1/p.parquet?v=2&k=n0bodyShouldSeeThis&response=attachment")
    assert "n0bodyShouldSeeThis" not in printable(error.value)
    assert "response=attachment" in printable(error.value)


def test_signatures_in_lists_and_structs_of_a_row_stay_with_the_manifest():
    url = "https://h/a.png?X-Amz-Signature={}"
    value = {"pictures": [url.format("0123"), "a"], "n": 1}
    assert unsigned_value(value) == {"pictures": [url.format("***"), "a"], "n": 1}
