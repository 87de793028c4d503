"""Types of columns that people's tools write, from the manifest's file to the dataset's metadata."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from show1_ray.dataset.metadata import check_columns, to_table
from show1_ray.dataset.values import to_json
from show1_ray.manifest import ManifestError, open_manifest

MOMENT = datetime(2024, 2, 29, 12, 30, 1, 250_000)
SOME = uuid.UUID("12345678-1234-5678-1234-567812345678")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refusal(url: str) -> str:
    with pytest.raises(ManifestError) as error:
        open_manifest(url)
    return str(error.value)


def landed(url: str) -> pa.Table:
    """What metadata has of a manifest's other columns: through JSON, as each video carries them, to Parquet."""
    manifest = open_manifest(url)
    check_columns(manifest.columns)
    rows = [json.loads(json.dumps({k: to_json(v) for k, v in entry.extra.items()})) for entry in manifest]
    pq.write_table(
        to_table(rows, manifest.columns).select([field.name for field in manifest.columns]), "landed.parquet"
    )
    return pq.read_table("landed.parquet")


def carried(column: pa.Array | pa.ChunkedArray) -> tuple[str, Any]:
    """A column's type and values in the metadata; the column itself lies in Parquet."""
    pq.write_table(pa.table({"prompt": ["a"] * len(column), "x": column}), "m.parquet")
    found = landed("m.parquet")["x"]
    return str(found.type), found


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array(["a", None], pa.large_string()), "string"),
        (pa.array(["a", None], pa.string_view()), "string"),
        (pa.array([b"\0a", None], pa.large_binary()), "binary"),
        (pa.array([b"\0a", None], pa.binary_view()), "binary"),
        (pa.array([b"\0a", None], pa.binary(2)), "binary"),
        (pa.array([timedelta(days=400, microseconds=1), None, -timedelta(seconds=1.5)]), "duration[us]"),
        (pa.array([2**61 + 1, None], pa.duration("ns")), "duration[ns]"),
        (pa.array([90], pa.duration("s")), "duration[s]"),
        (pa.array([1704067200_123456789, None, -1], pa.timestamp("ns")), "timestamp[ns]"),
        (pa.array([1704067200_123456789], pa.timestamp("ns", "Europe/Berlin")), "timestamp[ns, tz=Europe/Berlin]"),
        (pa.array([MOMENT, datetime(1, 1, 1), datetime(9999, 12, 31)], pa.timestamp("us")), "timestamp[us]"),
        (pa.array([MOMENT.replace(tzinfo=UTC)], pa.timestamp("ms", "UTC")), "timestamp[ms, tz=UTC]"),
        (pa.array([86_399_999_999_999, None], pa.time64("ns")), "time64[ns]"),
        (pa.array([time(1, 2, 3, 4)], pa.time64("us")), "time64[us]"),
        (pa.array([time(1, 2, 3)], pa.time32("s")), "time32[ms]"),
        (pa.array([date(2024, 2, 29)], pa.date64()), "date32[day]"),
        (pa.array([Decimal("1.50"), None]), "decimal128(3, 2)"),
        (pa.array([2**64 - 1, None], pa.uint64()), "uint64"),
        (pa.array([[MOMENT], [], None]), "list<element: timestamp[us]>"),
        (pa.array([[1704067200_123456789]], pa.list_(pa.timestamp("ns"))), "list<element: timestamp[ns]>"),
        (pa.array([{"a": MOMENT, "b": [b"x"]}, None]), "struct<a: timestamp[us], b: list<element: binary>>"),
        (
            pa.array([[{"at": time(1), "took": timedelta(1)}]]),
            "list<element: struct<at: time64[us], took: duration[us]>>",
        ),
        (pa.array([[1, 2], None], pa.list_(pa.int64(), 2)), "list<element: int64>"),
        (pa.array(["a", "b", "a"]).dictionary_encode(), "string"),
        (pa.array([Decimal("2.5")] * 2).dictionary_encode(), "decimal128(2, 1)"),
        (pa.ListArray.from_arrays([0, 2, 3], pa.array(["a", "b", "a"]).dictionary_encode()), "list<element: string>"),
    ],
)
def test_a_column_arrives_in_the_metadata_as_it_was(column, kind):
    found, values = carried(column)
    assert found == kind
    plain = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    assert values.combine_chunks().cast(plain.type).equals(plain)


def test_maps_become_lists_of_keys_and_values_which_datasets_reads():
    column = pa.array([[("a", MOMENT), ("b", None)], []], pa.map_(pa.string(), pa.timestamp("us")))
    found, values = carried(column)
    assert found == "list<element: struct<key: string, value: timestamp[us]>>"
    assert values.to_pylist() == [[{"key": "a", "value": MOMENT}, {"key": "b", "value": None}], []]


