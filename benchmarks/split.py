"""A pipeline of diffusers whole, cut in three, and with its experts apart: clips an hour on cards of 24 and 48 GB.

Stages that only sleep, on cards that are only counted: bytes are those of the published weights, seconds the
operations that `show1-ray plan` counts over 35 % of the card's rate (the fourth model: of 4 steps as distilled weights
take). Weights come from host memory at 10 GB/s, from disk at 1 GB/s. Arrangements:

- whole: all networks on each card, if it holds them;
- offloaded: whole, and each network comes onto the card when its turn is (`enable_model_cpu_offload`), for each clip;
- by layers: whole, and each layer comes when its turn is (`enable_sequential_cpu_offload`): each step waits for all of
  a transformer's bytes;
- split: text, denoising and decoding are stages of the line; experts: both transformers, too. The line keeps what a
  card holds, and moves stages between host memory and cards where that pays.

"cannot" is where a card does not hold the largest part. The second table has 32 GB of host memory a card: weights that
do not fit there are read from disk again.

    python benchmarks/split.py             the schedule on the simulated clock, seconds
    python benchmarks/split.py --sleep     rows of less than 20 s with sleeping stages on real Ray, 200 times as fast
"""

from __future__ import annotations

import argparse
import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from show1_ray.clip import Clip
from show1_ray.line.load import load_of
from show1_ray.line.pinning import limits
from show1_ray.line.service import Service
from show1_ray.line.simulate import simulate
from show1_ray.line.spec import LineSettings, StageSpec, Values

GB = 10**9
CARDS = 4
CLIPS = 64
HOST_RATE = 10 * GB
DISK_RATE = 1 * GB
EFFICIENCY = 0.35
STORE = 20 * GB
HOSTS = (1 << 60, 32 * GB)
"""Bytes of host memory that a card's process may keep weights in."""
LONGEST = 20
"""Seconds of a row with sleeping stages, at most."""
SCALE = 200
"""How many times faster sleeping stages are than what they stand for."""


@dataclass(frozen=True)
class Card:
    """A kind of GPU: bytes for stages, operations a second in bf16."""

    name: str
    room: int
    rate: float


@dataclass(frozen=True)
class Part:
    """Of a pipeline: operations a clip, bytes of its weights, of a working set, and of what it gives."""

    name: str
    operations: float
    weights: int
    working: int
    gives: int = 10**6
    passes: int = 1
    """How often its layers are walked for a clip."""

    @property
    def memory(self) -> int:
        """Bytes on a card."""
        return self.weights + self.working


@dataclass(frozen=True)
class Model:
    """A pipeline; where `experts`, its parts in the middle are two transformers that a plain split keeps together."""

    name: str
    parts: tuple[Part, ...]
    experts: bool = False


def model(
    name: str, text: float, denoise: Sequence[float], weights: float, decode: float, working: float, steps: int
) -> Model:
    """Operations in PFLOP, bytes in GB; `steps`: passes of each transformer."""
    names = ("high_noise", "low_noise") if len(denoise) > 1 else ("denoise",)
    middle = [
        Part(one, operations * 1e15, int(weights * GB), int(working * GB), 8 * 10**6, steps)
        for one, operations in zip(names, denoise, strict=True)
    ]
    first = Part("text", 0.01e15, int(text * GB), GB, 4 * 10**6)
    last = Part("decode", decode * 1e15, int(0.25 * GB), int(10 * GB), 97 * 10**6)
    return Model(name, (first, *middle, last), len(denoise) > 1)


AD = Card("24 GB (RTX 4090)", int(21.7 * 2**30), 165.2e12)
LS = Card("48 GB (L40S)", int(40.8 * 2**30), 362e12)
MODELS = (
    model("Wan 2.1 1.3B, 480p, 50 steps", 11.4, [28.3], 2.8, 0.28, 5, 100),
    model("LTX-Video 2B, 480p, 50 steps", 9.5, [3.4], 3.9, 0.05, 5, 100),
    model("Wan 2.2 A14B, 720p, 40 steps", 11.4, [170, 352], 28.6, 0.64, 8, 40),
    model("Wan 2.2 A14B, 720p, 4 steps without guidance", 11.4, [13, 13], 28.6, 0.64, 8, 2),
)


def moving(one: Model, host: int, passes: bool) -> float:
    """Seconds in which a clip's weights come onto the card: once each, or for each pass."""
    weights = sum(part.weights for part in one.parts)
    lacking = max(0, weights - host) / weights
    moved = sum(part.weights * (part.passes if passes else 1) for part in one.parts)
    return moved * (lacking / DISK_RATE + (1 - lacking) / HOST_RATE)


def arrangements(one: Model, card: Card, host: int) -> dict[str, list[StageSpec] | None]:
    """Stages of each arrangement; None: the card cannot hold them."""
    seconds = [part.operations / (card.rate * EFFICIENCY) for part in one.parts]
    total, weights = sum(seconds), sum(part.weights for part in one.parts)
    working = max(part.working for part in one.parts)
    moved, walked = moving(one, host, False), moving(one, host, True)
    last = one.parts[-1].gives
    found: dict[str, list[StageSpec] | None] = {
        "whole": [spec("whole", (), total, weights, working, last)] if weights + working <= card.room else None,
        "offloaded": None,
        "by layers": [spec("whole", (), total + walked, 0, working, last, loads=weights)],
    }
    if max(part.memory for part in one.parts) <= card.room:
        found["offloaded"] = [spec("whole", (), total + moved, 0, card.room, last, loads=weights)]
    found["split"] = line_of(joined(one), card)
    if one.experts:
        found["experts"] = line_of(one, card)
    return found


