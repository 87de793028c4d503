"""A pipeline of nine stages of somebody's own, from its check to its report, and what it survives."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image
from typer.testing import CliRunner

from show1_ray import UserError, render
from show1_ray.cli import app
from show1_ray.dataset import read_status
from show1_ray.dataset.video import decode_video
from show1_ray.line.events import StageDone
from tests.own_ray import own_ray

STAGES = '''
import time

import numpy as np
from PIL import Image

from show1_ray import Reject, Shape, Stage, StageSettings


class Words(Stage):
    """How many words a prompt has, and the longest."""
    takes = {"boost": "value"}
    gives = {"count": "value", "longest": "value"}

    def run(self, clips, values):
        words = [clip.prompt.split() for clip in clips]
        return [{"count": len(w) * v["boost"], "longest": max(w, key=len)} for w, v in zip(words, values)]


class Draw(Stage):
    """A picture that moves, as many frames as `call` says."""
    class Settings(StageSettings):
        call: dict = {"num_frames": 4}
        seconds: float = 0.05
    takes = {"picture": "h w c"}
    gives = {"video": "f h w c"}
    row_settings = frozenset({"call"})

    @classmethod
    def shapes(cls, settings, context, given):
        return {"video": Shape("f h w c", (settings.call["num_frames"], 16, 32, 3), "uint8")}

    def run(self, clips, values):
        time.sleep(self.settings.seconds * len(clips))
        return [{"video": self.drawn(v["picture"], clip)} for clip, v in zip(clips, values)]

    def drawn(self, picture, clip):
        frames = self.settings.call["num_frames"]
        small = np.asarray(Image.fromarray(picture).resize((32, 16)))
        return np.stack([np.roll(small, clip.seed + frame, axis=1) for frame in range(frames)])


class Smooth(Stage):
    """Floats in, floats out, under the name that they had."""
    takes = {"video": "c f h w"}
    gives = {"video": "c f h w"}

    def run(self, clips, values):
        return [{"video": (v["video"] + np.roll(v["video"], 1, axis=3)) / 2} for v in values]


class Encode(Stage):
    """Whole numbers of a type that torch has none for."""
    takes = {"video": "c f h w"}
    gives = {"latents": "l d"}

    def run(self, clips, values):
        return [{"latents": (v["video"] * 1000).mean(axis=0).reshape(len(v["video"][0]), -1).astype("uint16")}
                for v in values]


class Score(Stage):
    """A model on CPU cores: what it loads stays there."""
    takes = {"latents": "l d"}
    gives = {"score": "value", "weighed": "l d"}

    def load(self, device):
        super().load(device)
        self.weights = np.random.default_rng(0).normal(size=(16 * 32,)).astype("float32")

    def run(self, clips, values):
        weighed = [(v["latents"] * self.weights).astype("float32") for v in values]
        return [{"score": float(one.mean()), "weighed": one} for one in weighed]


class Judge(Stage):
    """Lets nobody go on whose prompt is too short."""
    takes = {"count": "value", "score": "value"}
    gives = {"verdict": "value"}

    def run(self, clips, values):
        return [{"verdict": "good"} if v["count"] > 1 else Reject(f"too short: {v['count']:g}", {"verdict": "bad"})
                for v in values]


class Decode(Stage):
    """Frames out of what was weighed."""
    takes = {"weighed": "l d"}
    gives = {"sketch": "f h w c"}

    def run(self, clips, values):
        shape = (-1, 16, 32, 1)
        return [{"sketch": np.abs(v["weighed"]).clip(0, 255).astype("uint8").reshape(shape).repeat(3, axis=3)}
                for v in values]


class Blend(Stage):
    """The mean of two videos, which the file names."""
    takes = {"first": "f h w c", "second": "f h w c"}
    gives = {"video": "f h w c"}

    def run(self, clips, values):
        return [{"video": ((v["first"].astype("uint16") + v["second"]) // 2).astype("uint8")} for v in values]
'''
PIPELINE = """
fps: 8
inputs:
  frames: {int: stages.video.call.num_frames, default: 9}
  picture: image
  boost: {float: null, default: 1}
