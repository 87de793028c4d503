"""A manifest whose rows do not all share batches: in mixed order beside the same rows sorted.

The stages of `benchmarks/line.py`, in batches of 4. Each clip has a key, drawn at random (another number of frames,
another size, …), and only clips of equal keys share a batch, in every stage. Printed is the share of the ideal
throughput where all clips are alike, where the rows are sorted by key, and where they are mixed; and the clips in a
batch of super-resolution, mixed, which is what many keys cost on a GPU. (What sleeps takes as long for a clip in any
batch.) Required: mixed at least .90 of sorted.

    python benchmarks/mixed.py                  both, five minutes
    python benchmarks/mixed.py --simulate       on the simulated clock only, seconds
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Hashable, Sequence

import ray
from line import BATCH, COSTS, GPUS, REGIMES, STORE, Regime, specs

from show1_ray.clip import Clip
from show1_ray.line.events import ClipDone, StageDone
from show1_ray.line.line import Line
from show1_ray.line.load import load_of
from show1_ray.line.pinning import limits
from show1_ray.line.simulate import simulate
from show1_ray.line.spec import LineSettings, Order

REQUIRED = 0.90
UNIT, STATIONS, CLIPS, KEYS = 0.1, 4, 120, (4, 16)
"""Of the real runs: seconds of one unit of cost, simulated GPUs, clips, and how many keys."""
SIMULATED = ((160, (2, 4, 16, 64)), (10_000, (2, 4, 16, 64, 1000, 10_000)))
"""Clips, and how many keys; 10,000 clips are more than the line looks ahead."""

Run = tuple[float, float]
"""The share of the ideal throughput, and the clips in a batch of super-resolution."""


def draw(clips: int, keys: int) -> list[int]:
    """A key for each row, the same in every run."""
    source = random.Random(keys)
    return [source.randrange(keys) for _ in range(clips)]


def simulated(regime: Regime, keys: Sequence[Hashable]) -> Run:
    """On the simulated clock."""
    stages = specs(regime, 1.0, {})
    bounds = limits(stages, GPUS, STORE * 9 // 10).clips
    loads = [load_of(spec, bound) for spec, bound in zip(stages, bounds, strict=True)]
    actual = [*COSTS.values(), 0.0]
    card = (regime.stages_a_card, regime.stages_in_host_memory)
    done = simulate(loads, GPUS, len(keys), *card, actual_seconds=actual, keys=keys)
    batch = len(keys) / done.batches_of[list(COSTS).index("sr")]
    return sum(COSTS.values()) * len(keys) / GPUS / done.seconds, batch


def real(regime: Regime, keys: Sequence[Hashable]) -> Run:
    """On real Ray, stages that sleep; from the moment that the stations are up."""
    settings = LineSettings(
        stations=STATIONS,
        gpus=True,
        station_memory=regime.stages_a_card,
        host_memory=regime.stages_in_host_memory,
        store_bytes=STORE * 9 // 10,
    )
    batches = done = 0
    with Line(specs(regime, UNIT, {}), settings) as line:
        line.wait_for_stations()
        begin = time.monotonic()
        clips = ((Clip(f"{at:06}", "a prompt", seed=at), dict.fromkeys(COSTS, key)) for at, key in enumerate(keys))
        for event in line.run((Order(clip, keys=alike) for clip, alike in clips), total=len(keys)):
            batches += isinstance(event, StageDone) and event.stage == "sr"
            done += isinstance(event, ClipDone)
        seconds = time.monotonic() - begin
    assert done == len(keys)
    return sum(COSTS.values()) * UNIT * len(keys) / STATIONS / seconds, len(keys) / batches


def compare(what: str, run: object, regime: Regime, clips: int, keys: int) -> bool:
    """Print a line; whether it falls short."""
    assert callable(run)
    mixed = draw(clips, keys)
    alike, in_order, in_mixed = run(regime, [0] * clips), run(regime, sorted(mixed)), run(regime, mixed)
    ratio = in_mixed[0] / in_order[0]
    numbers = f"{alike[0]:7.3f} {in_order[0]:7.3f} {in_mixed[0]:7.3f} {ratio:9.3f} {in_mixed[1]:13.2f}"
    print(f"{what:10} {regime.name:9} {clips:6} {keys:6} {numbers}", flush=True)
    return ratio < REQUIRED


def main() -> int:
    """Print the table; 1 if mixed order falls short anywhere."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulate", action="store_true", help="only on the simulated clock")
    options = parser.parse_args()
    print(f"batches of {BATCH}; {GPUS} GPUs simulated, {STATIONS} on Ray")
    print("clock      regime     clips   keys   alike  sorted   mixed  of sorted  clips a batch")
    missed = 0
    for clips, several in SIMULATED:
        for regime in REGIMES:
            for keys in several:
                missed += compare("simulated", simulated, regime, clips, keys)
    if not options.simulate:
        with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
            ray.init(
                address="local",
                include_dashboard=False,
                num_cpus=STATIONS,
                num_gpus=STATIONS,
                object_store_memory=STORE,
                log_to_driver=False,
                _temp_dir=folder,
            )
            for keys in KEYS:
                missed += compare("Ray", real, REGIMES[1], CLIPS, keys)
            ray.shutdown()
    print("MISS" if missed else "pass")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
