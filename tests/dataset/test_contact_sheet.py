"""Contact sheets."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from show1_ray.dataset.contact_sheet import CAPTION, GAP, contact_sheet, playing_sheet, write_sheet
from show1_ray.dataset.layout import clip_path
from show1_ray.errors import UserError


def test_a_sheet_shows_each_clips_frames_from_first_to_last():
    clips = [np.full((29, 40, 64, 3), shade, np.uint8) for shade in (10, 20)]
    for clip in clips:
        clip[:, 0, 0, 0] = np.arange(29)
    sheet = np.asarray(contact_sheet(clips, ["one", "two"], frames=5))
    assert sheet.shape == (2 * (CAPTION + 40) + GAP, 5 * 64 + 4 * GAP, 3)
    for row, shade in enumerate((10, 20)):
        top = row * (CAPTION + 40 + GAP) + CAPTION
        assert sheet[top, :: 64 + GAP, 0].tolist() == [0, 7, 14, 21, 28]
        assert (sheet[top + 1 : top + 40, :64] == shade).all()


def test_a_sheet_of_nothing_is_refused():
    for sheet in (contact_sheet, lambda clips, captions: playing_sheet(clips, captions, 8)):
        with pytest.raises(ValueError, match="no clips"):
            sheet([], [])


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_clips_play_side_by_side_at_their_pace(suffix):
    clips = [np.full((length, 16, 24, 3), 40, np.uint8) for length in (5, 3, 5, 5, 5)]
    clips[1][2] = 200
    clips[0] += 30 * np.arange(5, dtype=np.uint8)[:, None, None, None]  # no two frames alike, which a GIF joins
    picture = Image.open(io.BytesIO(playing_sheet(clips, ["one two three four five six"] * 5, 8, suffix)))
    picture.load()
    assert (picture.n_frames, picture.info["duration"]) == (5, 125 if suffix == ".webp" else 120)
    shades = []
    for frame in range(5):
        picture.seek(frame)
        shades.append(int(np.asarray(picture.convert("RGB"))[2 * CAPTION + 8, 24 + GAP + 12, 0]))
    assert np.allclose(shades, [40, 40, 200, 200, 200], atol=3)


def test_a_dataset_gets_a_sheet_of_its_clips(job, tmp_path):
    job.run(5)
    assert write_sheet(job.url, tmp_path / "sheet.png", count=3) == 3
    assert write_sheet(job.url, tmp_path / "sheet.gif") == 5
    with pytest.raises(UserError, match=r"^dataset .*/nothing: there is none$"):
        write_sheet(str(tmp_path / "nothing"), tmp_path / "sheet.png")
    with pytest.raises(UserError, match=r"sheet\.what"):
        write_sheet(job.url, tmp_path / "sheet.what")


def test_shards_have_a_sheet_too(job, tmp_path):
    job.run(6, format="webdataset")
    assert not list(Path(job.url).glob("clips/*/*.mp4"))
    assert write_sheet(job.url, tmp_path / "sheet.png", count=5) == 5


def test_clips_that_are_not_there_or_not_whole_are_left_out_and_that_is_said(job, tmp_path):
    told: list[str] = []
    with job.open():
        pass
    with pytest.raises(UserError, match=r"^dataset .*: has no clips to show yet$"):
        write_sheet(job.url, tmp_path / "sheet.png")
    job.run(4)
    missing, cut = (Path(job.url) / clip_path(f"clip-{number}") for number in (1, 2))
    missing.unlink()
    cut.write_bytes(cut.read_bytes()[:100])
    assert write_sheet(job.url, tmp_path / "sheet.png", tell=told.append) == 2
    [line] = told
    assert line.startswith(f"dataset {job.url}: 2 of 4 clips are not there whole, such as clips/")
    assert line.endswith("`render --verify` renders them again")
