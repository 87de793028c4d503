"""Untrusted images and videos as arrays: recognised by their first bytes, and bounded in size."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from show1_ray.pipeline.inputs import InputError

MOST_BYTES = {"image": 64 * 2**20, "video": 512 * 2**20}
"""Of a file."""
MOST_PIXELS = {"image": 2**26, "video": 2**29}
"""Of an image, and of all frames of a video together."""
MOST_FRAMES = 10_000

IMAGES = {
    b"\x89PNG\r\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}
"""First bytes of images that are read, besides WebP. Pillow reads more formats, some by running other programs."""
IMAGE_NAMES = "PNG, JPEG, WebP, GIF, BMP or TIFF"
VIDEO_NAMES = "MP4, MOV, WebM, Matroska, AVI or GIF"
"""Video formats that are read. FFmpeg knows more, such as playlists, which would make it read other files."""


def read_image(data: bytes) -> np.ndarray:
    """An image file as RGB: `h w c`, uint8.

    Grey becomes three equal channels; what is transparent is laid over white; of 16 bits a channel the upper 8 stay;
    palettes and CMYK are converted; colour profiles are not applied. It is turned as its EXIF says. Of an animation it
    is the first image.

    Raises:
        InputError: another format, too many pixels, or a damaged file.
    """
    import imageio.v3 as iio

    if not (data.startswith(tuple(IMAGES)) or (data[:4], data[8:12]) == (b"RIFF", b"WEBP")):
        raise InputError(f"is no image that is read here ({IMAGE_NAMES})")
    try:
        with iio.imopen(io.BytesIO(data), "r", plugin="pillow") as opened:
            file: Any = opened  # its plugin takes more than imageio says of all of them
            about = file.metadata(index=0)
            _check_pixels("image", *about["shape"])
            if about["mode"].startswith("I"):  # grey of more than 8 bits: Pillow would cut it off at 255
                grey = np.clip(file.read(index=0, rotate=True), 0, 2**16 - 1)
                return np.repeat((grey >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
            if about["mode"] == "F":
                raise InputError("has floats for pixels: give 8 or 16 bits a channel")
            pixels = np.asarray(file.read(index=0, mode="RGBA", rotate=True))
    except InputError:
        raise
    except Exception as error:  # decoders raise of everything on damaged files
        raise InputError(f"is a damaged image: {type(error).__name__}: {error}") from None
    return _over_white(pixels)


def read_video(data: bytes) -> np.ndarray:
    """A video file as RGB: `f h w c`, uint8: all frames of its first video stream, in their order.

    8 bits a channel, whatever it has; transparency is dropped; how a telephone was held is not looked at.

    Raises:
        InputError: another format, too many frames or pixels, or a damaged file.
    """
    import imageio.v3 as iio

    is_video = data[4:8] == b"ftyp" or data.startswith((b"\x1aE\xdf\xa3", b"GIF8"))
    if not (is_video or (data[:4], data[8:12]) == (b"RIFF", b"AVI ")):
        raise InputError(f"is no video that is read here ({VIDEO_NAMES})")
    frames: list[np.ndarray] = []
    try:
        with iio.imopen(io.BytesIO(data), "r", plugin="pyav") as file:
            height, width = file.properties(index=0).shape[:2]
            _check_pixels("video", width, height)
            for frame in file.iter(format="rgb24"):
                frames.append(frame)
                _check_pixels("video", frame.shape[1], frame.shape[0], len(frames))
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"is a damaged video: {type(error).__name__}: {error}") from None
    if not frames:
        raise InputError("is a video without frames")
    if any(frame.shape != frames[0].shape for frame in frames):
        raise InputError("is a video whose frames change their size")
    return np.stack(frames)


def _check_pixels(kind: str, width: int, height: int, frames: int = 1) -> None:
    if frames > MOST_FRAMES:
        raise InputError(f"has more than {MOST_FRAMES:,} frames, the most")
    if width * height * frames > MOST_PIXELS[kind]:
        what = f"{frames} frames of {width}x{height}" if frames > 1 else f"{width}x{height}"
        raise InputError(f"has {what}, which is more than {MOST_PIXELS[kind]:,} pixels, the most")


def _over_white(pixels: np.ndarray) -> np.ndarray:
    """RGBA over white: `h w c`, uint8."""
    alpha = pixels[:, :, 3:].astype(np.uint16)
    if alpha.min() == 255:
        return np.ascontiguousarray(pixels[:, :, :3])
    return ((pixels[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
