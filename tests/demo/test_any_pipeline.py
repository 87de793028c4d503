"""The demo of a pipeline that is not Show-1's: two stages of somebody's own, one of which rejects clips."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from show1_ray import Pipeline, open_line
from show1_ray.dataset import Lander
from show1_ray.dataset.storage import Storage
from show1_ray.demo.studio import Studio, Visitor
from show1_ray.job import origin
from show1_ray.line import LineSettings

STAGES = '''
import numpy as np
from show1_ray import Reject, Shape, Stage

class Draw(Stage):
    """Grey frames, as bright as the seed says."""
    gives = {"picture": "f h w c"}

    @classmethod
    def shapes(cls, settings, context, given):
        return {"picture": Shape("f h w c", (4, 16, 32, 3), "uint8")}

    def run(self, clips, values):
        return [{"picture": np.full((4, 16, 32, 3), clip.seed, "uint8")} for clip in clips]

class Invert(Stage):
    """Dark becomes bright; what is grey is rejected."""
    takes = {"picture": "f h w c"}
    gives = {"turned": "f h w c", "mean": "value"}

    def run(self, clips, values):
        return [self.turned(v["picture"], v["picture"].mean()) for v in values]

    def turned(self, picture, mean):
        return Reject(f"too grey: {mean:g}") if mean == 101 else {"turned": 255 - picture, "mean": mean}
'''
PIPELINE = 'fps: 8\nstages: {draw: {uses: "own:Draw"}, invert: {uses: "own:Invert"}}'


async def two_clips(studio: Studio) -> Visitor:
    visitor = studio.visitor(None)
    studio.start(visitor, "a wall", "", "100", 2)
    while visitor.is_busy:
        await visitor.news(visitor.version, 10)
    return visitor


def test_labels_previews_and_rejections_come_from_its_stages(local_ray: None, tmp_path: Path) -> None:
    page = pytest.importorskip("show1_ray.demo.page", reason="gradio is not installed")
    (tmp_path / "own.py").write_text(STAGES)
    (tmp_path / "own.yaml").write_text(PIPELINE)
    pipeline = Pipeline.load(tmp_path / "own.yaml", code=tmp_path / "own.py").resolved()
    lander = Lander(Storage.at(str(tmp_path)), origin(pipeline))
    with open_line(pipeline, settings=LineSettings(stations=1, gpus=False)) as line:
        studio = Studio(line, pipeline, lander, tmp_path)
        visitor = asyncio.run(two_clips(studio))
        idle = "".join(page.takes(studio, Visitor(), 0.0))
        shown = page.takes(studio, visitor, 0.0)
    done, rejected = visitor.takes
    assert [step.stage for step in done.steps] == ["draw", "invert"]
    assert (done.state, [bool(step.picture) for step in done.steps]) == ("done", [True, True])
    assert (rejected.state, rejected.note) == ("rejected", "Invert did not let it go on: too grey: 101.")
    assert list(studio.gallery) == [done]
    assert "4 frames, 32 x 16" in idle
    assert "made in 2 stages" in idle
    assert len(shown) == 4 * (2 + 2)
    assert "too grey: 101" in "".join(shown)
    assert f"code={str(tmp_path / 'own.py')!r}" in studio.python_call(done.clip)
