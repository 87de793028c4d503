"""Manifests in the formats and folders that people have, written by the libraries that write them."""

from __future__ import annotations

import bz2
import gzip
import http.server
import json
import lzma
import re
import threading
import zipfile
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from show1_ray.manifest import Manifest, ManifestError, open_manifest

TABLE = pd.DataFrame(
    {
        "id": [1, None, 3],
        "prompt": ["a red circle", 'a "blue" square,\nmoving', "größe"],
        "negative_prompt": ["blur", None, None],
        "seed": [42, None, 2**40],
        "score": [0.1, 2.0, None],
        "views": [1, 2, 3],
        "good": [True, False, True],
        "code": ["007", "x", "1.10"],
        "gap": [1, None, 2],
    }
)
SAVE = 'save it as UTF-8 with commas (in Excel: "CSV UTF-8 (Comma delimited)")'


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def told(manifest: Manifest) -> tuple[Any, ...]:
    return list(manifest), {field.name: str(field.type) for field in manifest.columns}, manifest.fingerprint


def refusal(url: str) -> str:
    with pytest.raises(ManifestError) as error:
        open_manifest(url)
    return str(error.value)


def prompts(url: str) -> list[str]:
    return [entry.clip.prompt for entry in open_manifest(url)]


def written(how: str) -> str:
    """The table in a file, by one of three libraries."""
    by, _, name = how.partition(" ")
    data = pl.from_pandas(TABLE)
    kind = name.split(".")[1]
    if by == "duckdb":
        data.write_parquet("source.parquet")
        options = {"jsonl": "(format json)", "json": "(format json, array true)", "tsv": "(format csv, delim '\t')"}
        if name.endswith(".zst"):
            options["csv"] = "(format csv, compression zstd)"
        duckdb.sql(f"copy (select * from 'source.parquet') to '{name}' {options.get(kind, '')}")
        Path("source.parquet").unlink()
    elif by == "polars":
        writers: dict[str, Any] = {"csv": data.write_csv, "tsv": lambda file: data.write_csv(file, separator="\t")}
        writers |= {"jsonl": data.write_ndjson, "json": data.write_json, "parquet": data.write_parquet}
        writers[kind](name)
    else:
        lines = name.endswith("lines.json") or kind == "jsonl"
        {
            "csv": lambda: TABLE.to_csv(name, index=False),
            "tsv": lambda: TABLE.to_csv(name, index=False, sep="\t"),
            "jsonl": lambda: TABLE.to_json(name, orient="records", lines=True),
            "json": lambda: TABLE.to_json(name, orient="records", lines=lines),
            "parquet": lambda: TABLE.to_parquet(name),
        }[kind]()
    return name


@pytest.mark.parametrize("by", ["pandas", "polars", "duckdb"])
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json"])
def test_the_same_table_gives_the_same_ids_seeds_and_metadata_in_every_format(by, kind):
    as_parquet = told(open_manifest(written(f"{by} m.parquet")))
    assert told(open_manifest(written(f"{by} m.{kind}"))) == as_parquet
    entries, types, _ = as_parquet
    assert [entry.clip.id for entry in entries][::2] == ["1", "3"]
    assert [entry.clip.seed for entry in entries][::2] == [42, 2**40]
    assert entries[1].extra == {"score": 2.0, "views": 2, "good": False, "code": "x", "gap": None}
    assert types == {"score": "double", "views": "int64", "good": "bool", "code": "string", "gap": "double"}


@pytest.mark.parametrize("how", ["pandas m.csv.gz", "pandas m.jsonl.xz", "pandas m.json.bz2", "duckdb m.csv.zst"])
def test_packed_files_are_unpacked(how):
    assert told(open_manifest(written(how))) == told(open_manifest(written("pandas m.parquet")))


