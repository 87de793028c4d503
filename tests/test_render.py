"""A job from manifest to dataset, on real Ray, with the tiny cascade; and what it survives."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from show1_ray import Pipeline, UserError, render
from show1_ray.clip import Clip
from show1_ray.dataset import read_status
from show1_ray.dataset.video import decode_video
from show1_ray.errors import Notice
from show1_ray.job import Control
from show1_ray.job.telling import measured
from show1_ray.line.events import ClipDone, Snapshot, StageBegan, StageDone, StationLost, StationUp
from show1_ray.line.spec import LineSettings
from show1_ray.progress import summary_lines
from show1_ray.show1.cascade import load_stages, run_stages
from tests.broken import break_word
from tests.own_ray import own_ray

COUNT, BEGUN = 12, 5
PROMPTS = [
    f"a {colour} {shape}" for colour in ("red", "green", "blue", "white") for shape in ("circle", "square", "cat")
]


def write_manifest(folder: Path, prompts=PROMPTS, **columns) -> str:
    path = folder / "prompts.parquet"
    ids = [f"clip-{i:02}" for i in range(len(prompts))]
    table = {"id": ids, "prompt": prompts, "seed": list(range(len(prompts))), "split": ["train"] * len(prompts)}
    pq.write_table(pa.table({**table, **columns}), path)
    return str(path)


@pytest.fixture
def manifest(tmp_path):
    return write_manifest(tmp_path)


@pytest.fixture(scope="module")
def expected(tiny):
    """What each clip of the manifest is, rendered in this process, without Ray: {id: frames}."""
    clips = [Clip(f"clip-{i:02}", prompt, seed=i) for i, prompt in enumerate(PROMPTS)]
    videos = run_stages(load_stages(Pipeline.load(tiny)), clips)
    return {clip.id: video.numpy() for clip, video in zip(clips, videos, strict=True)}


@pytest.fixture(scope="class")
def local_ray():
    with own_ray(2, object_store_memory=300_000_000):
        yield


@pytest.fixture(scope="class")
def begun(local_ray, tiny, tmp_path_factory):
    """A dataset of the manifest's first five clips."""
    folder = tmp_path_factory.mktemp("begun")
    batches = ["keyframes.batch_size=3"]
    render(write_manifest(folder), str(folder / "out"), str(tiny), limit=BEGUN, overrides=batches, gpus=1)
    return folder / "out"


@pytest.fixture
def out_begun(begun, tmp_path):
    """A copy of it to go on with."""
    return shutil.copytree(begun, tmp_path / "out")


def frames_of(path: Path) -> np.ndarray:
    return decode_video(path.read_bytes())


@pytest.fixture(scope="module")
def encoded(expected, tiny, tmp_path_factory):
    """The frames as they come out of the video files: H.264 is not lossless, but the same frames give the same file."""
    from show1_ray.dataset import Dataset, Rendering
    from show1_ray.job import origin

    folder = tmp_path_factory.mktemp("encoded")
    pipeline = Pipeline.load(tiny).resolved()
    with Dataset.open(str(folder), origin=origin(pipeline)) as dataset:
        for i, prompt in enumerate(PROMPTS):
            clip = Clip(f"clip-{i:02}", prompt, seed=i)
            dataset.lander(clip, expected[clip.id], Rendering(), {})
    return {path.stem: frames_of(path) for path in folder.glob("clips/*/*.mp4")}


def assert_complete(out: Path, encoded, count=COUNT, without=()) -> None:
    """Every clip is there once, has one row, and is frame for frame what an undisturbed process renders."""
    files = {path.stem: path for path in out.glob("clips/*/*.mp4")}
    wanted = {f"clip-{i:02}" for i in range(count)} - set(without)
    assert set(files) == wanted
    rows = pq.read_table(out / "metadata.parquet").to_pylist()
    assert sorted(row["id"] for row in rows) == sorted(wanted)
    for name, path in files.items():
        assert np.array_equal(frames_of(path), encoded[name]), name


