"""Bad cards cost no clip, bad clips cost no card: on the simulated clock, with all that the line decides."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from show1_ray.line.events import StationShutOut, StationTriedAgain
from show1_ray.line.faults import Cause, Failure
from show1_ray.line.simulate import Fault, Rehearsal, rehearse
from show1_ray.line.spec import LineSettings, StageSpec
from tests.line.sleepers import clips

ERROR = Failure("error", "RuntimeError: boom")


def stages(batch_size: int = 4, seconds: Sequence[float] = (0.1, 1.0, 3.0)) -> list[StageSpec]:
    return [
        StageSpec(
            f"stage{number}",
            lambda device: lambda clips, tensors: [],
            takes=(f"x{number - 1}",) if number else (),
            gives=(f"x{number}",),
            batch_size=batch_size,
            seconds=each,
            memory=1,
        )
        for number, each in enumerate(seconds)
    ]


def bad(*cards: int, since: int = 0, stage: int | None = None, failure: Failure = ERROR) -> Fault:
    names = {f"card {number}" for number in cards}

    def fault(card: str, batch: int, at: int, ids: Sequence[str]) -> Failure | None:
        return failure if card in names and batch > since and stage in (None, at) else None

    return fault


def run(fault: Fault, stations: int = 4, count: int = 400, batch_size: int = 4) -> Rehearsal:
    return rehearse(stages(batch_size), stations, clips(count), fault, LineSettings(store_bytes=1000))


def shut_out(done: Rehearsal) -> set[str]:
    return {one.place.split(" of ")[0] for one in done.news if isinstance(one, StationShutOut)}


@pytest.mark.parametrize("cause", ["error", "device", "memory", "death", "deadline", "host"])
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize(
    ("stations", "cards", "since"),
    [(4, (2,), 3), (2, (1,), 3), (2, (0,), 0), (8, (1, 3, 5), 0), (8, (0, 1, 2, 3, 4), 6), (4, (0, 1, 2), 0)],
)
def test_bad_cards_cost_no_clip(
    cause: Cause, batch_size: int, stations: int, cards: tuple[int, ...], since: int
) -> None:
    done = run(bad(*cards, since=since, failure=Failure(cause, "RuntimeError: boom")), stations, batch_size=batch_size)
    assert not done.given_up
    assert len(done.done) == 400
    assert shut_out(done) == {f"card {number}" for number in cards}


@pytest.mark.parametrize(("stations", "cards"), [(4, (2,)), (2, (0,))])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_card_that_is_bad_for_one_stage_goes_on_with_the_others(
    stations: int, cards: tuple[int, ...], stage: int
) -> None:
    done = run(bad(*cards, stage=stage, since=3), stations)
    assert not done.given_up
    assert {one.stage for one in done.news if isinstance(one, StationShutOut)} <= {f"stage{stage}"}
    assert 2 <= sum(done.failed_batches.values()) <= 12


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_cards_that_fail_now_and_then_cost_no_clip(share: float) -> None:
    source = random.Random(1)

    def fault(card: str, batch: int, stage: int, ids: Sequence[str]) -> Failure | None:
        return ERROR if card in ("card 0", "card 1") and source.random() < share else None

    done = run(fault, stations=4)
    assert not done.given_up
    assert shut_out(done) <= {"card 0", "card 1"}
    assert sum(done.recycled.values()) == done.recycled["card 0"] + done.recycled["card 1"] > 0


@pytest.mark.parametrize("stations", [1, 2, 4, 8])
@pytest.mark.parametrize("guilty", [{"clip-007"}, {f"clip-{number:03}" for number in range(0, 400, 17)}])
@pytest.mark.parametrize("cause", ["error", "clip", "device", "death"])
def test_bad_clips_are_given_up_and_no_card_is_shut_out(stations: int, guilty: set[str], cause: Cause) -> None:
    def fault(card: str, batch: int, stage: int, ids: Sequence[str]) -> Failure | None:
        found = guilty.intersection(ids) if stage == 1 else set()
        return Failure(cause, "boom", min(found) if cause == "clip" else None) if found else None

    done = run(fault, stations)
    assert set(done.given_up) == guilty
    assert not done.news
    if cause in ("error", "clip"):
        assert not done.recycled
    tries = sum(done.failed_batches.values())
    assert tries <= len(guilty) * (7 if cause != "clip" else 3)


def test_a_run_of_bad_clips_takes_no_card_out_of_service() -> None:
    guilty = {f"clip-{number:03}" for number in range(100, 160)}

    def fault(card: str, batch: int, stage: int, ids: Sequence[str]) -> Failure | None:
        return ERROR if guilty.intersection(ids) else None

    done = run(fault, stations=4)
    assert set(done.given_up) == guilty
    assert not shut_out(done)


def test_bad_clips_and_bad_cards_are_told_apart() -> None:
    guilty = {f"clip-{number:03}" for number in range(0, 400, 29)}

    def fault(card: str, batch: int, stage: int, ids: Sequence[str]) -> Failure | None:
        return ERROR if guilty.intersection(ids) or card in ("card 1", "card 4") else None

    done = run(fault, stations=8)
    assert set(done.given_up) == guilty
    assert shut_out(done) == {"card 1", "card 4"}


def test_a_card_that_was_shut_out_is_tried_again_and_works_again_if_it_is_well() -> None:
    def fault(card: str, batch: int, stage: int, ids: Sequence[str]) -> Failure | None:
        return ERROR if card == "card 2" and 3 < batch <= 9 else None

    done = run(fault, count=2000)
    assert not done.given_up
    again = [one for one in done.news if isinstance(one, StationTriedAgain)]
    out = [one for one in done.news if isinstance(one, StationShutOut)]
    assert again
    assert len(again) == len(out)
    assert [one.seconds for one in out] == sorted(one.seconds for one in out)
    assert done.seconds < 1.2 * rehearse(stages(), 4, clips(2000), bad(), LineSettings(store_bytes=1000)).seconds


def test_what_a_bad_card_costs_is_little_more_than_the_card() -> None:
    four, three = (run(bad(), count, 1000).seconds for count in (4, 3))
    seconds = run(bad(1, since=3), 4, 1000).seconds
    assert four < seconds < 1.1 * three


def test_where_everything_fails_clips_are_given_up_after_their_attempts_on_different_cards() -> None:
    done = run(bad(*range(4)), count=40)
    assert len(done.given_up) == 40
    assert not shut_out(done), "no card is worse than the others"


def test_a_single_station_is_never_taken_out_of_service() -> None:
    done = run(bad(0, since=10), stations=1, count=60)
    assert len(done.given_up) + len(done.done) == 60
    assert {one.flight.failures for one in done.given_up.values()} == {3}
    assert not done.news


@settings(max_examples=60, deadline=None)
@given(
    stations=st.integers(1, 9),
    batch_size=st.integers(1, 5),
    shares=st.lists(st.sampled_from([0.0, 0.0, 0.0, 0.05, 0.5, 1.0]), min_size=9, max_size=9),
    causes=st.lists(st.sampled_from(["error", "memory", "host", "device", "death", "gone", "load"]), min_size=9),
    guilty=st.sets(st.integers(0, 59), max_size=8),
    seed=st.integers(0, 2**16),
)
def test_whatever_fails_every_clip_leaves_the_line_once(
    stations: int, batch_size: int, shares: list[float], causes: list[Cause], guilty: set[int], seed: int
) -> None:
    source, bad_clips = random.Random(seed), {f"clip-{number:03}" for number in guilty}

    def fault(card: str, batch: int, stage: int, ids: Sequence[str]) -> Failure | None:
        number = int(card.split()[1])
        if bad_clips.intersection(ids):
            return ERROR
        if batch < 300 and source.random() < shares[number]:
            return Failure(causes[number], "boom", loading=causes[number] == "load")
        return None

    done = rehearse(stages(batch_size), stations, clips(60), fault, LineSettings(store_bytes=30))
    assert not done.done & set(done.given_up)
    assert len(done.done) + len(done.given_up) == 60
    if not any(shares[:stations]) or (stations > 2 and sum(share > 0 for share in shares[:stations]) == 1):
        assert set(done.given_up) == bad_clips