@pytest.mark.parametrize("packing", ["", ".gz", ".bz2", ".xz", ".zst"])
def test_text_is_a_prompt_a_line(packing):
    data = '\ufeffa red circle\r\n\r\n   \na blue square  \nsays "hi", twice\n'.encode()
    name = f"prompts.txt{packing}"
    if packing == ".zst":
        with pa.output_stream(name, compression="zstd") as file:
            file.write(data)
    else:
        pack = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[packing]
        Path(name).write_bytes(pack(data))
    manifest = open_manifest(name)
    assert [entry.clip.prompt for entry in manifest] == ["a red circle", "a blue square", 'says "hi", twice']
    assert manifest.columns == []
    Path("a.csv").write_text("prompt\na red circle\n")
    assert next(iter(manifest)).clip == next(iter(open_manifest("a.csv"))).clip


@pytest.mark.parametrize("suffix", ["gz", "zst", "xz", "bz2"])
def test_a_packed_file_that_is_cut_is_refused(suffix):
    rows = "".join(f"prompt {number * 7919 % 100_003} \n" for number in range(8_000))
    name = f"m.txt.{suffix}"
    with pa.output_stream(name, compression={"gz": "gzip", "zst": "zstd", "bz2": "bz2"}.get(suffix)) as file:
        file.write(rows.encode() if suffix != "xz" else lzma.compress(rows.encode()))
    assert len(prompts(name)) == 8_000
    whole = Path(name).read_bytes()
    Path(name).write_bytes(whole[: len(whole) // 2])
    assert refusal(name).startswith(f"manifest {name}: not readable as txt: ")


def test_json_is_lines_or_an_array_of_objects_or_texts():
    rows = [{"prompt": "a" * 70_000, "n": 1}, {"prompt": "b", "n": None}, {"prompt": "c, [d] {e}", "n": 3}]
    Path("lines.json").write_text("\n\n" + "\n".join(map(json.dumps, rows)))
    Path("array.json").write_text(f"\n [{' , '.join(map(json.dumps, rows))}\n]\n")
    Path("pretty.json").write_text(json.dumps(rows, indent=4))
    found = [told(open_manifest(f"{name}.json")) for name in ("lines", "array", "pretty")]
    assert found[0] == found[1] == found[2]
    assert found[0][0][2].extra == {"n": 3}
    Path("texts.json").write_text(json.dumps([row["prompt"] for row in rows]))
    assert prompts("texts.json") == [row["prompt"] for row in rows]
    Path("empty.json").write_text("[]")
    assert refusal("empty.json") == "manifest empty.json: holds no rows"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('[{"prompt": "a"}, {"prompt" 1}]', "row 2: not valid JSON: Expecting ':' delimiter"),
        ('[{"prompt": "a"} {"prompt": "b"}]', "row 2: not valid JSON: no comma"),
        ('[{"prompt": "a"}', "row 2: not valid JSON: the array has no end"),
        ('[{"prompt": "a"}, 5]', "row 2: not a JSON object"),
        ('[{"prompt": "a"}, {"prompt": ""}]', "row 2: 'prompt' is empty"),
        ('{\n  "prompt": "a"\n}\n', "row 1: not valid JSON: "),
        ('{"prompt": {"0": "a", "1": "b"}}', "an object of columns: write an object a row, in pandas with orient='rec"),
        ('{"columns": ["prompt"], "index": [0], "data": [["a"]]}', "an object of columns: write an object a row"),
    ],
)
def test_json_that_is_no_rows_is_refused_with_what_would_be(content, line):
    Path("m.json").write_text(content)
    found = refusal("m.json")
    assert found.startswith(f"manifest m.json: {line}")
    assert "\n" not in found


