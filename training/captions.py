"""What a scene is called, in plain English and in several ways."""

from __future__ import annotations

import numpy as np

from training.world import Scene, Shape

MOTION_PHRASES: dict[str, tuple[str, ...]] = {
    **{d: (f"moving {d}", f"going {d}", f"sliding {d}", f"that moves {d}") for d in ("up", "down")},
    **{d: (f"moving {d}", f"going {d}", f"moving to the {d}", f"that moves {d}") for d in ("left", "right")},
    "still": ("standing still", "not moving", "at rest", "that stands still"),
    "growing": ("growing", "getting bigger", "growing larger", "that grows"),
    "shrinking": ("shrinking", "getting smaller", "shrinking away", "that shrinks"),
}
TEMPLATES = (
    "{shapes} on a {background} background",
    "{shapes} on a {background} background",
    "{shapes}, {background} background",
    "{shapes} in front of a {background} backdrop",
    "on a {background} background, {shapes}",
)
TERSE = ("{colour} {kind}, {motion}", ", ", "{shapes}, {background} backdrop")


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One of the scene's captions. Two shapes are named from left to right."""
    if rng.random() < 0.2:
        pattern, link, template = TERSE
    else:
        pattern, link = "a {colour} {kind} {motion}", (" and ", ", ", " and ")[rng.integers(3)]
        template = TEMPLATES[rng.integers(len(TEMPLATES))]
    shapes = link.join(_phrase(shape, pattern, rng) for shape in scene.shapes)
    return template.format(shapes=shapes, background=scene.background)


def _phrase(shape: Shape, pattern: str, rng: np.random.Generator) -> str:
    phrases = MOTION_PHRASES[shape.motion]
    motion = phrases[0 if rng.random() < 0.4 else rng.integers(len(phrases))]
    return pattern.format(colour=shape.colour, kind=shape.kind, motion=motion)
