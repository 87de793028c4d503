"""Columns that a pipeline's inputs name: typed, with defaults, a part of the clip."""

from __future__ import annotations

import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from show1_ray.errors import ConfigError
from show1_ray.manifest import ManifestError, open_manifest
from show1_ray.pipeline.inputs import Input, InputColumns

STYLE = Input("style", "text", default="plain")
COUNT = Input("count", "int", ("stages", "a", "count"))
IMAGE = Input("image", "image")
INPUTS = InputColumns((STYLE, COUNT, IMAGE))


def rows(path, *values):
    path.write_text("".join(json.dumps({"prompt": "a", **one}) + "\n" for one in values))
    return str(path)


def test_inputs_are_typed_and_have_defaults_in_every_format(tmp_path):
    pq.write_table(
        pa.table({"prompt": ["a", "a"], "count": [3.0, None], "image": [b"png", b"jpg"], "other": [1, 2]}),
        tmp_path / "a.parquet",
    )
    (tmp_path / "b.csv").write_text("prompt,style,count,image\na,bold,4,http://x/a.png\na,,,b.png\n")
    rows(tmp_path / "c.jsonl", {"image": {"bytes": None, "path": "c.png"}, "count": 5})
    found = [
        [entry.clip.inputs for entry in open_manifest(str(tmp_path / name), inputs=INPUTS)]
        for name in ("a.parquet", "b.csv", "c.jsonl")
    ]
    assert found == [
        [{"style": "plain", "count": 3, "image": b"png"}, {"style": "plain", "image": b"jpg"}],
        [{"style": "bold", "count": 4, "image": "http://x/a.png"}, {"style": "plain", "image": "b.png"}],
        [{"style": "plain", "count": 5, "image": "c.png"}],
    ]


def test_metadata_has_inputs_typed_and_files_by_their_content(tmp_path):
    pq.write_table(pa.table({"prompt": ["a"], "image": [b"png"], "other": [1]}), tmp_path / "a.parquet")
    manifest = open_manifest(str(tmp_path / "a.parquet"), inputs=INPUTS)
    (entry,) = manifest
    assert entry.extra == {"other": 1, "style": "plain", "image": f"sha256:{hashlib.sha256(b'png').hexdigest()}"}
    assert {field.name: str(field.type) for field in manifest.columns} == {
        "other": "int64",
        "style": "string",
        "count": "int64",
        "image": "string",
    }


def test_a_derived_id_knows_the_inputs(tmp_path):
    path = rows(tmp_path / "a.jsonl", {"image": "a.png"}, {"image": "b.png"}, {"image": "a.png", "count": 2})
    ids = [entry.clip.id for entry in open_manifest(path, inputs=INPUTS)]
    assert len(set(ids)) == 3
    plain = [entry.clip.id for entry in open_manifest(path)]
    assert not set(ids) & set(plain)
    assert open_manifest(path, inputs=INPUTS).fingerprint != open_manifest(path).fingerprint


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "row 1: 'image' is empty, and has no default in the pipeline's inputs"),
        ({"image": 5}, "row 1: 'image' is 5, neither bytes nor a URL"),
        ({"image": "a.png", "count": "many"}, "row 1: 'count' is 'many', not an integer"),
        ({"image": "a.png", "count": 2.5}, "row 1: 'count' is 2.5, not an integer"),
        ({"image": "a.png", "count": True}, "row 1: 'count' is True, not an integer"),
        ({"image": "a.png", "style": 7}, "row 1: 'style' is 7, not text"),
        ({"image": "a.png", "count": 99}, "row 1: 'count' is too many"),
    ],
)
def test_a_wrong_value_is_named_with_its_row_and_column(tmp_path, row, message):
    def check(values):
        if values.get("count", 0) > 9:
            raise ConfigError("'count' is too many")

    with pytest.raises(ManifestError, match=message):
        open_manifest(rows(tmp_path / "a.jsonl", row), inputs=InputColumns(INPUTS.inputs, check))


def test_a_column_that_must_be_there_is_missed_once(tmp_path):
    (tmp_path / "a.csv").write_text("prompt\na\nb\n")
    with pytest.raises(ManifestError, match="no column 'image', which the pipeline's inputs name") as caught:
        open_manifest(str(tmp_path / "a.csv"), inputs=INPUTS)
    assert len(str(caught.value).splitlines()) == 1
