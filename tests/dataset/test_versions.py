"""Datasets that earlier versions wrote are continued.

`tests/golden/datasets-1.tar.xz` was written by the first published build (its `tests/dataset/toys.py`), one in each
form: finished with four clips, then continued and interrupted: five more in parts and shards, one that failed, and one
that landed without a row.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from show1_ray.dataset import look, read_status
from tests.dataset.test_dataset import assert_complete
from tests.dataset.toys import ORIGIN, Job, entries

GOLDEN = Path(__file__).parent.parent / "golden" / "datasets-1.tar.xz"


@pytest.mark.parametrize("format", ["mp4", "webdataset"])
def test_a_dataset_of_version_1_is_continued(format, tmp_path):
    with tarfile.open(GOLDEN) as tar:
        tar.extractall(tmp_path, filter="data")
    job = Job(str(tmp_path / format))
    for verify in (False, True):
        status = read_status(job.url, verify)
        assert status.is_sound
        assert (status.done, [failure.id for failure in status.failures]) == (10, ["clip-9"])
        survey = look(job.url, entries(11), origin=ORIGIN, format=format, verify=verify)
        assert (survey.done, survey.failed, survey.left) == (10, 1, 0)
    assert job.run(11, format=format, retry_failed=True) == ["clip-9"]
    assert_complete(job, 11)
    assert read_status(job.url, verify=True).is_sound
