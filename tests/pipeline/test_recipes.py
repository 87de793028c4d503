"""Recipes identify datasets that exist: a change of code must not change them."""

import pytest

from show1_ray.pipeline import Pipeline


@pytest.mark.parametrize(("name", "digest"), [("nano", "d0c0192257fc3d50"), ("nano-fast", "73683ccb6dfaef97")])
def test_recipes_of_local_weights_are_what_they_were(name: str, digest: str):
    assert Pipeline.load(name).resolved().recipe_hash() == digest


@pytest.mark.parametrize(
    ("name", "digest"),
    [("show1", "13a8399a335ef7b4"), ("show1-demo", "40f73816084ab8c8"), ("show1-fast", "c28193ed29f18498")],
)
def test_recipes_of_the_hubs_weights_are_what_they_were_before_revisions_are_resolved(name: str, digest: str):
    assert Pipeline.load(name).recipe_hash() == digest
