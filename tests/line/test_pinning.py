from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from show1_ray.line.pinning import footprint, limits, pin, shares
from show1_ray.line.spec import StageSpec

SECONDS = [0.05, 1.0, 3.0, 7.0, 2.5]


def spec(name: str, takes: tuple[str, ...], output_bytes: int, seconds: float) -> StageSpec:
    return StageSpec(
        name,
        lambda device: lambda clips, tensors: [],
        takes=takes,
        gives=(name,),
        batch_size=4,
        seconds=seconds,
        output_bytes=output_bytes,
    )


CASCADE = [
    spec("text", (), 1, 0.05),
    spec("keyframes", ("text",), 1, 1.0),
    spec("sr", ("text", "keyframes"), 70, 7.0),
    spec("latent_sr", ("sr",), 160, 2.5),
]


def test_a_station_that_has_room_for_every_stage_gets_every_stage() -> None:
    assert pin(SECONDS, [1] * 5, [5, 6]) == [(0, 1, 2, 3, 4)] * 2


def test_with_room_for_one_stage_a_station_the_slowest_stages_get_more_stations() -> None:
    pins = pin(SECONDS, [1] * 5, [1] * 8)
    holders = [sum(stage in pinned for pinned in pins) for stage in range(5)]
    assert all(len(pinned) == 1 for pinned in pins)
    assert holders == [1, 1, 2, 3, 1]


def test_with_fewer_stations_than_stages_every_stage_is_still_pinned_somewhere() -> None:
    pins = pin(SECONDS, [1] * 5, [1, 1])
    assert {stage for pinned in pins for stage in pinned} == {0, 1, 2, 3, 4}


def test_memory_that_is_left_over_goes_to_the_slowest_stages() -> None:
    pins = pin([1.0, 1.0, 10.0], [2, 2, 2], [4, 4, 4])
    assert all(len(pinned) == 2 and 2 in pinned for pinned in pins)


def test_a_stage_that_fits_no_station_is_refused() -> None:
    with pytest.raises(ValueError, match="stage 1 needs 9 bytes"):
        pin([1.0, 1.0], [1, 9], [4, 4])


@given(
    stages=st.lists(st.tuples(st.floats(0.01, 10), st.integers(1, 4)), min_size=1, max_size=6),
    stations=st.lists(st.integers(4, 12), min_size=1, max_size=8),
)
def test_every_stage_has_a_station(stages: list[tuple[float, int]], stations: list[int]) -> None:
    pins = pin([seconds for seconds, _ in stages], [memory for _, memory in stages], stations)
    assert len(pins) == len(stations)
    assert {stage for pinned in pins for stage in pinned} == set(range(len(stages)))


def test_shares_are_in_proportion_to_the_work() -> None:
    assert shares([1.0, 3.0], 8) == [2.0, 6.0]
    assert shares([0.0, 0.0], 8) == [0.0, 0.0]


def test_a_tensor_counts_until_the_last_stage_that_takes_it() -> None:
    assert footprint(CASCADE) == [(1, 1), (2, 2), (72, 70), (230, 0)]


def test_a_result_counts_to_the_end() -> None:
    assert footprint(CASCADE, ["latent_sr"]) == footprint(CASCADE)
    assert footprint(CASCADE, ["keyframes", "latent_sr"]) == [(1, 1), (2, 2), (72, 71), (231, 0)]


def test_clips_in_flight_fit_the_store() -> None:
    bound = limits(CASCADE, stations=8, store_bytes=232 * 50)
    assert bound.clips == (100, 100, 50, 50)
    assert bound.bytes <= 232 * 50


def test_a_store_that_is_too_small_still_lets_a_batch_through() -> None:
    assert limits(CASCADE, stations=8, store_bytes=1).clips == (8, 8, 4, 4)


def test_a_large_store_is_not_filled_without_need() -> None:
    assert limits(CASCADE, stations=8, store_bytes=10**12).clips[-1] < 200
