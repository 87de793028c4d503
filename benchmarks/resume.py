"""Resuming at scale: a dataset that a job left in many parts is opened, surveyed, finished and asked for its status, in
an object store that answers slowly; this checkout against another one, side by side.

    python benchmarks/resume.py --against CHECKOUT [--clips N] [--parts N] [--form webdataset|mp4] [--latency SECONDS]

The store is moto's S3 server behind a proxy that lets each request wait for `--latency` and counts them. Both builds
get the same dataset, written anew for each, as an interrupted job leaves it: metadata in `--parts` parts, nothing
compacted. All clips of the manifest are there, so nothing is rendered. What stands for the clips: in the form
`webdataset` shards of 1,000 clips that are 16 bytes each and whose rows tell so (resuming compares sizes; nothing reads
them); in the form `mp4` no objects at all, but listings of clips that the proxy makes itself, with their right sizes.

Memory is the process's peak, less what it had before it began; CPU is the process's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
import urllib.parse
from bisect import bisect_left
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from xml.sax.saxutils import escape

PROMPT = "a red circle moving left and a blue square growing on a navy background, number {:07}"
SHARD_CLIPS, SHARD_BYTES, CLIP_BYTES = 1000, 16, 123_456
RECIPE = {"fps": 8, "stages": {"keyframes": {"steps": 75}}}
BUCKET, OUT = "bucket", "out"
PHASES = ("open", "survey", "finish", "status")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout of this project")
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--parts", type=int, default=2_000)
    parser.add_argument("--form", choices=["webdataset", "mp4"], default="webdataset")
    parser.add_argument("--latency", type=float, default=0.05)
    parser.add_argument("--phase", help=argparse.SUPPRESS)  # a run in a process of its own
    options = parser.parse_args()
    if options.phase:
        print(json.dumps(measured(options)))
        return
    with Store(options) as store:
        here = Path(__file__).resolve().parent.parent
        results = {}
        for name, checkout in {"old": options.against, "new": here}.items():
            if checkout is not None:
                store.fill()
                results[name] = run(store, checkout.resolve())
        print(table(results, options))


# The dataset


def clip_id(number: int) -> str:
    return f"clip-{number:07}"


def folder_of(clip: str) -> str:
    return hashlib.sha256(clip.encode()).hexdigest()[:2]


def part(numbers: range, form: str) -> bytes:
    """A part of the metadata, in the columns that jobs write."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = [clip_id(n) for n in numbers]
    count = len(ids)
    sharded = form == "webdataset"
    columns = {
        "file_name": [f"{one}.mp4" if sharded else f"clips/{folder_of(one)}/{one}.mp4" for one in ids],
        "id": ids,
        "prompt": [PROMPT.format(n) for n in numbers],
        "negative_prompt": pa.nulls(count, pa.string()),
        "seed": pa.array(numbers, pa.int64()),
        "pipeline": ["toy"] * count,
        "recipe": ["0123456789abcdef"] * count,
        "revisions": ["{}"] * count,
        "frames": pa.array([29] * count, pa.int32()),
        "fps": [8.0] * count,
        "width": pa.array([576] * count, pa.int32()),
        "height": pa.array([320] * count, pa.int32()),
        "sha256": [hashlib.sha256(one.encode()).hexdigest() for one in ids],
        "bytes": pa.array([CLIP_BYTES] * count, pa.int64()),
        "attempts": pa.array([1] * count, pa.int32()),
        "execution": ["{}"] * count,
        "versions": ['{"python": "3.11"}'] * count,
        "landed": pa.array([1_700_000_000_000 + n for n in numbers], pa.timestamp("ms", "UTC")),
    }
    if sharded:
        columns["shard"] = [f"shards/shard-{n // SHARD_CLIPS:06}.tar" for n in numbers]
        columns["shard_bytes"] = pa.array([SHARD_BYTES] * count, pa.int64())
    columns["seconds_keyframes"] = [n % 97 / 10 for n in numbers]
    columns["batch_size_keyframes"] = pa.array([8] * count, pa.int32())
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    return sink.getvalue()


# The store