def test_nanoseconds_need_no_pandas():
    pq.write_table(pa.table({"prompt": ["a"], "x": pa.array([1704067200_123456789], pa.timestamp("ns"))}), "m.parquet")
    code = (
        "import sys; sys.modules['pandas'] = None\n"
        "from show1_ray.manifest import open_manifest\n"
        "print(*[entry.extra for entry in open_manifest('m.parquet')])"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said == "{'x': '2024-01-01T00:00:00.123456789'}\n"


def test_columns_of_duckdb_and_polars_arrive():
    duckdb.sql(
        f"copy (select 'a' prompt, uuid '{SOME}' u, map {{'a': 1}} m, 3::hugeint h, 'x'::blob b, "
        "timestamp_ns '2024-01-01 00:00:00.123456789' ns, [timestamp '2024-01-01'] moments, 1.5::decimal(10, 2) d, "
        "{'a': 1, 'day': date '2024-01-01'} s, 'happy'::enum('happy', 'sad') mood, '{\"a\":1}'::json j, "
        "bit '101' bits) to 'm.parquet'"
    )
    assert landed("m.parquet").to_pylist() == [
        {
            "u": str(SOME),
            "m": [{"key": "a", "value": 1}],
            "h": 3.0,
            "b": b"x",
            "ns": pd.Timestamp("2024-01-01 00:00:00.123456789"),
            "moments": [datetime(2024, 1, 1)],
            "d": Decimal("1.50"),
            "s": {"a": 1, "day": date(2024, 1, 1)},
            "mood": "happy",
            "j": '{"a":1}',
            "bits": "101",
        }
    ]
    pl.DataFrame(
        {
            "prompt": ["a"],
            "took": [timedelta(seconds=3)],
            "tags": pl.Series([["x", "y"]], dtype=pl.List(pl.Categorical)),
            "mood": pl.Series(["sad"], dtype=pl.Enum(["happy", "sad"])),
            "at": [time(1, 2, 3)],
            "when": pl.Series([MOMENT], dtype=pl.Datetime("ns")),
            "pair": pl.Series([[1, 2]], dtype=pl.Array(pl.Int64, 2)),
            "nothing": [None],
        }
    ).write_parquet("m.parquet")
    assert landed("m.parquet").to_pylist() == [
        {
            "took": timedelta(seconds=3),
            "tags": ["x", "y"],
            "mood": "sad",
            "at": time(1, 2, 3),
            "when": pd.Timestamp(MOMENT),
            "pair": [1, 2],
            "nothing": None,
        }
    ]


def ids_and_seeds(url: str) -> list[tuple[str, int]]:
    return [(entry.clip.id, entry.clip.seed) for entry in open_manifest(url)]


@pytest.mark.parametrize("ids", [[1, 2, 30], [1.0, 2.0, 30.0], ["1", "2", "30"], [Decimal(1), Decimal(2), Decimal(30)]])
def test_whole_numbers_are_the_same_ids_and_seeds_whatever_they_are_written_as(ids):
    table = pd.DataFrame({"id": ids, "prompt": ["a", "b", "c"], "seed": [float(one) for one in ids]})
    table.to_parquet("m.parquet")
    table.to_csv("m.csv", index=False)
    pl.from_pandas(table).write_ndjson("m.jsonl")
    expected = [("1", 1), ("2", 2), ("30", 30)]
    assert [ids_and_seeds(name) for name in ("m.parquet", "m.csv", "m.jsonl")] == [expected] * 3


def test_ids_that_only_look_like_numbers_stay_as_they_are():
    for ids in (["1.0", "1.1", "1.10"], ["007", "1.0"], ["1", "2.0"], ["1e5", "x"]):
        pd.DataFrame({"id": ids, "prompt": "a"}).to_csv("m.csv", index=False)
        assert [entry.clip.id for entry in open_manifest("m.csv")] == ids


def test_numbers_that_are_not_whole_are_no_ids_and_no_seeds():
    pq.write_table(pa.table({"prompt": ["a"], "id": [1.5]}), "m.parquet")
    assert refusal("m.parquet") == "manifest m.parquet: row 1: 'id' is 1.5, not text or an integer"
    Path("m.csv").write_text("prompt,seed\na,9007199254740993.0\n")
    assert "'seed' is '9007199254740993.0', not an integer" in refusal("m.csv")


@pytest.mark.parametrize("by", ["pandas", "duckdb", "text"])
def test_uuids_are_their_text_also_as_ids(by):
    if by == "pandas":
        pd.DataFrame({"id": [SOME], "prompt": ["a"], "source": [SOME]}).to_parquet("m.parquet")
    elif by == "duckdb":
        duckdb.sql(f"copy (select uuid '{SOME}' id, 'a' prompt, uuid '{SOME}' source) to 'm.parquet'")
    else:
        pq.write_table(pa.table({"id": [str(SOME)], "prompt": ["a"], "source": [str(SOME)]}), "m.parquet")
    manifest = open_manifest("m.parquet")
    (entry,) = manifest
    assert (entry.clip.id, entry.extra) == (str(SOME), {"source": str(SOME)})
    assert manifest.columns == [pa.field("source", pa.string())]


def test_columns_of_csv_have_numbers_only_where_nothing_is_lost():
    Path("m.csv").write_text(
        "prompt,int,float,bool,zeros,price,long,wide,mixed,empty,huge\n"
        "a,1,0.1,true,007,1.10,12345678901234567,18446744073709551616,1,,1\n"
        "b,-2,1e-05,False,7,2.5,0.5,1,x,,1e400\n"
        "c,,NaN,,,,,,,,\n"
    )
    manifest = open_manifest("m.csv")
    assert {field.name: str(field.type) for field in manifest.columns} == {
        "int": "int64",
        "float": "double",
        "bool": "bool",
        "zeros": "string",
        "price": "string",
        "long": "string",
        "wide": "string",
        "mixed": "string",
        "empty": "null",
        "huge": "string",
    }
    first, second, third = [entry.extra for entry in manifest]
    assert first == {
        "int": 1,
        "float": 0.1,
        "bool": True,
        "zeros": "007",
        "price": "1.10",
        "long": "12345678901234567",
        "wide": "18446744073709551616",
        "mixed": "1",
        "empty": None,
        "huge": "1",
    }
    assert (second["float"], second["bool"], second["mixed"]) == (1e-05, False, "x")
    assert np.isnan(third["float"])
    assert manifest.notes == ["kept as text: 'wide': integers over 64 bits"]


def test_a_type_is_that_of_all_rows_and_files():
    Path("m").mkdir()
    Path("m/a.csv").write_text("prompt,n,x,s\n" + "a,1,1,1\n" * 5000 + "b,2,1.5,\n")
    pq.write_table(pa.table({"prompt": ["c"], "n": pa.array([3], pa.int32()), "s": ["q"]}), "m/b.parquet")
    manifest = open_manifest("m")
    assert {field.name: str(field.type) for field in manifest.columns} == {"n": "int32", "x": "double", "s": "string"}
    entries = list(manifest)
    assert entries[0].extra == {"n": 1, "x": 1.0, "s": "1"}
    assert entries[-1].extra == {"n": 3, "s": "q"}
    pq.write_table(pa.table({"prompt": ["c"], "n": [[3]]}), "m/b.parquet")
    assert refusal("m") == "manifest: column 'n' has two types: int64 in text files, list<item: int64> in others"


@pytest.mark.parametrize(
    "value", [2**64, -(2**63) - 1, [1, 2**70], {"a": {"b": 2**64}}], ids=["uint65", "int65", "list", "struct"]
)
def test_an_integer_over_64_bits_says_so(value):
    Path("m.jsonl").write_text(json.dumps({"prompt": "a", "n": value}) + "\n")
    found = refusal("m.jsonl")
    assert found.startswith("manifest m.jsonl: column 'n' holds ")
    assert found.endswith(", more than 64 bits: write it as text, or --drop it")


def test_64_bits_without_a_sign_travel_in_json_too():
    Path("m.jsonl").write_text('{"prompt": "a", "n": 18446744073709551615}\n{"prompt": "b"}\n')
    assert landed("m.jsonl")["n"].to_pylist() == [2**64 - 1, None]


def test_a_column_of_128_bits_says_which_cast_helps():
    data = pl.DataFrame({"prompt": ["a"], "seed": pl.Series([1], dtype=pl.UInt64), "n": pl.Series([1], dtype=pl.Int64)})
    data = data.with_columns(seed=pl.col("seed") + pl.col("n"))
    assert data.schema["seed"] == pl.Int128
    data.write_parquet("m.parquet")
    found = refusal("m.parquet")
    assert "integers of more than 64 bits" in found
    assert ".cast(pl.UInt64)" in found
    assert "\n" not in found
    data.with_columns(pl.col("seed").cast(pl.UInt64)).write_parquet("m.parquet")
    assert ids_and_seeds("m.parquet")[0][1] == 2
