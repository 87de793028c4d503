"""An input that is an image: a clip is a slow zoom into it.

show1-ray render examples/pictures.jsonl --out out --pipeline examples/zoom.yaml --code examples/zoom.py
"""

import numpy as np
from PIL import Image
from pydantic import Field

from show1_ray import Shape, Stage, StageSettings


class Zoom(Stage):
    """Zooms into the middle of a picture."""

    class Settings(StageSettings):
        frames: int = Field(16, ge=1, le=1000, description="of a clip")
        size: int = Field(64, ge=2, le=2048, multiple_of=2, description="of a frame: width and height")
        until: float = Field(2.0, gt=1, le=20, description="how many times as large it is at the end")

    takes = {"picture": "h w c"}  # the manifest's column, read near the work
    gives = {"video": "f h w c"}

    @classmethod
    def shapes(cls, settings, context, given):
        return {"video": Shape("f h w c", (settings.frames, settings.size, settings.size, 3), "uint8")}

    def run(self, clips, values):
        return [{"video": self.zoomed(Image.fromarray(v["picture"]))} for v in values]

    def zoomed(self, picture):
        size = (self.settings.size, self.settings.size)
        side = min(picture.size)
        frames = []
        for times in np.linspace(1, self.settings.until, self.settings.frames):
            left, top = (picture.width - side / times) / 2, (picture.height - side / times) / 2
            box = (left, top, left + side / times, top + side / times)
            frames.append(np.asarray(picture.resize(size, Image.Resampling.BICUBIC, box)))
        return np.stack(frames)
