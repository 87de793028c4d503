"""Random faults over jobs: processes killed and stopped, nodes that leave, bad cards, storage that fails.

    python benchmarks/chaos.py --faults 1000 --log chaos.jsonl --out chaos.txt  # an hour or two on 2 cores
    python benchmarks/chaos.py --faults 16 --rounds folder,s3 --quick           # what tests/test_chaos.py does
    python benchmarks/chaos.py --table chaos.jsonl                              # what a log says

In each round a job renders a manifest through the command line, on one node or on three, into video files or shards, in
a folder, an S3 server behind a proxy that misbehaves, or a small disk, while faults come at random. Whenever it ends
early the same command is run again, until it ends with exit code 0 (a cluster that is gone is made anew first). Then
every clip must be there once, with the frames of an undisturbed run, and nothing that had landed before was rendered
again. No job may hang, print a traceback or leave processes behind. Stages sleep and draw (chaos_stages.py), or are the
tiny cascade with random weights (rounds named "tiny").

Each round is a line of `--log`, which a second command goes on with. Two at once, of different seeds, share it. The
folders of rounds in which something was wrong are kept. Rounds named "disk" mount file systems, which takes root.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chaos_stages
import fsspec
import psutil
from chaos_checks import check_dataset, check_landed, digest, videos, write_manifest
from chaos_faults import (
    CLIPS,
    CLUSTERED,
    QUICK_CLIPS,
    Round,
    clean_up,
    direct_s3,
    end_ray,
    end_tree,
    heal,
    inflict,
    is_up,
    named,
    rays,
    restart_cluster,
)
from faulty_s3 import FaultyS3

HERE = Path(__file__).parent
PATIENCE = 300.0
"""Seconds without a word of a job after the last fault, until it counts as one that hangs."""
ROUNDS = ("folder", "nodes", "s3", "nodes", "disk", "folder", "nodes", "s3", "tiny", "disk")
STARTING = 240.0
"""Seconds in which a job has stations; until then it is left alone, but for a fault at its very start now and then."""
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
AWS = {"AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", default=",".join(ROUNDS), help="kinds of rounds, which take turns")
    parser.add_argument("--faults-a-round", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="shorter jobs, and no faults that take half a minute")
    parser.add_argument("--log", type=Path, help="rounds, a line each; what it holds already counts")
    parser.add_argument("--table", type=Path, help="show the table of such a log, and do nothing")
    parser.add_argument("--out", type=Path, help="also write the table there")
    options = parser.parse_args()
    if options.table:
        rounds = read_log(options.table)
    else:
        log = options.log or Path(tempfile.mkdtemp(prefix="chaos")) / "log.jsonl"
        plan = Plan(options.faults, options.seed, options.rounds.split(","), options.faults_a_round, options.quick)
        rounds = play_all(plan, log)
    text = table(rounds)
    print(text)
    if options.out:
        options.out.write_text(text)
    sys.exit(any(one["wrong"] for one in rounds))


@dataclass(frozen=True)
class Plan:
    """Which rounds are to be played: of `kinds` in turn, `faults` in all, `count` a round at most."""

    faults: int
    seed: int
    kinds: list[str]
    count: int
    quick: bool

    def round(self, number: int, folder: Path) -> Round:
        """The so manieth of them."""
        kind, form = (
            self.kinds[number % len(self.kinds)],
            ("mp4", "webdataset")[(number + number // len(self.kinds)) % 2],
        )
        clips = QUICK_CLIPS if self.quick else CLIPS[kind]
        chance = random.Random(f"{self.seed} {number}")
        return Round(kind, form, folder, str(folder / "out"), chance, clips, self.count, self.quick)


def play_all(plan: Plan, log: Path) -> list[dict[str, Any]]:
    """Rounds until there were enough faults, those of the log included; all that it then holds."""
    folder = Path(tempfile.mkdtemp(prefix="chaos", dir="/tmp"))
    os.environ.update(TOKEN | AWS)
    expected: dict[str, dict[str, str]] = {}
    with s3_server() as port:
        os.environ["CHAOS_S3"] = str(port)
        while added(counted(rounds := read_log(log)), "faults").total() < plan.faults:
            number = sum(one["seed"] == plan.seed for one in rounds)
            this = plan.round(number, folder / f"round{number}")
            world = "tiny" if this.kind == "tiny" else "sleeping"
            if world not in expected:
                expected[world] = undisturbed(folder / world, world, plan.quick, log)
            said = play(this, port, expected[world])
            with log.open("a") as file:
                file.write(json.dumps(said | {"seed": plan.seed}) + "\n")
            print(describe(said), file=sys.stderr, flush=True)
    if not any(one["wrong"] for one in rounds):
        shutil.rmtree(folder, ignore_errors=True)
    return rounds


# One round.


def play(this: Round, port: int, expected: dict[str, str]) -> dict[str, Any]:
    """Renders one manifest under faults, to its end, and looks at what came out."""
    this.folder.mkdir()
    began = time.monotonic()
    write_manifest(this.folder, this.clips, 0.5 if this.kind == "nodes" else 0.15 if this.quick else 0.3)
    try:
        prepare(this, port)
        landed: dict[str, str] = {}
        while this.exits[0] == 0 and not this.wrong:
            if this.kind in CLUSTERED and not is_up(this):
                restart_cluster(this)
            this.exits[run_job(this)] += 1
            if this.exits.total() > this.count + 10:
                this.wrong.append(f"it was started {this.exits.total()} times and did not end: {dict(this.exits)}")
            landed = check_landed(this, landed)
        if not this.wrong:
            check_dataset(this, expected)
    finally:
        clean_up(this)
    told = {"kind": this.kind, "form": this.form, "clips": this.clips, "faults": this.faults, "exits": this.exits}
    wrong = [f"{this.folder}: {text}" for text in this.wrong]
    return told | {"left": this.left, "wrong": wrong, "seconds": round(time.monotonic() - began)}


def prepare(this: Round, port: int) -> None:
    match this.kind:
        case "s3":
            this.proxy = FaultyS3(port)
            os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{this.proxy.port}"  # of a cluster's workers too
            bucket = f"bucket-{this.short.name.replace('_', '-').lower()}"
            fsspec.filesystem("s3", skip_instance_cache=True, **direct_s3()).mkdirs(bucket, exist_ok=True)
            this.out = f"s3://{bucket}/out"
        case "disk":
            (this.folder / "disk").mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", this.folder / "disk"], check=True)
            this.out = str(this.folder / "disk" / "out")


def run_job(this: Round) -> int:
    """One start of the job, with faults as long as there are some left; its exit code."""
    log = this.folder / f"log{this.exits.total()}"
    with log.open("wb") as file:
        job = psutil.Popen(command(this), env=environment(this), stdout=file, stderr=file, cwd=this.folder)
        watch(this, job, log)
    heal(this)
    text, code = log.read_text(errors="replace"), job.wait()
    if "Traceback (most recent call last)" in text:
        this.wrong.append(f"a traceback: {text[text.index('Traceback') :][:3000]}")
    if code not in (0, 3, 130, -signal.SIGINT, -signal.SIGKILL) and not (code == 2 and may_refuse(text)):
        this.wrong.append(f"exit code {code}: {text.strip()[-1500:]}")
    count_left(this)
    return code


def watch(this: Round, job: psutil.Popen, log: Path) -> None:
    """Does the faults, and ends a job that says nothing any more."""
    began = last = time.monotonic()
    progress, next_fault = -1, began + this.random.uniform(1, 6)
    early, this.is_doomed = this.random.random() < 0.1, False
    while job.poll() is None:
        time.sleep(0.1)
        now = time.monotonic()
        this.undo_until(now)
        if (size := log.stat().st_size) != progress:
            progress, last = size, now
        if this.faults.total() < this.count and now > next_fault and not this.is_doomed:
            if not early and not named(this, "ray::Station") and now - began < STARTING:
                next_fault = now + 0.5
                continue
            early = False
            inflict(this, job)
            next_fault = last = time.monotonic() + this.random.expovariate(2.5)
        if now - last > PATIENCE:
            this.wrong.append(f"the job hangs: nothing new for {PATIENCE:g} s; see {log}")
            end_tree(job)


def may_refuse(text: str) -> bool:
    """Whether a job that ended with exit code 2 could not do otherwise: its storage failed, Ray did not start, or
    station after station was killed while it started. It says so, and the same command goes on.
    """
    good = ("storage", "cannot write", "cannot read", "it does not start", "no Ray cluster there", "times in a row")
    return any(reason in text for reason in good)


def count_left(this: Round) -> None:
    """What the job left: processes of its own Ray 20 s later, and files in its folder for temporary ones."""
    left: list[psutil.Process] = []
    if this.kind not in CLUSTERED:
        end = time.monotonic() + 20
        while (left := rays(this)) and time.monotonic() < end:
            time.sleep(0.2)
        seen: collections.Counter[str] = collections.Counter()
        for process in left:
            with suppress(psutil.Error):
                stopped = "stopped " * (process.status() == psutil.STATUS_STOPPED)
                seen[f"{stopped}{process.name()}"] += 1
        this.left |= seen
        end_ray(this)
    this.left |= collections.Counter({"temporary files": len(list((this.folder / "tmp").iterdir()))})


def command(this: Round) -> list[str]:
    """What starts the job."""
    is_tiny = this.kind == "tiny"
    pipeline = str(this.folder.parent / "cascade" / "pipeline.yaml") if is_tiny else "chaos.yaml"
    address = "" if this.head is None else this.head.address
    code = "" if is_tiny else str(HERE / "chaos_stages.py")
    return [sys.executable, str(HERE / "chaos_job.py"), "prompts.parquet", this.out, pipeline, this.form, address, code]


def environment(this: Round) -> dict[str, str]:
    """The job's, by which its processes are known."""
    (this.folder / "tmp").mkdir(exist_ok=True)
    own = {chaos_stages.FOLDER: str(this.folder), "RAY_TMPDIR": str(this.short), "TMPDIR": str(this.folder / "tmp")}
    return os.environ | own


