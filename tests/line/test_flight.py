from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from show1_ray.clip import Clip
from show1_ray.line.flight import Flight, State, halves, restart_stage, still_needed
from show1_ray.line.spec import StageSpec


def spec(name: str, *takes: str) -> StageSpec:
    return StageSpec(name, lambda device: lambda clips, tensors: [], takes=takes, gives=(name,))


CASCADE = [spec("text"), spec("keyframes", "text"), spec("frames", "text", "keyframes"), spec("sr", "text", "frames")]


@pytest.mark.parametrize(
    "life", [("running", "done"), ("running", "queued", "running", "failed"), ("running", "rejected")]
)
def test_a_clip_is_queued_runs_and_is_done_failed_or_rejected(life: tuple[State, ...]) -> None:
    flight = Flight(Clip("a", "a prompt"))
    for state in life:
        flight.move(state)
    assert flight.state == life[-1]


@pytest.mark.parametrize(
    "life",
    [("done",), ("rejected",), ("running", "running"), ("running", "done", "queued"), ("running", "rejected", "done")],
)
def test_a_transition_that_there_is_not_is_an_error(life: tuple[State, ...]) -> None:
    flight = Flight(Clip("a", "a prompt"))
    for state in life[:-1]:
        flight.move(state)
    with pytest.raises(ValueError, match=f"clip 'a' cannot go from {flight.state} to {life[-1]}"):
        flight.move(life[-1])


@given(st.integers(2, 64), st.integers(0, 63))
def test_halving_leaves_the_clip_at_fault_alone(size: int, guilty: int) -> None:
    batch = [Flight(Clip(str(number), "a prompt")) for number in range(size)]
    culprit = batch[guilty % size]
    sizes = [size]
    while len(batch) > 1:
        parts = halves(batch)
        assert [flight for part in parts for flight in part] == batch
        batch = next(part for part in parts if culprit in part)
        sizes.append(len(batch))
    assert batch == [culprit]
    assert all(after < before for before, after in pairwise(sizes))


def test_a_clip_goes_on_from_the_latest_stage_whose_tensors_survive() -> None:
    assert restart_stage(CASCADE, 3, {"text", "frames"}) == 3
    assert restart_stage(CASCADE, 3, {"text", "keyframes"}) == 2
    assert restart_stage(CASCADE, 3, {"text"}) == 1
    assert restart_stage(CASCADE, 3, {"frames"}) == 0, "super-resolution takes the text too"


def test_a_clip_that_lost_a_result_goes_back_to_where_that_comes_from() -> None:
    assert restart_stage(CASCADE, 3, {"text", "frames"}, {"sr", "frames"}) == 3
    assert restart_stage(CASCADE, 3, {"text", "frames"}, {"sr", "keyframes"}) == 1


def test_a_clip_never_goes_on_from_a_later_stage_than_it_was_at() -> None:
    assert restart_stage(CASCADE, 1, {"text", "frames"}) == 1


def test_tensors_are_kept_as_long_as_a_stage_to_come_takes_them() -> None:
    assert still_needed(CASCADE, 2) == {"text", "keyframes", "frames"}
    assert still_needed(CASCADE, 4) == set()
    assert still_needed(CASCADE, 4, {"frames"}) == {"frames"}
