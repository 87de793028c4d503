"""Bad input of a person at the command line: one line that says what and where, exit code 2, nothing written."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from show1_ray.errors import printable, shown, without_secrets
from tests import fuzzing
from tests.fuzz_cases import BEFORE
from tests.fuzzing import Case

ROW = b'{"id": "a", "prompt": "a red circle"}\n'
FILES = {"m.jsonl": ROW, "tables/m.jsonl": ROW, "file.txt": b"x", "file.doc": b"x", "file.xlsx": b"PK"}


def outcome(folder: Path, *arguments: str, files: dict[str, bytes] = FILES) -> fuzzing.Outcome:
    return fuzzing.run(Case("test", files, arguments), folder)


def refusal(folder: Path, *arguments: str, files: dict[str, bytes] = FILES) -> str:
    """The line of a command that is refused, which leaves nothing behind."""
    found = outcome(folder, *arguments, files=files)
    assert (found.code, found.out) == (2, ""), found
    assert found.after == found.before
    assert re.fullmatch(r"show1-ray: [^\n]+\n", found.err), found.err
    return found.err


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("", "is empty"),
        (" ", "is empty"),
        ("\t", "is empty"),
        (" out", "begins or ends with blanks"),
        ("out ", "begins or ends with blanks"),
        ("out\n", "begins or ends with blanks"),
        ("a\x1b[31mb", "characters that no name should have"),
        ("x::y", "a chain of filesystems"),
        ("simplecache::s3://bucket/x", "a chain of filesystems"),
        ("memory://clips", "each process has a memory of its own: give a folder or a URL that all processes"),
        ("s3://", "names no bucket"),
        ("s3:///clips", "names no bucket"),
        ("gs://", "names no bucket"),
        ("s3:/bucket/clips", "neither a path nor a URL"),
        ("s3:", "neither a path nor a URL"),
        ("S3://bucket", "neither a path nor a URL"),
        ("://x", "neither a path nor a URL"),
        ("s3://bucket/clips?versionId=1", "a URL with a query"),
        ("s3://bucket/clips#1", "a URL with a fragment"),
        ("s3://key:secretsecret@bucket/clips", "a password in it"),
        ("https://host/clips", "https:// can only be read"),
        ("zip://clips", "zip:// can only be read"),
        ("nosuch://clips", "Protocol not known"),
        ("/", "the root of the file system"),
        ("//", "the root of the file system"),
        ("/tmp/..", "the root of the file system"),
        ("file:///", "the root of the file system"),
        ("file://", "goes with a whole path"),
        ("file://clips", "goes with a whole path"),
        ("~nosuchuser", "the home of nobody"),
        ("~nosuchuser/x", "the home of nobody"),
        ("out*", "is a pattern"),
        ("file.txt", "is a file"),
        ("file.txt/x", "file.txt is a file"),
        ("m.jsonl", "is a file"),
        ("loop", "is a link that leads nowhere"),
        ("loop/x", "cannot be a folder"),
        ("nothing", "is a link that leads nowhere"),
        ("x" * 300, "File name too long"),
        ("new/" + "x" * 300, "File name too long"),
        ("/dev/null", "is a file"),
        (".", "the manifest lies in it"),
        ("tables/..", "the manifest lies in it"),
    ],
)
def test_an_out_that_can_be_no_dataset_is_refused_at_once(tmp_path, out, reason):
    line = refusal(tmp_path, "render", "m.jsonl", "--out", out)
    assert line.startswith("show1-ray: --out ")
    assert reason in line
    assert "secretsecret" not in line


@pytest.mark.parametrize(
    ("manifest", "out", "reason"),
    [
        ("tables", "tables", "is the manifest"),
        ("tables", "./tables/", "is the manifest"),
        ("tables", "tables/out", "lies in the manifest's folder"),
        ("tables", "tables/new/out", "lies in the manifest's folder"),
        ("linked", "tables/out", "lies in the manifest's folder"),
        ("tables/m.jsonl", "tables", "the manifest lies in it"),
        ("tables/m.jsonl", "linked", "the manifest lies in it"),
        ("tables/**/*.parquet", "tables/out", "the manifest's pattern would take the dataset's own tables"),
        ("**", "out", "the manifest's pattern would take the dataset's own tables"),
        ("*/*.parquet", "out", "the manifest's pattern would take the dataset's own tables"),
        ("memory://tables", "memory://tables/out", "lies in the manifest's folder"),
    ],
)
def test_a_dataset_and_its_manifest_do_not_lie_in_one_another(tmp_path, manifest, out, reason):
    (tmp_path / "linked").symlink_to("tables")
    assert reason in refusal(tmp_path, "render", manifest, "--out", out)


@pytest.mark.parametrize("out", ["out", "tables/out", "new/out", "tables/../out", "./out", "x [1]"])
def test_a_folder_beside_the_manifest_is_fine_and_a_dry_run_writes_nothing(tmp_path, out):
    for number, manifest in enumerate(("m.jsonl", "tables/m.jsonl", "tables/*.jsonl")):
        found = outcome(tmp_path / str(number), "render", manifest, "--out", out, "--dry-run")
        assert found.code == 0, found.err
        assert found.after == found.before


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        ("", "give a file, a folder or a glob"),
        (" ", "give a file, a folder or a glob"),
        ("/", "give a file, a folder or a glob"),
        ("file:///", "give a file, a folder or a glob"),
        ("nothing", "no such file"),
        ("loop", "no such file"),
        ("zip://a.jsonl::is-not-there.zip", "cannot be opened"),
        ("zip://a.jsonl", "cannot be opened"),
        ("zip://", "cannot be opened"),
        ("zip://a.jsonl::file.txt", "cannot be opened"),
        ("nosuch://x", "cannot be opened"),
        ("http://127.0.0.1:9/m.jsonl", "m.jsonl"),
        ("file.doc", "not a .parquet, .csv, .tsv, .jsonl, .json or .txt file"),
        ("file.xlsx", "a spreadsheet: save it as UTF-8 with commas"),
        ("done", "dataset.json is of a dataset; give its metadata.parquet"),
    ],
)
@pytest.mark.parametrize("command", ["render", "plan"])
def test_a_manifest_that_is_none_is_refused(tmp_path, command, manifest, reason):
    shutil.copytree(BEFORE, tmp_path / "done")
    options = ("--out", "out") if command == "render" else ("--gpu-type", "T4")
    assert reason in refusal(tmp_path, command, manifest, *options)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("", "--address '': not an address; give auto, .*, or HOST:PORT of a cluster's head, such as head:6379"),
        ("head", "--address head: not an address; .* such as head:6379"),
        ("head:", "not an address; .* such as head:6379"),
        (":6379", "not an address"),
        ("Auto", "not an address"),
        (" auto", "not an address"),
        ("head:6379 ", "not an address"),
        ("head:0", "not an address"),
        ("head:65536", "not an address"),
        ("head:١٢", "not an address"),
        ("a b:6379", "not an address"),
        ("::1:6379", "not an address"),
        ("head:8265/", "not an address"),
        ("http://head:8265", "`show1-ray submit` takes URLs of dashboards"),
        ("ray://head:10001", "jobs run on the cluster, not through a client"),
    ],
)
@pytest.mark.parametrize("command", [("render", "m.jsonl", "--out", "out"), ("demo",)], ids=["render", "demo"])
def test_an_address_that_can_be_none_is_refused_at_once(tmp_path, command, address, reason):
    assert re.search(reason, refusal(tmp_path, *command, "--address", address))


def test_a_ray_address_that_can_be_none_is_refused_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    line = refusal(tmp_path, "render", "m.jsonl", "--out", "out")
    assert line.startswith("show1-ray: RAY_ADDRESS=http://head:8265: give HOST:PORT of the cluster's head")


@pytest.mark.parametrize(
    "address",
    ["", "auto", "http://", "http://:8265", "http://head:port", "http://head:0", "http://[::1", "ray://h:1", "a b"],
)
def test_an_address_that_can_be_no_dashboard_is_refused_at_once(tmp_path, address):
    line = refusal(tmp_path, "submit", "m.jsonl", "--out", "s3://bucket/out", "--address", address)
    assert line.endswith(": give the address of the cluster's dashboard, http://HOST:8265\n")


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (b'{"prompt": "\\ud800"}', "row 1: 'prompt' is not valid Unicode"),
        (b'{"prompt": "a", "note": "\\ud800"}', "column 'note' mixes types"),
        (b'{"prompt": ' + b"[" * 100_000, "row 1: not valid JSON: nested too deeply"),
        (b'{"prompt": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "row 1: not valid JSON: nested too deeply"),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "row 1: not valid JSON"),
        (b'{"prompt": "' + b"x" * 200_000 + b'"}', "row 1: 'prompt' has 200,000 characters; 100,000 are the most"),
        (b'{"prompt": "a", "id": "\\u001b[31m"}', r"row 1: 'id' is '\x1b[31m', not a safe file name"),
        (b'{"prompt": "a", "\\u001b[31m": {}}', r"column '\x1b[31m' cannot be a column of Parquet"),
        (b'{"prompt": "a", "x": ' + b"[" * 100 + b"]" * 100 + b"}", "column 'x' cannot be a column of Parquet"),
    ],
)
def test_rows_that_no_clip_can_have_are_refused(tmp_path, rows, reason):
    assert reason in refusal(tmp_path, "render", "r.jsonl", "--out", "out", files={"r.jsonl": rows})


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--samples", "1000000000000"], "--samples is 1000000000000, not an integer from 1 to 1,000,000"),
        (["--limit", "9" * 4000], "--limit is 9999"),
        (["--seed", "9" * 4000], "--seed is 9999"),
        (["--gpus", "9" * 5000], "--gpus '9999"),
        (["--gpus", "1:" + "9" * 5000], "neither a number nor MIN:MAX"),
        (["--gpus", "\u0661"], "neither a number nor MIN:MAX"),
        (["--gpus", "0"], "neither a number nor MIN:MAX"),
        (["--set", "keyframes.frames=100000"], "less than or equal to 10000"),
        (["--set", "latent_super_resolution.width=1000000"], "less than or equal to 8192"),
        (["--code", "x" * 5000], "cannot be opened: [Errno 36] File name too long"),
        (["--code", "loop"], "--code loop: no such file or folder"),
        (["--code", "~nosuchuser/x.py"], "cannot be opened"),
        (["--code", ""], "no such file or folder"),
        (["--pipeline", "a\x1b[31mb"], r"no pipeline 'a\x1b[31mb'"),
    ],
)
def test_absurd_numbers_are_refused(tmp_path, options, reason):
    assert reason in refusal(tmp_path, "render", "m.jsonl", "--out", "out", *options)


def test_a_manifest_of_more_clips_than_anybody_means_is_refused_unless_they_are_limited(tmp_path):
    many = {"m.jsonl": b'{"prompt": "a"}\n' * 1001}
    command = ("render", "m.jsonl", "--out", "out", "--samples", "1000000", "--dry-run")
    assert "1,001,000,000 clips with --samples 1000000" in refusal(tmp_path / "a", *command, files=many)
    assert outcome(tmp_path / "b", *command, "--limit", "5", files=many).code == 0


ABOUT = json.loads((BEFORE / "dataset.json").read_text())


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        (ABOUT | {"recipe": 3}, "'recipe'"),
        (ABOUT | {"format": ["mp4"]}, "'format'"),
        (ABOUT | {"manifest": {"count": "many"}}, "'manifest.count'"),
        (ABOUT | {"manifest": {"url": "\x1b[31m", "count": -1}}, "'manifest.count'"),
        (ABOUT | {"pipeline": "\x1b[31m", "recipe_hash": None}, "'recipe_hash'"),
        (ABOUT | {"show1_ray_dataset": 99}, "is of version 99"),
        ([], "is not one of show1-ray"),
    ],
)
@pytest.mark.parametrize("command", ["status", "verify", "render", "dry run"])
def test_a_dataset_json_that_cannot_be_trusted_is_refused_by_all_commands(tmp_path, command, about, reason):
    files = {"m.jsonl": ROW, "d/dataset.json": json.dumps(about).encode()}
    commands = {"status": ["status", "d"], "verify": ["status", "d", "--verify"]}
    commands |= {
        "render": ["render", "m.jsonl", "--out", "d"],
        "dry run": ["render", "m.jsonl", "--out", "d", "--dry-run"],
    }
    assert reason in refusal(tmp_path, *commands[command], files=files)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "Invalid JSON"), (b"{", "Invalid JSON"), (b"\xff\xfe", "cannot be read"), (b"[" * 100_000, "Invalid JSON")],
)
def test_a_profile_that_is_none_is_refused(tmp_path, content, reason):
    assert reason in refusal(tmp_path, "plan", "m.jsonl", "--profile", "p.json", files=FILES | {"p.json": content})
    assert "cannot be read" in refusal(tmp_path / "b", "plan", "m.jsonl", "--profile", "is-not-there")


@pytest.mark.parametrize("content", [None, b"\0" * 100], ids=["missing", "no video"])
def test_a_sheet_of_a_dataset_that_lacks_a_clip_says_which_and_shows_the_others(tmp_path, content):
    shutil.copytree(BEFORE, tmp_path / "d")
    clip = tmp_path / "d/clips/3e/b.mp4"
    clip.unlink()
    if content is not None:
        clip.write_bytes(content)
    found = outcome(tmp_path, "sheet", "d")
    assert (found.code, found.out.strip()) == (0, "sheet.png: 2 clips"), found
    assert "1 of 3 clips are not there whole, such as clips/3e/b.mp4" in found.err
    assert "Traceback" not in found.err


def test_foreign_text_is_shown_escaped_and_secrets_are_hidden(monkeypatch):
    assert printable("a\x1b[31mb\u202ec\ud800\r\n") == "a\\x1b[31mb\\u202ec\\ud800\\r\n"
    assert printable("prompt é 🎬 क\u200dष") == "prompt é 🎬 क\u200dष"
    assert shown(["x" * 100]) == "['" + "x" * 58 + "…"
    monkeypatch.setenv("SOME_TOKEN", "open sesame")
    for text, safe in {
        "say open sesame twice": "say *** twice",
        "https://user:pass@host/x": "https://user:***@host/x",
        "GET https://b.s3.aws/m?X-Amz-Credential=AB%2F1&X-Amz-Signature=0123 failed": "GET https://b.s3.aws/m"
        "?X-Amz-Credential=***&X-Amz-Signature=*** failed",
        "Authorization: Bearer abcdefgh": "Authorization: Bearer ***",
        "token hf_abcdefghijklmnopqrst": "token ***",
        "key AKIAIOSFODNN7EXAMPLE": "key ***",
        "s3://bucket/a?versionId=3": "s3://bucket/a?versionId=3",
        "a basic token is authorization enough": "a basic token is authorization enough",
    }.items():
        assert without_secrets(text) == safe