def undisturbed(folder: Path, world: str, quick: bool, log: Path) -> dict[str, str]:
    """Frames' digests by id, of a job that nothing happened to; those of stages that only draw are kept by the log."""
    known, kind = log.with_suffix(".frames.json"), "nodes"
    folder.mkdir()
    if world == "tiny":
        from show1_ray.show1.random import write_tiny_cascade

        kind, cascade = world, folder.parent / "cascade"
        cascade.mkdir()
        write_tiny_cascade(cascade).rename(cascade / "pipeline.yaml")
    elif known.exists():
        return dict(json.loads(known.read_text()))
    clips = QUICK_CLIPS if quick else CLIPS[kind]
    this = Round(kind, "mp4", folder, str(folder / "out"), random.Random(0), clips, 0, quick)
    write_manifest(folder, this.clips, 0)
    subprocess.run(command(this), env=environment(this), cwd=folder, check=True, capture_output=True)
    found = {name: digest(video) for name, video in videos(this)}
    if kind != world:
        known.write_text(json.dumps(found))
    clean_up(this)
    return found


@contextmanager
def s3_server() -> Iterator[int]:
    """moto's S3 server in a process of its own; gives its port."""
    source = (
        "import logging, time\nfrom moto.server import ThreadedMotoServer\n"
        "logging.getLogger('werkzeug').setLevel(logging.ERROR)\n"
        "s = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)\ns.start()\n"
        "print(s.get_host_and_port()[1], flush=True)\ntime.sleep(10**6)"
    )
    process = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()


