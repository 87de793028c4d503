"""Ray's memory monitor ends processes for a node's sake: no clip is charged for that."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ray._private.utils import get_system_memory, get_used_memory

from show1_ray.clip import Clip
from show1_ray.line.spec import Values
from tests.line.sleepers import Fails, Lands, clips, land, once, render, spec
from tests.own_ray import own_ray

ROOM = 3_000_000_000
"""Bytes that the machine's processes may take besides what they have before the monitor steps in."""
PIECE = 100_000_000


@pytest.fixture(scope="module")
def watched_ray() -> Iterator[None]:
    threshold = (get_used_memory() + ROOM) / get_system_memory()
    with own_ray(2, num_gpus=2, memory_usage_threshold=threshold, memory_monitor_refresh_ms=50):
        yield


def devour(clip: Clip, size: int) -> None:
    """Takes more and more, until it is ended."""
    pieces = []
    for _ in range(3 * ROOM // PIECE):
        pieces.append(np.ones(PIECE // 8))
        time.sleep(0.05)
    time.sleep(30)
    raise AssertionError(f"nothing ended the process that has {len(pieces) * PIECE} bytes")


class Devours:
    """Lands clips, and devours memory the first time that it meets one of them."""

    def __init__(self, guilty: int, folder: Path) -> None:
        self.guilty, self.folder = guilty, folder

    def __call__(self, clips: list[Clip], tensors: list[Values]) -> list[Values]:
        for clip in clips:
            if clip.seed == self.guilty and once(self.folder, clip):
                devour(clip, 1)
        return Lands()(clips, tensors)


@pytest.mark.usefixtures("watched_ray")
def test_a_process_that_is_ended_for_want_of_the_nodes_memory_costs_no_clip_an_attempt(tmp_path: Path) -> None:
    def act(clip: Clip, size: int) -> None:
        if once(tmp_path, clip):
            devour(clip, size)

    last = replace(land(), build=lambda device: Devours(6, tmp_path))
    batch = clips(8)
    outcome = render([spec(0), spec(1, lambda device: Fails(1, {5}, act)), spec(2), last], batch, max_attempts=1)
    outcome.assert_done(batch)
    assert {done.attempts for done in outcome.done.values()} == {1}
    assert {path.name for path in tmp_path.iterdir()} == {"clip-005", "clip-006"}
    reasons = [lost.reason for lost in outcome.lost]
    assert any(reason.startswith("host: ") for reason in reasons), reasons
