"""Many clips at a glance: a picture with a row of frames for each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

CAPTION = 14  # pixels in height
GAP = 4


def contact_sheet(clips: Sequence[np.ndarray], captions: Sequence[str], frames: int = 6) -> Image.Image:
    """A picture with a row for each clip: its caption above, `frames` of its frames evenly from first to last.

    `clips` are F H W C, uint8 RGB, all of one height and width (see `video.decode_video`). Raises ValueError for no
    clips, and where there are more clips than captions or fewer.
    """
    if not clips:
        raise ValueError("no clips to show")
    height, width = clips[0].shape[1:3]
    row = CAPTION + height + GAP
    sheet = Image.new("RGB", (frames * (width + GAP) - GAP, len(clips) * row - GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (clip, caption) in enumerate(zip(clips, captions, strict=True)):
        draw.text((0, number * row), caption, fill="black")
        for place, at in enumerate(np.linspace(0, len(clip) - 1, frames).round().astype(int).tolist()):
            sheet.paste(Image.fromarray(clip[at]), (place * (width + GAP), number * row + CAPTION))
    return sheet
