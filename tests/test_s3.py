"""Manifest and dataset in S3: a real server over HTTP, the real program, and what a job survives there."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from show1_ray import Pipeline, UserError
from show1_ray import render as run_job
from show1_ray.clip import Clip
from show1_ray.dataset import Dataset, Rendering, patience, read_status
from show1_ray.dataset.layout import clip_path
from show1_ray.dataset.video import decode_video
from show1_ray.errors import Notice
from show1_ray.job import origin
from show1_ray.line.events import ClipDone
from show1_ray.manifest import open_manifest
from show1_ray.show1.cascade import load_stages, run_stages
from show1_ray.show1.stages import STAGES
from tests.dataset.test_dataset import WORKER, assert_complete
from tests.dataset.toys import Job
from tests.test_render import kill

if TYPE_CHECKING:
    from faulty_s3 import FaultyS3

COLOURS = ["red", "green", "blue", "white"] * 3
CLIPS = [Clip(f"clip-{i:02}", f"a {colour} circle", seed=i) for i, colour in enumerate(COLOURS)]


def store() -> fsspec.AbstractFileSystem:
    return fsspec.filesystem("s3", use_listings_cache=False)


def landed(out: str) -> dict[str, str]:
    """Path → ETag of the clips that are there: a clip that is rendered again has another one."""
    files = store().find(f"{out}/clips", detail=True)
    return {path: info["ETag"] for path, info in files.items() if path.endswith(".mp4")}


def program(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "show1_ray", *arguments]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def wait_for(condition: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    while not condition():
        assert process.poll() is None, "the job has ended before its time"
        time.sleep(0.3)


@pytest.fixture
def undisturbed(tiny, tmp_path) -> dict[str, np.ndarray]:
    """The frames of each clip's file, rendered in this process to a folder of this machine."""
    pipeline, folder = Pipeline.load(tiny).resolved(), tmp_path / "undisturbed"
    videos = run_stages(load_stages(pipeline), CLIPS)
    with Dataset.open(str(folder), origin=origin(pipeline)) as dataset:
        for clip, video in zip(CLIPS, videos, strict=True):
            dataset.lander(clip, video.numpy(), Rendering(), {})
    return frames(folder)


def frames(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: decode_video(path.read_bytes()) for path in folder.glob("clips/*/*.mp4")}


def test_a_job_from_s3_to_s3_that_is_killed_goes_on_and_loses_and_repeats_nothing(tiny, s3, undisturbed, tmp_path):
    manifest, out = f"{s3}/prompts.parquet", f"{s3}/clips"
    columns = {name: [getattr(clip, name) for clip in CLIPS] for name in ("id", "prompt", "seed")}
    with fsspec.open(manifest, "wb") as file:
        pq.write_table(pa.table(columns), file)
    # One station that takes clip after clip down the whole line: when the first one lands, most are not begun.
    one_by_one = [f"--set=execution.{stage}.batch_size=1" for stage in STAGES]
    command = program("render", manifest, "--out", out, "--pipeline", str(tiny), "--gpus", "1")

    job = subprocess.Popen([*command, *one_by_one], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: store().exists(f"{out}/.lease.json"), job)
        other = run(command)
        assert other.returncode == 2
        assert f"dataset {out}: being written by process {job.pid}" in other.stderr
        wait_for(lambda: landed(out), job)
    finally:
        kill(job)
    before = landed(out)
    assert 0 < len(before) < len(CLIPS)

    status = run(program("status", out))
    assert f"{len(before)} of {len(CLIPS)} clips done, 0 failed, {len(CLIPS) - len(before)} left" in status.stdout
    assert "being written" not in status.stdout

    again = run([*command, "--json"])
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["done_before"] == len(before)
    after = landed(out)
    assert before.items() <= after.items(), "a clip that had landed was rendered again"

    store().get(out, str(tmp_path / "copy"), recursive=True)
    rendered = frames(tmp_path / "copy")
    assert sorted(rendered) == [clip.id for clip in CLIPS]
    assert all(np.array_equal(rendered[name], undisturbed[name]) for name in undisturbed)
    assert sorted(pq.read_table(tmp_path / "copy/metadata.parquet")["id"].to_pylist()) == sorted(undisturbed)
    assert read_status(out).left == 0
    report = (tmp_path / "copy/report.html").read_text()
    assert any(Path(path).stem in report for path in after.keys() - before.keys())
    for name, kind in {"report.html": "text/html", clip_path("clip-00"): "video/mp4"}.items():
        assert store().info(f"{out}/{name}")["ContentType"] == kind, "a browser would save it instead of showing it"


