from collections.abc import Iterator

import numpy as np
import pytest
import torch

from training.measure import ATTRIBUTES, Score, sample_prompts, score, wilson
from training.world import Scene, Shape, draw, moments

SIZE = (96, 144)


def video(scene: Scene) -> np.ndarray:
    frames = draw([scene], moments(29)[None], *SIZE)[0]
    return (frames.permute(1, 2, 3, 0) * 255).to(torch.uint8).numpy()


@pytest.fixture(scope="module")
def scores() -> list[Score]:
    return [score(scene, video(scene)) for scene, _ in sample_prompts(200, seed=7)]


def test_the_world_s_own_clips_score_full_marks(scores: list[Score]):
    for attribute in ATTRIBUTES:
        right = [value for one in scores for value in one.right[attribute]]
        assert np.mean(right) >= 0.99, attribute


def test_a_quarter_of_the_prompts_is_held_out_and_a_fifth_has_two_shapes(scores: list[Score]):
    assert sum(one.held_out for one in scores) == 50
    assert sum(one.two_shapes for one in scores) == 40


def wrong_scenes() -> Iterator[tuple[str, Scene, Scene]]:
    """What is asked for, what is shown, and the one attribute that differs."""
    asked = Shape("red", "circle", "left", 0.75, 0.5, 0.22, 0.5)
    for attribute, shown, background in (
        ("colour", Shape("purple", "circle", "left", 0.75, 0.5, 0.22, 0.5), "black"),
        ("shape", Shape("red", "square", "left", 0.75, 0.5, 0.22, 0.5), "black"),
        ("motion", Shape("red", "circle", "right", 0.75, 0.5, 0.22, 0.5), "black"),
        ("motion", Shape("red", "circle", "still", 0.75, 0.5, 0.22), "black"),
        ("motion", Shape("red", "circle", "growing", 0.75, 0.5, 0.22, 0.0, 2.5), "black"),
        ("background", asked, "brown"),
    ):
        yield attribute, Scene((asked,), "black"), Scene((shown,), background)


@pytest.mark.parametrize(("attribute", "asked", "shown"), list(wrong_scenes()))
def test_a_wrong_attribute_is_noticed_and_only_that(attribute: str, asked: Scene, shown: Scene):
    found = score(asked, video(shown)).right
    assert {name for name, values in found.items() if not all(values)} == {attribute}


def test_a_shape_that_is_missing_is_wrong():
    pair = (Shape("red", "circle", "still", 0.375, 0.5, 0.2), Shape("blue", "square", "still", 1.125, 0.5, 0.2))
    found = score(Scene(pair, "gray"), video(Scene(pair[:1], "gray"))).right
    assert found["colour"] == [True, False]


def test_two_shapes_may_have_changed_places():
    left = Shape("red", "circle", "still", 0.375, 0.5, 0.2), Shape("blue", "square", "still", 1.125, 0.5, 0.2)
    right = Shape("blue", "square", "still", 0.375, 0.5, 0.2), Shape("red", "circle", "still", 1.125, 0.5, 0.2)
    assert all(all(values) for values in score(Scene(left, "gray"), video(Scene(right, "gray"))).right.values())


def test_trembling_is_told_from_smooth_motion():
    scene = Scene((Shape("red", "circle", "left", 0.75, 0.5, 0.22, 0.5),), "black")
    smooth = video(scene)
    trembling = np.stack([np.roll(frame, 3 * (-1) ** i, axis=1) for i, frame in enumerate(smooth)])
    assert score(scene, trembling).jitter[0] > 5 * score(scene, smooth).jitter[0]


def test_wilson_s_interval_is_that_of_the_books():
    assert wilson(95, 100) == pytest.approx((0.8882, 0.9785), abs=1e-3)
    assert wilson(0, 10)[0] == 0.0
