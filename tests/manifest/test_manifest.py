"""Manifests: what they become, and what is refused."""

from __future__ import annotations

import gzip
import json
from itertools import product
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from show1_ray.clip import Clip
from show1_ray.manifest import ManifestError, open_manifest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def parquet(name: str, **columns: Any) -> str:
    pq.write_table(pa.table(columns), name)
    return name


def text(name: str, content: str) -> str:
    Path(name).write_text(content)
    return name


def jsonl(name: str, *rows: Any) -> str:
    return text(name, "".join(json.dumps(row) + "\n" for row in rows))


def refusal(url: str, **options: Any) -> str:
    with pytest.raises(ManifestError) as error:
        open_manifest(url, **options)
    return str(error.value)


def clips(url: str, **options: Any) -> list[Clip]:
    return [entry.clip for entry in open_manifest(url, **options)]


ROWS: list[dict[str, Any]] = [
    {"id": "a", "prompt": "a red circle", "negative_prompt": "blur", "seed": 7, "split": "train"},
    {"id": "b", "prompt": 'a "blue" square,\nmoving', "negative_prompt": None, "seed": None, "split": None},
]


def same_rows_in(format: str) -> str:
    if format == "parquet":
        return parquet("m.parquet", **{name: [row[name] for row in ROWS] for name in ROWS[0]})
    if format == "jsonl":
        return jsonl("m.jsonl", *ROWS)
    return text(
        "m.csv",
        'prompt,id,negative_prompt,seed,split\na red circle,a,blur,7,train\n"a ""blue"" square,\nmoving",b,,,\n',
    )


@pytest.mark.parametrize("format", ["parquet", "csv", "jsonl"])
def test_all_formats_give_the_same_clips_and_other_columns(format):
    manifest = open_manifest(same_rows_in(format), seed=3)
    first, second = manifest
    assert first.clip == Clip("a", "a red circle", "blur", 7)
    assert second.clip.prompt == ROWS[1]["prompt"]
    assert second.clip.negative_prompt is None
    assert [first.extra, second.extra] == [{"split": "train"}, {"split": None}]
    assert manifest.columns == [pa.field("split", pa.string())]
    assert manifest.count == 2
    assert manifest.fingerprint == open_manifest(same_rows_in("parquet"), seed=3).fingerprint


def test_the_examples_are_twins_and_cover_the_nano_world():
    table, twin = (list(open_manifest(str(EXAMPLES / f"prompts.{suffix}"))) for suffix in ("parquet", "csv"))
    assert table == twin
    assert len(table) == 12
    said = " ".join(entry.clip.prompt for entry in table)
    colours, shapes = ["red", "green", "blue", "yellow", "purple", "white"], ["circle", "square", "triangle"]
    changes = ["left", "right", "up", "down", "standing still", "growing", "shrinking"]
    for word in [*colours, *shapes, *changes, "black", "gray", "brown"]:
        assert word in said
    assert {entry.extra["split"] for entry in table} == {"train", "test"}


def test_a_folder_is_read_in_the_order_of_its_names_without_hidden_files():
    Path("m/deep").mkdir(parents=True)
    jsonl("m/b.jsonl", {"prompt": "second"})
    parquet("m/a.parquet", prompt=["first"])
    text("m/deep/c.csv", "prompt\nthird\n")
    jsonl("m/_draft.jsonl", {"prompt": "not this"})
    text("m/README.txt", "nor this")
    assert [clip.prompt for clip in clips("m")] == ["first", "second", "third"]
    assert [clip.prompt for clip in clips("m/*.parquet")] == ["first"]


def test_a_manifest_is_read_from_any_filesystem_and_packed():
    with fsspec.open("memory://bucket/m.jsonl.gz", "wb") as file:
        file.write(gzip.compress(b'{"prompt": "far away"}\n'))
    assert [clip.prompt for clip in clips("memory://bucket/m.jsonl.gz")] == ["far away"]
    assert [clip.prompt for clip in clips("memory://bucket/*.gz")] == ["far away"]


def test_a_manifest_can_be_iterated_again():
    manifest = open_manifest(parquet("m.parquet", prompt=["x", "y", "x"]))
    assert list(manifest) == list(manifest)


def test_missing_ids_are_stable_and_identical_rows_are_numbered():
    first = clips(parquet("m.parquet", prompt=["x", "y", "x"]))
    assert len({clip.id for clip in first}) == 3
    more = clips(jsonl("m.jsonl", {"prompt": "y"}, {"prompt": "x", "note": 1}, {"prompt": "z"}, {"prompt": "x"}))
    assert {clip.id for clip in first} < {clip.id for clip in more}
    assert [clip.id for clip in clips("m.parquet", seed=1)] == [clip.id for clip in first]


def test_an_id_depends_on_prompt_negative_prompt_seed_and_sample():
    rows = [
        dict(zip(("prompt", "negative_prompt", "seed"), values, strict=True))
        for values in product("xy", [None, "n"], [1, 2])
    ]
    assert len({clip.id for clip in clips(jsonl("m.jsonl", *rows), samples=2)}) == 16


