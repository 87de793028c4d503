from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from show1_ray.line.load import StageLoad
from show1_ray.line.pinning import pin
from show1_ray.line.schedule import Schedule
from show1_ray.line.simulate import lower_bound, simulate

EPSILON = 1e-6


def stage(name: str = "a", **changes: object) -> StageLoad:
    defaults = {"batch_size": 4, "seconds": 1.0, "load_seconds": 5.0, "swap_seconds": 0.5, "memory": 1}
    return StageLoad(name, **{**defaults, **changes})  # type: ignore[arg-type]


def line(*stages: StageLoad, stations: int = 1, total: int | None = None, memory: int = 1) -> Schedule:
    schedule = Schedule(stages, total=total)
    for number in range(stations):
        schedule.add_station(number, memory, 10, now=0.0)
    return schedule


def hold(schedule: Schedule, number: int, *stages: int) -> None:
    """Let an idle station hold stages."""
    station = schedule.stations[number]
    schedule.idle.remove(station)
    for index in stages:
        station.held[index] = None
        schedule.stages[index].holders += 1
    schedule.free(number, 0.0)


def test_a_station_takes_the_most_downstream_stage_that_has_a_full_batch() -> None:
    schedule = line(stage("a"), stage("b"), stage("c"), memory=3)
    hold(schedule, 0, 0, 1, 2)
    schedule.admit(8)
    schedule.add(1, 4)
    schedule.add(2, 3)
    assignment = schedule.decide(0.0)
    assert assignment is not None
    assert (assignment.stage, assignment.clips, assignment.price) == (1, 4, 0.0)


def test_an_incomplete_batch_waits_as_long_as_more_is_coming() -> None:
    schedule = line(stage("a"), total=10)
    schedule.admit(6)
    first = schedule.decide(0.0)
    assert first is not None
    assert first.clips == 4
    schedule.add_station(1, 1, 10, now=0.0)
    assert schedule.decide(0.0) is None
    schedule.admit(4)
    schedule.exhaust()
    rest = schedule.decide(0.0)
    assert rest is not None
    assert rest.clips >= 1


def test_a_batch_that_has_to_run_by_itself_is_not_filled_up() -> None:
    schedule = line(stage("a"))
    schedule.admit(8)
    schedule.isolate(0, 2)
    assignment = schedule.decide(0.0)
    assert assignment is not None
    assert (assignment.clips, assignment.isolated) == (2, True)
    assert schedule.stages[0].waiting == 8


def test_limits_hold_back_the_stages_before_a_full_one() -> None:
    schedule = line(stage("a"), stage("b", limit=4), memory=2)
    schedule.admit(8)
    schedule.add(1, 8)
    first = schedule.decide(0.0)
    assert first is not None
    assert first.stage == 1
    schedule.add_station(1, 2, 10, now=0.0)
    second = schedule.decide(0.0)
    assert second is not None
    assert second.stage == 0, "stage b has the 4 clips that it may have"


def test_clips_are_admitted_up_to_the_limit_of_the_first_stage() -> None:
    schedule = line(stage("a", limit=10), total=100)
    assert schedule.room() == 10
    schedule.admit(7)
    assert schedule.room() == 3


def test_a_starved_station_waits_for_its_own_stage_before_it_pays_for_another_one() -> None:
    schedule = line(stage("a", load_seconds=4.0), stage("b", load_seconds=4.0), stations=2)
    hold(schedule, 0, 0)
    hold(schedule, 1, 1)
    schedule.admit(8)
    first = schedule.decide(0.0)
    assert first is not None
    assert (first.station, first.stage) == (0, 0)
    assert schedule.decide(0.0) is None, "the last batch of a is not worth a swap at once"
    assert 0.0 < schedule.wake_at <= 4.0
    later = schedule.decide(schedule.wake_at)
    assert later is not None
    assert (later.station, later.stage, later.price) == (1, 0, 4.0)


def test_a_stage_that_makes_room_goes_to_host_memory_as_long_as_that_has_room() -> None:
    schedule = Schedule([stage("a"), stage("b"), stage("c")])
    schedule.add_station(0, memory=1, host_memory=1, now=0.0)
    prices = []
    for index in (0, 1, 2):
        schedule.add(index, 4)
        assignment = schedule.decide(0.0)
        assert assignment is not None
        prices.append((assignment.evict, assignment.drop, assignment.price))
        schedule.end(assignment)
        schedule.free(0, 0.0)
    assert prices == [((), (), 5.0), ((0,), (), 5.0), ((1,), (0,), 5.0)]
    schedule.add(1, 4)
    back = schedule.decide(0.0)
    assert back is not None
    assert (back.stage, back.price) == (1, 0.5)
    assert back.drop == (2,), "a stage that comes back keeps its copy in host memory, and that has room for one"


