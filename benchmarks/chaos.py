"""Random faults over jobs: processes killed and stopped, nodes that leave, bad cards, storage that fails.

    python benchmarks/chaos.py --faults 1000 --seed 1          # some hours on 2 cores
    python benchmarks/chaos.py --faults 20 --rounds folder,s3  # a short form

In each round a job renders a manifest through the command line, on one node or on three, into video files or shards, in
a folder, an S3 server behind a proxy that misbehaves, or a small disk, while faults come at random. Whenever it ends
early the same command is run again, until it ends with exit code 0 (a cluster that is gone is made anew first). Then
every clip must be there once, with the frames of an undisturbed run, and nothing that had landed before was rendered
again. No job may hang, print a traceback or leave processes behind. Stages sleep and draw (chaos_stages.py), or are the
tiny cascade with random weights (rounds named "tiny").
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chaos_stages
import fsspec
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from chaos_faults import (
    Round,
    clean_up,
    direct_s3,
    end_ray,
    end_tree,
    heal,
    inflict,
    is_up,
    ray_folder,
    restart_cluster,
)
from faulty_s3 import FaultyS3

from show1_ray.dataset.video import decode_video

HERE = Path(__file__).parent
PATIENCE = 240.0
"""Seconds without a new clip after the last fault, until a job counts as one that hangs."""
ROUNDS = ("folder", "s3", "disk", "nodes", "tiny")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", default=",".join(ROUNDS), help="kinds of rounds, which take turns")
    parser.add_argument("--faults-a-round", type=int, default=12)
    parser.add_argument("--out", type=Path, help="also write the table there")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    rounds: list[Round] = []
    with tempfile.TemporaryDirectory(prefix="chaos", dir="/tmp") as name, s3_server() as port:
        folder = Path(name)
        os.environ.update(AWS_REGION="us-east-1", AWS_ACCESS_KEY_ID="testing", AWS_SECRET_ACCESS_KEY="testing")
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4, "CHAOS_S3": str(port)}
        kinds, before = options.rounds.split(","), leftovers()
        expected: dict[str, dict[str, str]] = {}
        while sum(sum(r.faults.values()) for r in rounds) < options.faults:
            kind = kinds[len(rounds) % len(kinds)]
            form = ("mp4", "webdataset")[(len(rounds) // len(kinds)) % 2]
            world = "tiny" if kind == "tiny" else "sleeping"
            if world not in expected:
                expected[world] = undisturbed(folder / world, world)
            rounds.append(
                play(kind, form, folder / f"round{len(rounds)}", port, chance, options.faults_a_round, expected[world])
            )
            print(describe(rounds[-1]), file=sys.stderr, flush=True)
        text = summary(rounds, before, leftovers())
    print(text)
    if options.out:
        options.out.write_text(text)
    sys.exit(any(r.wrong for r in rounds))


# One round.


def play(
    kind: str, form: str, folder: Path, port: int, chance: random.Random, count: int, expected: dict[str, str]
) -> Round:
    """Renders one manifest under faults, to its end, and looks at what came out."""
    folder.mkdir()
    began = time.monotonic()
    this = Round(kind, form, folder, str(folder / "out"), random.Random(chance.random()))
    write_manifest(folder / "prompts.parquet", this.clips)
    try:
        prepare(this, port)
        landed: dict[str, Any] = {}
        while this.exits[0] == 0 and not this.wrong:
            if this.head is not None and not is_up(this.head):
                restart_cluster(this)
            code = run_job(this, count)
            this.exits[code] += 1
            if sum(this.exits.values()) > 3 * count + 10:
                this.wrong.append(
                    f"it was started {sum(this.exits.values())} times and did not end: {dict(this.exits)}"
                )
            landed = check_landed(this, landed)
        if not this.wrong:
            check_dataset(this, expected)
    finally:
        clean_up(this)
    this.seconds = time.monotonic() - began
    return this


def prepare(this: Round, port: int) -> None:
    match this.kind:
        case "s3":
            this.proxy = FaultyS3(port)
            fsspec.filesystem("s3", skip_instance_cache=True, **direct_s3()).mkdirs(
                f"bucket{this.folder.name}", exist_ok=True
            )
            this.out = f"s3://bucket{this.folder.name}/out"
        case "disk":
            (this.folder / "disk").mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", this.folder / "disk"], check=True)
            this.out = str(this.folder / "disk" / "out")
        case "nodes":
            restart_cluster(this)


def run_job(this: Round, count: int) -> int:
    """One start of the job, with faults as long as there are some left; its exit code."""
    environment = os.environ | {chaos_stages.FOLDER: str(this.folder), "RAY_TMPDIR": str(ray_folder(this))}
    if this.proxy is not None:
        environment["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{this.proxy.port}"
    log = this.folder / f"log{sum(this.exits.values())}"
    with log.open("wb") as file:
        job = psutil.Popen(command(this), env=environment, stdout=file, stderr=file, cwd=this.folder)
        progress, last, next_fault = -1, time.monotonic(), time.monotonic() + this.random.uniform(1, 12)
        while job.poll() is None:
            time.sleep(0.1)
            now = time.monotonic()
            if (size := log.stat().st_size) != progress:
                progress, last = size, now
            if sum(this.faults.values()) < count and now > next_fault:
                inflict(this, job)
                next_fault = last = now + this.random.expovariate(1.0)
            if now - last > PATIENCE:
                this.wrong.append(f"the job hangs: nothing new for {PATIENCE:g} s; see {log}")
                end_tree(job)
    heal(this)
    text = log.read_text(errors="replace")
    if "Traceback (most recent call last)" in text:
        this.wrong.append(f"a traceback: {text[text.index('Traceback') :][:3000]}")
    code = job.wait()
    if code not in (0, 3, 130, -signal.SIGINT, -signal.SIGKILL) and not (code == 2 and may_refuse(this, text)):
        this.wrong.append(f"exit code {code}: {text.strip()[-1500:]}")
    if code == 2:
        time.sleep(3)  # a lease of a killed writer runs out, storage comes back
    if code in (3, -signal.SIGKILL):
        end_ray(this)
    return code


def may_refuse(this: Round, text: str) -> bool:
    """Whether a job that ended with exit code 2 could not do otherwise: it says what of its storage failed."""
    return any(word in text for word in ("being written by", "storage", "cannot write", "cannot read", "disk", "lease"))


def command(this: Round) -> list[str]:
    """What starts the job."""
    is_tiny = this.kind == "tiny"
    pipeline = str(this.folder.parent / "cascade" / "pipeline.yaml") if is_tiny else "chaos.yaml"
    address = "" if this.head is None else this.head.address
    code = "" if is_tiny else str(HERE / "chaos_stages.py")
    return [sys.executable, str(HERE / "chaos_job.py"), "prompts.parquet", this.out, pipeline, this.form, address, code]


# What must come out.


def write_manifest(path: Path, count: int) -> None:
    rows = {"id": [f"clip-{i}" for i in range(count)], "prompt": ["a red circle"] * count, "seed": list(range(count))}
    pq.write_table(pa.table(rows), path)
    (path.parent / "chaos.yaml").write_text(
        "fps: 8\nstages:\n  draw: {uses: 'chaos_stages:Draw'}\n  invert: {uses: 'chaos_stages:Invert'}\n"
        "execution:\n  draw: {batch_size: 4}\n  invert: {batch_size: 2}\n"
    )


def undisturbed(folder: Path, world: str) -> dict[str, str]:
    """Frames' digests by id, of a job that nothing happened to."""
    folder.mkdir()
    kind = "tiny" if world == "tiny" else "folder"
    if kind == "tiny":
        from show1_ray.show1.random import write_tiny_cascade

        (folder.parent / "cascade").mkdir()
        write_tiny_cascade(folder.parent / "cascade").rename(folder.parent / "cascade" / "pipeline.yaml")
    this = Round(kind, "mp4", folder, str(folder / "out"), random.Random(0))
    write_manifest(folder / "prompts.parquet", this.clips)
    environment = os.environ | {chaos_stages.FOLDER: str(folder), "RAY_TMPDIR": str(ray_folder(this))}
    subprocess.run(command(this), env=environment, cwd=folder, check=True, capture_output=True)
    return {name: digest(video) for name, video in videos(this)}


