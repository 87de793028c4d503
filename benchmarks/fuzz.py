"""Random manifests, pipeline files, datasets and command lines: those of `tests/fuzz_cases.py`, and more of them.

    python benchmarks/fuzz.py --cases 100000 --out benchmarks/results/fuzz.txt

Each case runs in this process, in a folder of its own, under a watchdog. What is counted: cases by kind and exit code,
and faults (a traceback, a hang, something written by a refusal, control characters in the output), which are shown and
end it with exit code 1.
"""

from __future__ import annotations

import argparse
import faulthandler
import platform
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests import fuzz_cases, fuzzing

BLOCK = 1000
"""Cases of one run of hypothesis, which keeps what it has tried."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first block")
    parser.add_argument("--out", type=Path, help="the table, too")
    options = parser.parse_args()
    began, counts, faults = time.monotonic(), Counter[tuple[str, str]](), []
    slowest = 0.0

    def run(case: fuzzing.Case) -> None:
        nonlocal slowest
        faulthandler.dump_traceback_later(3 * fuzzing.SECONDS, exit=True)  # what hangs in C hears no signal
        start = time.process_time()
        fault, code = fuzzing.tried(case)
        slowest = max(slowest, time.process_time() - start)
        counts[case.kind, code] += 1
        if fault:
            faults.append(fault)
            print(f"FAULT: {fault}\n{fuzzing.written(case)}", flush=True)

    for block in range(-(-options.cases // BLOCK)):
        size = min(BLOCK, options.cases - block * BLOCK)
        quiet = settings(
            max_examples=size,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        seed(options.seed + block)(quiet(given(fuzz_cases.cases)(run)))()
        print(f"{sum(counts.values())} cases, {len(faults)} faults, {time.monotonic() - began:.0f} s", flush=True)
    faulthandler.cancel_dump_traceback_later()

    lines = [
        f"$ python benchmarks/fuzz.py --cases {options.cases} --seed {options.seed}",
        f"Python {platform.python_version()}, {time.monotonic() - began:.0f} s; slowest case {slowest:.1f} s of CPU",
        *(f"{kind:10} exit code {code}: {count:6}" for (kind, code), count in sorted(counts.items())),
        f"{sum(counts.values())} cases, {len(faults)} faults",
    ]
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