class Store:
    """moto's S3 server, the proxy before it, and the dataset in it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.counts: dict[str, int] = {}
        self.listed = Listed(options.clips) if options.form == "mp4" else None

    def __enter__(self) -> Store:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self.moto.start()
        self.port = self.moto.get_host_and_port()[1]
        self.proxy = ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
        self.proxy.daemon_threads = True
        threading.Thread(target=self.proxy.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.proxy.shutdown()
        self.moto.stop()

    def fill(self) -> None:
        """The dataset, as the job left it; past the proxy, by moto's own objects, which is cheap."""
        from moto.s3.models import s3_backends

        backend = s3_backends["123456789012"]["global"]
        if BUCKET in backend.buckets:
            backend.buckets[BUCKET].keys.clear()
        else:
            backend.create_bucket(BUCKET, "us-east-1")
        clips, parts = self.options.clips, self.options.parts
        about = {
            "show1_ray_dataset": 1,
            "format": self.options.form,
            "pipeline": "toy",
            "recipe_hash": "0123456789abcdef",
            "recipe": RECIPE,
            "manifest": {"url": "prompts.parquet", "count": clips},
        }
        backend.put_object(BUCKET, f"{OUT}/dataset.json", json.dumps(about).encode())
        for number in range(parts):
            rows = range(number * clips // parts, (number + 1) * clips // parts)
            name = f"{OUT}/metadata/part-{1_700_000_000 + number:020}-00000000.parquet"
            backend.put_object(BUCKET, name, part(rows, self.options.form))
        if self.options.form == "webdataset":
            for number in range(-(-clips // SHARD_CLIPS)):
                backend.put_object(BUCKET, f"{OUT}/shards/shard-{number:06}.tar", bytes(SHARD_BYTES))


class Listed:
    """The listings of `clips/`, of clips that no object stands for: their paths in it, sorted."""

    def __init__(self, clips: int) -> None:
        names = map(clip_id, range(clips))
        self.paths = sorted(f"{folder_of(name)}/{name}.mp4" for name in names)
        self.folders = sorted({path.partition("/")[0] for path in self.paths})

    def answer(self, query: dict[str, str]) -> bytes | None:
        """A page of ListObjectsV2; None for what is not below `clips/`."""
        prefix, root = query.get("prefix", ""), f"{OUT}/clips/"
        if prefix == root and query.get("delimiter") == "/":
            found = "".join(f"<CommonPrefixes><Prefix>{root}{name}/</Prefix></CommonPrefixes>" for name in self.folders)
            return page(prefix, found)
        if not prefix.startswith(root):
            return None
        begins = prefix.removeprefix(root)
        first = int(query.get("continuation-token") or bisect_left(self.paths, begins))
        end = bisect_left(self.paths, begins + "\x7f")
        last = min(first + 1000, end)
        token = f"<NextContinuationToken>{last}</NextContinuationToken>" if last < end else ""
        return page(prefix, token + "".join(entry(root + path) for path in self.paths[first:last]), last < end)


def page(prefix: str, content: str, more: bool = False) -> bytes:
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{BUCKET}</Name><Prefix>{escape(prefix)}</Prefix><MaxKeys>1000</MaxKeys>"
        f"<IsTruncated>{str(more).lower()}</IsTruncated>{content}</ListBucketResult>"
    ).encode()


def entry(key: str) -> str:
    return (
        f"<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
        f"<ETag>&quot;{'0' * 32}&quot;</ETag><Size>{CLIP_BYTES}</Size><StorageClass>STANDARD</StorageClass></Contents>"
    )


def handler(store: Store) -> type[BaseHTTPRequestHandler]:
    latency, lock, local = store.options.latency, threading.Lock(), threading.local()

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1  # headers and body in one packet

        def handle_expect_100(self) -> bool:
            goes_on = super().handle_expect_100()
            self.wfile.flush()
            return goes_on

        def do_GET(self) -> None:
            url = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(url.query))
            kind = self.command
            if "list-type" in query:
                kind = "LIST"
            elif self.command == "POST" and "delete" in url.query:
                kind = "DELETE many"
            with lock:
                store.counts[kind] = store.counts.get(kind, 0) + 1
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            time.sleep(latency)
            own = store.listed.answer(query) if kind == "LIST" and store.listed else None
            if own is not None:
                self.reply(200, [("Content-Type", "application/xml")], own)
                return
            connection = getattr(local, "connection", None) or HTTPConnection("127.0.0.1", store.port, timeout=600)
            local.connection = connection
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            self.reply(answer.status, answer.getheaders(), answer.read())

        do_PUT = do_POST = do_DELETE = do_HEAD = do_GET  # noqa: N815

        def reply(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
            self.send_response(status)
            length = str(len(body))
            for name, value in headers:
                if name.lower() in ("content-length", "transfer-encoding", "connection", "date", "server"):
                    if name.lower() == "content-length" and self.command == "HEAD":
                        length = value
                    continue
                self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
            self.wfile.flush()

        def log_message(self, *_: object) -> None:
            pass

    return Proxy


# The runs


def run(store: Store, checkout: Path) -> dict[str, dict[str, float]]:
    """Each phase's requests, seconds, CPU seconds and peak of memory, by a process that uses this checkout."""
    environment = os.environ | {
        "PYTHONPATH": str(checkout),
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{store.proxy.server_port}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
    }
    rows: dict[str, dict[str, float]] = {}
    for phase in ("status", "job"):
        command = [sys.executable, __file__, "--phase", phase]
        command += [f"--{name}={getattr(store.options, name)}" for name in ("clips", "parts", "form", "latency")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
            assert process.stdout is not None
            store.counts.clear()
            for line in process.stdout:  # one at the end of each phase
                found = json.loads(line)
                if "phase" not in found:
                    continue
                counts, store.counts = store.counts, {}
                rows[found.pop("phase")] = found | {"requests": sum(counts.values()), "of": counts}
        if process.returncode:
            raise SystemExit(f"{phase} with {checkout} ended with exit code {process.returncode}")
    return rows


def measured(options: argparse.Namespace) -> dict[str, float]:
    """A phase in this process, told in JSON at its end."""
    import pyarrow as pa

    from show1_ray.clip import Clip
    from show1_ray.dataset import Dataset, Origin, read_status
    from show1_ray.manifest import Entry

    url = f"s3://{BUCKET}/{OUT}"
    origin = Origin("toy", {"name": "toy", **RECIPE, "execution": {}}, RECIPE, "0123456789abcdef", 8)
    clock = Clock()
    if options.phase == "status":
        status = read_status(url)
        assert (status.done, status.left) == (options.clips, 0), status
        clock.tell("status")
        return {}
    manifest = {"url": "prompts.parquet", "count": options.clips}
    dataset = Dataset.open(url, origin=origin, format=options.form, columns=list[pa.Field](), manifest=manifest)
    clock.tell("open")
    entries = (Entry(Clip(clip_id(n), PROMPT.format(n), None, n), {}) for n in range(options.clips))
    survey = dataset.survey(entries)
    assert (survey.done, survey.left) == (options.clips, 0), survey
    clock.tell("survey")
    dataset.finish()
    clock.tell("finish")
    return {}


class Clock:
    """What passed since it was asked before."""

    def __init__(self) -> None:
        self.base = resident_mb("VmHWM")
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def tell(self, phase: str) -> None:
        """The figures of a phase that ends now."""
        wall, cpu = time.perf_counter(), time.process_time()
        figures = {"seconds": wall - self.wall, "cpu": cpu - self.cpu, "mb": resident_mb("VmHWM") - self.base}
        self.wall, self.cpu = wall, cpu
        print(json.dumps({"phase": phase, **figures}), flush=True)


def resident_mb(key: str) -> float:
    return int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0]) / 1024


def table(results: dict[str, dict[str, dict[str, float]]], options: argparse.Namespace) -> str:
    kind = {"webdataset": "shards of 1,000 clips, 16 bytes each", "mp4": "listings of files that are not there"}
    lines = [
        f"{options.clips:,} clips in {options.parts:,} parts, {kind[options.form]}; "
        f"{options.latency * 1000:g} ms a request",
        "",
        f"{'':18}{'requests':>10}{'seconds':>10}{'CPU s':>9}{'peak MB':>9}",
    ]
    jobs = {}
    for name, rows in results.items():
        for phase in PHASES:
            lines.append(line(f"{name} {phase}", rows[phase]))
        job = [rows[phase] for phase in ("open", "survey", "finish")]
        jobs[name] = {key: sum(row[key] for row in job) for key in ("requests", "seconds", "cpu")}
        jobs[name]["mb"] = max(row["mb"] for row in job)
        lines.append(line(f"{name} job", jobs[name]))
        of: dict[str, int] = {}
        for row in job:
            for kind_of, count in row["of"].items():  # type: ignore[attr-defined]
                of[kind_of] = of.get(kind_of, 0) + count
        lines += [f"{'':18}{', '.join(f'{count:,} {one}' for one, count in sorted(of.items()))}", ""]
    if len(jobs) == 2:
        old, new = jobs["old"], jobs["new"]
        ratios = {key: old[key] / max(new[key], 1e-9) for key in ("requests", "seconds", "cpu", "mb")}
        lines.append("old / new, job: " + ", ".join(f"{key} {ratio:.1f}" for key, ratio in ratios.items()))
        before, now = (results[name]["status"] for name in ("old", "new"))
        ratios = {key: before[key] / max(now[key], 1e-9) for key in ("requests", "seconds", "cpu", "mb")}
        lines.append("old / new, status: " + ", ".join(f"{key} {ratio:.1f}" for key, ratio in ratios.items()))
    return "\n".join(lines)


def line(name: str, row: dict[str, float]) -> str:
    return f"{name:18}{row['requests']:>10,}{row['seconds']:>10.1f}{row['cpu']:>9.1f}{row['mb']:>9.0f}"


if __name__ == "__main__":
    main()
