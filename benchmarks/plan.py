"""What `plan` predicts for a job on this machine's CPU, and what `render` then takes.

    python benchmarks/plan.py [--pipeline nano] [--clips 24] [--stations 2]

The pipeline is profiled (one thread, other cores idle), the job is planned from that profile, and rendered by the
command line in a process of its own. Both figures are of everything between the command and its end. What other
processes take of the cores meanwhile is printed too: the comparison is meant for a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from show1_ray.pipeline import Pipeline
from show1_ray.planning.estimate import estimate
from show1_ray.planning.profile import CPU, measure
from show1_ray.planning.tables import plan_report, profile_report

WORLD = [(colour, shape) for colour in ("red", "green", "blue", "white") for shape in ("circle", "square", "triangle")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", default="nano")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--stations", type=int, default=2)
    options = parser.parse_args()
    console = Console(width=110)
    pipeline = Pipeline.load(options.pipeline)
    profile = measure(pipeline, CPU)
    plan = estimate(pipeline, options.clips, options.stations, CPU, profile=profile)
    for part in (*profile_report(profile), "", *plan_report(plan), ""):
        console.print(part, highlight=False, markup=False)
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_manifest(Path(folder), options.clips)
        with Others() as others:
            seconds, summary = render(manifest, f"{folder}/out", options.pipeline, options.stations)
    predicted = plan.asked.hours * 3600
    cores = (os.cpu_count() or 1) * seconds
    console.print(
        f"{summary['rendered']} clips on {options.stations} stations: predicted {predicted:.1f} s, "
        f"measured {seconds:.1f} s: {predicted / seconds:.2f} of it\n"
        f"other processes took {others.seconds:.0f} of {cores:.0f} core-seconds meanwhile; "
        f"in proportion to what they left, {predicted / (seconds * (1 - others.seconds / cores)):.2f} of it",
        highlight=False,
    )


class Others:
    """Core-seconds that processes of other POSIX sessions take while the context lasts. Linux only."""

    def __enter__(self) -> Others:
        self.seconds = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        before = cpu_seconds()
        while not self._ended.wait(2.0):
            now = cpu_seconds()
            self.seconds += sum(seconds - before.get(process, 0.0) for process, seconds in now.items())
            before = now


def cpu_seconds() -> dict[int, float]:
    """CPU time so far of each process of another POSIX session."""
    tick, own = os.sysconf("SC_CLK_TCK"), os.getsid(0)
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()  # from the third on; see proc(5)
        except OSError:  # it has ended
            continue
        if int(fields[3]) != own:
            found[int(folder.name)] = (int(fields[11]) + int(fields[12])) / tick
    return found


def write_manifest(folder: Path, clips: int) -> str:
    pairs = (WORLD[i % len(WORLD)] for i in range(clips))
    prompts = [f"a {colour} {shape} moving left on a black background" for colour, shape in pairs]
    path = folder / "prompts.parquet"
    pq.write_table(pa.table({"prompt": prompts, "seed": list(range(clips))}), path)
    return str(path)


def render(manifest: str, out: str, pipeline: str, stations: int) -> tuple[float, dict[str, object]]:
    """Seconds of the whole command, and its summary."""
    command = [sys.executable, "-m", "show1_ray", "render", manifest, "--out", out, "--pipeline", pipeline]
    begin = time.monotonic()
    answer = subprocess.run([*command, "--gpus", str(stations), "--json"], check=True, stdout=subprocess.PIPE)
    return time.monotonic() - begin, json.loads(answer.stdout)


if __name__ == "__main__":
    main()
