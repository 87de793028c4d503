"""Random input for the command line, by hypothesis: manifests, pipeline files, datasets, command lines.

Commands that would render, measure or serve are given something that they must refuse; none waits for a network.
`test_fuzz.py` runs a thousand cases, `benchmarks/fuzz.py` as many as one likes.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from hypothesis import strategies as st

from tests.fuzzing import Case

BEFORE = Path(__file__).parent / "golden" / "begun_before"

# fmt: off
NAMES = [
    "~", "~nosuchuser", ".", "..", "/", "//", "-", "--", "-1", "0", "1", "true", "null", "nano", "loop",
    "loop/x", "nothing", "file.txt", "file.txt/x", "folder", "folder/../m.jsonl", "m.jsonl", "m.jsonl#x", "m.jsonl?x",
    "out", "out/clips", "dataset.json", "~/x", "/dev/null", "/proc/self/mem", "*", "**", "?",
]
URLS = [
    "s3://", "s3:///x", "x::y", "zip://x.csv::y.zip", "zip://", "file://", "file://x", "memory://x", "gs://", "s3:x",
    "http://", "http://[", "data:,x", "http://127.0.0.1:9/x.csv", "nosuch://x", "://", "https://u:password1@h/x",
]
TEXTS = [
    "", " ", "\t", "a b", "x" * 300, "x" * 5000, "9" * 5000, "nan", "inf", "0x10", "1_0", "\u0661", "²", "a\0b",
    "\x1b[31mred", "\u202eabc", "\ud800", "\udcff", "é", "🎬", "a\nb", "a\r\nb", "'", '"', *"{}[]:=", "%s",
]
NUMBERS = [
    0, 1, -1, 2, 7, 2**31, 2**32, 2**32 + 7, 2**63 - 1, 2**63, 2**64, -(2**63), 100_000, 10**6, 10**12, 10**30, 10**400,
    0.5, -0.0, 1e308, float("inf"), float("nan"),
]
# fmt: on
odd_text = st.sampled_from([*NAMES, *URLS, *TEXTS])
odd_number = st.sampled_from(NUMBERS)
text = st.one_of(odd_text, st.text(max_size=12))
scalar = st.one_of(odd_number, text, st.booleans(), st.none())
value = st.recursive(
    scalar, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=3)), max_leaves=6
)
spoils = st.one_of(
    st.none(),
    st.tuples(st.just("cut"), st.integers(0, 2000)),
    st.tuples(st.just("put"), st.integers(0, 2000), st.binary(max_size=6)),
    st.tuples(st.just("change"), st.integers(0, 2000), st.integers(0, 255)),
)


def spoilt(data: bytes, how: Any) -> bytes:
    """The bytes with one fault, or none."""
    if how is None or not data:
        return data
    at = how[1] % len(data)
    if how[0] == "cut":
        return data[:at]
    if how[0] == "put":
        return data[:at] + how[2] + data[at:]
    return data[:at] + bytes([how[2]]) + data[at + 1 :]


def as_json(thing: Any) -> bytes:
    """JSON, also of what is none."""
    return json.dumps(thing, default=str).encode()


# Manifests

COLUMNS = [
    "prompt",
    "id",
    "seed",
    "negative_prompt",
    "split",
    "file_name",
    "sha256",
    "frames",
    "seconds_text",
    "",
    "a.b",
]
row = st.one_of(
    st.fixed_dictionaries(
        {"prompt": st.one_of(st.just("a red circle"), value)},
        optional=dict.fromkeys(COLUMNS[1:], value),
    ),
    st.fixed_dictionaries(
        {"prompt": st.text(min_size=1, max_size=8)},
        optional={"seed": st.integers(0, 2**63 - 1), "id": st.text("ab-._1")},
    ),
    st.dictionaries(st.one_of(st.sampled_from(COLUMNS), text), value, max_size=3),
)
good_row = st.fixed_dictionaries(
    {"prompt": st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).map("a{}".format)},
    optional={"seed": st.integers(0, 2**63 - 1), "negative_prompt": st.just("blur"), "split": value},
)
LINES = [
    b"[" * 100_000,
    b'{"prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
]
LINES += [
    b"\xff\xfe",
    b"\0",
    b'{"prompt": "\\ud800"}',
    b'{"prompt": "a", "b": "\\udfff"}',
    b'{"prompt": "a", "prompt": 1}',
]
LINES += [b'{"prompt": "a", "b": ' + b"[" * 400 + b"]" * 400 + b"}", b'{"prompt": "a", "b": NaN}', b"", b"null", b"3"]


@st.composite
def jsonl_file(draw: Any) -> tuple[str, bytes]:
    kind = good_row if draw(st.booleans()) else row
    lines = [as_json(one) for one in draw(st.lists(kind, min_size=1, max_size=4))]
    lines += draw(st.lists(st.sampled_from(LINES), max_size=1)) if kind is row else []
    suffix, between = draw(st.sampled_from([(".jsonl", b"\n"), (".jsonl", b"\n"), (".json", b"\n"), (".json", b" , ")]))
    whole = between.join(lines)
    return suffix, b"[" + whole + b"]" if between != b"\n" else whole


@st.composite
def csv_file(draw: Any) -> tuple[str, bytes]:
    cells = st.one_of(st.sampled_from(COLUMNS), text)
    head = draw(st.one_of(st.just(["prompt", "id", "seed"]), st.lists(cells, max_size=4)))
    rows = draw(st.lists(st.lists(text, min_size=len(head), max_size=len(head) + 1), max_size=3))
    quote = draw(st.booleans())
    suffix, mark = draw(st.sampled_from([(".csv", ","), (".csv", ","), (".csv", ";"), (".tsv", "\t"), (".txt", ",")]))
    lines = [mark.join(f'"{cell}"' if quote else cell for cell in line) for line in [head, *rows]]
    return suffix, "\n".join(lines).encode(errors="surrogatepass")


@st.composite
def parquet_file(draw: Any) -> tuple[str, bytes]:
    rows = draw(st.lists(good_row if draw(st.booleans()) else row, min_size=1, max_size=3))
    buffer = io.BytesIO()
    try:
        pq.write_table(pa.Table.from_pylist(rows), buffer)
    except (pa.ArrowException, OverflowError, UnicodeError, TypeError, ValueError):
        names = {name: [1, 2] for name in rows[0] if name.isprintable()}
        pq.write_table(pa.table({"prompt": ["a", None], **names}), buffer)
    return ".parquet", buffer.getvalue()


@st.composite
def manifest_case(draw: Any) -> Case:
    suffix, data = draw(st.one_of(jsonl_file(), csv_file(), parquet_file()))
    if draw(st.integers(0, 2)) == 0:
        data = spoilt(data, draw(spoils))
    if draw(st.integers(0, 9)) == 0:
        data, suffix = (
            spoilt(gzip.compress(data, 1), draw(spoils)),
            suffix + draw(st.sampled_from([".gz", ".bz2", ".xz", ".zst"])),
        )
    options: list[str] = []
    for name, values in (
        ("--samples", ["1", "2", "0", "1000000000000"]),
        ("--limit", ["1", "9" * 30]),
        ("--seed", ["1"]),
        ("--column", ["prompt=a", "id=prompt", "prompt=prompt", "prompt", "x=y", "seed=id"]),
        ("--drop", ["a", "id,seed", "prompt", ","]),
    ):
        if draw(st.integers(0, 5)) == 0:
            likely = st.sampled_from(values)
            options += [name, draw(odd_text.filter(is_argument) if draw(st.integers(0, 7)) == 0 else likely)]
    where = draw(st.sampled_from(["m" + suffix, ".", "m*", "m" + suffix, "m" + suffix]))
    command = ("render", where, "--out", "/nonexistent-out/x" if where == "." else "out", "--dry-run", *options)
    if draw(st.integers(0, 5)) == 0:
        command = (
            "plan",
            where,
            "--gpu-type",
            "T4",
            *options[: 2 if options[:1] in (["--samples"], ["--limit"]) else 0],
        )
    return Case("manifest", {"m" + suffix: data}, command)


# Pipeline files

KEYS = [
    "name",
    "description",
    "dtype",
    "fps",
    "stages",
    "execution",
    "extends",
    "inputs",
    "clip",
    "on",
    "text",
    "keyframes",
]
KEYS += [
    "interpolation",
    "super_resolution",
    "latent_super_resolution",
    "first_frame",
    "checkpoint",
    "repo",
    "revision",
]
KEYS += [
    "steps",
    "guidance",
    "frames",
    "width",
    "height",
    "window",
    "stride",
    "scale",
    "batch_size",
    "memory",
    "compile",
]
KEYS += ["uses", "takes", "before", "after", "by", "reuse", "every", "levels", "scheduler", "noise_level", "strength"]
key = st.one_of(st.sampled_from(KEYS), odd_text)
tree = st.recursive(
    scalar,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(key, inner, max_size=4)),
    max_leaves=10,
)
PIPELINES = [p.read_text() for p in sorted((Path(__file__).parent.parent / "pipelines").glob("nano*.yaml"))]
SNIPPETS = [
    "a: &a [*a]",
    "a: &a {b: *a}",
    "? [a]: b",
    "!!python/object:os.system x",
    "<<: 3",
    "a: !!binary x",
    "--- 1\n--- 2",
]
SNIPPETS += [
    "a0: &a0 [x]\n" + "\n".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}]" for i in range(1, 20)),
    "[" * 1500,
    "\t",
]
SNIPPETS += [
    "fps: 2024-13-45",
    "fps: 1:99",
    "extends: mine.yaml",
    "extends: .",
    "extends: [nano]",
    "fps: 0x" + "f" * 5000,
]


@st.composite
def pipeline_text(draw: Any) -> bytes:
    form = draw(st.integers(0, 4))
    if form == 0:
        return draw(st.binary(max_size=60))
    if form == 1:
        return draw(st.sampled_from(SNIPPETS)).encode()
    if form == 2:
        return spoilt(draw(st.sampled_from(PIPELINES)).encode(), draw(spoils))
    keys: dict[str, Any] = {"extends": "nano"} if form == 3 else yaml.safe_load(PIPELINES[-1])
    stages = draw(st.dictionaries(key, tree, max_size=3))
    keys |= draw(st.sampled_from([{"stages": stages}, {"execution": stages}, stages]))
    with contextlib.suppress(yaml.YAMLError, UnicodeError, ValueError):
        return yaml.safe_dump(keys, allow_unicode=draw(st.booleans())).encode(errors="surrogatepass")
    return as_json(keys)


@st.composite
def pipeline_case(draw: Any) -> Case:
    files = {"mine.yaml": draw(pipeline_text()), "m.jsonl": b'{"prompt": "a red circle"}'}
    changes: list[str] = []
    for _ in range(draw(st.integers(0, 2))):
        names = ".".join(draw(st.lists(key, min_size=1, max_size=3)))
        changes += [
            "--set",
            draw(st.one_of(odd_text, st.builds("{}={}".format, st.just(names), scalar)).filter(is_argument)),
        ]
    pipeline = draw(st.sampled_from(["mine.yaml", "mine.yaml", "nano"]))
    commands: list[tuple[str, ...]] = [("render", "m.jsonl", "--out", "out", "--dry-run", "--pipeline", pipeline)] * 30
    commands += [("check", pipeline), ("check", pipeline, "--json")]  # which count operations, for seconds
    commands += [("plan", "m.jsonl", "--gpu-type", "T4", "--pipeline", pipeline)]
    return Case("pipeline", files, (*draw(st.sampled_from(commands)), *changes))


# Datasets

IDENTITY: dict[str, Any] = json.loads((BEFORE / "dataset.json").read_text())
ROWS = (BEFORE / "rows.jsonl").read_bytes()
PARTS = {name: (BEFORE / name).read_bytes() for name in ("metadata.parquet", "pipeline.yaml")}
CLIPS = {str(path.relative_to(BEFORE)): path.read_bytes() for path in sorted(BEFORE.glob("clips/*/*.mp4"))}
ONE_STEP = [f"{stage}.steps=1" for stage in ("keyframes", "interpolation", "super_resolution")]
ONE_STEP += ["super_resolution.first_frame.steps=1", "latent_super_resolution.steps=4"]


@st.composite
def identity(draw: Any) -> bytes:
    form = draw(st.integers(0, 9))
    if form == 0:
        return draw(st.one_of(st.binary(max_size=40), st.sampled_from([b"", b"[" * 100_000, b"{}", b"null", b"\xff"])))
    if form == 1:
        return spoilt(as_json(IDENTITY), draw(spoils))
    about = dict(IDENTITY)
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from([*about, "seeds", "x"]))
        if draw(st.booleans()):
            about.pop(name, None)
        elif name == "manifest" and draw(st.booleans()):
            about[name] = draw(st.dictionaries(st.sampled_from(["url", "count", "others", "other_failures"]), value))
        else:
            about[name] = draw(value)
    return as_json(about)


@st.composite
def dataset_case(draw: Any) -> Case:
    files = {"m.jsonl": ROWS}
    files["d/dataset.json"] = draw(identity())
    for name, data in PARTS.items():
        if draw(st.integers(0, 3)):
            files[f"d/{name}"] = spoilt(data, draw(spoils) if draw(st.booleans()) else None)
    for name, data in CLIPS.items():
        if draw(st.integers(0, 3)):
            files[f"d/{name}"] = spoilt(data, draw(spoils) if draw(st.booleans()) else None)
    more = ["d/.lease.json", "d/failures/part-1.parquet", "d/metadata/part-1.parquet", "d/shards/shard-000000.tar"]
    more += ["d/clips/x", "d/clips/zz/a.mp4", "d/x.txt", "d/metadata/x", "d/failures/x.tmp", "d/report.html"]
    for name in draw(st.lists(st.sampled_from(more), max_size=2)):
        content = st.one_of(
            st.binary(max_size=30),
            st.builds(as_json, value),
            st.just(PARTS["metadata.parquet"]),
            parquet_file().map(lambda made: made[1]),
        )
        files[name] = spoilt(draw(content), draw(spoils))
    sets = [argument for change in ONE_STEP for argument in ("--set", change)]
    form = draw(st.sampled_from([[], ["--format", "webdataset"], ["--verify"], ["--retry-failed"]]))
    commands = [
        ("status", "d"),
        ("status", "d", "--json"),
        ("status", "d", "--verify"),
        (
            "sheet",
            "d",
            "--out",
            draw(st.sampled_from(["sheet.png", "sheet.gif", "x/sheet.png", "sheet", "sheet.txt", "d"])),
        ),
        ("render", "m.jsonl", "--out", "d", "--dry-run", *sets, *form),
        ("render", "m.jsonl", "--out", "d", "--dry-run", "--pipeline", "d/pipeline.yaml"),
    ]
    return Case("dataset", files, draw(st.sampled_from(commands)), ("sheet.png", "sheet.gif"))


# Command lines


def is_argument(one: str) -> bool:
    """Whether it can be an argument of a command: the system takes no NUL, and hands bytes on as surrogates."""
    with contextlib.suppress(UnicodeError):
        os.fsencode(one)
        return "\0" not in one
    return False


argument = st.one_of(odd_text, st.text(max_size=10)).filter(is_argument)
OPTIONS = {
    "render": "--out --pipeline --address --gpus --limit --samples --seed --format --save-stages --max-failures --set "
    "--log --retry-failed --verify --json --code",
    "plan": "--pipeline --gpus --gpu-type --price --profile --limit --samples --column --drop --set --json",
    "status": "--verify --json",
    "sheet": "--count",
    "check": "--set --json --code",
    "stages": "--json --code",
    "schema": "--x",
    "pipelines": "--x",
    "submit": "--status --stop --follow --detach --gpus --out",
    "profile": "--batch-sizes --repeats --set --out",
    "demo": "--pipeline --host --port --set",
    "": "--x",
}
FLAGS = ["--retry-failed", "--verify", "--json", "--detach", "--dry-run"]
LIKELY = {"--gpus": ["1", "2:4", "4:2", "1" * 5000], "--limit": ["1", "10"], "--gpu-type": ["T4", "cpu", "H100"]}
LIKELY |= {"--format": ["mp4", "webdataset"], "--pipeline": ["nano", "mine.yaml"], "--profile": ["p.json", "m.jsonl"]}
LIKELY |= {"--price": ["1.5", "nan", "-1"], "--batch-sizes": ["1,2", "0", ",", "9" * 5000], "--log": ["json", "text"]}
LIKELY |= {
    "--out": ["out", "m.jsonl", ".", "folder", "loop"],
    "--address": ["auto", "local", "a:b:c", "ray://x:1", ":", "h:99999"],
}


@st.composite
def command_case(draw: Any) -> Case:
    files = {"m.jsonl": b'{"prompt": "a red circle"}', "mine.yaml": b"extends: nano\n", "file.txt": b"x"}
    files["p.json"] = draw(st.one_of(st.binary(max_size=20), st.builds(as_json, value), st.just(b"[" * 100_000)))
    command = draw(st.sampled_from(list(OPTIONS)))
    arguments = [command] if command else []
    for name in draw(st.lists(st.sampled_from(OPTIONS[command].split()), max_size=4)):
        arguments.append(name)
        if name not in FLAGS:
            likely = st.sampled_from(LIKELY.get(name, ["1", "nano"]))
            arguments.append(draw(st.one_of(likely, argument)))
    arguments += draw(st.lists(st.one_of(st.sampled_from(["m.jsonl", "nano", "d"]), argument), max_size=2))
    if command == "render":  # what nothing keeps from being rendered is only looked at
        arguments.append("--dry-run")
    elif command == "demo":
        arguments += ["--auth", "nobody"]
    elif command == "profile":
        arguments += ["--device", draw(st.sampled_from(["", "gpu", "cuda:99", "cpu:x", "cuda:x", "meta", "mps"]))]
    elif command == "submit":
        arguments += ["--address", draw(st.sampled_from(["ftp://x", "http://", "", "http://[", "http://127.0.0.1:9"]))]
    return Case("command", files, tuple(arguments))


@st.composite
def refused_case(draw: Any) -> Case:
    """Renders that must be refused, and leave nothing behind."""
    files = {"m.jsonl": b'{"prompt": "a red circle"}', "file.txt": b"x", "folder/m.jsonl": b'{"prompt": "x"}'}
    files["file.doc"] = b"x"
    outs = [
        "x::y",
        "s3://",
        "",
        "/",
        "file://",
        "loop",
        "nothing",
        "file.txt",
        "file.txt/x",
        "folder",
        "m.jsonl",
        "out*",
    ]
    outs += [" out", "out ", "s3://b?x", "https://h/x", "~nosuchuser/x", "zip://x", "out\n", "x" * 300, "folder/out"]
    manifest, out = "folder", draw(st.sampled_from(outs))
    options: list[str] = []
    if draw(st.booleans()):
        manifest, out = draw(st.sampled_from(["", "/", "nothing", "file.doc", "zip://", "x::y", "loop"])), "out"
    elif draw(st.booleans()):
        wrong = [
            ["--gpus", "0"],
            ["--set", "a=b"],
            ["--save-stages", "x"],
            ["--pipeline", "x"],
            ["--address", "ray://x"],
        ]
        manifest, out, options = "m.jsonl", "out", draw(st.sampled_from(wrong))
    elif out in ("folder", "folder/out", "m.jsonl"):
        manifest = "m.jsonl" if out == "m.jsonl" else "folder"
    return Case("refused", files, ("render", manifest, "--out", out, *options))


cases = st.one_of(manifest_case(), pipeline_case(), dataset_case(), command_case(), refused_case())