def test_a_pinned_station_runs_only_what_is_pinned_to_it() -> None:
    schedule = Schedule([stage("a"), stage("b")])
    schedule.add_station(0, 1, 10, now=0.0, pins=(1,))
    schedule.admit(8)
    assignment = schedule.decide(0.0)
    assert assignment is None or (assignment.stage, assignment.clips) == (1, 0)


def test_a_closed_line_gives_stations_nothing_more_but_lands_what_is_done() -> None:
    schedule = line(stage("a"), stage("land", on_station=False))
    schedule.admit(4)
    schedule.add(1, 1)
    schedule.close()
    landing = schedule.decide(0.0)
    assert landing is not None
    assert (landing.station, landing.stage, landing.clips) == (None, 1, 1)
    assert schedule.decide(0.0) is None


def test_cpu_tasks_are_bounded_in_number() -> None:
    schedule = Schedule([stage("land", on_station=False, batch_size=1)], cpu_slots=2)
    schedule.admit(5)
    first, second = schedule.decide(0.0), schedule.decide(0.0)
    assert first is not None
    assert second is not None
    assert schedule.decide(0.0) is None
    schedule.end(first)
    assert schedule.decide(0.0) is not None


def test_cpu_tasks_stay_bounded_when_fewer_are_allowed_than_run() -> None:
    schedule = Schedule([stage("land", on_station=False, batch_size=1)], cpu_slots=30)
    schedule.admit(60)
    running = [schedule.decide(0.0) for _ in range(30)]
    assert schedule.decide(0.0) is None
    schedule.cpu_slots = 4
    for task in running[:26]:
        assert task is not None
        schedule.end(task)
        assert schedule.decide(0.0) is None
    assert running[26] is not None
    schedule.end(running[26])
    assert schedule.decide(0.0) is not None
    assert schedule.decide(0.0) is None


def test_a_batch_that_failed_on_a_card_goes_to_another_one() -> None:
    schedule = Schedule([stage("a")])
    for number in range(2):
        schedule.add_station(number, 1, 10, now=0.0, card=f"card {number}")
        hold(schedule, number, 0)
    schedule.isolate(0, 2, frozenset({"card 0"}))
    schedule.isolate(0, 3, frozenset({"card 1"}))
    first, second = schedule.decide(0.0), schedule.decide(0.0)
    assert first is not None
    assert second is not None
    assert {(one.station, one.clips) for one in (first, second)} == {(1, 2), (0, 3)}


def test_a_batch_that_no_station_would_take_is_let_go_where_it_failed() -> None:
    schedule = Schedule([stage("a")])
    schedule.add_station(0, 1, 10, now=0.0, card="card 0")
    schedule.isolate(0, 2, frozenset({"card 0"}))
    assert schedule.decide(0.0) is None
    schedule.relax()
    assert schedule.decide(0.0) is not None


def test_a_line_with_clips_in_flight_is_not_opened_again() -> None:
    schedule = line(stage("a"))
    schedule.admit(1)
    with pytest.raises(ValueError, match="1 clips in flight"):
        schedule.open(None)


def assert_no_needless_wait(schedule: Schedule, now: float) -> None:
    """No station idles with an admissible batch of a stage that it holds; of others, no longer than the swap takes."""
    ready = {index for index, _ in schedule._ready(now)}
    for station in schedule.stations.values():
        if station.idle_since is None:
            continue
        for index in ready:
            ready_since = schedule.stages[index].ready_since
            assert ready_since is not None
            if not station.may_run(index):
                continue
            waited = now - max(station.idle_since, ready_since)
            assert waited <= schedule.price(station, index) + EPSILON
            assert index not in station.held


stages = st.builds(
    StageLoad,
    name=st.just("stage"),
    batch_size=st.integers(1, 8),
    seconds=st.floats(0.05, 10),
    load_seconds=st.floats(0, 10),
    swap_seconds=st.floats(0, 2),
    memory=st.integers(1, 3),
)


@settings(max_examples=200, deadline=None)
@given(
    loads=st.lists(stages, min_size=1, max_size=6),
    stations=st.integers(1, 9),
    clips=st.integers(1, 120),
    memory=st.integers(3, 12),
    host_memory=st.integers(0, 6),
    limit=st.integers(8, 60),
    wrong=st.sampled_from([1 / 3, 1.0, 3.0]),
    seed=st.integers(0, 2**16),
)
def test_no_station_waits_without_need_and_clips_in_flight_are_bounded(
    loads: list[StageLoad],
    stations: int,
    clips: int,
    memory: int,
    host_memory: int,
    limit: int,
    wrong: float,
    seed: int,
) -> None:
    for load in loads:
        load.limit = limit
    source = random.Random(seed)
    done = simulate(
        loads,
        stations,
        clips,
        memory,
        host_memory,
        actual_seconds=[load.seconds * wrong for load in loads],
        noise=lambda: source.uniform(0.7, 1.5),
        watch=assert_no_needless_wait,
    )
    assert done.most_in_flight <= limit
    assert len(done.busy) >= len(loads)


