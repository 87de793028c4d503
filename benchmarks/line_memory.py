"""Memory of a long job: clips whose tensors have their real sizes, through a small object store.

2,000 clips of 25 MB go through stages that hardly take time, and an object store of 2 GB. While it runs, it prints
what the store holds, what Ray has spilled to disk, and the driver's resident memory; in the end, whether nothing was
spilled and whether memory was flat after the first tenth of the job.

    python benchmarks/line_memory.py
    python benchmarks/line_memory.py --clips 200
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time

import psutil
import ray
from line import BYTES, GPUS, REGIMES, STORE, specs
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from show1_ray.clip import Clip
from show1_ray.line.events import ClipDone
from show1_ray.line.line import Line
from show1_ray.line.spec import LineSettings

UNIT = 0.002
"""Seconds of one unit of cost."""
FLAT = 50 * 10**6
"""Bytes by which the driver may grow after the first tenth of the job."""


def store() -> tuple[int, int]:
    """Bytes that the object store holds, and bytes that Ray has ever spilled."""
    stats = get_memory_info_reply(get_state_from_address(None)).store_stats
    return stats.object_store_bytes_used, stats.spilled_bytes_total


def main() -> int:
    """Print the course of memory; 1 if anything was spilled, or memory grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=2000)
    count = parser.parse_args().clips
    driver = psutil.Process()
    resident, held, spilled = [], 0, 0
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=GPUS,
            num_gpus=GPUS,
            object_store_memory=STORE,
            log_to_driver=False,
            _temp_dir=folder,
        )
        settings = LineSettings(stations=GPUS, gpus=True, station_memory=len(BYTES), store_bytes=STORE * 9 // 10)
        print(f"{count} clips, {sum(BYTES.values()) / 1e6:.0f} MB each, {STORE / 1e9:g} GB of object store")
        print("  clips    seconds   store MB   spilled MB   driver MB")
        with Line(specs(REGIMES[0], UNIT, {}), settings) as line:
            begin, done = time.monotonic(), 0
            for event in line.run(Clip(f"{number:06}", "a prompt", seed=number) for number in range(count)):
                if not isinstance(event, ClipDone):
                    continue
                done += 1
                if done % max(1, count // 20) == 0:
                    used, spilled = store()
                    held = max(held, used)
                    resident.append(driver.memory_info().rss)
                    seconds = time.monotonic() - begin
                    numbers = f"{used / 1e6:10.0f} {spilled / 1e6:12.0f} {resident[-1] / 1e6:11.0f}"
                    print(f"{done:7} {seconds:10.1f} {numbers}", flush=True)
        ray.shutdown()
    growth = resident[-1] - resident[len(resident) // 10]
    print(f"the store held {held / 1e6:.0f} MB at most, {spilled / 1e6:.0f} MB were spilled, ", end="")
    print(f"the driver grew by {growth / 1e6:.0f} MB after the first tenth")
    failed = spilled > 0 or growth > FLAT or done < count
    print("MISS" if failed else "pass")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