@pytest.mark.usefixtures("local_ray")
class TestOneJob:
    def test_a_manifest_becomes_a_dataset_and_the_second_run_renders_nothing(self, tiny, manifest, tmp_path, encoded):
        out = tmp_path / "out"
        told: list[Any] = []
        first = render(manifest, str(out), str(tiny), observe=told.append)
        assert (first.rendered, first.failed, first.exit_code) == (COUNT, 0, 0)
        pace = [event for event in told if isinstance(event, Snapshot)][-1].clips_an_hour
        shown = re.findall(r"Clips per hour</dt><dd>([^<]*)", (out / "report.html").read_text())
        assert [float(text.replace(",", "")) for text in shown] == [pytest.approx(pace, rel=0.01)]
        assert pace * first.seconds / 3600 >= COUNT, "the start of the stations counts too"
        assert_complete(out, encoded)
        rows = {row["id"]: row for row in pq.read_table(out / "metadata.parquet").to_pylist()}
        row = rows["clip-03"]
        assert (row["prompt"], row["seed"], row["split"], row["frames"]) == (PROMPTS[3], 3, "train", 9)
        assert (row["width"], row["height"], row["attempts"]) == (36, 24, 1)
        for stage in ("text", "keyframes", "interpolation", "super_resolution", "latent_super_resolution"):
            assert row[f"seconds_{stage}"] >= 0
            assert row[f"batch_size_{stage}"] >= 1

        stamps = {path: path.stat().st_mtime_ns for path in out.glob("clips/*/*.mp4")}
        again = render(manifest, str(out), str(tiny))
        assert (again.rendered, again.done_before, again.exit_code) == (0, COUNT, 0)
        assert {path: path.stat().st_mtime_ns for path in out.glob("clips/*/*.mp4")} == stamps

    def test_other_batch_sizes_continue_a_dataset_and_change_no_frame(self, tiny, manifest, out_begun, encoded):
        summary = render(manifest, str(out_begun), str(tiny), overrides=["interpolation.batch_size=4"])
        assert (summary.done_before, summary.rendered) == (BEGUN, COUNT - BEGUN)
        assert_complete(out_begun, encoded)

    def test_a_clip_that_was_changed_at_equal_size_is_rendered_again_when_asked(self, tiny, manifest, out_begun):
        out = out_begun
        clip = next(out.glob("clips/*/clip-01.mp4"))
        before = frames_of(clip)
        data = clip.read_bytes()
        clip.write_bytes(data[:-1] + bytes([data[-1] ^ 0xFF]))
        assert render(manifest, str(out), str(tiny), limit=BEGUN, gpus=1).rendered == 0
        summary = render(manifest, str(out), str(tiny), limit=BEGUN, gpus=1, verify=True)
        assert (summary.done_before, summary.rendered) == (BEGUN - 1, 1)
        assert np.array_equal(frames_of(clip), before)

    def test_it_works_where_an_event_loop_runs_as_in_a_notebook(self, tiny, manifest, tmp_path):
        async def cell() -> int:
            return render(manifest, str(tmp_path / "out"), str(tiny), limit=2, gpus=1).rendered

        assert asyncio.run(cell()) == 2

    def test_another_recipe_and_another_prompt_are_refused(self, tiny, manifest, out_begun, tmp_path):
        out = str(out_begun)
        with pytest.raises(UserError, match=r"keyframes\.steps"):
            render(manifest, out, str(tiny), overrides=["keyframes.steps=3"], gpus=1)
        changed = write_manifest(tmp_path, ["a fire", *PROMPTS[1:]])
        with pytest.raises(UserError, match="clip-00"):
            render(changed, out, str(tiny), gpus=1)

    def test_a_clip_that_is_not_finite_fails_alone_and_is_skipped_until_asked_for(self, tiny, tmp_path, encoded):
        broken = break_word(tiny, "snow", PROMPTS, tmp_path / "broken")
        manifest = write_manifest(tmp_path, [*PROMPTS[:4], "a snow", *PROMPTS[5:]])
        out, batched = tmp_path / "out", ["text.batch_size=6", "keyframes.batch_size=6"]
        first = render(manifest, str(out), str(broken), overrides=batched, gpus=1)
        assert (first.rendered, first.failed, first.exit_code) == (COUNT - 1, 1, 1)
        [failure] = read_status(str(out)).failures
        assert (failure.id, failure.stage) == ("clip-04", "text")
        assert "NaN" in failure.error
        assert_complete(out, encoded, without=["clip-04"])
        second = render(manifest, str(out), str(broken), gpus=1)
        assert (second.rendered, second.failed, second.skipped_failures, second.exit_code) == (0, 0, 1, 1)
        assert [(one["id"], one["stage"]) for one in second.failures_before] == [("clip-04", "text")]
        *_, told = summary_lines(second).splitlines()
        assert told.startswith("failed before: clip-04 in text: ")
        third = render(manifest, str(out), str(broken), retry_failed=True, gpus=1)
        assert (third.rendered, third.failed) == (0, 1)

    def test_a_job_whose_first_clips_all_fail_stops(self, tiny, tmp_path):
        broken = break_word(tiny, "snow", PROMPTS, tmp_path / "broken")
        manifest = write_manifest(tmp_path, ["a snow"] * 40)
        summary = render(manifest, str(tmp_path / "out"), str(broken), max_failures=5, gpus=1)
        assert 5 <= summary.failed < 40
        assert summary.rendered == 0
        assert "failed" in summary.stopped
        assert summary.exit_code == 1

    def test_a_report_that_cannot_be_written_is_told_once_and_costs_nothing(self, tiny, manifest, out_begun, encoded):
        (out_begun / "report.html").unlink()
        (out_begun / "report.html").mkdir()
        told = []
        summary = render(manifest, str(out_begun), str(tiny), observe=told.append, gpus=1)
        assert (summary.rendered, summary.exit_code) == (COUNT - BEGUN, 0)
        assert_complete(out_begun, encoded)
        [notice] = [event for event in told if isinstance(event, Notice)]
        assert "report.html" in notice.text
        assert notice.text.endswith("; the job goes on")

    def test_a_station_killed_in_mid_batch_costs_nothing(self, tiny, manifest, tmp_path, encoded):
        out, stations, killed, lost = tmp_path / "out", {}, [], []

        def kill_once(event: Any) -> None:
            if isinstance(event, StationUp):
                stations[event.station] = event.pid
            if isinstance(event, StationLost):
                lost.append(event.station)
            if isinstance(event, StageBegan) and event.stage == "interpolation" and not killed:
                killed.append(event.station)
                time.sleep(0.05)  # for the batch to arrive; should it be over already, the next one finds it dead
                os.kill(stations[event.station], signal.SIGKILL)

        summary = render(manifest, str(out), str(tiny), observe=kill_once)
        assert (summary.rendered, summary.failed) == (COUNT, 0)
        assert killed
        assert lost == killed
        assert_complete(out, encoded)

    def test_stopping_lets_clips_land_and_the_same_call_goes_on(self, tiny, manifest, tmp_path, encoded):
        out, control = tmp_path / "out", Control()

        def stop_after_one_batch(event: Any) -> None:
            if isinstance(event, StageDone) and event.stage == "latent_super_resolution":
                control.stop()

        small = ["execution.latent_super_resolution.batch_size=2"]  # the next one may have begun when the stop is asked
        first = render(
            manifest, str(out), str(tiny), overrides=small, gpus=1, observe=stop_after_one_batch, control=control
        )
        assert 1 <= first.rendered < COUNT
        assert first.exit_code == 130
        second = render(manifest, str(out), str(tiny), gpus=1)
        assert second.done_before == first.rendered
        assert second.exit_code == 0
        assert_complete(out, encoded)

    def test_webdataset_shards_hold_every_clip_once(self, tiny, manifest, tmp_path, expected):
        webdataset = pytest.importorskip("webdataset")
        out = tmp_path / "out"
        render(manifest, str(out), str(tiny), format="webdataset", gpus=1)
        shards = sorted(map(str, out.glob("shards/*.tar")))
        samples = list(webdataset.WebDataset(shards, shardshuffle=False))
        assert sorted(sample["__key__"] for sample in samples) == sorted(expected)
        assert json.loads(samples[0]["json"])["prompt"] in PROMPTS
        assert not list(out.glob("clips/*/*.mp4"))
        assert render(manifest, str(out), str(tiny), format="webdataset", gpus=1).rendered == 0

    def test_stages_frames_are_saved_when_asked_and_bfloat16_travels(self, tiny, manifest, tmp_path):
        out, half, saved = tmp_path / "out", ["dtype=bfloat16"], ["keyframes", "super_resolution"]
        summary = render(manifest, str(out), str(tiny), limit=2, overrides=half, save_stages=saved, gpus=1)
        assert (summary.rendered, summary.failed) == (2, 0)
        assert frames_of(next(out.glob("__stages__/keyframes/*/clip-00.mp4"))).shape == (3, 8, 12, 3)
        assert frames_of(next(out.glob("__stages__/super_resolution/*/clip-01.mp4"))).shape == (9, 16, 24, 3)

    def test_storage_that_fails_stops_the_job_with_one_line_and_nothing_half_written(
        self, tiny, manifest, out_begun, encoded
    ):
        out = out_begun
        shutil.move(out / "clips", out / "kept")
        (out / "clips").write_text("a file where a folder should be")
        with pytest.raises(UserError, match="clips") as caught:
            render(manifest, str(out), str(tiny), gpus=1)
        assert len(str(caught.value).splitlines()) == 1
        (out / "clips").unlink()
        shutil.move(out / "kept", out / "clips")
        render(manifest, str(out), str(tiny), gpus=1)
        assert_complete(out, encoded)


