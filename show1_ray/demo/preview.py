"""A stage's frames as a small animated picture."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

MAX_WIDTH = 256


def preview(frames: np.ndarray, seconds: float) -> str:
    """An animated WebP of `frames` (F H W C, uint8 RGB) that plays for `seconds`, as a data URL.

    Frames wider than `MAX_WIDTH` are made smaller; WebP keeps small ones crisp, and plays where videos must not.
    """
    height, width = frames.shape[1:3]
    size = (min(width, MAX_WIDTH), round(height * min(1.0, MAX_WIDTH / width)))
    images = [Image.fromarray(frame).resize(size) for frame in frames]
    duration = max(20, round(1000 * seconds / len(images)))
    file = io.BytesIO()
    lossless = width <= MAX_WIDTH // 4
    images[0].save(
        file, "WEBP", save_all=True, append_images=images[1:], duration=duration, loop=0, lossless=lossless, quality=80
    )
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
