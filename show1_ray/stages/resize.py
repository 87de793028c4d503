"""Frames of another size, for a stage that takes no other. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from show1_ray.clip import Clip
from show1_ray.stage import FRAMES, Axes, Context, Shape, Stage
from show1_ray.stages.settings import Size


class Resize(Stage):
    """Frames are resized, with Lanczos' filter."""

    Settings = Size

    takes: ClassVar[Mapping[str, Axes]] = {"frames": FRAMES}
    gives: ClassVar[Mapping[str, Axes]] = {"frames": FRAMES}
    relative_seconds = 0.01
    row_settings = frozenset({"height", "width"})

    @classmethod
    def shapes(cls, settings: Size, context: Context, given: Mapping[str, Shape]) -> Mapping[str, Shape]:
        """See `Stage`."""
        count = given["frames"].size("f") if given["frames"].sizes else None
        return {"frames": Shape(FRAMES, (count, settings.height, settings.width, 3), "uint8")}

    @classmethod
    def operations(cls, settings: Any, context: Context, given: Mapping[str, Shape]) -> float | None:
        """Next to none."""
        return 0.0

    def run(self, clips: Sequence[Clip], values: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """See `Stage`."""
        size = (self.settings.width, self.settings.height)
        return [{"frames": np.stack([_resized(frame, size) for frame in value["frames"]])} for value in values]


def resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """An image of another size (width, height)."""
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def _resized(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The same of an array, h w c in 8 bits."""
    return np.asarray(resized(Image.fromarray(np.ascontiguousarray(frame)), size))
