"""Two stages that only sleep and draw, for chaos.py; on a card that chaos.py calls bad they fail as CUDA does."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from show1_ray import Stage, StageSettings

FOLDER = "SHOW1_RAY_CHAOS"
"""Environment variable: a folder in which a file `bad` holds the cards (see `card`) that do not work, a line each."""


class Draw(Stage):
    """Frames of noise that the clip's seed decides."""

    class Settings(StageSettings):
        """Seconds a clip."""

        seconds: float = 0.05

    gives = {"video": "f h w c"}  # noqa: RUF012 - as users write it

    def run(self, clips, values):
        """Sleeps, then computes."""
        fail_on_a_bad_card()
        time.sleep(self.settings.seconds * len(clips))
        return [{"video": np.random.default_rng(c.seed).integers(0, 255, (4, 32, 48, 3), np.uint8)} for c in clips]


class Invert(Stage):
    """White becomes black."""

    class Settings(StageSettings):
        """Seconds a clip."""

        seconds: float = 0.05

    takes = {"video": "f h w c"}  # noqa: RUF012
    gives = {"video": "f h w c"}  # noqa: RUF012

    def run(self, clips, values):
        """Sleeps, then computes."""
        fail_on_a_bad_card()
        time.sleep(self.settings.seconds * len(clips))
        return [{"video": 255 - v["video"]} for v in values]


def fail_on_a_bad_card() -> None:
    file = Path(os.environ.get(FOLDER, "/nowhere")) / "bad"
    if file.exists() and card() in file.read_text().split():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def card() -> str:
    """The GPU that this station owns: its node and its number there."""
    import ray

    gpus = ray.get_gpu_ids()
    return f"{ray.get_runtime_context().get_node_id()}:{gpus[0] if gpus else 'cpu'}"