stages:
  words: {uses: "nine:Words"}
  video: {uses: "nine:Draw"}
  smooth: {uses: "nine:Smooth"}
  encode: {uses: "nine:Encode"}
  score: {uses: "nine:Score"}
  judge: {uses: "nine:Judge"}
  decode: {uses: "nine:Decode"}
  blend: {uses: "nine:Blend", takes: {first: video.video, second: smooth.video}}
  last: {uses: "nine:Blend", takes: {first: blend.video, second: sketch}}
execution:
  words: {device: cpu, cpus: 0}
  video: {batch_size: 4}
  smooth: {batch_size: 4}
  score: {device: cpu}
"""
NINE = ["words", "video", "smooth", "encode", "score", "judge", "decode", "blend", "last"]
COUNT, REJECTED, FAILED = 24, {"clip-05", "clip-13"}, {"clip-07"}


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (20, 40, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline, and a manifest of which every third row brings frames, and one a picture that is none."""
    folder = tmp_path_factory.mktemp("nine")
    (folder / "nine.py").write_text(STAGES)
    (folder / "nine.yaml").write_text(PIPELINE)
    (folder / "pictures").mkdir()
    with (folder / "rows.jsonl").open("w") as rows:
        for number in range(COUNT):
            name, clip = f"pictures/{number}.png", f"clip-{number:02}"
            (folder / name).write_bytes(b"no picture" if clip in FAILED else picture(number))
            prompt = "short" if clip in REJECTED else f"a prompt of some words, take {number}"
            frames = {"frames": 3 + number % 4} if number % 3 else {}
            rows.write(json.dumps({"id": clip, "prompt": prompt, "seed": number, "picture": name, **frames}) + "\n")
    return folder


@pytest.fixture(scope="module")
def local_ray() -> Iterator[str]:
    """A Ray that outlives the drivers that are killed: its address."""
    with own_ray(2):
        yield ray.get_runtime_context().gcs_address


def shown(*arguments: object) -> Any:
    """What a command says, as JSON where it was asked for."""
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout) if "--json" in arguments else result.output


def test_nine_stages_are_checked_profiled_and_planned(here: Path, tmp_path: Path) -> None:
    own = [here / "nine.yaml", "--code", here / "nine.py"]
    checked = shown("check", *own, "--json")
    assert [stage["name"] for stage in checked["stages"]] == NINE
    takes = {stage["name"]: stage["takes"] for stage in checked["stages"]}
    assert [takes["blend"][name]["from"] for name in ("first", "second")] == ["video.video", "smooth.video"]
    assert takes["encode"]["video"]["from"] == "smooth.video"
    assert takes["video"]["picture"]["from"] == "inputs.picture"
    measure = ["profile", *own, "--device", "cpu", "--batch-sizes", "1,2", "--repeats", 1, "--out", tmp_path / "p"]
    profiled = shown(*measure, "--set", "video.seconds=0")
    assert all(stage in profiled for stage in NINE)
    manifest = here / "rows.jsonl"
    plan = ["plan", manifest, "--pipeline", *own, "--profile", tmp_path / "p", "--gpu-type", "cpu", "--gpus", 2]
    plan += ["--set", "video.seconds=0"]
    planned = shown(*plan, "--json")
    assert planned["clips"] == COUNT
    assert [stage["name"] for stage in planned["stages"]] == NINE[1:]
    assert planned["beside"] == ["inputs", "words"]
    assert all(stage in shown(*plan) for stage in NINE)


def landed(out: Path) -> dict[str, int]:
    """Clips that are there, and when they were written."""
    return {path.stem: path.stat().st_mtime_ns for path in out.glob("clips/*/*.mp4")}


def expected(clip: str) -> tuple[int, int | None]:
    """How many frames a clip has, and how many its row asks for."""
    number = int(clip.removeprefix("clip-"))
    return (3 + number % 4, 3 + number % 4) if number % 3 else (9, 9)


