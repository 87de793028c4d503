"""What is behind the demo's page, with 16 people at once: in which order they are served, and what memory does.

Each round 16 visitors ask for a clip at the same time, of a line that has one station for each of two CPU cores, and
see them made and landed as on the page, previews included. Printed after each round: seconds, how many were served,
whether the clips began in the order in which they came, in how many of all stages' batches clips stood in that order,
what the object store and the previews that are kept take, and the resident memory of the driver (this process) and of
each station. Memory grows until `KEPT_CLIPS` clips have been made, whose previews are kept, and is to be flat from
there. The tiny cascade, whose weights are random, shows that in little time: 16 rounds of it are 256 clips.

    python benchmarks/demo.py [--pipeline nano] [--set stage.key=value …] [--people 16] [--rounds 4]
    python benchmarks/demo.py --pipeline tiny --rounds 16
"""

from __future__ import annotations

import argparse
import asyncio
import math
import sys
import tempfile
import time
from pathlib import Path

import psutil
import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from show1_ray import Pipeline, open_line
from show1_ray.dataset import Lander
from show1_ray.dataset.storage import Storage
from show1_ray.demo.studio import KEPT_CLIPS, Studio
from show1_ray.job import origin
from show1_ray.line import LineSettings, Service
from show1_ray.line.events import Event, StageBegan
from show1_ray.show1.random import write_tiny_cascade
from show1_ray.show1.stages import STAGES

STATIONS = 2
STORE = 500 * 10**6
FLAT = 0.05
"""The part by which resident memory may grow once as many clips are kept as ever will be."""
PROMPTS = ["a red circle moving left on a black background", "a green square growing on a gray background"]


async def crowd(studio: Studio, people: int) -> list[str]:
    """That many visitors ask for a clip at once, and wait for it; the clips' ids, in the order of asking."""
    visitors = [studio.visitor(None) for _ in range(people)]
    for number, visitor in enumerate(visitors):
        studio.start(visitor, PROMPTS[number % len(PROMPTS)], "", str(number), 1)
    while any(visitor.is_busy for visitor in visitors):
        for visitor in visitors:
            visitor.seen = time.monotonic()  # their pages are open
        await asyncio.sleep(0.2)
    takes = [visitor.takes[0] for visitor in visitors]
    return [take.clip.id for take in takes if take.state == "done"]


def memory(line: Service) -> tuple[int, list[int]]:
    """Bytes: of the object store in use; resident of the driver, and of each station."""
    pids = [handle.info.pid for handle in line.line.fleet.stations.values() if handle.info is not None]
    store = get_memory_info_reply(get_state_from_address(None)).store_stats.object_store_bytes_used
    return store, [psutil.Process().memory_info().rss, *(psutil.Process(pid).memory_info().rss for pid in sorted(pids))]


def kept(studio: Studio) -> int:
    """Bytes of all previews."""
    takes = [take for visitor in studio.visitors.values() for take in visitor.takes]
    return sum(len(step.picture) for take in takes for step in take.steps)


def orders(began: list[StageBegan], ids: list[str]) -> tuple[bool, int]:
    """Whether clips began in the order of `ids`, and how many batches of all stages have theirs in it."""
    first = [clip_id for event in began if event.stage == next(iter(STAGES)) for clip_id in event.clips]
    in_order = sum(sorted(event.clips, key=ids.index) == list(event.clips) for event in began)
    return first == ids, in_order


def rounds(line: Service, began: list[StageBegan], pipeline: Pipeline, people: int, count: int) -> bool:
    """Print a line for each round; whether everything was served in order, and memory was flat."""
    resident, served_all = [], True
    with tempfile.TemporaryDirectory() as folder:
        studio = Studio(line, pipeline, Lander(Storage.at(folder), origin(pipeline)), Path(folder))
        for number in range(1, count + 1):
            began.clear()
            begin = time.monotonic()
            ids = asyncio.run(crowd(studio, people))
            seconds = time.monotonic() - begin
            begun_in_order, batches = orders(began, ids)
            store, resident_now = memory(line)
            resident.append(resident_now)
            served_all &= len(ids) == people and begun_in_order and batches == len(began)
            order = f"{'yes' if begun_in_order else 'no':>6} {batches:7} of {len(began)}"
            sizes = " ".join(f"{size / 1e6:8.0f}" for size in resident_now)
            held = f"{store / 1e6:10.1f} {kept(studio) / 1e6:8.1f}"
            print(f"{number:5} {seconds:8.1f} {len(ids):4} of {people} {order} {held} {sizes}", flush=True)
    full = math.ceil(KEPT_CLIPS / people)
    if count <= full:
        print(f"{KEPT_CLIPS} clips are kept, from round {full} on: whether memory is flat from there needs more rounds")
        return served_all
    growth = max(last / first - 1 for first, last in zip(resident[full - 1], resident[-1], strict=True))
    print(f"after round {full} resident memory grew by {growth:.1%} at most (of the driver, or a station)")
    return served_all and growth <= FLAT


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", default="nano", help="a pipeline's name or file, or tiny: small random weights")
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="stage.key=value")
    parser.add_argument("--people", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    began: list[StageBegan] = []

    def observe(event: Event) -> None:
        if isinstance(event, StageBegan) and event.clips:
            began.append(event)

    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        chosen = write_tiny_cascade(Path(folder) / "tiny") if options.pipeline == "tiny" else options.pipeline
        pipeline = Pipeline.load(chosen, options.changes).resolved()
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=STATIONS,
            object_store_memory=STORE,
            log_to_driver=False,
            _temp_dir=f"{folder}/ray",
        )
        settings = LineSettings(stations=STATIONS, gpus=False, warm=True)
        with open_line(pipeline, settings=settings, observe=observe) as line:
            line.warm.wait()
            print(f"{pipeline.name}: {options.people} people at once, {STATIONS} CPU stations")
            print("round  seconds   served  begun in order, batches  store MB, kept MB, driver MB, stations MB")
            passed = rounds(line, began, pipeline, options.people, options.rounds)
        ray.shutdown()
    print("pass" if passed else "MISS")
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
