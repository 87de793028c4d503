"""A dataset, begun and continued: nothing is lost and nothing is rendered twice."""

from __future__ import annotations

import datetime
import decimal
import json
import random
import shutil
import signal
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from show1_ray.cli import app
from show1_ray.clip import Clip
from show1_ray.dataset import LeaseError, LeaseTimes, Rendering, StorageError, Weights, look, read_status
from show1_ray.dataset.layout import clip_path, shard_key
from show1_ray.dataset.metadata import content_digest, id_digest
from show1_ray.dataset.storage import Storage
from show1_ray.dataset.undo import undone_if_refused
from show1_ray.dataset.video import decode_video, encode_video
from show1_ray.errors import UserError
from show1_ray.manifest import Entry
from tests.dataset.toys import ORIGIN, QUICK, SETTINGS, Job, entries, frames, land

WORKER = Path(__file__).with_name("toys.py")
IDS = [entry.clip.id for entry in entries(10)]


def metadata(job: Job) -> list[dict[str, Any]]:
    return pq.read_table(Path(job.url) / "metadata.parquet").to_pylist()


def parts(job: Job, folder: str = "metadata") -> list[Path]:
    return sorted((Path(job.url) / folder).glob("*.parquet"))


def video(job: Job, clip_id: str) -> Path:
    return Path(job.url) / clip_path(clip_id)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def assert_complete(job: Job, count: int) -> None:
    """Each clip once, in one file that holds its frames, and nothing else."""
    rows = metadata(job)
    assert sorted(row["id"] for row in rows) == sorted(entry.clip.id for entry in entries(count))
    files = {str(path.relative_to(job.url)): path.read_bytes() for path in Path(job.url).rglob("*.mp4")}
    for tar in Path(job.url).glob("shards/*.tar"):
        with tarfile.open(tar) as members:
            for member in members:
                if member.name.endswith(".mp4"):
                    assert member.name not in files
                    content = members.extractfile(member)
                    assert content is not None
                    files[member.name] = content.read()
    assert set(files) == {row["file_name"] for row in rows}
    clips = {entry.clip.id: entry.clip for entry in entries(count)}
    for row in rows:
        data = files[row["file_name"]]
        assert len(data) == row["bytes"]
        expected = decode_video(encode_video(frames(clips[row["id"]]), 8))
        np.testing.assert_array_equal(decode_video(data), expected)
    assert not list(Path(job.url).rglob(".*"))
    assert not parts(job)


def unfinished(job: Job, count: int, **options: Any) -> None:
    """Land and record clips, and leave as an interrupted job does: parts, no metadata file."""
    with job.open(**options) as dataset:
        for entry in dataset.missing(entries(count)):
            land(dataset, entry)


@pytest.mark.parametrize("name", ["lost+found", ".snapshot", ".Trash-0", "@eaDir"])
@pytest.mark.parametrize("format", ["mp4", "webdataset"])
def test_what_a_volume_keeps_at_its_root_is_nothing_else(job, format, name):
    out = Path(job.url)
    for folder in (out, out / ("clips" if format == "mp4" else "shards")):
        kept = folder / name / "2026" / "x.mp4"
        kept.parent.mkdir(parents=True)
        kept.write_text("not ours")
    (out / ".DS_Store").touch()
    assert job.run(3, format=format) == IDS[:3]
    assert job.run(4, format=format) == IDS[3:4]
    status = read_status(job.url, verify=True)
    assert (status.done, status.is_sound) == (4, True)
    assert kept.read_text() == "not ours"


def test_a_job_that_is_refused_leaves_a_volumes_root_as_it_was(tmp_path):
    (tmp_path / "lost+found").mkdir()
    with pytest.raises(UserError), undone_if_refused(str(tmp_path)), Job(str(tmp_path)).open():
        raise UserError("no")
    assert [one.name for one in tmp_path.iterdir()] == ["lost+found"]


