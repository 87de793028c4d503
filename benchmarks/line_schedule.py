"""The schedule at the size of a large cluster, on the simulated clock: 1,000 GPUs, 100,000 clips, random costs.

Printed for each cascade: the job's time over its lower bound (see `lower_bound`), the share of station time that went
into batches, and the CPU time that a decision takes.

    python benchmarks/line_schedule.py
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time

from show1_ray.line.load import Assignment, StageLoad
from show1_ray.line.schedule import Schedule
from show1_ray.line.simulate import lower_bound, simulate

STATIONS, CLIPS, IN_FLIGHT = 1000, 100_000, 8
WITHIN, DECISION = 1.03, 1e-3


class Timed(Schedule):
    """Notes the CPU time of each decision."""

    seconds: list[float]

    def decide(self, now: float) -> Assignment | None:
        """See `Schedule.decide`."""
        begin = time.thread_time()
        assignment = super().decide(now)
        self.seconds.append(time.thread_time() - begin)
        return assignment


def cascade(seed: int) -> list[StageLoad]:
    """Five stages of .05 to 10 s a clip in batches of 1 to 8, up to 5 s to load, one stage a card."""
    source = random.Random(seed)
    return [
        StageLoad(
            f"stage{number}",
            batch_size=source.choice([1, 2, 4, 8]),
            seconds=source.uniform(0.05, 10),
            load_seconds=source.uniform(0, 5),
            swap_seconds=source.uniform(0, 1),
            memory=1,
            limit=IN_FLIGHT * STATIONS,
        )
        for number in range(5)
    ]


def main() -> int:
    """Print a line for each cascade; 1 if one misses a threshold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cascades", type=int, default=8)
    missed = 0
    print("seed   of bound   busy   most in flight   decisions   mean us   99 % below us")
    for seed in range(parser.parse_args().cascades):
        stages = cascade(seed)
        Timed.seconds = []
        done = simulate(stages, STATIONS, CLIPS, schedule_class=Timed)
        ratio = done.seconds / lower_bound(stages, STATIONS, CLIPS)
        mean = statistics.mean(Timed.seconds)
        high = sorted(Timed.seconds)[int(0.99 * len(Timed.seconds))]
        missed += ratio > WITHIN or high > DECISION
        numbers = f"{len(Timed.seconds):11} {mean * 1e6:9.1f} {high * 1e6:15.1f}"
        print(f"{seed:4} {ratio:10.4f} {done.busy_share():6.3f} {done.most_in_flight:16} {numbers}", flush=True)
    print("MISS" if missed else "pass")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