def test_nine_stages_are_rendered_resumed_after_kills_and_reported(here: Path, local_ray: str, tmp_path: Path) -> None:
    out, manifest = tmp_path / "out", str(here / "rows.jsonl")
    options = ["--pipeline", "nine.yaml", "--code", "nine.py", "--address", local_ray, "--set", "video.seconds=0.3"]
    command = [sys.executable, "-m", "show1_ray", "render", manifest, "--out", str(out), *options]
    before: dict[str, int] = {}
    for least in (2, 9):
        with subprocess.Popen(command, cwd=here, stderr=subprocess.PIPE, text=True) as driver:
            while len(landed(out)) < least:
                assert driver.poll() is None, driver.stderr and driver.stderr.read()
                time.sleep(0.05)
            driver.kill()
        there = landed(out)
        assert {clip: there[clip] for clip in before} == before, "rendered again"
        before = there
    assert len(before) < COUNT - len(REJECTED | FAILED), "killed in the middle"

    told: list[Any] = []
    arguments: dict[str, Any] = {"overrides": ["video.seconds=0.3"], "code": here / "nine.py"}
    summary = render(manifest, str(out), str(here / "nine.yaml"), observe=told.append, **arguments)
    wanted = {f"clip-{number:02}" for number in range(COUNT)} - REJECTED - FAILED
    there = landed(out)
    assert set(there) == wanted
    assert summary.done_before >= len(before)
    assert summary.done_before + summary.rendered == len(wanted)
    assert {clip: there[clip] for clip in before} == before
    worked_on = {clip for event in told if isinstance(event, StageDone) for clip in event.clips}
    assert not worked_on & set(before), "what had landed went through no stage again"

    rows = {row["id"]: row for row in pq.read_table(out / "metadata.parquet").to_pylist()}
    assert sorted(rows) == sorted(wanted)
    assert {clip: (row["frames"], row["input_frames"]) for clip, row in rows.items()} == {
        clip: expected(clip) for clip in wanted
    }
    for clip, row in rows.items():
        assert row["words_longest"] == "prompt"
        assert (row["judge_verdict"], row["picture"]) == ("good", f"pictures/{int(clip[-2:])}.png")
        assert len(row["picture_sha256"]) == 64
        assert {f"seconds_{stage}" for stage in ("inputs", *NINE)} <= row.keys()
    status = read_status(str(out))
    assert {one.id for one in status.rejections} == REJECTED
    assert {(one.id, one.stage, one.attempts) for one in status.failures} == {("clip-07", "inputs", 1)}
    assert (status.left, status.is_sound) == (0, True)
    page = (out / "report.html").read_text()
    assert all(stage in page for stage in NINE)
    again = render(manifest, str(out), str(here / "nine.yaml"), **arguments)
    assert (again.rendered, again.rejected_before, again.skipped_failures) == (0, len(REJECTED), len(FAILED))

    (here / "pictures" / "3.png").write_bytes(picture(99))
    with pytest.raises(UserError, match=r"clip 'clip-03' is there from another row: picture 'pictures/3.png .sha256"):
        render(manifest, str(out), str(here / "nine.yaml"), **arguments)
    (here / "pictures" / "3.png").write_bytes(picture(3))

    # Bytes in the manifest give what the files give.
    rows_of_two = [json.loads(line) for line in Path(manifest).read_text().splitlines()[:2]]
    table: dict[str, Any] = {
        name: [row.get(name) for row in rows_of_two] for name in ("id", "prompt", "seed", "frames")
    }
    table["picture"] = [picture(0), picture(1)]
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    by_bytes = (str(tmp_path / "rows.parquet"), str(tmp_path / "bytes"), str(here / "nine.yaml"))
    assert render(*by_bytes, **arguments).rendered == 2
    for path in (tmp_path / "bytes").glob("clips/*/*.mp4"):
        [same] = out.glob(f"clips/*/{path.name}")
        assert np.array_equal(decode_video(path.read_bytes()), decode_video(same.read_bytes())), path.name