def test_a_process_that_does_not_see_the_writers_storage_lands_nothing(job, tmp_path, monkeypatch):
    monkeypatch.setattr("show1_ray.dataset.lease.LOOK_SECONDS", 0.1)
    (entry,) = entries(1)
    with job.open() as dataset:
        elsewhere = replace(dataset.lander, storage=Storage(str(tmp_path / "of this node")))
        with pytest.raises(StorageError, match="does not find there what the job wrote"):
            elsewhere(entry.clip, frames(entry.clip), Rendering(), entry.extra)
        assert not (tmp_path / "of this node").exists()
        dataset.lander(entry.clip, frames(entry.clip), Rendering(), entry.extra)


@pytest.mark.parametrize("format", ["mp4", "webdataset"])
def test_what_is_missing_is_rendered_and_nothing_else(job, format):
    assert job.run(4, format=format) == IDS[:4]
    assert job.run(4, format=format) == []
    assert job.run(10, format=format) == IDS[4:]
    assert_complete(job, 10)


def test_a_dataset_can_lie_in_an_object_store(memory_job):
    assert memory_job.run(5) == IDS[:5]
    assert memory_job.run(7) == IDS[5:7]
    assert read_status(memory_job.url).done == 7


def test_a_row_says_what_its_clip_is_and_how_it_was_made(job):
    weights = [Weights("owner/weights", "abc", "CC BY-NC 4.0")]
    job.run(1, origin=replace(ORIGIN, weights=weights))
    row = metadata(job)[0]
    data = video(job, "clip-0").read_bytes()
    expected = {
        "file_name": clip_path("clip-0"),
        "id": "clip-0",
        "prompt": "prompt 0",
        "negative_prompt": None,
        "seed": 0,
        "pipeline": "toy",
        "recipe": ORIGIN.recipe_hash,
        "revisions": '{"owner/weights": "abc"}',
        "frames": 4,
        "fps": 8.0,
        "width": 48,
        "height": 32,
        "bytes": len(data),
        "attempts": 1,
        "execution": '{"batch_size": 2}',
        "seconds_keyframes": 1.5,
        "batch_size_keyframes": 2,
        "split": "train",
    }
    assert {name: row[name] for name in expected} == expected
    assert len(row["sha256"]) == 64
    assert "python" in json.loads(row["versions"])
    assert row["landed"].tzinfo
    assert yaml.safe_load((Path(job.url) / "pipeline.yaml").read_text()) == ORIGIN.pipeline
    card = (Path(job.url) / "README.md").read_text()
    assert "| owner/weights | abc | CC BY-NC 4.0 |" in card


VALUES = {
    "int": 2**62,
    "float": 0.1,
    "flag": True,
    "day": datetime.date(2024, 2, 29),
    "when": datetime.datetime(2024, 2, 29, 12, 30, 0, 5, datetime.UTC),
    "hour": datetime.time(12, 30),
    "price": decimal.Decimal("1.50"),
    "raw": b"\x00\xff",
    "tags": ["a", None],
    "box": {"x": 1, "y": [0.5]},
    "none": None,
}


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "adopted"])
def test_the_manifests_other_columns_keep_their_values_and_types(job, recorded):
    columns = list(pa.Table.from_pylist([VALUES]).schema)
    entry = Entry(Clip("a", "p"), VALUES)
    with job.open(columns=columns) as dataset:
        row = dataset.lander(entry.clip, frames(entry.clip), Rendering(), entry.extra)
        if recorded:
            dataset.record(row)
    job.run([entry], columns=columns)
    table = pq.read_table(Path(job.url) / "metadata.parquet").select(list(VALUES))
    assert list(table.schema) == columns
    assert table.to_pylist() == [VALUES]


def test_clips_that_landed_without_a_row_are_adopted(job):
    with job.open() as dataset:
        for entry in dataset.missing(entries(3)):
            dataset.lander(entry.clip, frames(entry.clip), Rendering({"keyframes": 3.0}), entry.extra)
        dataset.abandon()
    assert job.run(5) == IDS[3:5]
    assert_complete(job, 5)
    assert {row["id"]: row["seconds_keyframes"] for row in metadata(job)}["clip-0"] == 3.0


