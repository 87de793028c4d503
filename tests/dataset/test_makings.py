"""Inputs belong to a clip's identity: what was rendered from others under the same id is told."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from show1_ray.clip import Clip
from show1_ray.dataset import Rendering, look
from show1_ray.errors import UserError
from show1_ray.manifest import Entry
from show1_ray.manifest.manifest import columns_of
from show1_ray.pipeline.sources import Sources
from tests.dataset.toys import ORIGIN, SETTINGS, Job, frames

INPUTS = {"picture": "image", "frames": {"int": "stages.a.frames", "default": 9}, "style": "text"}
COLUMNS = [
    pa.field("picture", pa.string()),
    pa.field("input_frames", pa.int64()),
    pa.field("style", pa.string()),
    pa.field("picture_sha256", pa.string()),
]


class Rendered:
    """A dataset of one clip, and what a job with another row finds in it."""

    def __init__(self, folder: Path, format: str) -> None:
        self.root, self.job = folder, Job(str(folder / "out"))
        self.options: dict[str, Any] = {
            "origin": replace(ORIGIN, pipeline={**ORIGIN.pipeline, "inputs": INPUTS}),
            "columns": COLUMNS,
            "format": format,
            "sha256": Sources(str(folder)).local_sha256,
        }
        (folder / "a.png").write_bytes(b"one")

    def entry(self, **inputs: Any) -> Entry:
        given = {"picture": "a.png", "frames": 9, "style": "bold", **inputs}
        given = {name: value for name, value in given.items() if value is not None}
        return Entry(Clip("clip-0", "a", None, 7, inputs=given), columns_of(given))

    def land(self, entry: Entry, landed: bool = True, finished: bool = True) -> None:
        """As a job does; `landed`: and records it; `finished`: and ends."""
        data = entry.clip.inputs["picture"]
        data = data if isinstance(data, bytes) else (self.root / data).read_bytes() if "://" not in data else b"far"
        extra = {**entry.extra, "picture_sha256": hashlib.sha256(data).hexdigest()}
        with self.job.open(settings=SETTINGS, **self.options) as dataset:
            row = dataset.lander(entry.clip, frames(entry.clip), Rendering(), extra)
            if landed:
                dataset.record(row)
            if finished:
                dataset.finish()

    def finds(self, entry: Entry) -> str:
        """ "done", "left", or what it says."""
        try:
            told = look(self.job.url, [entry], **self.options)
            with self.job.open(settings=SETTINGS, **self.options) as dataset:
                survey = dataset.survey([entry])
                missing = list(dataset.missing([entry]))
        except UserError as error:
            return str(error)
        assert (told.done, told.left) == (survey.done, survey.left)
        assert len(missing) == survey.left
        return "done" if survey.done else "left"


@pytest.fixture(params=["mp4", "webdataset"])
def rendered(request: pytest.FixtureRequest, tmp_path: Path) -> Rendered:
    return Rendered(tmp_path, request.param)


@pytest.mark.parametrize("stands", ["finished", "recorded", "landed"])
def test_a_clip_of_other_inputs_is_told_and_the_same_is_done(rendered: Rendered, stands: str) -> None:
    rendered.land(rendered.entry(), landed=stands != "landed", finished=stands == "finished")
    assert rendered.finds(rendered.entry()) == "done"
    for inputs, change in (
        ({"style": "plain"}, "style 'bold' → 'plain'"),
        ({"frames": 5}, "frames 9 → 5"),
        ({"frames": None}, "frames 9 → None"),
        ({"picture": "http://x/a.png"}, "picture 'a.png' → 'http://x/a.png'"),
        ({"picture": b"other"}, f"picture 'a.png' → 'sha256:{hashlib.sha256(b'other').hexdigest()}'"),
    ):
        told = rendered.finds(rendered.entry(**inputs))
        assert f"clip 'clip-0' is there from another row: {change}; give the row another id" in told


@pytest.mark.parametrize("landed", [True, False])
def test_files_at_hand_count_by_their_content_wherever_they_lie(rendered: Rendered, landed: bool) -> None:
    rendered.land(rendered.entry(), landed, finished=landed)
    (rendered.root / "moved.png").write_bytes(b"one")
    assert rendered.finds(rendered.entry(picture="moved.png")) == "done"
    assert rendered.finds(rendered.entry(picture=b"one")) == "done"
    (rendered.root / "a.png").write_bytes(b"two")
    one, two = (hashlib.sha256(data).hexdigest() for data in (b"one", b"two"))
    told = rendered.finds(rendered.entry())
    assert f"picture 'a.png (sha256 {one})' → 'a.png (sha256 {two})'" in told
    (rendered.root / "a.png").unlink()
    assert rendered.finds(rendered.entry()) == "done", "what was rendered does not need its picture any more"


def test_of_urls_what_the_row_calls_them_counts(rendered: Rendered) -> None:
    rendered.land(rendered.entry(picture="https://x/a.png"))
    assert rendered.finds(rendered.entry(picture="https://x/a.png")) == "done"
    assert "picture 'https://x/a.png' → 'https://x/b.png'" in rendered.finds(rendered.entry(picture="https://x/b.png"))


def test_a_clip_that_failed_or_was_rejected_is_rendered_where_its_inputs_are_others(rendered: Rendered) -> None:
    for end in ("record_failure", "record_rejection"):
        with rendered.job.open(settings=SETTINGS, **rendered.options) as dataset:
            values = {"picture_sha256": hashlib.sha256(b"one").hexdigest()}
            rest: tuple[Any, ...] = ("a", 1, "boom") if end == "record_failure" else ("a", "too dark", values)
            getattr(dataset, end)(rendered.entry().clip, *rest)
            dataset.finish()
        told = look(rendered.job.url, [rendered.entry()], **rendered.options)
        assert (told.failed + told.rejected, told.left) == (1, 0)
        told = look(rendered.job.url, [rendered.entry(style="plain")], **rendered.options)
        assert (told.failed + told.rejected, told.left) == (0, 1)
    (rendered.root / "a.png").write_bytes(b"two")
    assert look(rendered.job.url, [rendered.entry()], **rendered.options).rejected == 0


def test_failures_of_before_there_were_inputs_still_count(job: Job, tmp_path: Path) -> None:
    with job.open() as dataset:
        dataset.record_failure(Clip("clip-0", "prompt 0"), "text", 1, "boom")
        dataset.finish()
    [part] = (Path(job.url) / "failures").glob("*.parquet")
    pq.write_table(pq.read_table(part).drop_columns(["inputs"]), part)
    told = look(job.url, [Entry(Clip("clip-0", "prompt 0"), {})], origin=ORIGIN)
    assert (told.failed, told.left) == (1, 0)
