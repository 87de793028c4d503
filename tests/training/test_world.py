import numpy as np
import pytest
import torch

from training.captions import caption
from training.loop import Draw
from training.phases import scenes_and_captions
from training.world import (
    ASPECT,
    BACKGROUNDS,
    COLOURS,
    COMBINATIONS,
    HELD_OUT,
    MOTIONS,
    SHAPES,
    Scene,
    Shape,
    draw,
    moments,
    sample_scene,
)


def scenes(count: int, **options) -> list[Scene]:
    rng = np.random.default_rng(0)
    return [sample_scene(rng, **options) for _ in range(count)]


def test_a_scene_looks_the_same_at_any_resolution():
    sampled = scenes(20)
    small, large = (draw(sampled, moments(8).expand(20, -1), 16 * k, 24 * k) for k in (1, 4))
    averaged = torch.nn.functional.avg_pool3d(large, (1, 4, 4))
    assert (averaged - small).abs().mean() < 0.01


def test_what_is_drawn_does_not_depend_on_the_rest_of_the_batch():
    sampled = scenes(6)
    together = draw(sampled, moments(5).expand(6, -1), 16, 24)
    alone = torch.cat([draw([scene], moments(5)[None], 16, 24) for scene in sampled])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("kind", SHAPES)
def test_a_shape_covers_the_area_that_geometry_says(kind: str):
    radius = 0.3
    area = {"circle": np.pi * radius**2, "square": (1.8 * radius) ** 2, "triangle": 1.1 * 1.9 * radius**2}[kind]
    scene = Scene((Shape("white", kind, "still", ASPECT / 2, 0.5, radius),), "black")
    frame = draw([scene], moments(2)[None], 240, 360)[0, :, 0].mean(0)
    assert frame.sum() / (240 * 240) * 255 / 250 == pytest.approx(area, rel=0.01)


def test_shapes_stay_within_their_part_of_the_frame():
    for scene in scenes(200):
        background = torch.tensor(BACKGROUNDS[scene.background])[:, None, None, None] / 255
        for i, shape in enumerate(scene.shapes):
            frames = draw([Scene((shape,), scene.background)], moments(9)[None], 48, 72)[0]
            columns = ((frames - background).abs().amax(dim=(0, 1, 2)) > 0.05).nonzero()
            width = 72 // len(scene.shapes)
            assert i * width <= columns.min()
            assert columns.max() < (i + 1) * width


def test_held_out_combinations_are_never_sampled_in_training():
    step = Draw.of("keyframes", 0, 0, torch.device("cpu"))
    sampled, _ = scenes_and_captions(step, 3000)
    seen = {shape.combination for scene in sampled for shape in scene.shapes}
    assert seen == set(COMBINATIONS) - HELD_OUT


def test_a_held_out_scene_has_exactly_one_held_out_shape():
    for scene in scenes(50, held_out=True):
        assert sum(shape.combination in HELD_OUT for shape in scene.shapes) == 1


def test_every_colour_shape_and_motion_is_learned_from_other_combinations():
    left = set(COMBINATIONS) - HELD_OUT
    assert {c for c, _, _ in left} == set(COLOURS)
    assert {s for _, s, _ in left} == set(SHAPES)
    assert {m for _, _, m in left} == set(MOTIONS)
    assert 0.08 < len(HELD_OUT) / len(COMBINATIONS) < 0.2


def test_a_caption_names_all_attributes_and_has_many_forms():
    scene = Scene(
        (
            Shape("red", "circle", "left", 0.4, 0.5, 0.2, 0.2),
            Shape("blue", "square", "still", 1.1, 0.5, 0.2),
        ),
        "gray",
    )
    rng = np.random.default_rng(0)
    captions = {caption(scene, rng) for _ in range(200)}
    assert len(captions) > 50
    for text in captions:
        words = text.replace(",", " ").split()
        places = [words.index(word) for word in ("red", "circle", "left", "blue", "square")]
        assert places == sorted(places)
        assert "gray" in words
