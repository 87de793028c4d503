"""What a manifest's columns are called, which are left out, and which give way to the metadata's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from show1_ray.clip import Clip
from show1_ray.dataset.metadata import check_columns
from show1_ray.errors import UserError
from show1_ray.manifest import Columns, ManifestError, open_manifest
from show1_ray.pipeline.columns import BY_STAGE, OWN, READERS, is_own
from show1_ray.pipeline.inputs import Input, InputColumns

TABLE = {
    "caption": ["a", "b"],
    "key": ["x", "y"],
    "noise": [1, 2],
    "not this": ["blur", None],
    "look": ["bold", "plain"],
    "url": ["u", "v"],
    "prompt": ["old", "older"],
}
SAID = Columns.said(
    ["prompt=caption", "id=key", "seed=noise", "negative_prompt=not this", "style=look"], drop="url,nothing"
)
STYLE = InputColumns((Input("style", "text"),))


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def written(name: str, columns: dict[str, list[Any]]) -> str:
    table = pd.DataFrame(columns)
    if name.endswith(".parquet"):
        table.to_parquet(name)
    elif name.endswith(".csv"):
        table.to_csv(name, index=False)
    else:
        table.to_json(name, orient="records", lines=not name.endswith(".json"))
    return name


def refusal(url: str, **options: Any) -> str:
    with pytest.raises(ManifestError) as error:
        open_manifest(url, **options)
    return str(error.value)


@pytest.mark.parametrize("name", ["m.parquet", "m.csv", "m.jsonl", "m.json"])
def test_columns_are_read_under_the_names_that_somebody_says(name):
    url = written(name, TABLE | {"nothing": [0, 0]})
    manifest = open_manifest(url, columns=SAID, inputs=STYLE)
    first, second = manifest
    assert first.clip == Clip("x", "a", "blur", 1, inputs={"style": "bold"})
    assert second.clip == Clip("y", "b", None, 2, inputs={"style": "plain"})
    assert first.extra == {"manifest_prompt": "old", "style": "bold"}
    assert [field.name for field in manifest.columns] == ["manifest_prompt", "style"]
    assert manifest.notes == ["carried under other names, which the metadata uses itself: 'prompt' as manifest_prompt"]


@pytest.mark.parametrize("name", ["m.parquet", "m.csv", "m.jsonl"])
def test_a_column_that_the_line_reads_can_be_left_out(name):
    url = written(name, {"prompt": ["a"], "id": ["not a file name!"], "seed": [-1]})
    (entry,) = open_manifest(url, columns=Columns.said((), "id,seed"))
    assert (entry.clip.prompt, len(entry.clip.id), entry.extra) == ("a", 32, {})


def test_what_is_said_of_columns_that_are_not_there_is_refused():
    url = written("m.csv", TABLE)
    has = "(its columns: caption, key, noise, not this, look, url, prompt)"
    assert refusal(url, columns=Columns.said(["prompt=text"])) == f"manifest m.csv: no column 'text' {has}"
    assert refusal(url, columns=Columns.said(["seed=text"])) == f"manifest m.csv: no column 'text' {has}"
    assert refusal(url, columns=Columns.said((), "text")) == "manifest m.csv: --drop text: there is no such column"
    lines = written("m.jsonl", TABLE)
    assert refusal(lines, columns=Columns.said((), "text")) == "manifest m.jsonl: --drop text: there is no such column"
    assert refusal(lines, columns=Columns.said(["prompt=text"])).startswith("manifest m.jsonl: row 1: 'text' is empty")


@pytest.mark.parametrize(
    ("columns", "drop", "line"),
    [
        (["prompt"], "", "--column 'prompt': give prompt=NAME, where NAME is a column of the manifest"),
        (["=caption"], "", "--column '=caption': give prompt=NAME, where NAME is a column of the manifest"),
        (["prompt=a", "prompt=b"], "", "--column 'prompt=b': 'prompt' is 'a' already"),
        (["prompt=a"], "b,a", "--drop a: --column gives it a name; leave one of them out"),
        (["style=a"], "", "--column style=…: no column that is read; there are prompt, negative_prompt, id, seed"),
    ],
)
def test_what_cannot_be_said_of_columns_is_refused(columns, drop, line):
    written("m.csv", {"a": ["x"], "b": ["y"]})
    with pytest.raises(UserError) as error:
        open_manifest("m.csv", columns=Columns.said(columns, drop))
    assert str(error.value) == line


def test_a_problem_of_a_row_names_the_columns_of_the_file():
    url = written("m.jsonl", {"caption": ["a", ""], "key": ["x/y", "z"], "noise": [1, 2]})
    columns = Columns.said(["prompt=caption", "id=key", "seed=noise"])
    first, second = refusal(url, columns=columns).splitlines()
    assert first.startswith("manifest m.jsonl: row 1: 'key' is 'x/y', not a safe file name")
    assert second == "manifest m.jsonl: row 2: 'caption' is empty"


CLASHING = [*OWN, *READERS, *(f"{one}text" for one in BY_STAGE), "thumb_file_name", "thumb_file_names"]


@pytest.mark.parametrize("name", ["m.parquet", "m.csv", "m.jsonl"])
def test_every_column_that_clashes_is_carried_under_another_name_which_is_said(name):
    read = ("prompt", "negative_prompt", "id", "seed")
    clashing = [one for one in CLASHING if one not in read]
    url = written(name, {"prompt": ["a"], **{one: [f"my {one}"] for one in clashing}})
    manifest = open_manifest(url)
    check_columns(manifest.columns)
    (entry,) = manifest
    assert list(entry.extra.values()) == [f"my {one}" for one in clashing]
    assert not any(map(is_own, entry.extra))
    assert {"manifest_width", "manifest_video", "manifest_filename", "manifest_seconds_text"} < set(entry.extra)
    (note,) = manifest.notes
    assert "'width' as manifest_width" in note


def test_the_metadata_of_a_dataset_is_a_manifest_and_datasets_reads_what_comes_of_it():
    pq.write_table(pa.table({"prompt": ["a"], "file_name": ["clips/a.mp4"], "width": [576]}), "m.parquet")
    manifest = open_manifest("m.parquet")
    (entry,) = manifest
    pq.write_table(pa.table({"prompt": ["a"], **{name: [value] for name, value in entry.extra.items()}}), "x.parquet")
    (row,) = load_dataset("parquet", data_files="x.parquet", split="train")
    assert row == {"prompt": "a", "manifest_filename": "clips/a.mp4", "manifest_width": 576}


def test_names_that_become_one_are_refused():
    url = written("m.csv", {"prompt": ["a"], "width": [1], "manifest_width": [2]})
    assert refusal(url) == (
        "manifest m.csv: columns 'width' and 'manifest_width' would both be 'manifest_width'; "
        "--drop manifest_width leaves one out"
    )
    (entry,) = open_manifest(url, columns=Columns.said((), "manifest_width"))
    assert entry.extra == {"manifest_width": 1}


def test_the_index_of_a_data_frame_is_left_out_which_is_said():
    table = pd.DataFrame({"prompt": ["a", "b"], "n": [1, 2]})
    table.to_csv("m.csv")
    pd.read_csv("m.csv").to_csv("again.csv")
    table.set_index(pd.Index(["p", "q"])).to_parquet("m.parquet")
    json_lines = pd.read_csv("m.csv").to_json(orient="records", lines=True)
    Path("m.jsonl").write_text(json_lines)
    assert "Unnamed: 0" in json.loads(json_lines.splitlines()[0])
    said = {}
    for name in ("m.csv", "again.csv", "m.parquet", "m.jsonl"):
        manifest = open_manifest(name)
        assert list(manifest)[-1].extra == {"n": 2}
        assert [field.name for field in manifest.columns] == ["n"]
        (said[name],) = manifest.notes
    assert said == {
        "m.csv": "left out: a column without a name: the index of a data frame",
        "again.csv": "left out: 'Unnamed: 0', a column without a name: the index of a data frame",
        "m.parquet": "left out: '__index_level_0__': the index of a data frame",
        "m.jsonl": "left out: 'Unnamed: 0': the index of a data frame",
    }