def test_folders_by_hive_give_their_columns():
    data = pl.DataFrame(
        {"prompt": ["a", "b", "c"], "lang": ["en", "de", None], "year": [2024, 2023, 2024], "views": [1, 2, 3]}
    )
    duckdb.sql("copy (select * from data) to 'duck' (format parquet, partition_by (lang, year))")
    data.to_pandas().to_parquet("pandas", partition_cols=["lang", "year"])
    data.write_csv("whole.csv")
    expected = {entry.clip.prompt: entry.extra for entry in open_manifest("whole.csv")}
    assert expected["c"] == {"lang": None, "year": 2024, "views": 3}
    for folder in ("duck", "pandas"):
        manifest = open_manifest(folder)
        assert {entry.clip.prompt: entry.extra for entry in manifest} == expected
        assert {field.name: str(field.type) for field in manifest.columns} == {
            "views": "int64",
            "lang": "string",
            "year": "int64",
        }
    (one,) = open_manifest(str(next(Path("duck/lang=en").rglob("*.parquet"))))
    assert one.extra == {"lang": "en", "year": 2024, "views": 1}
    assert {entry.extra["lang"] for entry in open_manifest("duck/lang=*/year=*/*.parquet")} == {"en", "de", None}


def test_folders_by_hive_may_name_what_the_line_reads_and_are_of_any_format():
    for seed, name in ((7, "a.csv"), (8, "b.jsonl"), (9, "c.txt")):
        folder = Path(f"m{seed}/seed={seed}/style=a%20b")
        folder.mkdir(parents=True)
        text = {"a.csv": "prompt\nx\n", "b.jsonl": '{"prompt": "x"}\n', "c.txt": "x\n"}[name]
        (folder / name).write_text(text)
        (entry,) = open_manifest(f"m{seed}")
        assert (entry.clip.seed, entry.extra) == (seed, {"style": "a b"})


def test_what_spark_leaves_in_a_folder_is_read():
    folder = Path("prompts.json")
    folder.mkdir()
    for number, prompt in enumerate("ab"):
        name = f"part-0000{number}-0f3c-c000.json"
        (folder / name).write_text(json.dumps({"prompt": prompt}) + "\n")
        (folder / f".{name}.crc").write_bytes(b"crc")
    (folder / "_SUCCESS").touch()
    assert prompts("prompts.json") == ["a", "b"]


def test_a_folder_of_texts_is_read_without_what_is_about_it():
    for name, text in {"b.txt": "b\n", "a/a.txt": "a\n", "README.txt": "about", "LICENSE.txt": "free"}.items():
        Path("m", name).parent.mkdir(parents=True, exist_ok=True)
        Path("m", name).write_text(text)
    assert prompts("m") == ["a", "b"]
    Path("m/t.csv").write_text("prompt\nx\n")
    Path("m/info.json").write_text("{}")
    manifest = open_manifest("m")
    assert [entry.clip.prompt for entry in manifest] == ["x"]
    assert manifest.notes == ["left out, beside files of tables: a.txt, b.txt, info.json"]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("_delta_log/00000000000000000000.json", "a Delta table"),
        (".hoodie/hoodie.properties", "a Hudi table"),
        ("metadata/v1.metadata.json", "an Iceberg table"),
    ],
)
def test_tables_whose_files_do_not_all_count_are_refused_with_a_word(name, what):
    Path("m", name).parent.mkdir(parents=True)
    Path("m", name).write_text("{}")
    pq.write_table(pa.table({"prompt": ["deleted long ago"]}), "m/part-0.parquet")
    assert f" is of {what}, not all of whose files may count: export" in refusal("m")


def test_files_in_archives_are_read():
    with zipfile.ZipFile("m.zip", "w") as archive:
        archive.writestr("a.csv", "prompt\na\n")
        archive.writestr("deep/b.csv", "prompt\nb\n")
    assert prompts("zip://a.csv::m.zip") == ["a"]
    assert prompts("zip://deep/*.csv::m.zip") == ["b"]
    assert prompts("zip://deep::m.zip") == ["b"]
    assert refusal("m.zip") == "manifest m.zip: an archive: give what is in it, such as zip://prompts.csv::m.zip"


