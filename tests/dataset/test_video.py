"""Video files."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest

from show1_ray.dataset.video import BrokenVideoError, decode_video, encode_video, read_comment

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (128, 0, 128), (255, 255, 255), (0, 0, 0)]


def plain_frames() -> np.ndarray:
    return np.broadcast_to(np.array(COLOURS, np.uint8)[:, None, None], (len(COLOURS), 32, 48, 3)).copy()


def test_frames_come_back_in_their_colours():
    frames = plain_frames()
    decoded = decode_video(encode_video(frames, 8))
    assert decoded.shape == frames.shape
    assert np.abs(decoded.astype(int) - frames).max() <= 3


def test_a_video_plays_in_a_browser():
    data = encode_video(plain_frames(), 7.5)
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 7.5
        assert stream.codec_context.colorspace == 1  # BT.709


@pytest.mark.parametrize("comment", ["", 'a "row"\n\0 of é and 漢字', "x" * 200_000])
def test_a_video_carries_its_comment(comment):
    carried = read_comment(encode_video(plain_frames(), 8, comment.replace("\0", "\\u0000")))
    assert carried == comment.replace("\0", "\\u0000")


def test_the_same_frames_and_comment_are_the_same_bytes():
    noise = np.random.default_rng(0).integers(0, 255, (8, 64, 96, 3), np.uint8)
    assert encode_video(noise, 8, "x") == encode_video(noise, 8, "x")


@pytest.mark.parametrize("part", [0, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_video_is_noticed(part):
    data = encode_video(np.random.default_rng(0).integers(0, 255, (4, 64, 96, 3), np.uint8), 8, "x")
    cut = data[: int(len(data) * part)]
    for read in (decode_video, read_comment):
        with pytest.raises(BrokenVideoError):
            read(cut)


@pytest.mark.parametrize(
    "frames",
    [np.zeros((2, 31, 48, 3), np.uint8), np.zeros((2, 32, 48, 3)), np.zeros((0, 32, 48, 3), np.uint8)],
)
def test_frames_of_another_kind_are_refused(frames):
    with pytest.raises(ValueError, match="frames are"):
        encode_video(frames, 8)
