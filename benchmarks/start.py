"""How soon a job begins: seconds from the command to the end of the first batch of a one-clip job.

    python benchmarks/start.py [--against CHECKOUT] [--repeats N] [--pipeline nano] [--gpus 1]

The command is `show1-ray render`, with a Ray of its own on this machine. With `--against`, another checkout renders the
same manifest by turns with this one, so that both see the same machine. Medians, and their ratio where there are two.
Also told: when the first station was up. What comes after the first batch is stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pipeline", default="nano")
    parser.add_argument("--gpus", default="1", help="stations")
    options = parser.parse_args()
    checkouts = {"this": HERE, **({"against": options.against.resolve()} if options.against else {})}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in checkouts}
    for repeat in range(1 + options.repeats):  # the first one, which reads libraries from the disk, does not count
        for name, checkout in checkouts.items():
            seconds = first_batch(checkout, options.pipeline, options.gpus)
            if repeat:
                found[name].append(seconds)
                print(f"{name}: station up after {seconds[0]:.2f} s, first batch after {seconds[1]:.2f} s", flush=True)
    medians = {name: statistics.median(first for _, first in runs) for name, runs in found.items()}
    print(json.dumps({"repeats": options.repeats, **{name: round(value, 2) for name, value in medians.items()}}))
    if options.against:
        print(f"ratio: {medians['this'] / medians['against']:.3f}")


def first_batch(checkout: Path, pipeline: str, gpus: str) -> tuple[float, float]:
    """Seconds until the first station is up, and until the first batch has ended.

    Raises:
        SystemExit: the job ended before.
    """
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "one.jsonl"
        manifest.write_text(json.dumps({"prompt": "a red circle moving left"}) + "\n")
        command = [sys.executable, "-m", "show1_ray", "render", str(manifest), "--out", str(Path(folder) / "out")]
        command += ["--pipeline", pipeline, "--gpus", gpus, "--log", "json"]
        environment = {**os.environ, "PYTHONPATH": str(checkout)}
        environment.pop("RAY_ADDRESS", None)
        begin, up = time.monotonic(), float("nan")
        with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as job:
            assert job.stderr is not None
            said = []
            for line in job.stderr:
                said.append(line)
                event = json.loads(line)["event"] if line.startswith("{") else None
                if event == "station up" and up != up:  # not known yet
                    up = time.monotonic() - begin
                elif event == "batch":
                    seconds = time.monotonic() - begin
                    stop(job)
                    return up, seconds
    raise SystemExit(f"{checkout}: the job ended before its first batch:\n{''.join(said)}")


def stop(job: subprocess.Popen[str]) -> None:
    """Interrupts a job, at once, and waits until it and its Ray are gone."""
    job.send_signal(signal.SIGINT)
    assert job.stderr is not None
    for line in job.stderr:
        if "once more" in line:
            job.send_signal(signal.SIGINT)


if __name__ == "__main__":
    main()
