"""What shortcuts cost: renders the same prompts and seeds with two pipelines, and compares them clip by clip.

python benchmarks/fast.py [--exact nano] [--fast nano-fast] [--count 400] [--seed 1] [--out fast.jsonl]

Each attribute's difference is in points of 100, with its 95 % interval over clips; "worse" and "better" count the
clips that changed. PSNR is between the two 8-bit clips. With `--out`, each pair is written as it is done, and the same
command again goes on from there. Operations are counted on the meta device; with `--count 0` nothing is rendered and
they alone are printed, which needs no weights: `--exact show1-demo --fast show1-fast --count 0`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from show1_ray.clip import Clip
from show1_ray.errors import UserError
from show1_ray.pipeline import Pipeline
from show1_ray.planning.costs import count_stages
from show1_ray.show1.cascade import load_stages, run_stages
from training.measure import ATTRIBUTES, sample_prompts, score

GOAL = -2.0
"""Points that no attribute may lose."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exact", default="nano", help="a pipeline's name or file")
    parser.add_argument("--fast", default="nano-fast", help="a pipeline's name or file")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="STAGE.KEY=VALUE")
    parser.add_argument("--out", type=Path, help="JSON lines: what is compared, then a pair a line")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    exact, fast = Pipeline.load(options.exact), Pipeline.load(options.fast, options.overrides)
    try:
        if options.count:
            print_comparison(exact, fast, list(compare(exact, fast, options.count, options.seed, options.out)))
        print_operations(exact, fast)
    except UserError as error:
        parser.error(str(error))


def compare(
    exact: Pipeline, fast: Pipeline, count: int, seed: int, out: Path | None = None
) -> Iterator[dict[str, Any]]:
    """Pairs of clips: for each pipeline seconds and what is right, and the PSNR between the two.

    Raises:
        UserError: `out` has pairs of other pipelines or another seed.
    """
    head = {"exact": exact.resolved().recipe_hash(), "fast": fast.resolved().recipe_hash(), "seed": seed}
    done = known_pairs(out, head) if out else []
    yield from done[:count]
    if len(done) >= count:
        return
    stages = {"exact": load_stages(exact), "fast": load_stages(fast)}
    for i, (scene, text) in list(enumerate(sample_prompts(count, seed)))[len(done) :]:
        clip = Clip(id=str(i), prompt=text, seed=1_000_000 * seed + i)  # as benchmarks/quality.py has them
        videos: dict[str, Tensor] = {}
        pair: dict[str, Any] = {}
        for name, loaded in stages.items():
            begin = time.perf_counter()
            videos[name] = run_stages(loaded, [clip])[0]
            seconds = time.perf_counter() - begin
            pair[name] = {"seconds": seconds, "right": score(scene, videos[name].numpy()).right}
        pair["psnr"] = psnr(videos["fast"], videos["exact"])
        if out:
            with out.open("a") as file:
                file.write(json.dumps(pair) + "\n")
        yield pair


def known_pairs(out: Path, head: dict[str, Any]) -> list[dict[str, Any]]:
    """The pairs of an earlier run; begins the file if there was none."""
    if not out.exists():
        out.write_text(json.dumps(head) + "\n")
    first, *lines = out.read_text().splitlines()
    if json.loads(first) != head:
        raise UserError(f"{out}: it has pairs of other pipelines or another seed: {first}")
    return [json.loads(line) for line in lines]


def psnr(video: Tensor, other: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of 8-bit clips; equal ones have 100."""
    error = (video.float() - other.float()).square().mean().item() / 255**2
    return -10 * math.log10(max(error, 1e-10))


def paired_difference(pairs: Sequence[dict[str, Any]], attribute: str) -> dict[str, float]:
    """One attribute: both shares, their difference in points with its 95 % interval, clips that changed."""
    right = np.array([[sum(pair[name]["right"][attribute]) for name in ("exact", "fast")] for pair in pairs])
    values = np.array([len(pair["exact"]["right"][attribute]) for pair in pairs])
    changes: NDArray[np.int64] = right[:, 1] - right[:, 0]
    difference = changes.sum() / values.sum()
    # Shapes of one clip are no independent draws: the spread is that of clips.
    spread = 1.96 * math.sqrt(np.square(changes - difference * values).sum()) / values.sum()
    exact, fast = right.sum(axis=0) / values.sum()
    return {
        "exact": 100 * exact,
        "fast": 100 * fast,
        "points": 100 * difference,
        "low": 100 * (difference - spread),
        "high": 100 * (difference + spread),
        "worse": int((changes < 0).sum()),
        "better": int((changes > 0).sum()),
    }


def print_comparison(exact: Pipeline, fast: Pipeline, pairs: Sequence[dict[str, Any]]) -> None:
    print(f"{fast.name} against {exact.name}: {len(pairs)} clips, the same prompts and seeds")
    print(f"{'':12}{exact.name:>12}{fast.name:>12}{'points':>10}{'95 %':>18}{'worse':>8}{'better':>8}")
    found = {attribute: paired_difference(pairs, attribute) for attribute in ATTRIBUTES}
    for attribute, row in found.items():
        interval = f"[{row['low']:+.1f}, {row['high']:+.1f}]"
        shares = f"{row['exact']:11.1f}%{row['fast']:11.1f}%"
        print(f"{attribute:12}{shares}{row['points']:+10.1f}{interval:>18}{row['worse']:8}{row['better']:8}")
    ratios = [pair["psnr"] for pair in pairs]
    print(f"PSNR between the two: median {np.median(ratios):.2f} dB, 10th percentile {np.quantile(ratios, 0.1):.2f} dB")
    for name, pipeline in (("exact", exact), ("fast", fast)):
        seconds = np.median([pair[name]["seconds"] for pair in pairs])
        print(f"{pipeline.name}: median {seconds:.2f} s a clip")
    lost = [attribute for attribute, row in found.items() if row["points"] < GOAL]
    print(f"more than {-GOAL:g} points lost: {', '.join(lost) or 'nowhere'}")


def print_operations(exact: Pipeline, fast: Pipeline) -> None:
    """TFLOP a clip of each stage and of all."""
    print(f"{'TFLOP a clip':24}{exact.name:>12}{fast.name:>12}{'share':>9}")
    before, after = (
        {name: count.operations / 1e12 for name, count in count_stages(pipeline).items()} for pipeline in (exact, fast)
    )
    for counts in (before, after):
        counts["all"] = sum(counts.values())
    for name in before:
        print(f"{name:24}{before[name]:12.5g}{after[name]:12.5g}{100 * after[name] / before[name]:8.1f}%")


if __name__ == "__main__":
    main()
