"""Which stage is pinned to which station, and how many clips may be in flight. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from show1_ray.line.spec import StageSpec

SWAP_SHARE = 0.05
"""In flight are as many clips as it takes for swaps to cost no more than this share of the work."""


@dataclass(frozen=True)
class Limits:
    """Clips in flight: `clips[s]` may be in stage `s` or beyond it; `bytes` is what they may hold in all."""

    clips: tuple[int, ...]
    bytes: int


def shares(work: Sequence[float], stations: int) -> list[float]:
    """Divide `stations` over the stages in proportion to their work (seconds)."""
    total = sum(work)
    return [stations * seconds / total if total else 0.0 for seconds in work]


def useful(work: float, clips: int, cost: float) -> int:
    """How many stations can share what is left without more than half of their time going into getting ready.

    Args:
        work: seconds of work that is left.
        clips: how many there are; no two stations share one.
        cost: seconds until a new station has loaded a stage and done a clip.
    """
    return max(1, min(clips, math.ceil(work / cost) if cost > 0 else clips))


def stations_of_stages(
    wanted: Sequence[int], have: Sequence[int], cpus: Sequence[int], free: float, kept: float
) -> list[int]:
    """How many stations stages get that have their own, on CPUs; one each, whatever there is.

    Args:
        wanted: by stage, as many as its work can use.
        have: as many as it has.
        cpus: of one of them.
        free: CPUs that nobody has taken.
        kept: CPUs of those that are to stay free, for what lands clips.
    """
    sizes = [max(1, min(want, has)) for want, has in zip(wanted, have, strict=True)]
    left = free - kept - sum(cpu for cpu, has in zip(cpus, have, strict=True) if not has)
    while True:
        short = [at for at, size in enumerate(sizes) if size < wanted[at] and (size < have[at] or cpus[at] <= left)]
        if not short:
            return sizes
        next_one = min(short, key=lambda at: sizes[at] / wanted[at])
        left -= cpus[next_one]
        sizes[next_one] += 1


def pin(seconds: Sequence[float], memory: Sequence[int], stations: Sequence[int]) -> list[tuple[int, ...]]:
    """The stages (numbers, ascending) of each station, given the stations' memory in bytes.

    A station with room for every stage gets every stage. Otherwise each stage gets a station, the slowest
    ones get more, and leftover memory is filled the same way. If memory is too small for that, stations have
    more pins than they can hold at once, and swap.
    """
    if all(sum(memory) <= room for room in stations):
        return [tuple(range(len(seconds)))] * len(stations)
    pins: list[set[int]] = [set() for _ in stations]
    holders = [0] * len(seconds)

    def place(stage: int, station: int) -> None:
        pins[station].add(stage)
        holders[stage] += 1

    def used(station: int) -> int:
        return sum(memory[stage] for stage in pins[station])

    def slowness(stage: int) -> float:
        return seconds[stage] / holders[stage] if holders[stage] else math.inf

    def burden(station: int) -> float:
        return sum(seconds[stage] / holders[stage] for stage in pins[station])

    for stage in sorted(range(len(seconds)), key=lambda stage: -seconds[stage]):
        able = [s for s in range(len(stations)) if memory[stage] <= stations[s]]
        roomy = [s for s in able if used(s) + memory[stage] <= stations[s]]
        if not able:
            raise ValueError(f"stage {stage} needs {memory[stage]} bytes, more than any station has")
        place(stage, min(roomy or able, key=lambda s: (burden(s), s)))
    for station in sorted(range(len(stations)), key=lambda s: burden(s)):
        while True:
            fitting = [
                stage
                for stage in range(len(seconds))
                if stage not in pins[station] and used(station) + memory[stage] <= stations[station]
            ]
            if not fitting:
                break
            place(max(fitting, key=slowness), station)
    return [tuple(sorted(stages)) for stages in pins]


def footprint(stages: Sequence[StageSpec], results: Collection[str] = ()) -> list[tuple[int, int]]:
    """Bytes that a clip holds in the object store while each stage runs, and after it.

    A stage's output bytes count until the last stage that takes one of its tensors; to the end, if one is a result.
    """
    takes = [set(stage.takes) for stage in stages]
    takes[-1].update(results)
    last_use = [max((at for at, names in enumerate(takes) if names & set(given.gives)), default=-1) for given in stages]
    sizes = []
    for index in range(len(stages)):
        during = sum(stages[g].output_bytes for g in range(index + 1) if g == index or last_use[g] >= index)
        after = sum(stages[g].output_bytes for g in range(index + 1) if last_use[g] > index)
        sizes.append((during, after))
    return sizes


def limits(stages: Sequence[StageSpec], stations: int, store_bytes: int, results: Collection[str] = ()) -> Limits:
    """How many clips may be in flight.

    `n` clips may be where clips are heavy (the first stage after which a clip holds more than an eighth of
    what it holds at most, and all stages behind it), and as many again before. `n` is what the store allows,
    but no more than keeps every station in work and makes swaps cheap, and no less than a batch.
    """
    sizes = footprint(stages, results)
    peak = max(1, max(during for during, _ in sizes))
    heavy = next((index for index, (_, after) in enumerate(sizes) if after > peak / 8), len(stages) - 1)
    light = max((after for _, after in sizes[:heavy]), default=0)
    on_stations = [stage for stage in stages if stage.on == "station"]
    work = sum(stage.seconds for stage in on_stations)
    for_swaps = sum(stage.load_seconds for stage in on_stations) * stations / (SWAP_SHARE * work) if work else 0
    widest = max(stage.batch_size for stage in stages)
    useful = max(4 * stations * widest, math.ceil(for_swaps), sum(stage.batch_size for stage in stages))
    clips = max(widest, min(store_bytes // (peak + light), useful))
    counts = [clips * 2 if index < heavy else clips for index in range(len(stages))]
    return Limits(tuple(counts), clips * (peak + light))
