"""Pipelines of diffusers through `show1-ray render` and `open_line`, on a real Ray."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from show1_ray import open_line, render
from show1_ray.clip import Clip
from show1_ray.dataset.video import decode_video
from tests import tiny_diffusers as tiny
from tests.own_ray import own_ray

ROWS = [{"id": f"clip{i}", "prompt": f"a cat on mat {i}", "seed": i} for i in range(3)]
LONG = {"id": "long", "prompt": "x" * 600, "seed": 9}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("diffusers")


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[None]:
    with own_ray(2):
        yield


def test_whole_and_experts_apart_land_the_same_videos_and_go_on_with_one_another(place: Path) -> None:
    manifest = place / "prompts.jsonl"
    manifest.write_text("\n".join(map(json.dumps, [*ROWS, LONG])))
    whole = tiny.pipeline(place, "wan22")
    first = render(str(manifest), str(place / "whole"), whole, limit=1)
    apart = tiny.pipeline(place, "wan22", split="experts")
    again = render(str(manifest), str(place / "whole"), apart)  # of the same recipe: it may go on
    both = render(str(manifest), str(place / "apart"), apart)
    assert (first.rendered, again.rendered, both.rendered) == (1, 2, 3)
    assert "its prompt has 601 tokens, but WanPipeline encodes 512" in both.failures[0]["error"]
    frames = {
        out: {path.stem: decode_video(path.read_bytes()) for path in sorted((place / out).glob("clips/*/*.mp4"))}
        for out in ("whole", "apart")
    }
    assert len(frames["whole"]) == 3
    for name, one in frames["whole"].items():
        assert np.array_equal(one, frames["apart"][name])


def test_an_open_line_delivers_what_the_direct_call_gives(place: Path) -> None:
    pipeline = tiny.pipeline(place, "ltx", split=True)
    clips = [Clip("a", "a red ball", "bad", 3), Clip("b", "a cat", None, 4)]

    async def rendered(line: Any) -> list[Any]:
        return [[event async for event in line.render(clip)][-1] for clip in clips]

    with open_line(pipeline) as line:
        done = asyncio.run(rendered(line))
    for clip, event in zip(clips, done, strict=True):
        assert np.array_equal(event.result["video"], tiny.direct(place / "ltx", clip, tiny.CALLS["ltx"]))
