"""Pipelines of anybody's stages on the line: what passes between them, what is planned, what comes out."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from show1_ray import Clip, Pipeline, open_line, render
from show1_ray.dataset.video import decode_video
from show1_ray.errors import UserError
from show1_ray.line.events import ClipDone, ClipFailed, StageDone
from show1_ray.pipeline.lineup import order, order_of_anybody, saved_frames, stage_specs
from show1_ray.planning.costs import costs_of_job
from show1_ray.planning.estimate import estimate
from show1_ray.planning.profile import CPU, measure
from tests.own_ray import own_ray

STAGES = '''
import numpy as np
from show1_ray import Stage, StageSettings
from show1_ray.stage import FLOAT_FRAMES, FRAMES, PLAIN, Shape


class Draw(Stage):
    """A square of the seed's level."""

    class Settings(StageSettings):
        frames: int = 4

    gives = {"video": FLOAT_FRAMES, "level": PLAIN, "counts": "n"}
    row_settings = frozenset({"frames"})

    @classmethod
    def shapes(cls, settings, context, given):
        return {"video": Shape(FLOAT_FRAMES, (3, settings.frames, 32, 48), "float32")}

    def run(self, clips, values):
        self.batch = len(clips)
        level = [clip.seed % 200 for clip in clips]
        shape = (3, self.settings.frames, 32, 48)
        return [
            {"video": np.full(shape, (at + 0.5) / 127.5 - 1, "float32"), "level": at, "counts": np.zeros(3, "int16")}
            for at in level
        ]


class Invert(Stage):
    """Takes what was drawn, and a word; stacks its batch, as networks do."""

    takes = {"video": FRAMES, "level": PLAIN, "counts": "n", "style": PLAIN}
    gives = {"video": FRAMES, "said": PLAIN}

    def run(self, clips, values):
        assert all(v["counts"].dtype == np.int16 for v in values), values[0]["counts"].dtype
        videos = 255 - np.stack([v["video"] for v in values])
        return [
            {"video": video, "said": f"{v['style']} {v['level']}"} for video, v in zip(videos, values, strict=True)
        ]


class Brightness(Stage):
    """Keeps its state on a CPU: a table that it has loaded."""

    takes = {"frame": "h w c"}
    gives = {"brightness": PLAIN}

    def load(self, device):
        self.scale = 1 / 255

    def run(self, clips, values):
        return [{"brightness": v["frame"].mean() * self.scale} for v in values]


class Last(Stage):
    """Looks once more at what was drawn first; gives floats that are the clip."""

    takes = {"first": FLOAT_FRAMES, "video": FLOAT_FRAMES, "brightness": PLAIN}
    gives = {"mixed": FLOAT_FRAMES}

    def run(self, clips, values):
        if clips[0].prompt == "trip":
            raise ArithmeticError("over\\nthe edge")
        return [{"mixed": (v["first"] + v["video"]) / 2} for v in values]