def test_a_node_that_goes_with_its_tensors_costs_nothing(tiny, manifest, tmp_path, encoded):
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100_000_000}
    in_store = {"max_direct_call_object_size": 100}  # or the tiny cascade's tensors would lie with the driver
    cluster = Cluster(initialize_head=True, head_node_args={**node, "num_cpus": 0, "_system_config": in_store})
    try:
        nodes = [cluster.add_node(**node) for _ in range(3)]  # two have a station, the third one is to spare
        ray.init(address=cluster.address, log_to_driver=False)
        where, removed = {}, []

        def remove_once(event: Any) -> None:
            if isinstance(event, StationUp):
                where[event.station] = event.node
            if isinstance(event, StageDone) and event.stage == "super_resolution" and not removed:
                removed.extend(node for node in nodes if node.node_id == where[event.station])
                cluster.remove_node(removed[0], allow_graceful=False)

        out = tmp_path / "out"
        settings = LineSettings(stations=2)
        summary = render(manifest, str(out), str(tiny), observe=remove_once, line=settings)
        assert removed
        assert (summary.rendered, summary.failed) == (COUNT, 0)
        assert_complete(out, encoded)
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_metrics_that_cannot_be_counted_are_told_once_and_cost_nothing():
    told: list[str] = []
    observe = measured("run", told.append)
    for _ in range(3):
        observe(ClipDone(Clip("a", "b"), {"no": "row"}, {}, {}, 1))
    assert told == ["metrics: 'row'; the job goes on"]