def joined(one: Model) -> Model:
    """With its experts in one stage."""
    if not one.experts:
        return one
    first, high, low, last = one.parts
    both = Part("denoise", high.operations + low.operations, high.weights + low.weights, high.working, high.gives)
    return Model(one.name, (first, both, last))


def line_of(one: Model, card: Card) -> list[StageSpec] | None:
    """The parts as stages of the line."""
    if max(part.memory for part in one.parts) > card.room:
        return None
    found: list[StageSpec] = []
    before: tuple[str, ...] = ()
    for part in one.parts:
        seconds = part.operations / (card.rate * EFFICIENCY)
        batch = 8 if part.name == "text" else 1
        found.append(spec(part.name, before, seconds, part.weights, part.working, part.gives, batch))
        before = (part.name,)
    return found


def spec(
    name: str,
    takes: tuple[str, ...],
    seconds: float,
    weights: int,
    working: int,
    gives: int,
    batch: int = 1,
    loads: int = 0,
) -> StageSpec:
    """A stage; `loads`: bytes that it reads from disk, where they do not stay on the card."""
    load, swap = (loads or weights) / DISK_RATE, weights / HOST_RATE
    return StageSpec(
        name,
        partial(Sleeper, name, seconds / SCALE, load / SCALE, swap / SCALE),
        takes=takes,
        gives=(name,),
        batch_size=batch,
        seconds=seconds,
        load_seconds=load,
        swap_seconds=swap,
        memory=weights + working,
        output_bytes=gives,
    )


def clips_an_hour(stages: list[StageSpec], card: Card, host: int) -> float:
    """On the simulated clock, start-up included."""
    bounds = limits(stages, CARDS, STORE).clips
    loads = [load_of(one, bound) for one, bound in zip(stages, bounds, strict=True)]
    return 3600 * CLIPS / simulate(loads, CARDS, CLIPS, card.room, host).seconds


class Sleeper:
    """A stage that only takes time."""

    def __init__(self, name: str, seconds: float, load: float, swap: float, device: str) -> None:
        self.name, self.seconds, self.swap = name, seconds, swap
        time.sleep(load)

    def to(self, device: str) -> None:
        """Coming back from host memory takes time."""
        if device != "cpu":
            time.sleep(self.swap)

    def __call__(self, clips: list[Clip], tensors: list[Values]) -> list[Values]:
        """Sleeps as long as the batch costs."""
        time.sleep(self.seconds * len(clips))
        return [{self.name: np.empty(10**5, np.uint8)} for _ in clips]


def slept(stages: list[StageSpec], card: Card, host: int) -> float:
    """Clips an hour with sleeping stages on real Ray, from stations that are up; scaled back."""
    from dataclasses import replace

    from line import follow_all  # of this folder

    fast = [
        replace(
            one,
            seconds=one.seconds / SCALE,
            load_seconds=one.load_seconds / SCALE,
            swap_seconds=one.swap_seconds / SCALE,
            output_bytes=10**5,
        )
        for one in stages
    ]
    end = StageSpec("land", lands, takes=fast[-1].gives, gives=("row",), seconds=0.01, on="cpu")
    settings = LineSettings(stations=CARDS, gpus=True, station_memory=card.room, host_memory=host, store_bytes=10**9)
    line = Service([*fast, end], settings, math.inf, lambda event: None, total=CLIPS)
    with line:
        line.warm.wait()
        begin = time.time()
        asyncio.run(follow_all(line, CLIPS))
        seconds = time.time() - begin
    if line.error is not None:
        raise line.error
    return 3600 * CLIPS / (seconds * SCALE)


def lands(device: str) -> Callable[[list[Clip], list[Values]], list[Values]]:
    """The end of the line."""
    return lambda clips, tensors: [{"row": 0} for _ in clips]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sleep", action="store_true")
    options = parser.parse_args()
    if options.sleep:
        import ray

        ray.init(address="local", num_cpus=2, num_gpus=CARDS, object_store_memory=10**9, log_to_driver=False)
    measure = slept if options.sleep else clips_an_hour
    columns = ("whole", "offloaded", "by layers", "split", "experts")
    for host in HOSTS[:1] if options.sleep else HOSTS:
        memory = "as much host memory as it takes" if host > 10**15 else f"{host // GB} GB of host memory a card"
        print(f"{CLIPS} clips on {CARDS} cards, {memory}: clips an hour" + (", sleeping" if options.sleep else ""))
        print(f"{'':62}" + "".join(f"{name:>11}" for name in columns))
        for one in MODELS:
            for card in (AD, LS):
                found = arrangements(one, card, host)
                cells = [cell(found.get(name), name in found, card, host, measure) for name in columns]
                print(f"{one.name:<45}{card.name:<17}" + "".join(f"{text:>11}" for text in cells), flush=True)


def cell(stages: list[StageSpec] | None, is_one: bool, card: Card, host: int, measure: Callable[..., float]) -> str:
    """Of the table."""
    if stages is None:
        return "cannot" if is_one else "-"
    if measure is slept and 3600 * CLIPS / clips_an_hour(stages, card, host) > LONGEST * SCALE:
        return "too long"
    return f"{measure(stages, card, host):.1f}"


if __name__ == "__main__":
    main()
