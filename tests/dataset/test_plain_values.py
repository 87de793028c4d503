"""Plain values of a stage that has them now as numbers, now as text: columns that hold both."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from show1_ray.clip import Clip
from show1_ray.manifest import Entry


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, "two", 3.5, True, None], ["1", "two", "3.5", "true", None]),
        ([1, 2.5, None], [1.0, 2.5, None]),
        ([True, 2], ["true", "2"]),
    ],
)
@pytest.mark.parametrize("apart", [False, True])
def test_a_value_of_several_types_becomes_text_and_ends_no_job(job, values, expected, apart):
    entries = [Entry(Clip(f"clip-{n}", "p", None, n), {"look_note": value}) for n, value in enumerate(values)]
    for some in [[entry] for entry in entries] if apart else [entries]:
        job.run(some)
    rows = pq.read_table(f"{job.url}/metadata.parquet").to_pylist()
    assert {row["id"]: row["look_note"] for row in rows} == {
        entry.clip.id: value for entry, value in zip(entries, expected, strict=True)
    }
