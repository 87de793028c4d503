"""Contact sheets."""

from __future__ import annotations

import numpy as np
import pytest

from show1_ray.dataset.contact_sheet import CAPTION, GAP, contact_sheet


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
    with pytest.raises(ValueError, match="no clips"):
        contact_sheet([], [])