@pytest.fixture
def proxy(s3, monkeypatch) -> Iterator[FaultyS3]:
    """Stands before the server, and misbehaves when it is told to."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    from faulty_s3 import FaultyS3

    server = FaultyS3(int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2]))
    with monkeypatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
        fsspec.filesystem("s3").clear_instance_cache()
        yield server
    server.close()
    fsspec.filesystem("s3").clear_instance_cache()


def test_a_store_that_hangs_in_mid_job_is_named_and_then_ends_the_job(tiny, s3, proxy, tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "NAMED_SECONDS", 1.5)  # the others are in proportion
    monkeypatch.setattr(patience, "SILENT_SECONDS", 6.0)
    monkeypatch.setattr(patience, "AGAIN_SECONDS", 0.5)
    manifest, out, told = tmp_path / "prompts.csv", f"{s3}/hangs", list[str]()
    manifest.write_text("id,prompt,seed\n" + "".join(f"clip-{n},a red circle,{n}\n" for n in range(400)))

    def observe(event: object) -> None:
        if isinstance(event, ClipDone):
            proxy.mode = "hang"
        elif isinstance(event, Notice):
            told.append(event.text)

    with pytest.raises(UserError, match=rf"^cannot \w+ {out}/.*: no answer for \d+ s") as error:
        run_job(str(manifest), out, str(tiny), gpus=1, observe=observe)
    assert "\n" not in str(error.value)
    assert re.fullmatch(r"storage s3://bucket/hangs: no answer for \d+ s; given up after 6 s", told[0])


def test_a_dataset_of_shards_whose_writer_is_killed_gets_done(s3, tmp_path):
    count, url, lines = 20, f"{s3}/shards", list[str]()
    for kill_after in (7, None):
        command = [sys.executable, str(WORKER), url, "webdataset", str(count)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for number, line in enumerate(process.stdout):
                lines.append(line.strip())
                if number == kill_after:
                    process.send_signal(signal.SIGKILL)
                    break
            lines += process.stdout.read().split()
    rendered = [line for line in lines if line.startswith("clip-")]
    assert lines[-1] == "finished"
    assert len(rendered) == len(set(rendered))
    store().get(url, str(tmp_path / "copy"), recursive=True)
    assert_complete(Job(str(tmp_path / "copy")), count)


def test_a_folder_of_manifests_in_s3_is_one_manifest(s3):
    store().pipe({f"{s3}/many/{name}.csv": f"id,prompt\n{name},a red circle\n".encode() for name in "ba"})
    assert [entry.clip.id for entry in open_manifest(f"{s3}/many")] == ["a", "b"]
    assert [entry.clip.id for entry in open_manifest(f"{s3}/many/b*.csv")] == ["b"]


def test_a_bucket_that_is_not_there_is_refused_with_one_line(s3):
    with pytest.raises(UserError, match=r"^manifest s3://nowhere/prompts\.csv: no such file"):
        open_manifest("s3://nowhere/prompts.csv")
    with pytest.raises(UserError, match=r"^cannot write s3://nowhere/out/\.lease\.json: no such place: .*bucket"):
        Job("s3://nowhere/out").open()


def test_missing_credentials_are_told_with_one_line(s3, tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    fsspec.filesystem("s3").clear_instance_cache()
    try:
        with pytest.raises(UserError, match=r"^manifest .*: cannot be opened: Unable to locate credentials$"):
            open_manifest(f"{s3}/prompts.csv")
    finally:
        fsspec.filesystem("s3").clear_instance_cache()
