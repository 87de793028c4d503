"""Clips that share batches only with their like: counted, let in, scheduled, and on real Ray."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Hashable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from show1_ray.clip import Clip
from show1_ray.line.batch import patience
from show1_ray.line.events import ClipDone
from show1_ray.line.keys import LOBBY, Counts, Lobby
from show1_ray.line.line import Line
from show1_ray.line.load import KEYS_KNOWN, Assignment, StageLoad
from show1_ray.line.service import Service
from show1_ray.line.simulate import lower_bound, simulate
from show1_ray.line.spec import LineSettings, Order, Values
from tests.line import sleepers
from tests.line.sleepers import Adds, Outcome, expected, land, spec
from tests.line.test_schedule import assert_no_needless_wait, line, stage, stages

changes = st.lists(st.tuples(st.integers(-8, 8), st.sampled_from(["a", "b", "c", None])), max_size=60)


@given(changes)
def test_counts_find_the_key_with_most_clips_and_the_one_served_longest_ago(moves: list[tuple[int, Any]]) -> None:
    counts, plain, served = Counts(), Counter[Hashable](), list[Hashable]()
    for clips, key in moves:
        if clips > 0:
            counts.add(clips, key)
            plain[key] += clips
            served.extend([key] * (key not in served))
        elif clips < 0 and plain[key]:
            taken = min(-clips, plain[key])
            counts.take(taken, key)
            plain[key] -= taken
            served.remove(key)
            served.extend([key] * bool(plain[key]))
        most, which = counts.most()
        assert counts.total == plain.total()
        assert most == plain[which] == max(plain.values(), default=0)
        assert counts.next() == ((plain[served[0]], served[0]) if served else (0, None))


def test_counts_refuse_to_give_what_is_not_there() -> None:
    counts = Counts()
    counts.add(2, "a")
    with pytest.raises(ValueError, match="3 clips are not among 2"):
        counts.take(3, "a")
    with pytest.raises(KeyError):
        counts.take(1, "b")
    assert counts.most() == (2, "a")


def test_a_lobby_lets_those_of_a_kind_in_together_and_the_most_frequent_first() -> None:
    lobby = Lobby[str]()
    for item in ("a1", "b1", "b2", "a2", "b3", "c1"):
        lobby.put(item, item[0])
    assert lobby.take(2) == ["b1", "b2"]
    lobby.put("b4", "b")
    assert lobby.take(3) == ["b3", "b4", "a1"]
    assert lobby.remove("c1", "c")
    assert not lobby.remove("c1", "c")
    assert lobby.take(9) == ["a2"]
    assert len(lobby) == 0


def test_only_clips_of_one_key_share_a_batch() -> None:
    schedule = line(stage("a"), total=100)
    for key, count in (("x", 3), ("y", 5), ("z", 2)):
        schedule.admit(count, key)
    first = schedule.decide(0.0)
    assert first is not None
    assert (first.key, first.clips) == ("y", 4)
    schedule.add_station(1, 1, 10, now=0.0)
    assert schedule.decide(0.0) is None, "more is coming, and may fill the others"


def test_where_someone_waits_the_key_that_was_not_served_for_longest_comes_first() -> None:
    schedule = line(stage("a"))
    schedule.eager = True
    schedule.admit(1, "x")
    schedule.admit(4, "y")
    keys = []
    for _ in range(3):
        assignment = schedule.decide(0.0)
        assert assignment is not None
        keys.append(assignment.key)
        schedule.admit(1, "x")
        schedule.end(assignment)
        schedule.free(0, 0.0)
    assert keys == ["x", "y", "x"]


@settings(max_examples=150, deadline=None)
@given(
    loads=st.lists(stages, min_size=1, max_size=5),
    stations=st.integers(1, 9),
    keys=st.lists(st.integers(0, 9), min_size=1, max_size=100),
    memory=st.integers(3, 12),
    limit=st.integers(8, 60),
    seed=st.integers(0, 2**16),
)
def test_a_mixed_line_ends_and_no_station_waits_without_need(
    loads: list[StageLoad], stations: int, keys: list[int], memory: int, limit: int, seed: int
) -> None:
    for load in loads:
        load.limit = limit
    source = random.Random(seed)
    done = simulate(
        loads,
        stations,
        len(keys),
        memory,
        keys=keys,
        noise=lambda: source.uniform(0.7, 1.5),
        watch=assert_no_needless_wait,
    )
    assert done.most_in_flight <= limit
    for index, load in enumerate(loads):
        assert done.batches_of[index] >= sum(-(-count // load.batch_size) for count in Counter(keys).values())


@pytest.mark.parametrize("keys", [2, 16, 500, 10**9])
def test_a_manifest_in_mixed_order_is_as_fast_as_a_sorted_one(keys: int) -> None:
    stations, clips = 8, 2000 + LOBBY
    source = random.Random(keys)
    mixed = [source.randrange(keys) for _ in range(clips)]
    costs = [0.05, 1.0, 3.0, 7.0, 2.5]
    loads = [StageLoad(f"stage{at}", 4, cost, 5.0, 0.5, 1, limit=128) for at, cost in enumerate(costs)]
    seconds = {order: simulate(loads, stations, clips, keys=order(mixed)).seconds for order in (list, sorted)}
    assert seconds[list] <= 1.05 * seconds[sorted]
    assert seconds[list] <= 1.05 * lower_bound(loads, stations, clips)


def test_clips_of_a_key_that_nobody_has_seen_may_take_as_long_as_a_new_stage() -> None:
    load, one = stage("a"), LineSettings(deadline_floor=10.0, deadline_factor=2.0, first_deadline=1000.0)
    batch = Assignment(0, 0, 2)
    load.measure("", 30.0, "short")
    assert patience(one, load, batch, "short") == 2 * 30 * 2
    assert patience(one, load, batch, "long") == 2 * 30 * 2 + 1000
    load.measure("", 300.0, "long")
    assert patience(one, load, batch, "long") == 2 * 300 * 2, "of its own time, though the mean is less"
    for key in range(KEYS_KNOWN):
        load.measure("", 30.0, key)
    assert len(load.by_key) == KEYS_KNOWN


class Alike(Adds):
    """Raises for a batch whose clips are not alike."""

    def __call__(self, clips: list[Clip], tensors: list[Values]) -> list[Values]:
        if len({clip.prompt for clip in clips}) > 1:
            raise RuntimeError("a batch of clips that are not alike")
        return super().__call__(clips, tensors)


def orders(count: int, kinds: int) -> list[Order]:
    """Clips whose prompt is their key for stage1."""
    made = []
    for number in range(count):
        kind = f"{number % kinds}"
        made.append(Order(Clip(f"{number:03}", kind, seed=number), keys={"stage1": kind}))
    return made


@pytest.mark.usefixtures("local_ray")
def test_on_ray_batches_hold_clips_of_one_key_and_are_full() -> None:
    batch = orders(48, 3)
    outcome = Outcome()
    with Line([spec(0), spec(1, lambda device: Alike(1, 0.01, 1000)), spec(2), land()], sleepers.settings()) as line:
        line.wait_for_stations()
        for event in line.run(batch):
            outcome.add(event)
    outcome.assert_done([order.clip for order in batch])
    sizes = Counter(done.batch_size for done in outcome.batches if done.stage == "stage1")
    assert sizes[4] >= 9, f"of 12 batches: {sizes}"
    assert {done.attempts for done in outcome.done.values()} == {1}


@pytest.mark.usefixtures("local_ray")
def test_a_clip_that_was_pulled_ahead_can_be_cancelled() -> None:
    async def cancel_one(line: Service) -> list[ClipDone]:
        async def follow(order: Order) -> list[ClipDone]:
            return [event async for event in line.render(order) if isinstance(event, ClipDone)]

        tasks = [asyncio.create_task(follow(order)) for order in orders(40, 2)]
        while len(line.line.traffic.lobby) < 10:
            await asyncio.sleep(0.01)
        tasks[39].cancel()
        line.close()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(done[39], asyncio.CancelledError)
        return [event for events in done[:39] for event in events]  # type: ignore[union-attr]

    bytes_of_a_clip = 8000
    made = [spec(number, output_bytes=bytes_of_a_clip) for number in range(3)]
    few = sleepers.settings(store_bytes=8 * bytes_of_a_clip)
    with Service(made, few, max_waiting=100, total=40) as line:
        done = asyncio.run(cancel_one(line))
    assert {event.clip.id: int(event.result["x2"][0]) for event in done} == {
        order.clip.id: expected(order.clip) for order in orders(39, 2)
    }