def test_a_stage_that_has_stations_of_its_own_runs_on_those_and_they_run_nothing_else() -> None:
    schedule = line(stage("a"), stage("judge", own=True), stations=2, memory=9)
    schedule.add_station(2, 9, 9, now=0.0, own=1)
    schedule.admit(8)
    schedule.add(1, 8)
    taken = [assignment for assignment in iter(lambda: schedule.decide(0.0), None) if assignment.clips]
    assert sorted((one.station, one.stage) for one in taken) == [(0, 0), (1, 0), (2, 1)]
    schedule.remove_station(2)
    assert not schedule.homeless(), "another one is on its way"
    assert schedule.decide(1e9) is None


def test_stations_of_a_stage_do_not_count_as_cards() -> None:
    schedule = line(stage("a", batch_size=1), stage("judge", batch_size=1, own=True, seconds=3.0), total=80)
    for number in range(2, 6):
        schedule.add_station(number, 9, 9, now=0.0, own=1)
    assert schedule.seconds_left() == max(80 / 1, 80 * 3 / 4)
    assert schedule.useful_stations() == 80 // (5 + 1) + 1
    assert schedule.useful_stations(1) == 5, "three keep up with the one card, half as many again"


@settings(max_examples=100, deadline=None)
@given(
    loads=st.lists(stages, min_size=2, max_size=6),
    own=st.sets(st.integers(0, 5)),
    each=st.integers(1, 3),
    stations=st.integers(1, 5),
    clips=st.integers(1, 80),
)
def test_a_line_with_stages_of_their_own_stations_ends_without_needless_waits(
    loads: list[StageLoad], own: set[int], each: int, stations: int, clips: int
) -> None:
    for index in own.intersection(range(len(loads) - 1)):
        loads[index].own = True
    done = simulate(
        loads, stations, clips, memory=3, watch=assert_no_needless_wait, own_stations=dict.fromkeys(own, each)
    )
    assert sum(done.batches_of.values()) >= len(loads)


@settings(max_examples=100, deadline=None)
@given(
    loads=st.lists(stages, min_size=2, max_size=5),
    more=st.integers(0, 4),
    clips=st.integers(1, 60),
    order=st.randoms(use_true_random=False),
)
def test_a_line_of_pinned_stations_ends_too(
    loads: list[StageLoad], more: int, clips: int, order: random.Random
) -> None:
    pins = [(number % len(loads),) for number in range(len(loads) + more)]
    order.shuffle(pins)
    done = simulate(loads, len(pins), clips, memory=3, pins=pins)
    assert done.loads <= len(pins), "each station loads its one stage, once"


def test_each_stage_on_a_card_of_its_own_and_pinned_for_good_ends_too() -> None:
    costs = [0.05, 1.0, 3.0, 7.0, 2.5]
    loads = [
        StageLoad(f"stage{i}", 4, seconds, load_seconds=5.0, swap_seconds=0.5, memory=1)
        for i, seconds in enumerate(costs)
    ]
    pins = pin(costs, [1] * 5, [1] * 8)
    result = simulate(loads, 8, 160, memory=1, pins=pins)
    slowest = max(160 * seconds / pins.count((stage,)) for stage, seconds in enumerate(costs))
    assert slowest < result.seconds < 1.15 * slowest, "the stage with too few stations is always busy"
    assert result.loads == 8, "each station loads its one stage, once"


def random_cascade(seed: int, stations: int) -> list[StageLoad]:
    source = random.Random(seed)
    return [
        StageLoad(
            f"stage{number}",
            batch_size=source.choice([1, 2, 4, 8]),
            seconds=source.uniform(0.05, 10),
            load_seconds=source.uniform(0, 5),
            swap_seconds=source.uniform(0, 1),
            memory=1,
            limit=8 * stations,
        )
        for number in range(5)
    ]


def test_a_thousand_stations_render_100_000_clips_within_3_percent_of_the_lower_bound() -> None:
    stations, clips = 1000, 100_000
    loads = random_cascade(0, stations)
    done = simulate(loads, stations, clips)
    assert done.most_in_flight <= 8 * stations
    assert done.seconds <= 1.03 * lower_bound(loads, stations, clips)