def videos(this: Round) -> Iterator[tuple[str, bytes]]:
    """Ids and files, each as often as it is there."""
    storage, root = this.storage, this.out.removeprefix("s3://")
    for path in sorted(storage.find(root)):
        name = path.removeprefix(root).lstrip("/")
        if name.startswith("clips/") and name.endswith(".mp4"):
            yield Path(name).stem, storage.cat_file(path)
        elif name.startswith("shards/") and name.endswith(".tar"):
            with tarfile.open(fileobj=io.BytesIO(storage.cat_file(path))) as tar:
                for member in tar:
                    if member.name.endswith(".mp4"):
                        file = tar.extractfile(member)
                        assert file is not None
                        yield Path(member.name).stem, file.read()


def digest(video: bytes) -> str:
    return hashlib.sha256(np.ascontiguousarray(decode_video(video)).tobytes()).hexdigest()


def check_landed(this: Round, before: dict[str, str]) -> dict[str, str]:
    """What had landed is what it was: a clip that is rendered again is another file, which tells when it was made."""
    now: dict[str, str] = {}
    for name, video in videos(this):
        now[name] = hashlib.sha256(video).hexdigest()
    again = [name for name in before if name in now and now[name] != before[name]]
    gone = [name for name in before if name not in now]
    if again or gone:
        this.wrong.append(f"rendered again: {again[:5]}; gone: {gone[:5]}")
    return now