def command(manifest: str, out: Path, tiny: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "show1_ray", "render", manifest, "--out", str(out), "--pipeline", str(tiny), *more]


def landed(out: Path) -> int:
    return len(list(out.glob("clips/*/*.mp4")))


def kill(process: subprocess.Popen[Any]) -> None:
    """Kills a driver, and waits for its Ray's workers: they end a moment after it, and may still land a clip."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.kill()
    process.wait()
    while any(works(member) for member in family):
        time.sleep(0.05)


def works(process: psutil.Process) -> bool:
    """Whether it is one of Ray's workers; its agents live longer, and land nothing."""
    try:
        title = process.cmdline()[0]
    except (psutil.NoSuchProcess, IndexError):  # it has ended, whether or not anybody has asked how
        return False
    return title.startswith("ray::") and not title.endswith("Agent")


def test_the_driver_killed_at_five_moments_and_run_again_loses_and_repeats_nothing(tiny, manifest, tmp_path, encoded):
    out = tmp_path / "out"
    moments = [
        lambda seconds: seconds > 1.0,  # while it starts
        lambda seconds: out.exists() and seconds > 6,  # while stations start
        lambda seconds: landed(out) >= 1,
        lambda seconds: landed(out) >= COUNT // 2,
        lambda seconds: landed(out) >= COUNT - 2,
    ]
    stamps: dict[Path, int] = {}
    for moment in moments:
        process = subprocess.Popen(command(manifest, out, tiny), stderr=subprocess.PIPE, start_new_session=True)
        begin = time.monotonic()
        while process.poll() is None and not moment(time.monotonic() - begin):
            time.sleep(0.01)
        kill(process)
        now = {path: path.stat().st_mtime_ns for path in out.glob("clips/*/*.mp4")}
        assert stamps.items() <= now.items(), "a clip that had landed was rendered again"
        stamps = now
    final = subprocess.run(command(manifest, out, tiny, "--json"), capture_output=True, text=True, timeout=240)
    assert final.returncode == 0, final.stderr
    assert json.loads(final.stdout)["done_before"] == len(stamps)
    now = {path: path.stat().st_mtime_ns for path in out.glob("clips/*/*.mp4")}
    assert stamps.items() <= now.items()
    assert_complete(out, encoded)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_lets_clips_land_and_ends_with_130(tiny, manifest, tmp_path, encoded, number):
    out = tmp_path / "out"
    process = subprocess.Popen(command(manifest, out, tiny), stderr=subprocess.PIPE, text=True)
    while process.poll() is None and landed(out) < 1:
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 130, errors
    assert "interrupted; rerun the same command to resume" in errors
    assert "Traceback" not in errors
    assert read_status(str(out)).holder is None
    final = subprocess.run(command(manifest, out, tiny), capture_output=True, text=True, timeout=240)
    assert final.returncode == 0, final.stderr
    assert_complete(out, encoded)