# Told.


def read_log(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def describe(one: dict[str, Any]) -> str:
    faults, exits = sum(one["faults"].values()), {str(code): count for code, count in one["exits"].items()}
    said = f"{one['kind']:8}{one['form']:12}{faults:4} faults, exits {exits}, left {dict(one['left'])}"
    return "\n    ".join([f"{said}, {one['seconds']} s", *one["wrong"]])


def counted(rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without those that somebody has put aside: with `aside` in the log, which says why."""
    return [one for one in rounds if "aside" not in one]


def added(rounds: list[dict[str, Any]], name: str) -> collections.Counter[str]:
    return sum((collections.Counter(one[name]) for one in rounds), collections.Counter())


def table(rounds: list[dict[str, Any]]) -> str:
    """What was done, and what happened. Rounds that are put aside count for nothing: they are told below."""
    aside, rounds = [one for one in rounds if "aside" in one], counted(rounds)
    faults, exits = added(rounds, "faults"), added(rounds, "exits")
    wrong = sum(bool(one["wrong"]) for one in rounds)
    clips, starts = sum(one["clips"] for one in rounds), exits.total()
    lines = [f"{faults.total()} faults over {len(rounds)} jobs, {starts} starts, {clips} clips: {wrong} went wrong", ""]
    lines += [f"{name:32}{count:6}" for name, count in sorted(faults.items())]
    lines += ["", f"{'round':8}{'form':12}{'jobs':>8}{'clips':>8}{'faults':>8}{'starts':>8}{'wrong':>8}"]
    for kind, form in sorted({(one["kind"], one["form"]) for one in rounds}):
        of = [one for one in rounds if (one["kind"], one["form"]) == (kind, form)]
        counts = [len(of), sum(one["clips"] for one in of), added(of, "faults").total(), added(of, "exits").total()]
        counts.append(sum(bool(one["wrong"]) for one in of))
        lines.append(f"{kind:8}{form:12}" + "".join(f"{number:8}" for number in counts))
    lines += ["", "exit codes: " + ", ".join(f"{code}: {n}" for code, n in sorted(exits.items()))]
    left = {name: max(one["left"].get(name, 0) for one in rounds) for name in sorted(added(rounds, "left"))}
    quietly = added(rounds, "exits")["1"]
    lines += [f"jobs that Ray itself ended when its raylet was killed (exit code 1, no line): {quietly}"] * bool(
        quietly
    )
    lines += ["left by a job, at most: " + (", ".join(f"{n} {name}" for name, n in left.items() if n) or "nothing")]
    lines += [text for one in rounds for text in one["wrong"]]
    if aside:
        faults = added(aside, "faults")
        lines += ["", f"Not counted: {len(aside)} rounds with {faults.total()} faults, put aside:"]
        lines += sorted({f"  {one['aside']}" for one in aside})
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
