"""Where line and dataset meet: the last stage, which writes clips to files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from show1_ray.clip import Clip
from show1_ray.dataset import Lander, Rendering, StorageError
from show1_ray.line.spec import ALL_PLAIN, RENDERING, PlaceError, StageSpec
from show1_ray.pipeline import Pipeline
from show1_ray.pipeline.adapter import Later
from show1_ray.pipeline.arrays import turned
from show1_ray.pipeline.columns import of_value
from show1_ray.pipeline.lineup import saved_frames, stage_specs
from show1_ray.pipeline.sources import Sources
from show1_ray.planning.costs import LAND_SECONDS, Costs, costs_of_job
from show1_ray.planning.profile import CPU
from show1_ray.stage import FRAMES, Axes


def specs(
    pipeline: Pipeline,
    lander: Lander,
    save_stages: Sequence[str] = (),
    costs: Costs | None = None,
    sources: Sources | None = None,
) -> list[StageSpec]:
    """The pipeline's stages as the line sees them, and the landing of clips behind them; costs default to a CPU's.

    `sources` is where images and videos of the manifest may be read.
    """
    saved = saved_frames(pipeline, list(save_stages))
    clip = pipeline.video
    land = StageSpec(
        name="land",
        build=Later(Land.on, lander, (clip.line, clip.axes), saved),
        takes=tuple(dict.fromkeys((clip.line, *(line for line, _ in saved.values())))),
        values=("extra", RENDERING, ALL_PLAIN),
        gives=("row",),
        on="cpu",
        seconds=LAND_SECONDS,
    )
    return [*stage_specs(pipeline, costs or costs_of_job(pipeline, CPU), sources=sources), land]


class Land:
    """The end of the line: frames become a file of the dataset, and a row.

    Args:
        lander: of the dataset.
        clip: name on the line and axes of the frames that are the clip.
        saved: by stage, the same of frames that are saved too.
    """

    def __init__(self, lander: Lander, clip: tuple[str, Axes], saved: Mapping[str, tuple[str, Axes]]) -> None:
        self.lander, self.clip, self.saved = lander, clip, saved

    @classmethod
    def on(cls, lander: Lander, clip: tuple[str, Axes], saved: Mapping[str, tuple[str, Axes]], device: str) -> Land:
        """As a `StageSpec` builds it."""
        return cls(lander, clip, saved)

    def __call__(self, clips: Sequence[Clip], arrays: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Takes each clip's frames, `extra`, `rendering` and its plain values; gives its `row`.

        Raises:
            PlaceError: the storage fails, after retries: for this node, at least.
        """
        return [{"row": self._land(clip, given)} for clip, given in zip(clips, arrays, strict=True)]

    def _land(self, clip: Clip, given: Mapping[str, Any]) -> dict[str, Any]:
        try:
            for stage, (name, axes) in self.saved.items():
                self.lander.save_stage(clip, stage, turned(given[name], axes, FRAMES))
            name, axes = self.clip
            extra = {**given["extra"], **columns_of(given[ALL_PLAIN])}
            return self.lander(clip, turned(given[name], axes, FRAMES), Rendering(**given[RENDERING]), extra)
        except StorageError as error:
            raise PlaceError(str(error)) from error


def columns_of(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values of stages (`stage.name` on the line) as columns of the metadata: `<stage>_<name>`."""
    values = {name: value.item() if isinstance(value, np.generic) else value for name, value in plain.items()}
    return {of_value(*name.split(".", 1)) if "." in name else name: value for name, value in values.items()}
