"""Columns that a pipeline's inputs name: typed, with defaults, a part of the clip."""

from __future__ import annotations

import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from show1_ray.clip import Clip
from show1_ray.dataset.metadata import BY_STAGE, IN_SHARDS, OF_PROMPTS, SCHEMA, check_columns
from show1_ray.errors import ConfigError
from show1_ray.manifest import ManifestError, open_manifest
from show1_ray.pipeline import columns
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


def test_an_input_that_is_called_like_a_column_of_the_metadata_has_one_of_its_own(tmp_path):
    path = rows(tmp_path / "a.jsonl", {"frames": 5, "width": "wide"}, {"width": "wide"})
    inputs = InputColumns((Input("frames", "int", ("stages", "a", "frames"), 9), Input("width", "text")))
    manifest = open_manifest(path, inputs=inputs)
    assert [entry.clip.inputs["frames"] for entry in manifest] == [5, 9]
    assert [entry.extra for entry in manifest] == [
        {"input_frames": 5, "input_width": "wide"},
        {"input_frames": 9, "input_width": "wide"},
    ]
    check_columns(manifest.columns)


def test_the_columns_of_the_metadata_are_known_to_whoever_reads_pipelines():
    assert set(columns.OWN) == {*SCHEMA.names, *IN_SHARDS.names, *OF_PROMPTS.names}
    assert set(columns.BY_STAGE) == set(BY_STAGE)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_a_column_that_the_pipeline_fills_is_carried_under_another_name(tmp_path, name):
    path = tmp_path / name
    if name == "a.csv":
        path.write_text("prompt,image,image_sha256\na,a.png,mine\n")
    elif name == "a.jsonl":
        rows(path, {"image": "a.png"}, {"image": "a.png", "image_sha256": "mine"})
    else:
        pq.write_table(pa.table({"prompt": ["a"], "image": ["a.png"], "image_sha256": ["mine"]}), path)
    taken = {"image_sha256": "the SHA-256 of the input 'image'"}
    manifest = open_manifest(str(path), inputs=InputColumns((IMAGE,), taken=taken))
    assert [entry.extra for entry in manifest][-1] == {"manifest_image_sha256": "mine", "image": "a.png"}
    assert manifest.notes == [
        "carried under other names, which the metadata uses itself: 'image_sha256' as manifest_image_sha256"
    ]


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


def test_a_signed_url_is_the_same_input_when_its_signature_is_renewed_and_keeps_it_to_be_read(tmp_path):
    def clip(signature: str) -> Clip:
        url = f"https://host/a.png?X-Amz-Expires=60&X-Amz-Signature={signature}"
        (tmp_path / "m.jsonl").write_text(json.dumps({"prompt": "a", "picture": url}) + "\n")
        columns = InputColumns((Input("picture", "image"),))
        ((clip, extra),) = [(one.clip, one.extra) for one in open_manifest(str(tmp_path / "m.jsonl"), inputs=columns)]
        assert clip.inputs["picture"] == url
        assert list(extra.values()) == ["https://host/a.png?X-Amz-Expires=60&X-Amz-Signature=***"]
        return clip

    assert clip("0123").id == clip("4567").id