'''
PIPELINE = """
description: four stages of somebody's own
dtype: float32
inputs:
  length: {int: stages.draw.frames}
  style: {text: null, default: plain}
stages:
  draw: {uses: "toys:Draw"}
  invert: {uses: "toys:Invert"}
  brightness: {uses: "toys:Brightness", takes: {frame: "draw.video[0]"}}
  last: {uses: "toys:Last", takes: {first: draw.video}}
execution:
  draw: {batch_size: 4}
  invert: {batch_size: 4}
  brightness: {device: cpu}
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pipeline file and the code of its stages."""
    folder = tmp_path_factory.mktemp("toys")
    (folder / "toys.py").write_text(STAGES)
    (folder / "mine.yaml").write_text(PIPELINE)
    return folder


@pytest.fixture(scope="module")
def pipeline(files: Path) -> Pipeline:
    return Pipeline.load(files / "mine.yaml", code=files / "toys.py")


@pytest.fixture(scope="module")
def line_of(files: Path):
    """Ray, for all that needs it here."""
    with own_ray(num_cpus=2):
        yield


def by_name(specs):
    return {spec.name: spec for spec in specs}


def test_names_on_the_line_say_who_gives_and_who_takes(pipeline):
    specs = by_name(stage_specs(pipeline, costs_of_job(pipeline, CPU)))
    assert specs["draw"].gives == ("draw.video", "counts")
    assert specs["draw"].plain == ("draw.level",)
    assert specs["invert"].takes == ("draw.video", "counts")
    assert specs["invert"].values == ("draw.level", "inputs.style")
    assert (specs["last"].takes, specs["last"].values) == (("draw.video", "video"), ("brightness.brightness",))
    assert {name: spec.on for name, spec in specs.items()}["brightness"] == "cpus"
    assert [spec.batch_size for spec in specs.values()] == [4, 4, 1, 1]


def test_bytes_are_known_where_stages_declare_them_and_0_where_not(pipeline):
    specs = by_name(stage_specs(pipeline, costs_of_job(pipeline, CPU)))
    assert specs["draw"].output_bytes == 0  # nobody says how many `counts` there are
    assert specs["invert"].output_bytes == 4 * 32 * 48 * 3
    assert specs["brightness"].output_bytes == 0


def test_where_the_clip_is_delivered_it_is_called_video_and_nothing_else_is(pipeline):
    specs = by_name(stage_specs(pipeline, costs_of_job(pipeline, CPU), deliver=True))
    assert specs["last"].gives == ("mixed", "video")
    assert specs["invert"].gives == ("invert.video",)
    assert specs["last"].takes == ("draw.video", "invert.video")


def test_any_frames_but_the_clip_can_be_saved(pipeline):
    assert saved_frames(pipeline, ["draw", "invert"]) == {
        "draw": ("draw.video", "c f h w"),
        "invert": ("video", "f h w c"),
    }
    for name in ("last", "brightness", "keyframes"):
        with pytest.raises(UserError, match=f"--save-stages {name}: no such stage; there are draw, invert"):
            saved_frames(pipeline, [name])


def test_an_order_brings_plain_inputs_and_says_what_may_share_batches(pipeline):
    clip = Clip("a", "a", inputs={"length": 8, "style": "bold"})
    first = order(pipeline, clip, {"extra": 1})
    assert first.given == {"inputs.style": "bold", "extra": 1}
    same = order(pipeline, replace(clip, inputs={"length": 8, "style": "thin"}))
    other = order(pipeline, replace(clip, inputs={"length": 4, "style": "bold"}))
    assert first.keys == same.keys
    for stage in ("draw", "invert"):  # the second one is given another number of frames
        assert first.keys[stage] != other.keys[stage]
    assert order_of_anybody(pipeline, Clip("a", "a")).given == {"inputs.style": "plain"}
    with pytest.raises(UserError, match="clip 'a': mine has no input 'styl'; there is 'length', 'style'"):
        order_of_anybody(pipeline, Clip("a", "a", inputs={"styl": "bold"}))
    with pytest.raises(UserError, match="clip 'a': 'length' is 'many', not an integer"):
        order_of_anybody(pipeline, Clip("a", "a", inputs={"length": "many"}))


def test_sizes_that_an_input_does_not_change_split_no_batch(tiny):
    text = (
        Path(tiny).read_text()
        + "inputs: {steps: {int: stages.keyframes.steps}, frames: {int: stages.keyframes.frames}}"
    )
    path = Path(tiny).with_name("rows.yaml")
    path.write_text(text)
    pipeline = Pipeline.load(path)
    one, other = (pipeline.batch_keys({"steps": steps}) for steps in (2, 3))
    assert one["keyframes"] != other["keyframes"]
    assert all(one[name] == other[name] for name in ("interpolation", "super_resolution", "latent_super_resolution"))
    longer = pipeline.batch_keys({"steps": 2, "frames": 4})
    assert all(longer[name] != one[name] for name in one)
    assert "text" not in one


def test_a_pipeline_without_operations_is_planned_from_its_profile_alone(pipeline, files):
    with pytest.raises(UserError, match=r"mine: the .* of its stage draw are not known .*`show1-ray profile "):
        estimate(pipeline, 100, 2, "A100-80G")
    profile = measure(pipeline, "cpu", repeats=1)
    assert list(profile.stages) == ["draw", "invert", "brightness", "last"]
    plan = estimate(pipeline, 100, 2, "cpu", profile=profile)
    assert [stage.name for stage in plan.stages] == ["draw", "invert", "brightness", "last"]
    assert plan.asked.hours > 0


def test_it_is_rendered_with_inputs_and_what_it_saves_is_there(line_of, pipeline, tmp_path):
    rows = [{"id": str(n), "prompt": "a", "seed": 10 * n, "length": 8 if n % 2 else 4} for n in range(6)]
    rows[0]["style"] = "bold"
    rows.append({"id": "bad", "prompt": "trip", "seed": 1})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    events: list = []
    summary = render(
        str(tmp_path / "rows.jsonl"), str(tmp_path / "out"), pipeline, save_stages=["draw"], observe=events.append
    )
    assert (summary.rendered, summary.failed) == (6, 1)
    for row in rows[:6]:
        [path] = (tmp_path / "out").glob(f"clips/*/{row['id']}.mp4")
        [saved] = (tmp_path / "out").glob(f"__stages__/draw/*/{row['id']}.mp4")
        video, drawn = decode_video(path.read_bytes()), decode_video(saved.read_bytes())
        assert video.shape == drawn.shape == (row["length"], 32, 48, 3)
        assert np.abs(video.astype(int) - 127).max() <= 3  # the mean of a level and its inverse
        assert np.abs(drawn.astype(int) - row["seed"]).max() <= 3
    done = [event for event in events if isinstance(event, StageDone)]
    said = {clip: values for event in done for clip, values in event.values.items() if event.stage == "invert"}
    assert (said["0"], said["3"]) == ({"invert.said": "bold 0"}, {"invert.said": "plain 30"})
    lengths = {row["id"]: row.get("length", 4) for row in rows}
    assert all(len({lengths[clip] for clip in event.clips}) == 1 for event in done if event.stage in ("draw", "invert"))
    [failed] = [event for event in events if isinstance(event, ClipFailed)]
    assert failed.stage == "last"
    line = STAGES.splitlines().index('            raise ArithmeticError("over\\nthe edge")') + 1
    place = f"{pipeline.file.parent / 'toys.py'}, line {line}, in run"
    assert failed.reason == f"stage last: {place}: ArithmeticError: over the edge"


def test_an_open_line_delivers_it_as_8_bit_frames_called_video(line_of, pipeline):
    async def rendered(line):
        clip = Clip("a", "a", seed=60, inputs={"length": 5})
        events = [event async for event in line.render(clip, outputs=["invert.video"])]
        return events[-1]

    with open_line(pipeline) as line:
        done = asyncio.run(rendered(line))
    assert isinstance(done, ClipDone)
    assert list(done.result) == ["video"]
    assert done.result["video"].dtype == np.uint8
    assert done.result["video"].shape == (5, 32, 48, 3)
    assert done.values["invert.said"] == "plain 60"