def test_a_second_ctrl_c_waits_for_nothing(tiny, manifest, tmp_path):
    out = tmp_path / "out"
    line = command(manifest, out, tiny, "--samples", "100")
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and landed(out) < 1:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        while "press Ctrl-C again to stop now" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=240)
    assert process.returncode == 130, errors
    assert "Stopping now" in errors
    assert landed(out) < 100 * COUNT
    assert read_status(str(out)).holder is None


def test_ctrl_c_before_anything_runs_ends_at_once_with_130(tiny, manifest, tmp_path):
    process = subprocess.Popen(command(manifest, tmp_path / "out", tiny), stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "out" / "dataset.json").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 130, errors
    assert read_status(str(tmp_path / "out")).holder is None


def test_bad_input_ends_with_one_line_and_exit_code_2(tiny, tmp_path):
    bad = tmp_path / "bad.csv"
    with bad.open("w") as file:
        csv.writer(file).writerows([["id", "prompt"], ["a", "x"], ["b", ""], ["a", "y"]])
    result = subprocess.run(command(str(bad), tmp_path / "out", tiny), capture_output=True, text=True, timeout=240)
    assert result.returncode == 2
    assert "row 2" in result.stderr
    assert "'prompt' is empty" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pipeline", "nope"], "no pipeline 'nope'"),
        (["--address", "ray://head:10001"], "show1-ray submit"),
        (["--set", "keyframes.stepz=1"], "keyframes.stepz: unknown key"),
        (["--save-stages", "text"], "no such stage"),
        (["--limit", "0"], "limit"),
    ],
)
def test_a_wrong_option_ends_with_exit_code_2(tiny, manifest, tmp_path, arguments, message):
    line = command(manifest, tmp_path / "out", tiny, *arguments)
    result = subprocess.run(line, capture_output=True, text=True, timeout=240)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_dry_run_says_what_is_left_and_renders_nothing(tiny, manifest, tmp_path):
    out = tmp_path / "out"
    result = subprocess.run(command(manifest, out, tiny, "--dry-run"), capture_output=True, text=True, timeout=240)
    assert result.returncode == 0
    assert f"0 of {COUNT} clips done, {COUNT} to render" in result.stderr
    assert not out.exists()
