"""Video files: H.264 in MP4 that plays in a browser, carries a text, and is the same bytes for the same input."""

from __future__ import annotations

import io
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

BT709 = 1  # as ISO/IEC 23091-2 numbers primaries, transfer and matrix
# CRF 17 is visually lossless. Without mbtree=0, x264 gives other bytes for the same frames now and then: in 1 of
# 50 encodings at 48x32, in 1 of 5 at 576x320 (PyAV 18.1, one thread); with it, in none of 5,800.
OPTIONS = {"preset": "medium", "crf": "17", "flags": "+bitexact", "mbtree": "0"}


class BrokenVideoError(Exception):
    """Bytes that are not a whole video."""


def encode_video(frames: np.ndarray, fps: float, comment: str = "") -> bytes:
    """An MP4 (H.264, yuv420p, BT.709, index first) of `frames` (F H W C, uint8 RGB), with `comment` in its metadata.

    The bytes are a function of the arguments, on machines of one kind.

    Raises ValueError for frames of another shape or type, or of odd width or height (yuv420p halves them).
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}, not uint8 F H W 3")
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"frames are {width}x{height}: H.264 in yuv420p needs an even width and height")
    # libavformat moves the index to the front by reading the file again, which takes a real file.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        flags = {"movflags": "+faststart", "fflags": "+bitexact"}
        with av.open(str(path), "w", format="mp4", options=flags) as container:
            container.metadata["comment"] = comment
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
            assert isinstance(stream, VideoStream)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            codec = stream.codec_context
            codec.thread_count = 1
            codec.options = OPTIONS
            codec.color_primaries = codec.color_trc = codec.colorspace = BT709
            codec.color_range = ColorRange.MPEG
            for image in frames:
                rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                yuv = rgb.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
                container.mux(stream.encode(yuv))
            container.mux(stream.encode())
        return path.read_bytes()


def decode_video(data: bytes, strict: bool = False) -> np.ndarray:
    """The frames of a video file: F H W C, uint8 RGB. Raises BrokenVideoError where it is not whole; with `strict` also
    for errors that a decoder would paint over, of which it notices about every second one."""
    _check_boxes(data)
    try:
        with av.open(io.BytesIO(data), "r") as container:
            if container.streams.video[0].codec_context is None:
                raise BrokenVideoError("its codec is not known")
            if strict:
                container.streams.video[0].codec_context.options = {"err_detect": "explode"}
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        return np.stack(frames)
    except (av.FFmpegError, IndexError, ValueError) as error:  # also of text that is none, and of no frames
        raise BrokenVideoError(str(error)) from error


def read_comment(data: bytes) -> str:
    """The text in a video file. Raises BrokenVideoError if the file is incomplete; frames are not decoded."""
    _check_boxes(data)
    try:
        with av.open(io.BytesIO(data)) as container:
            return container.metadata.get("comment", "")
    except (av.FFmpegError, UnicodeDecodeError) as error:
        raise BrokenVideoError(str(error)) from error


def _check_boxes(data: bytes) -> None:
    """An MP4 is a row of boxes that begin with their size; they must end where it ends (ISO/IEC 14496-12, 4.2)."""
    at = 0
    while at < len(data):
        size, header = int.from_bytes(data[at : at + 4], "big"), 8
        if size == 1:
            size, header = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        if size < header or at + size > len(data):
            raise BrokenVideoError(f"{len(data)} bytes are not a whole MP4 file")
        at += size
    if not data:
        raise BrokenVideoError("an empty file")