class Signed(http.server.SimpleHTTPRequestHandler):
    """A store that answers what was signed, a GET with its query, and nothing else."""

    def do_HEAD(self) -> None:
        self.send_error(403)

    def do_GET(self) -> None:
        if "X-Amz-Signature=abc" not in self.path:
            self.send_error(403)
            return
        super().do_GET()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def test_a_signed_url_is_read(tmp_path):
    for how in ("pandas p.parquet", "pandas p.csv.gz", "pandas p.jsonl"):
        written(how)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Signed) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        query = "X-Amz-Credential=AKIA%2F20260101%2Fus-east-1&X-Amz-Expires=60&X-Amz-Signature=abc"
        for name in ("p.parquet", "p.csv.gz", "p.jsonl"):
            url = f"http://127.0.0.1:{server.server_port}/{name}?{query}"
            assert told(open_manifest(url)) == told(open_manifest(name))
        wrong = refusal(f"http://127.0.0.1:{server.server_port}/p.csv?X-Amz-Signature=wrong")
        server.shutdown()
    assert re.fullmatch(r"manifest http://127.0.0.1:\d+/p.csv\?X-Amz-Signature=wrong: [^\n]*", wrong)


def test_empty_columns_and_rows_of_excel_are_ignored():
    Path("m.csv").write_text("\ufeffprompt,id,,\r\na red circle,a,,\r\n,,,\r\na blue square,b,,\r\n,,,\r\n")
    manifest = open_manifest("m.csv")
    assert [(entry.clip.id, entry.clip.prompt, entry.extra) for entry in manifest] == [
        ("a", "a red circle", {}),
        ("b", "a blue square", {}),
    ]
    assert manifest.notes == ["left out: 2 rows without any value"]
    Path("m.csv").write_text("prompt,id,,\na red circle,a,,\nb,b,,why\n")
    assert refusal("m.csv") == (
        "manifest m.csv: row 2: has a value in a column without a name: name it in the header, or empty it"
    )


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("prompt,id\nx,a\n".encode("utf-16"), f"UTF-16 text: {SAVE}"),
        ("prompt\tid\nx\ta\n".encode("utf-16-le"), f"UTF-16 text: {SAVE}"),
        (b"prompt;id\nx;a\n", f"its fields have semicolons between them: {SAVE}"),
        (b"prompt\tid\nx\ta\n", "its fields have tabs between them: call it .tsv"),
        (b"sep=;\nprompt;id\nx;a\n", f"its first line is 'sep=;', which only Excel reads: {SAVE}"),
        (b"sep=,\nprompt,id\nx,a\n", f"its first line is 'sep=,', which only Excel reads: {SAVE}"),
        ("prompt,note\nx,y\ncafé,\n".encode("cp1252"), f"row 2: is not UTF-8: {SAVE}"),
        ("prompt,note\nx,y\nz,café\n".encode("cp1252"), f"row 2: is not UTF-8: {SAVE}"),
        ("prompt,größe\nx,y\n".encode("cp1252"), f"its header is not UTF-8: {SAVE}"),
        (b"PK\x03\x04 and so on", f"a spreadsheet: {SAVE}"),
    ],
)
def test_what_excel_saves_otherwise_gets_a_line_that_says_how_to_save(content, line):
    Path("m.csv").write_bytes(content)
    assert refusal("m.csv") == f"manifest m.csv: {line}"


@pytest.mark.parametrize("name", ["m.txt", "m.jsonl", "m.json"])
def test_other_text_that_is_not_utf8_gets_it_too(name):
    Path(name).write_bytes('{"prompt": "x"}\n'.encode("utf-16"))
    assert refusal(name) == f"manifest {name}: UTF-16 text: {SAVE}"
    Path(name).write_bytes('{"prompt": "x"}\n{"prompt": "café"}\n'.encode("cp1252"))
    assert refusal(name) == f"manifest {name}: row 2: is not UTF-8: {SAVE}"


def test_a_long_field_is_read():
    pd.DataFrame({"prompt": ["x"], "document": ["y" * 3_000_000]}).to_csv("m.csv", index=False)
    (entry,) = open_manifest("m.csv")
    assert entry.extra == {"document": "y" * 3_000_000}