def test_missing_seeds_come_from_the_id_and_the_jobs_seed():
    path = parquet("m.parquet", prompt=["x", "x"], id=["a", "b"])
    seeds = [clip.seed for clip in clips(path)]
    assert seeds == [clip.seed for clip in clips(path, seed=0)]
    assert len({*seeds, *(clip.seed for clip in clips(path, seed=1))}) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_samples_number_given_ids_and_count_on_from_given_seeds():
    path = parquet("m.parquet", prompt=["x"], id=["a"], seed=[2**63 - 1])
    assert [(clip.id, clip.seed) for clip in clips(path, samples=3)] == [
        ("a-0", 2**63 - 1),
        ("a-1", 0),
        ("a-2", 1),
    ]
    assert open_manifest(path, samples=3).count == 3


def test_the_limit_counts_clips_and_reads_no_further():
    path = text("m.jsonl", '{"prompt": "x"}\n{"prompt": "y"}\nnot json\n')
    manifest = open_manifest(path, samples=2, limit=3)
    assert [entry.clip.prompt for entry in manifest] == ["x", "x", "y"]
    assert manifest.count == 3


def test_whole_numbers_count_as_ids_and_floats_of_pandas_as_seeds():
    path = parquet("m.parquet", prompt=["x", "y"], id=[7, 8], seed=[3.0, float("nan")])
    first, second = clips(path)
    assert (first.id, first.seed, second.id) == ("7", 3, "8")


def test_columns_of_json_lines_get_a_common_type():
    path = jsonl("m.jsonl", {"prompt": "x", "score": 1}, {"prompt": "y", "score": 0.5, "tags": ["a"]})
    assert open_manifest(path).columns == [
        pa.field("score", pa.float64()),
        pa.field("tags", pa.list_(pa.string())),
    ]


def test_dictionaries_are_plain_columns():
    path = parquet(
        "m.parquet", prompt=pa.array(["x"]).dictionary_encode(), split=pa.array(["train"]).dictionary_encode()
    )
    manifest = open_manifest(path)
    assert manifest.columns == [pa.field("split", pa.string())]
    assert next(iter(manifest)).extra == {"split": "train"}


SEED = "not an integer from 0 to 2**63 - 1"
NAME = "not a safe file name (1 to 128 of A-Z a-z 0-9 . _ -, no leading dot)"


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"prompt": ""}, "'prompt' is empty"),
        ({"prompt": " \n"}, "'prompt' is empty"),
        ({"prompt": None}, "'prompt' is empty"),
        ({}, "'prompt' is empty"),
        ({"prompt": 5}, "'prompt' is 5, not text"),
        ({"prompt": "\ud800"}, "'prompt' is not valid Unicode"),
        ({"prompt": "x", "negative_prompt": 5}, "'negative_prompt' is 5, not text"),
        ({"prompt": "x", "seed": -1}, f"'seed' is -1, {SEED}"),
        ({"prompt": "x", "seed": 2**63}, f"'seed' is {2**63}, {SEED}"),
        ({"prompt": "x", "seed": 1.5}, f"'seed' is 1.5, {SEED}"),
        ({"prompt": "x", "seed": True}, f"'seed' is True, {SEED}"),
        ({"prompt": "x", "seed": "one"}, f"'seed' is 'one', {SEED}"),
        ({"prompt": "x", "id": "a/b"}, f"'id' is 'a/b', {NAME}"),
        ({"prompt": "x", "id": ".a"}, f"'id' is '.a', {NAME}"),
        ({"prompt": "x", "id": ""}, f"'id' is '', {NAME}"),
        ({"prompt": "x", "id": "a\n"}, f"'id' is 'a\\n', {NAME}"),
        ({"prompt": "x", "id": "a" * 129}, f"'id' is '{'a' * 59}…, {NAME}"),
        ({"prompt": "x", "id": 1.5}, "'id' is 1.5, not text or an integer"),
        (["x"], "not a JSON object"),
    ],
)
def test_a_bad_row_is_refused_with_its_number_and_column(row, line):
    assert refusal(jsonl("m.jsonl", {"prompt": "good"}, row)) == f"manifest m.jsonl: row 2: {line}"


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        (
            "m.csv",
            "caption,url\nx,y\n",
            "no column 'prompt' (its columns: caption, url); --column prompt=NAME says which it is",
        ),
        ("m.csv", "", "no column 'prompt' (its columns: none); --column prompt=NAME says which it is"),
        ("m.csv", "prompt,a,a\nx,1,2\n", "two columns are named 'a'"),
        ("m.csv", "prompt,a\nx\n", "row 1: has 1 fields, the header 2"),
        ("m.csv", "prompt,id\nx,a\n,b\n", "row 2: 'prompt' is empty"),
        ("m.csv", "prompt\n", "holds no rows"),
        (
            "m.jsonl",
            '{"prompt": "x"}\n\n{"prompt"\n',
            "row 3: not valid JSON: Expecting ':' delimiter: line 2 column 1 (char 10)",
        ),
        ("m.jsonl", '{"prompt": "x", "a": 1}\n{"prompt": "y", "a": "b"}\n', "column 'a' mixes types: "),
        ("m.parquet", "PAR1 but no more", "not readable as parquet: "),
        ("m.doc", "x", "not a .parquet, .csv, .tsv, .jsonl, .json or .txt file"),
    ],
)
def test_a_bad_file_is_refused_by_name(name, content, line):
    found = refusal(text(name, content))
    assert found.startswith(f"manifest {name}: {line}")
    assert "\n" not in found


