"""CPU tasks that fail for their node's sake are done on others."""

from __future__ import annotations

from show1_ray.line.elsewhere import MOST_NODES, MOST_TIMES, PAUSE_SECONDS, Elsewhere


def test_a_task_that_failed_on_one_node_is_tried_on_another_and_the_node_is_avoided_for_a_while():
    elsewhere = Elsewhere()
    assert elsewhere.failed(["a"], "bad", ["bad", "good"], now=0.0)
    assert elsewhere.avoided(1.0) == ["bad"]
    elsewhere.done(["a"])
    assert elsewhere.avoided(PAUSE_SECONDS + 1) == []


def test_tasks_go_to_the_other_nodes_in_turn_and_anywhere_if_there_is_none_to_avoid_or_no_other():
    elsewhere, there = Elsewhere(), ["a", "b", "c"]
    assert elsewhere.place(there, 0.0) is None
    elsewhere.failed(["clip"], "b", there, now=0.0)
    assert sorted(elsewhere.place(there, 1.0) for _ in range(4)) == ["a", "a", "c", "c"]
    assert elsewhere.place(["a", "c"], 1.0) is None, "it is not there any more"
    assert elsewhere.place(["b"], 1.0) is None
    assert elsewhere.place(there, PAUSE_SECONDS + 1) is None


def test_with_no_other_node_there_is_nothing_to_try():
    assert not Elsewhere().failed(["a"], "only", ["only"], now=0.0)


def test_what_fails_on_all_nodes_or_on_several_is_no_nodes_fault():
    elsewhere, many = Elsewhere(), [f"node-{number}" for number in range(9)]
    verdicts = [elsewhere.failed(["a"], node, many, now=0.0) for node in many[:MOST_NODES]]
    assert verdicts == [*[True] * (MOST_NODES - 1), False]
    elsewhere = Elsewhere()
    assert [elsewhere.failed(["a"], node, many[:2], now=0.0) for node in many[:2]] == [True, False]


def test_what_finds_no_other_place_ends_too():
    elsewhere = Elsewhere()
    verdicts = [elsewhere.failed(["a"], "bad", ["bad", "good"], now=0.0) for _ in range(MOST_TIMES)]
    assert verdicts == [*[True] * (MOST_TIMES - 1), False]


def test_many_clips_that_fail_on_one_node_are_one_nodes_fault():
    elsewhere = Elsewhere()
    assert all(elsewhere.failed([f"clip-{number}"], "bad", ["bad", "good"], now=0.0) for number in range(100))
    assert elsewhere.avoided(PAUSE_SECONDS - 1) == ["bad"]
    assert elsewhere.avoided(PAUSE_SECONDS + 1) == [], "what ran there at the same time does not count again"


def test_a_node_that_fails_again_is_avoided_for_longer():
    elsewhere = Elsewhere()
    elsewhere.failed(["a"], "bad", ["bad", "good"], now=0.0)
    elsewhere.failed(["b"], "bad", ["bad", "good"], now=100.0)
    assert elsewhere.avoided(100.0 + 2 * PAUSE_SECONDS - 1) == ["bad"]
    assert elsewhere.avoided(100.0 + 2 * PAUSE_SECONDS + 1) == []
