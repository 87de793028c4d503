"""What pipelines of diffusers give, as frames of 8 bits; and what they are given of earlier stages."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
import torch
from PIL import Image


class NotFiniteError(Exception):
    """What was decoded has NaN or infinite values."""


def clips_of(output: Any, count: int) -> list[np.ndarray]:
    """Frames of each clip, f h w c uint8, of what a pipeline gave for `count` prompts.

    Video comes as a list (or array) of frames for each prompt, an image as one; several images for one prompt are
    frames of one clip.

    Raises:
        TypeError: neither video nor images.
        NotFiniteError: see there.
    """
    found = next((one for name in ("frames", "images") if (one := getattr(output, name, None)) is not None), None)
    if found is None and isinstance(output, tuple | list) and output:
        found = output[0]
    if found is None:
        raise TypeError(f"{type(output).__name__} has neither frames nor images")
    if isinstance(found, np.ndarray | torch.Tensor):
        found = list(found)
    items = [_frames(one) for one in found]
    if count == 1 and len(items) > 1:
        return [np.concatenate(items)]
    if len(items) != count:
        raise TypeError(f"{len(items)} clips came out for {count} prompts")
    return items


def _frames(value: Any) -> np.ndarray:
    """Of a video, or of an image (one frame)."""
    if isinstance(value, Image.Image):
        return np.asarray(value.convert("RGB"))[None]
    if isinstance(value, list | tuple):
        return np.concatenate([_frames(one) for one in value])
    if isinstance(value, torch.Tensor):
        value = value.detach().float().cpu().movedim(-3, -1).numpy()
    array = np.asarray(value)
    if array.dtype != np.uint8:
        if not np.isfinite(array).all():
            raise NotFiniteError
        array = (array * 255).round().astype("uint8")  # as diffusers' numpy_to_pil
    array = array[None] if array.ndim == 3 else array
    if array.ndim != 4 or array.shape[-1] not in (1, 3, 4):
        raise TypeError(f"an array of shape {array.shape} is no video and no image")
    return np.repeat(array, 3, -1) if array.shape[-1] == 1 else array[..., :3]


def watch_values(pipe: Any) -> None:
    """Lets a pipeline's processors raise `NotFiniteError`: in 8 bits NaN would be black, without a word."""
    for processor in vars(pipe).values():
        if isinstance(getattr(processor, "postprocess", None), Callable):  # type: ignore[arg-type]
            processor.postprocess = _checked(processor.postprocess)


def _checked(postprocess: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(postprocess)
    def checked(image: Any, *more: Any, **named: Any) -> Any:
        if isinstance(image, torch.Tensor) and image.is_floating_point() and not torch.isfinite(image).all():
            raise NotFiniteError
        return postprocess(image, *more, **named)

    return checked


def as_argument(value: Any) -> Any:
    """A value of an earlier stage as diffusers takes it: frames as a list of images, one frame as an image."""
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype == np.uint8 and value.ndim == 3:
        return Image.fromarray(np.ascontiguousarray(value))
    if value.dtype == np.uint8 and value.ndim == 4:
        return [Image.fromarray(np.ascontiguousarray(frame)) for frame in value]
    return torch.from_numpy(np.array(value))