@pytest.mark.parametrize("format", ["mp4", "webdataset"])
def test_a_killed_jobs_task_may_still_land_its_clip_while_the_next_job_runs(job, format):
    with job.open(format=format) as dataset:
        late = dataset.lander
        for entry in dataset.missing(entries(3)):
            land(dataset, entry)
        for number in (1, 3):  # one that the job has rendered too, one that it has not
            clip = entries(4)[number].clip
            late(clip, frames(clip), Rendering({"text": 0.5}, attempts=7), {"split": "train"})
        dataset.finish()
    assert_complete(job, 4)


def test_what_a_killed_write_leaves_is_removed(job):
    unfinished(job, 2)
    for place in [video(job, "clip-0"), parts(job)[0], Path(job.url) / "x"]:
        (place.parent / ".0123.tmp").write_text("half")
    assert job.run(2) == []
    assert_complete(job, 2)


def test_a_truncated_part_costs_nothing_but_its_reading(job):
    unfinished(job, 5)
    truncate(parts(job)[0])
    assert job.run(5) == []
    assert_complete(job, 5)


def test_truncated_metadata_of_a_finished_dataset_is_made_again(job):
    job.run(5)
    truncate(Path(job.url) / "metadata.parquet")
    assert job.run(5) == []
    assert_complete(job, 5)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("damage", [truncate, Path.unlink], ids=["truncated", "removed"])
def test_a_truncated_or_removed_video_is_rendered_again(job, damage, finished):
    if finished:
        job.run(5)
    else:
        unfinished(job, 5)
    damage(video(job, "clip-3"))
    assert job.run(5) == ["clip-3"]
    assert_complete(job, 5)


def test_a_truncated_video_without_a_row_is_rendered_again(job):
    unfinished(job, 2)
    parts(job)[0].unlink()
    truncate(video(job, "clip-1"))
    assert job.run(2) == ["clip-1"]
    assert_complete(job, 2)


def test_the_row_of_a_lost_video_does_not_survive_when_it_is_not_rendered_again(job):
    job.run(3)
    video(job, "clip-1").unlink()
    with job.open() as dataset:
        dataset.record_failure(entries(3)[1].clip, "keyframes", 3, "boom")
        dataset.finish()
    assert sorted(row["id"] for row in metadata(job)) == ["clip-0", "clip-2"]
    assert [failure.id for failure in read_status(job.url).failures] == ["clip-1"]


def test_a_kill_between_the_metadata_file_and_the_parts_removal_makes_no_duplicates(job):
    unfinished(job, 5)
    kept = {path: path.read_bytes() for path in parts(job)}
    job.run(5)
    for path, data in kept.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    assert job.run(6) == ["clip-5"]
    assert_complete(job, 6)


def test_somebody_elses_video_is_left_alone(job):
    job.run(1)
    foreign = Path(job.url) / "clips" / "00" / "holiday.mp4"
    foreign.parent.mkdir()
    foreign.write_bytes(encode_video(frames(Clip("x", "p")), 8, "not a row"))
    assert job.run(2) == ["clip-1"]
    assert foreign.exists()
    assert len(metadata(job)) == 2


# Shards


def test_a_shard_that_landed_without_its_rows_is_adopted(job):
    unfinished(job, 8, format="webdataset")
    assert [path.name for path in sorted((Path(job.url) / "shards").iterdir())] == [
        "shard-000000.tar",
        "shard-000001.tar",
    ]
    parts(job)[0].unlink()
    assert job.run(8, format="webdataset") == []
    assert_complete(job, 8)


def test_single_files_of_clips_that_a_shard_holds_are_removed(job):
    with job.open(format="webdataset") as dataset:
        rows = [land(dataset, entry) for entry in entries(3)]
        singles = {row["file_name"]: (Path(job.url) / row["file_name"]).read_bytes() for row in rows}
        dataset.finish()
    for name, data in singles.items():
        (Path(job.url) / name).parent.mkdir(exist_ok=True, parents=True)
        (Path(job.url) / name).write_bytes(data)
    assert job.run(3, format="webdataset") == []
    assert_complete(job, 3)


