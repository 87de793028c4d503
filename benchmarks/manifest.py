"""A manifest of 1,000,000 rows: seconds until the first batch starts, and how much resident memory grows.

    python benchmarks/manifest.py [--rows N] [--format parquet|csv|jsonl] [--without-ids]

The first batch is that of a line on this machine whose one stage loads nothing: the figure is the manifest's and
Ray's start, not that of loading networks.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from show1_ray.line.spec import StageObject


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--format", choices=["parquet", "csv", "jsonl"], default="parquet")
    parser.add_argument("--without-ids", action="store_true", help="leave ids and seeds to be derived")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"manifest.{options.format}"
        write(path, options.rows, with_ids=not options.without_ids)
        print(json.dumps(measure(path) | {"seconds_to_first_batch": round(first_batch(path), 2)}))


def write(path: Path, rows: int, with_ids: bool, at_once: int = 50_000) -> None:
    """Write a manifest with prompts of about 90 characters, in a process of its own so that its memory goes with it."""
    import multiprocessing

    process = multiprocessing.get_context("spawn").Process(target=_write, args=(path, rows, with_ids, at_once))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"the manifest could not be written (exit code {process.exitcode})")


def _write(path: Path, rows: int, with_ids: bool, at_once: int) -> None:
    def table(first: int) -> pa.Table:
        numbers = range(first, min(first + at_once, rows))
        prompt = "a red circle moving left and a blue square growing on a navy background, number {:07}"
        columns: dict[str, list] = {"prompt": [prompt.format(n) for n in numbers]}
        if with_ids:
            columns |= {"id": [f"clip-{n:07}" for n in numbers], "seed": list(numbers)}
        return pa.table(columns | {"split": ["train"] * len(numbers)})

    tables = (table(first) for first in range(0, rows, at_once))
    if path.suffix == ".parquet":
        first = next(tables)
        # One row group, as a writer with default settings makes it: the hardest case for flat memory.
        pq.write_table(pa.concat_tables([first, *tables]), path, row_group_size=rows)
        return
    with path.open("wb") as file:
        for number, part in enumerate(tables):
            if path.suffix == ".csv":
                pyarrow.csv.write_csv(part, file, pyarrow.csv.WriteOptions(include_header=number == 0))
            else:
                file.writelines(json.dumps(row).encode() + b"\n" for row in part.to_pylist())


def measure(path: Path) -> dict[str, float]:
    from show1_ray.manifest import open_manifest

    before = resident_mb("VmRSS")
    start = time.perf_counter()
    manifest = open_manifest(str(path))
    entries = iter(manifest)
    next(entries)
    first = time.perf_counter() - start
    to_first = resident_mb("VmHWM") - before
    count = 1 + sum(1 for _ in entries)
    assert count == manifest.count
    return {
        "rows": manifest.count,
        "seconds_to_first_clip": round(first, 2),
        "seconds_to_last_clip": round(time.perf_counter() - start, 2),
        "memory_growth_mb_to_first_clip": round(to_first),
        "memory_growth_mb": round(resident_mb("VmHWM") - before),
    }


def first_batch(path: Path) -> float:
    """Seconds from the command to the first batch on a station: the manifest is checked, Ray and two stations start."""
    import ray

    from show1_ray.line.events import StageDone
    from show1_ray.line.line import Line
    from show1_ray.line.spec import LineSettings, StageSpec
    from show1_ray.manifest import open_manifest

    def build(device: str) -> StageObject:
        return lambda clips, tensors: [{"done": True} for _ in clips]

    begin = time.time()
    manifest = open_manifest(str(path))
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        with Line([StageSpec("nothing", build, gives=("done",), batch_size=4)], LineSettings(stations=2)) as line:
            for event in line.run(entry.clip for entry in manifest):
                if isinstance(event, StageDone):
                    return event.started - begin
    finally:
        ray.shutdown()
    raise SystemExit("no batch was run")


def resident_mb(key: str) -> float:
    """VmRSS: resident memory now; VmHWM: at its highest so far."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{key}:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
