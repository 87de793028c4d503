"""Fetching from a hub: a real HTTP server on loopback, real processes, the real client library."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.pipeline.hub import COMMIT, serve

REPOS = {
    "./show-1-base": "acme/base",
    "./show-1-interpolation": "acme/interpolation",
    "./show-1-sr1": "acme/sr1",
    "./IF-II-L-v1.0": "acme/first",
    "./show-1-sr2": "acme/sr2",
}


@pytest.fixture
def hub(tiny, tmp_path):
    folder = tmp_path / "hub"
    for local, repo in REPOS.items():
        shutil.copytree(tiny.parent / local, folder / repo)
    (folder / "acme/base/unet/big_and_unwanted.ckpt").write_bytes(b"x")
    with serve(folder) as hub:
        yield hub


@pytest.fixture
def pipeline(tiny, tmp_path):
    """The tiny pipeline with its checkpoints on the hub."""
    text = tiny.read_text()
    for local, repo in REPOS.items():
        text = text.replace(f"repo: {local}\n", f"repo: {repo}\n{{pad}}revision: main\n")
    lines = []
    for line in text.splitlines():
        if line.startswith("{pad}"):
            indent = len(lines[-1]) - len(lines[-1].lstrip())
            line = " " * indent + line.removeprefix("{pad}")
        lines.append(line)
    path = tmp_path / "pipeline.yaml"
    path.write_text("\n".join(lines))
    assert yaml.safe_load(path.read_text())["stages"]["text"]["checkpoint"]["revision"] == "main"
    return path


def environment(hub, tmp_path: Path, **more: str) -> dict[str, str]:
    dropped = ("HF_", "HUGGING")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
    return {
        **inherited,
        "HF_HOME": str(tmp_path / "cache"),
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        **more,
    }


def fetch(pipeline, env, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "show1_ray", "fetch", str(pipeline), *more]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_fetch_downloads_what_a_pipeline_needs_once_and_shows_the_licence(hub, pipeline, tmp_path):
    env = environment(hub, tmp_path)
    processes = [fetch(pipeline, env) for _ in range(3)]
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert set(hub.downloads.values()) == {1}
    assert not any("unwanted" in name for name in hub.downloads)
    assert any("licence of the weights: cc-by-nc-4.0" in errors for _, errors in outputs)
    assert all(COMMIT in out for out, _ in outputs)

    again = fetch(pipeline, env)
    _, errors = again.communicate(timeout=240)
    assert again.returncode == 0
    assert "licence" not in errors
    assert set(hub.downloads.values()) == {1}


def refusal(pipeline, env, *more: str) -> str:
    process = fetch(pipeline, env, *more)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 2, (out, errors)
    assert len(errors.strip().splitlines()) == 1, errors
    return errors


def test_a_gated_repository_without_a_token_says_what_to_do(hub, pipeline, tmp_path):
    hub.gated.add("acme/first")
    env = environment(hub, tmp_path)
    process = fetch(pipeline, env)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    last = errors.strip().splitlines()[-1]
    assert "acme/first@main: gated: accept its licence" in last
    assert "HF_TOKEN" in last


def test_an_unknown_revision_is_refused(hub, pipeline, tmp_path):
    env = environment(hub, tmp_path)
    message = refusal(pipeline, env, "--set", "text.checkpoint.revision=nightly")
    assert "acme/base@nightly: no such revision" in message


def test_an_unknown_repository_is_refused(hub, pipeline, tmp_path):
    env = environment(hub, tmp_path)
    message = refusal(pipeline, env, "--set", "text.checkpoint.repo=acme/bass")
    assert "acme/bass@main: no such repository" in message


def test_a_repository_that_lacks_a_file_is_refused(hub, pipeline, tmp_path):
    shutil.rmtree(hub.folder / "acme/base/text_encoder")
    message = refusal(pipeline, environment(hub, tmp_path))
    assert "acme/base@main: missing file: no text_encoder/ folder" in message


def test_without_a_network_what_is_cached_is_used_and_the_rest_is_refused(hub, pipeline, tmp_path):
    env = environment(hub, tmp_path)
    assert fetch(pipeline, env).wait(timeout=240) == 0
    offline = {**env, "HF_HUB_OFFLINE": "1"}
    assert fetch(pipeline, offline).wait(timeout=120) == 0
    message = refusal(pipeline, {**offline, "HF_HOME": str(tmp_path / "empty")})
    assert "not in the cache" in message


def test_a_hub_id_without_a_revision_is_refused(hub, pipeline, tmp_path):
    pipeline.write_text(pipeline.read_text().replace("revision: main", "licence: none", 1))
    assert "stages.text.checkpoint" in refusal(pipeline, environment(hub, tmp_path))