def check_dataset(this: Round, expected: dict[str, str]) -> None:
    found = [(name, digest(video)) for name, video in videos(this)]
    counts = collections.Counter(name for name, _ in found)
    lost, twice = expected.keys() - counts.keys(), [name for name, count in counts.items() if count > 1]
    other = [name for name, value in found if expected.get(name) != value]
    storage, root = this.storage, this.out.removeprefix("s3://")
    rows = pq.read_table(io.BytesIO(storage.cat_file(f"{root}/metadata.parquet")))["id"].to_pylist()
    if lost or twice or other or sorted(rows) != sorted(expected):
        this.wrong.append(f"lost {sorted(lost)[:5]}, twice {twice[:5]}, other frames {other[:5]}, {len(rows)} rows")


# Told.


class s3_server:  # noqa: N801 - a context manager
    """moto's S3 server in a process of its own; gives its port."""

    def __enter__(self) -> int:
        source = (
            "import logging, time\nfrom moto.server import ThreadedMotoServer\n"
            "logging.getLogger('werkzeug').setLevel(logging.ERROR)\n"
            "s = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)\ns.start()\n"
            "print(s.get_host_and_port()[1], flush=True)\ntime.sleep(10**6)"
        )
        self.process = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def __exit__(self, *_: object) -> None:
        self.process.kill()


def leftovers() -> dict[str, int]:
    """What jobs may leave on a machine."""
    return {
        "processes of Ray": sum(
            "ray::" in n or n in ("raylet", "gcs_server") for n in (p.name() for p in psutil.process_iter())
        ),
        "files in /dev/shm": len(list(Path("/dev/shm").iterdir())),
        "entries in /tmp": len(list(Path("/tmp").iterdir())),
    }


def describe(this: Round) -> str:
    faults, exits = sum(this.faults.values()), dict(this.exits)
    said = f"{this.kind:8}{this.form:12}{faults:4} faults, exits {exits}, {this.seconds:.0f} s"
    return "\n    ".join([said, *this.wrong])


def summary(rounds: list[Round], before: dict[str, int], after: dict[str, int]) -> str:
    faults = sum((r.faults for r in rounds), collections.Counter())
    lines = [f"{sum(faults.values())} faults in {len(rounds)} rounds, {sum(r.clips for r in rounds)} clips", ""]
    lines += [f"{name:28}{count:6}" for name, count in sorted(faults.items())]
    lines += ["", f"{'round':8}{'form':12}{'rounds':>8}{'clips':>8}{'faults':>8}{'starts':>8}{'wrong':>8}"]
    for key in sorted({(r.kind, r.form) for r in rounds}):
        of = [r for r in rounds if (r.kind, r.form) == key]
        counts = [
            len(of),
            sum(r.clips for r in of),
            *(sum(sum(c.values()) for c in cs) for cs in ([r.faults for r in of], [r.exits for r in of])),
        ]
        lines.append(f"{key[0]:8}{key[1]:12}" + "".join(f"{n:8}" for n in [*counts, sum(bool(r.wrong) for r in of)]))
    exits = sum((r.exits for r in rounds), collections.Counter())
    lines += ["", "exit codes: " + json.dumps({str(code): count for code, count in sorted(exits.items())})]
    lines += [f"{name}: {before[name]} before, {after[name]} after" for name in before]
    lines += [wrong for r in rounds for wrong in r.wrong]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
