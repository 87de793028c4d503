"""When a line gives up, and what it tells before."""

from __future__ import annotations

import pytest

from show1_ray.line.prospects import LONELY_SECONDS, MANY, Prospects
from show1_ray.line.spec import FatalError, LineSettings


def test_without_stations_it_is_told_once_what_is_waited_for_and_given_up_at_the_deadline() -> None:
    prospects = Prospects(LineSettings(start_deadline=600))

    def tell(now: float, is_alone: bool = True, why: str = "no GPU") -> str:
        return prospects.alone(is_alone, lambda: why, now)

    assert tell(1000.0) == tell(1000.0 + LONELY_SECONDS) == ""
    assert tell(1031.0) == "no station is up after 31 s: no GPU; given up after 10 min"
    assert tell(1100.0) == "", "it is known"
    assert tell(1500.0, is_alone=False) == ""
    assert tell(1531.0).startswith("no station is up after 31 s"), "again, since it lost them"
    assert tell(2100.0) == ""
    with pytest.raises(FatalError, match=r"^no station came up in 600 s: no GPU$"):
        tell(2101.0)


def test_stations_that_are_on_their_way_are_waited_for_in_silence() -> None:
    prospects = Prospects(LineSettings(start_deadline=600))
    assert [prospects.alone(True, lambda: "", now) for now in (0.0, 100.0, 500.0)] == ["", "", ""]
    with pytest.raises(FatalError, match=r"^no station came up in 600 s$"):
        prospects.alone(True, lambda: "", 601.0)


def test_a_stage_that_loads_elsewhere_may_fail_to_load_more_often() -> None:
    prospects = Prospects(LineSettings(max_dead_starts=3))
    for _ in range(MANY * 3):
        prospects.does_not_load("sr", "no such file", others_do=True)
    with pytest.raises(FatalError, match=r"^stage sr does not load: no such file \(13 times in a row\)$"):
        prospects.does_not_load("sr", "no such file", others_do=True)
    prospects.loads("sr")
    for _ in range(2):
        prospects.does_not_load("sr", "no such file", others_do=False)
    with pytest.raises(FatalError, match=r"\(3 times in a row\)$"):
        prospects.does_not_load("sr", "no such file", others_do=False)


def test_stations_that_die_end_a_line_only_where_all_do() -> None:
    prospects = Prospects(LineSettings(max_dead_starts=2))
    for _ in range(10):
        prospects.died("boom", to_all=False)
    prospects.works()
    prospects.died("boom", to_all=True)
    with pytest.raises(FatalError, match=r"^boom \(2 times in a row\)$"):
        prospects.died("boom", to_all=True)