@pytest.mark.parametrize("with_rows", [True, False])
def test_the_clips_of_a_truncated_shard_are_rendered_again(job, with_rows):
    unfinished(job, 9, format="webdataset")
    if not with_rows:
        parts(job)[0].unlink()
    truncate(Path(job.url) / "shards" / "shard-000000.tar")
    assert job.run(9, format="webdataset") == IDS[:4]
    assert_complete(job, 9)


def spoil(path: Path, inside: bytes) -> None:
    """Change a byte in the midst of a video that is in a file, as a bad disk does: its size stays."""
    data = bytearray(path.read_bytes())
    data[data.index(inside) + len(inside) // 2] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("finished", [True, False])
def test_a_video_that_was_changed_at_equal_size_is_found_and_rendered_again_when_asked(job, finished):
    if finished:
        job.run(5)
    else:
        unfinished(job, 5)
    spoil(video(job, "clip-3"), video(job, "clip-3").read_bytes())
    assert read_status(job.url).damaged == []
    status = read_status(job.url, verify=True)
    assert (status.damaged, status.done) == ([clip_path("clip-3")], 4)
    assert look(job.url, entries(5), origin=ORIGIN, verify=True).left == 1
    told = CliRunner().invoke(app, ["status", job.url, "--verify"])
    assert told.exit_code == 1
    assert f"damaged: {clip_path('clip-3')}; `render --verify` renders it again" in told.output
    assert job.run(5, verify=True) == ["clip-3"]
    assert_complete(job, 5)
    assert read_status(job.url, verify=True).damaged == []


def test_of_a_shard_with_a_changed_video_only_that_one_is_rendered_again(job):
    job.run(9, format="webdataset")
    shard = Path(job.url) / "shards" / "shard-000000.tar"
    with tarfile.open(shard) as tar:
        member = tar.extractfile("clip-2.mp4")
        assert member is not None
        spoil(shard, member.read())
    status = read_status(job.url, verify=True)
    assert (status.damaged, status.done) == (["clip-2.mp4 in shards/shard-000000.tar"], 8)
    assert job.run(9, format="webdataset", verify=True) == ["clip-2"]
    assert_complete(job, 9)
    assert read_status(job.url, verify=True).damaged == []


def test_a_shard_that_is_cut_between_two_members_is_not_taken_for_whole(job):
    unfinished(job, 4, format="webdataset")
    shard = Path(job.url) / "shards" / "shard-000000.tar"
    with tarfile.open(shard) as tar:
        end = tar.getmembers()[2].offset
    shard.write_bytes(shard.read_bytes()[:end])
    parts(job)[0].unlink()
    assert job.run(4, format="webdataset") == IDS[:4]
    assert_complete(job, 4)


def test_a_shards_key_is_the_id_where_webdataset_can_read_it():
    assert shard_key("a-b_c") == "a-b_c"
    keys = {shard_key("a.b"), shard_key("a_b"), shard_key("a.b.")}
    assert len(keys) == 3
    assert not any("." in key for key in keys)


# Refusals


def refusal(job: Job, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        job.open(**options)
    return str(error.value).replace(job.url, "out")


def test_another_recipe_is_refused_with_what_differs(job):
    job.run(1)
    recipe = {"fps": 8, "stages": {"keyframes": {"steps": 50, "guidance": 7.5}}}
    assert refusal(job, origin=replace(ORIGIN, recipe=recipe, recipe_hash="f" * 16)) == (
        "dataset out: made with another recipe: stages.keyframes.steps 75 → 50; "
        "stages.keyframes.guidance None → 7.5; render with the same, or give another --out"
    )
    assert not (Path(job.url) / ".lease.json").exists()


def test_a_dataset_in_which_nothing_has_landed_may_change_its_recipe(job):
    job.open().close()
    job.open(origin=replace(ORIGIN, recipe_hash="f" * 16)).close()
    assert read_status(job.url).recipe_hash == "f" * 16


def test_other_execution_settings_are_fine_and_recorded(job):
    job.run(1)
    pipeline = {**ORIGIN.pipeline, "execution": {"batch_size": 9}}
    assert job.run(2, origin=replace(ORIGIN, pipeline=pipeline)) == ["clip-1"]
    assert [row["execution"] for row in metadata(job)] == ['{"batch_size": 2}', '{"batch_size": 9}']


def test_another_format_is_refused(job):
    job.run(1)
    assert refusal(job, format="webdataset") == "dataset out: its format is mp4, not webdataset"


def test_a_folder_of_something_else_is_refused(job):
    Path(job.url).mkdir()
    (Path(job.url) / "thesis.tex").write_text("years of work")
    assert refusal(job) == "dataset out: holds something else (thesis.tex); give an empty one"


@pytest.mark.parametrize("format", ["mp4", "webdataset"])
def test_a_dataset_that_is_deleted_under_a_job_is_begun_again_by_the_same_command(job, format):
    job.run(2, format=format)
    settings = replace(SETTINGS, lease=LeaseTimes(renewal=3600))
    dataset = job.open(format=format, settings=settings)
    late = entries(3)[2]  # clips go on landing until the job notices
    dataset.lander(late.clip, frames(late.clip), Rendering(), late.extra)
    shutil.rmtree(job.url)
    row = dataset.lander(late.clip, frames(late.clip), Rendering(), late.extra)
    dataset._lease._renew()
    with pytest.raises(LeaseError, match="if the dataset was deleted, the same command begins it again"), dataset:
        dataset.record(row)
    assert not (Path(job.url) / "dataset.json").exists()
    (Path(job.url) / "report.html").write_text("written by the thread that draws it")
    assert job.run(3, format=format) == IDS[:2]
    assert_complete(job, 3)


@pytest.mark.parametrize("name", ["clips/holiday/a.mp4", "clips/a.mp4", "shards/a.tar", "README.md", "metadata/a.csv"])
def test_a_folder_that_only_looks_like_a_dataset_is_refused(job, name):
    path = Path(job.url) / name
    path.parent.mkdir(parents=True)
    path.write_text("years of work")
    told = name if name != "clips/holiday/a.mp4" else "clips/holiday"
    assert refusal(job) == f"dataset out: holds something else ({told}); give an empty one"
    assert [str(one) for one in Path(job.url).rglob("*") if one.is_file()] == [str(path)]


@pytest.mark.parametrize(
    "name", ["seed", "sha256", "shard", "video", "seconds_text", "batch_size_x", "first_file_name"]
)
def test_columns_named_as_the_metadatas_own_are_refused(job, name):
    assert refusal(job, columns=[pa.field(name, pa.string())]) == (
        f"manifest: column {name!r} has a name that the dataset's metadata uses itself; rename it"
    )
    assert not Path(job.url).exists()


def test_columns_that_a_video_cannot_carry_are_refused(job):
    column = pa.field("took", pa.month_day_nano_interval())
    assert refusal(job, columns=[column]) == (
        "manifest: column 'took' is month_day_nano_interval, which a video's metadata cannot carry; drop it"
    )


@pytest.mark.parametrize("before", [pa.int64(), pa.float64(), pa.bool_(), pa.string()], ids=str)
@pytest.mark.parametrize("format", ["mp4", "webdataset"])
def test_a_column_of_csv_that_comes_to_have_text_is_text(job, before, format):
    """Types of CSV are those of its values; a dataset of before that was so has them as text."""

    def entry(number: int, value: Any) -> Entry:
        return Entry(Clip(f"clip-{number}", f"prompt {number}"), {"n": value})

    values = {pa.int64(): [1], pa.float64(): [1.5], pa.bool_(): [True], pa.string(): ["A4"]}
    first, then = values[before], ["B5"] if before != pa.string() else [7]
    kind = pa.string() if before != pa.string() else pa.int64()
    for manifest, column in ([entry(0, *first)], before), ([entry(0, *first), entry(1, *then)], kind):
        with job.open(columns=[pa.field("n", column)], format=format) as dataset:
            for one in dataset.missing(manifest):
                land(dataset, one)
            dataset.finish()
    assert {row["id"]: row["n"] for row in metadata(job)} == {
        "clip-0": {1: "1", 1.5: "1.5", "A4": "A4"}[first[0]] if first[0] is not True else "true",
        "clip-1": str(then[0]),
    }


def test_a_column_that_changed_its_type_is_refused(job):
    job.run(1)
    assert refusal(job, columns=[pa.field("split", pa.list_(pa.int64()))]).startswith(
        "dataset out: a column of the manifest has changed its type: "
    )


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("format", ["mp4", "webdataset"])
def test_an_id_with_another_prompt_or_seed_is_refused(job, format, recorded):
    if recorded:
        job.run(5, format=format)
    else:
        unfinished(job, 5, format=format)
    changed = entries(5)
    changed[4] = Entry(Clip("clip-4", "another prompt", "blur", 4), {})
    with job.open(format=format) as dataset, pytest.raises(UserError) as error:
        dataset.survey(changed)
    assert str(error.value) == (
        f"dataset {job.url}: clip 'clip-4' is there from another row: prompt 'prompt 4' → 'another prompt'; "
        "negative_prompt None → 'blur'; give the row another id, or the job another --out"
    )


def test_clips_whose_digests_end_in_zeros_are_known_again(job):
    def ends_in_zero(clip: Clip) -> bool:
        return content_digest(clip.prompt, None, clip.seed)[-1] == 0 or id_digest(clip.id)[-1] == 0

    wanted = [entry for entry in entries(2000) if ends_in_zero(entry.clip)][:6]
    assert len(wanted) == 6
    job.run(wanted)
    assert job.run(wanted) == []


# Failures


def fail(job: Job, entry: Entry, error: str = "boom") -> None:
    with job.open() as dataset:
        dataset.record_failure(entry.clip, "keyframes", 3, error)


def test_failed_clips_are_skipped_until_they_are_to_be_tried_again(job):
    first, second, third = entries(3)
    fail(job, first, "boom")
    fail(job, second)
    with job.open() as dataset:
        survey = dataset.survey(entries(3))
    assert (survey.done, survey.failed, survey.left) == (0, 2, 1)
    assert job.run(3) == [third.clip.id]
    failures = {failure.id: failure for failure in read_status(job.url).failures}
    assert set(failures) == {"clip-0", "clip-1"}
    assert (failures["clip-0"].stage, failures["clip-0"].attempts, failures["clip-0"].error) == (
        "keyframes",
        3,
        "boom",
    )
    assert len(parts(job, "failures")) == 1
    assert job.run(3, retry_failed=True) == ["clip-0", "clip-1"]
    assert read_status(job.url).failures == []
    assert parts(job, "failures") == []


def test_a_failed_clip_whose_prompt_was_mended_is_tried(job):
    fail(job, entries(1)[0])
    mended = Entry(Clip("clip-0", "better prompt"), {})
    assert job.run([mended]) == ["clip-0"]
    assert read_status(job.url).failures == []


def test_the_last_failure_of_a_clip_counts(job):
    fail(job, entries(1)[0], "first")
    fail(job, entries(1)[0], "second")
    job.run(0)
    assert [failure.error for failure in read_status(job.url).failures] == ["second"]


def test_a_truncated_failures_part_lets_its_clips_be_tried_again(job):
    fail(job, entries(1)[0])
    truncate(parts(job, "failures")[0])
    assert job.run(1) == ["clip-0"]
    assert_complete(job, 1)


# Status


def test_what_is_left_is_told_for_the_last_manifest_whatever_else_is_there(job):
    job.run(4)
    with job.open(manifest={"url": "more.csv", "count": 5}) as dataset:
        more = entries(9)[3:8]
        survey = dataset.survey(more)
        assert (survey.done, survey.left, survey.others) == (1, 4, 3)
        for entry in list(dataset.missing(more))[:2]:
            land(dataset, entry)
        dataset.record_failure(more[3].clip, "text", 1, "boom")
        dataset.flush()
        dataset._wait()
        status = read_status(job.url)
        assert (status.count, status.done, status.others, status.left) == (8, 6, 3, 1)


def test_what_is_done_failed_and_left_is_all_that_there_is_whatever_manifests_came_and_clips_went(job):
    def told() -> str:
        return CliRunner().invoke(app, ["status", job.url]).output.splitlines()[0].partition(": ")[2]

    with job.open(manifest={"url": "first.csv", "count": 3}) as dataset:
        for entry in entries(3):
            land(dataset, entry)
        dataset.finish()
    with job.open(manifest={"url": "second.csv", "count": 1}) as dataset:
        [entry] = entries(4)[3:]
        dataset.survey([entry])
        land(dataset, entry)
        dataset.finish()
    assert told() == "4 of 4 clips done, 0 failed, 0 left"
    video(job, "clip-1").unlink()
    assert told() == "3 of 4 clips done, 0 failed, 1 left"


@pytest.mark.parametrize("format", ["mp4", "webdataset"])
def test_a_look_finds_what_a_job_would_and_leaves_no_trace(job, format):
    unfinished(job, 3, format=format)
    dataset = job.open(format=format)
    dataset.lander(entries(5)[4].clip, frames(entries(5)[4].clip), Rendering(), {})
    dataset.abandon()
    before = {path: path.stat().st_mtime_ns for path in Path(job.url).rglob("*")}
    survey = look(job.url, entries(6), origin=ORIGIN, format=format)
    assert (survey.done, survey.failed, survey.left) == (4, 0, 2)
    assert {path: path.stat().st_mtime_ns for path in Path(job.url).rglob("*")} == before


def test_the_status_of_a_running_job_tells_what_is_done_failed_and_left(job):
    job.run(1)
    with job.open(manifest={"url": "prompts.csv", "count": 6}, job="nightly") as dataset:
        for entry in entries(4)[1:]:
            land(dataset, entry)
        dataset.record_failure(entries(5)[4].clip, "text", 1, "boom")
        dataset.flush()
        dataset.lander(entries(6)[5].clip, frames(entries(6)[5].clip), Rendering(), {})
        dataset._wait()
        status = read_status(job.url)
        assert (status.count, status.done, status.without_row, status.left) == (6, 5, 1, 0)
        assert [failure.id for failure in status.failures] == ["clip-4"]
        assert status.holder is not None
        assert status.holder.job == "nightly"
        assert (status.pipeline, status.format, status.manifest) == ("toy", "mp4", "prompts.csv")
        assert status.bytes == sum(video(job, clip_id).stat().st_size for clip_id in IDS[:4])
    assert read_status(job.url).holder is None


def test_there_is_no_status_of_nothing(tmp_path):
    with pytest.raises(UserError, match=r"^dataset .*/nothing: there is none$"):
        read_status(str(tmp_path / "nothing"))


# Storage that fails, and jobs that are killed


def test_storage_that_fails_stops_the_job_with_one_line_and_the_next_run_completes_it(flaky):
    job = Job("flaky://bucket/out")
    settings = replace(SETTINGS, retries=QUICK)
    dataset = job.open(settings=settings)
    land(dataset, entries(1)[0])
    flaky.failures = 10**6
    with pytest.raises(StorageError) as error, dataset:
        land(dataset, entries(2)[1])
    flaky.failures = 0
    path = clip_path("clip-1")
    assert str(error.value) == f"cannot write {job.url}/{path} after 3 attempts: connection reset by peer"
    assert job.run(3) == ["clip-1", "clip-2"]
    assert read_status(job.url).done == 3


def test_an_error_of_the_writing_thread_stops_the_job(job):
    settings = replace(SETTINGS, retries=QUICK, part_rows=1)
    dataset = job.open(settings=settings)
    (Path(job.url) / "metadata").write_text("a file where the folder of parts should be")
    land(dataset, entries(1)[0])
    with pytest.raises(StorageError, match=r"^cannot write .*/metadata/part-.*/metadata is not a folder$"):
        dataset.close()
    assert not (Path(job.url) / ".lease.json").exists()
    (Path(job.url) / "metadata").unlink()
    job.run(5)
    assert_complete(job, 5)


@pytest.mark.parametrize("format", ["mp4", "webdataset"])
def test_a_job_that_is_killed_again_and_again_gets_done(job, format):
    """Kills a real writer at random moments until it finishes."""
    count, moments, rendered, kills = 30, random.Random(format), list[str](), 0
    command = [sys.executable, str(WORKER), job.url, format, str(count)]
    while "finished" not in rendered:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            lines = moments.randint(2, 9)
            for line in process.stdout:
                rendered.append(line.strip())
                lines -= 1
                if not lines:
                    try:
                        process.wait(moments.random() * 0.03)
                    except subprocess.TimeoutExpired:
                        process.send_signal(signal.SIGKILL)
                        kills += 1
                    break
            rendered += process.stdout.read().split()
        assert process.returncode in (0, -signal.SIGKILL)
    assert kills >= 3
    landed = [line for line in rendered if line.startswith("clip-")]
    assert len(landed) == len(set(landed))
    assert_complete(job, count)
    assert job.run(count, format=format) == []


def test_clips_that_vanish_under_a_job_are_told_at_its_end_and_rendered_again(job):
    with job.open() as dataset:
        for entry in dataset.missing(entries(3)):
            land(dataset, entry)
        video(job, "clip-1").unlink()
        with pytest.raises(UserError, match=r"1 clips that had landed are gone; rerun the same command"):
            dataset.finish()
    assert job.run(3) == ["clip-1"]
    assert_complete(job, 3)


def test_a_dataset_whose_dataset_json_vanished_has_it_again_at_the_end(job):
    with job.open() as dataset:
        land(dataset, entries(1)[0])
        (Path(job.url) / "dataset.json").unlink()
        dataset.finish()
    assert job.run(1) == []


@pytest.mark.parametrize("format", ["mp4", "webdataset"])
def test_parts_become_fewer_while_a_job_runs_and_when_it_goes_on(job, format, monkeypatch):
    monkeypatch.setattr("show1_ray.dataset.parts.FAN", 4)
    settings = replace(SETTINGS, part_rows=1, shard_clips=1)
    with job.open(format=format, settings=settings) as dataset:
        for entry in dataset.missing(entries(18)):
            land(dataset, entry)
            dataset._wait()
            if format == "mp4":
                assert len(parts(job)) <= 6
    assert len(parts(job)) == 3  # 16 that became 4 that became one, and 2
    assert read_status(job.url).done == 18
    monkeypatch.setattr("show1_ray.dataset.parts.LEAST", 2)
    with job.open(format=format, settings=settings) as dataset:
        dataset._wait()
        assert len(parts(job)) == 1
        dataset.finish()
    assert_complete(job, 18)


def test_parts_with_columns_that_do_not_go_together_are_left_as_they_are(job, monkeypatch):
    unfinished(job, 6)
    for number, part in enumerate(parts(job)):
        table = pq.read_table(part)
        column = pa.array([[number]] * len(table)) if number else pa.array(["a"] * len(table))
        pq.write_table(table.set_column(table.schema.get_field_index("split"), "split", column), part)
    before = parts(job)
    monkeypatch.setattr("show1_ray.dataset.parts.LEAST", 2)
    assert refusal(job).startswith("dataset out: a column of the manifest has changed its type")
    assert parts(job) == before


def test_a_status_that_reads_while_parts_become_fewer_reads_again(job, monkeypatch):
    """The part that it is about to read has become another one since it was listed."""
    unfinished(job, 9)
    read, merged = Storage.read, []

    def late(storage: Storage, path: str) -> bytes:
        if path.startswith("metadata/") and not merged:
            merged.append(path)
            first = parts(job)
            pq.write_table(
                pa.concat_tables(map(pq.read_table, first)), str(first[-1]).replace(".parquet", "-m00000000.parquet")
            )
            for one in first:
                one.unlink()
        return read(storage, path)

    monkeypatch.setattr(Storage, "read", late)
    assert read_status(job.url).done == 9
    assert merged