def test_text_that_is_not_utf8_is_refused():
    Path("m.csv").write_bytes(b"prompt\ngood\nb\xe4d\n")
    how = 'is not UTF-8: save it as UTF-8 with commas (in Excel: "CSV UTF-8 (Comma delimited)")'
    assert refusal("m.csv") == f"manifest m.csv: row 2: {how}"


def test_what_is_not_there_is_refused():
    expected = "no such file, nor a folder or glob with .parquet, .csv, .tsv, .jsonl, .json or .txt files"
    assert refusal("m.parquet") == f"manifest m.parquet: {expected}"
    assert refusal("*.parquet") == f"manifest *.parquet: {expected}"
    assert (
        refusal("nowhere://m.parquet") == "manifest nowhere://m.parquet: cannot be opened: Protocol not known: nowhere"
    )


def test_a_damaged_column_that_gives_too_few_rows_is_refused():
    """pyarrow reads none of its rows, and says nothing."""
    path = Path(parquet("m.parquet", prompt=["a", "b", "c"]))
    count = bytes([0x2C, 0x15, 2 * 3])  # in the header of the column's data: how many values
    path.write_bytes(path.read_bytes().replace(count, count[:2] + b"\x00", 1))
    assert list(pq.ParquetFile(path).iter_batches()) == []
    assert "do not have the 3 rows" in refusal("m.parquet")


def test_a_truncated_parquet_file_is_refused():
    whole = Path(parquet("m.parquet", prompt=["x" * 100] * 1000)).read_bytes()
    Path("m.parquet").write_bytes(whole[: len(whole) // 2])
    assert refusal("m.parquet").startswith("manifest m.parquet: not readable as parquet: ")


def test_repeated_ids_are_refused_with_both_rows():
    path = parquet("m.parquet", prompt=["x"] * 4, id=["a", "b", "c", "a"])
    assert refusal(path) == "manifest m.parquet: row 4: 'id' is already that of row 1"


def test_ids_that_repeat_across_files_are_refused_with_both_files():
    Path("m").mkdir()
    jsonl("m/a.jsonl", {"prompt": "x"}, {"prompt": "x", "id": "a"})
    jsonl("m/b.jsonl", {"prompt": "x", "id": "b"}, {"prompt": "x", "id": "a"})
    folder = Path("m").resolve()
    assert refusal("m") == f"manifest {folder}/b.jsonl: row 2: 'id' is already that of row 2 of {folder}/a.jsonl"


def test_an_id_that_a_row_without_id_gets_is_refused():
    derived = clips(parquet("one.parquet", prompt=["x", "x"]))[1].id
    path = parquet("m.parquet", prompt=["y", "x", "x"], id=[derived, None, None])
    assert refusal(path) == "manifest m.parquet: row 1: 'id' is the one that a row without id gets"


def test_a_sample_number_must_still_fit_into_the_name():
    path = parquet("m.parquet", prompt=["x"], id=["a" * 127])
    assert len(clips(path)) == 1
    assert refusal(path, samples=2).endswith("not a safe file name (1 to 126 of A-Z a-z 0-9 . _ -, no leading dot)")


def test_ten_problems_are_shown_and_the_rest_counted():
    lines = refusal(parquet("m.parquet", prompt=[""] * 1234)).split("\n")
    assert lines == [
        *(f"manifest m.parquet: row {n}: 'prompt' is empty" for n in range(1, 11)),
        "… and 1,224 more",
    ]


def test_all_files_problems_are_shown_at_once():
    Path("m").mkdir()
    text("m/a.csv", "caption\nx\n")
    text("m/b.parquet", "broken")
    text("m/c.csv", 'prompt\nx\n""\n')
    lines = refusal("m").split("\n")
    assert [name in line for name, line in zip(["a.csv", "b.parquet", "c.csv"], lines, strict=True)] == [True] * 3


@pytest.mark.parametrize(("option", "value"), [("samples", 0), ("limit", 0), ("seed", -1), ("seed", 2**63)])
def test_options_out_of_range_are_refused(option, value):
    assert refusal(parquet("m.parquet", prompt=["x"]), **{option: value}).startswith(
        f"--{option} is {value}, not an integer from "
    )


def test_a_manifest_that_went_bad_after_its_validation_is_refused_while_it_is_read():
    manifest = open_manifest(jsonl("m.jsonl", {"prompt": "x"}))
    jsonl("m.jsonl", {"prompt": ""})
    with pytest.raises(ManifestError, match=r"manifest m.jsonl: row 1: 'prompt' is empty \(it was valid a while ago\)"):
        list(manifest)
