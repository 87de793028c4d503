"""The world that nano is trained on: one or two flat shapes that move over a plain background.

A scene is a handful of numbers; `draw` renders it at any resolution and any moment, with anti-aliased edges, from the
shapes' signed distances. Lengths are in frame heights: a frame is 1 high and `ASPECT` wide, y points down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

ASPECT = 1.5
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 35, 35),
    "green": (35, 175, 55),
    "blue": (45, 75, 235),
    "yellow": (245, 225, 40),
    "purple": (165, 45, 205),
    "white": (250, 250, 250),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {"black": (0, 0, 0), "gray": (128, 128, 128), "brown": (100, 60, 25)}
SHAPES = ("circle", "square", "triangle")
DIRECTIONS: dict[str, tuple[float, float]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
MOTIONS = (*DIRECTIONS, "still", "growing", "shrinking")
TWO_SHAPES = 0.35
"""Share of the scenes that have two shapes: they are harder to learn than those with one."""

Combination = tuple[str, str, str]
"""Colour, shape and motion."""
COMBINATIONS: tuple[Combination, ...] = tuple(product(COLOURS, SHAPES, MOTIONS))
HELD_OUT: frozenset[Combination] = frozenset(
    (colour, shape, motion)
    for (c, colour), (s, shape), (m, motion) in product(enumerate(COLOURS), enumerate(SHAPES), enumerate(MOTIONS))
    if (c + 2 * s + 3 * m) % 9 == 4
)
"""Combinations that training never shows: one in nine, so that each colour, shape and motion is known from others."""


@dataclass(frozen=True)
class Shape:
    """One shape.

    Attributes:
        colour, kind, motion: of `COLOURS`, `SHAPES` and `MOTIONS`.
        x, y: its centre in the middle of the clip.
        radius: half its height, about, in the middle of the clip.
        travel: how far its centre moves during the clip.
        growth: by what its radius is multiplied (growing) or divided (shrinking) during the clip.
    """

    colour: str
    kind: str
    motion: str
    x: float
    y: float
    radius: float
    travel: float = 0.0
    growth: float = 1.0

    @property
    def combination(self) -> Combination:
        """What may be held out of training."""
        return self.colour, self.kind, self.motion


@dataclass(frozen=True)
class Scene:
    """One or two shapes, the first to the left of the second, and the background's name."""

    shapes: tuple[Shape, ...]
    background: str

    @property
    def held_out(self) -> bool:
        """Whether training must not see it."""
        return any(shape.combination in HELD_OUT for shape in self.shapes)


def sample_scene(rng: np.random.Generator, *, shapes: int | None = None, held_out: bool = False) -> Scene:
    """A random scene.

    Args:
        rng: where the randomness comes from.
        shapes: how many; None draws it.
        held_out: False: no combination is held out; True: that of one shape is, and only of one.
    """
    count = shapes or 1 + int(rng.random() < TWO_SHAPES)
    while True:
        combinations = [COMBINATIONS[i] for i in rng.integers(len(COMBINATIONS), size=count)]
        colours = {colour for colour, _, _ in combinations}
        if len(colours) == count and sum(c in HELD_OUT for c in combinations) == int(held_out):
            break
    background = list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
    return _placed(combinations, background, rng)


def alike(scene: Scene, rng: np.random.Generator) -> Scene:
    """Another scene of which the same is to be said: the shapes have other places, sizes and ways to go."""
    return _placed([shape.combination for shape in scene.shapes], scene.background, rng)


def _placed(combinations: Sequence[Combination], background: str, rng: np.random.Generator) -> Scene:
    return Scene(tuple(_place(rng, c, i, len(combinations)) for i, c in enumerate(combinations)), background)


def _place(rng: np.random.Generator, combination: Combination, index: int, count: int) -> Shape:
    """A shape somewhere in its part of the frame, which it does not leave."""
    width = ASPECT / count
    motion = combination[2]
    growth = rng.uniform(2.2, 2.8) if motion in ("growing", "shrinking") else 1.0
    radius = rng.uniform(0.21, 0.25) if count == 1 else rng.uniform(0.175, 0.205)
    if growth > 1:
        radius *= 0.88
    reach = 1.15 * radius * growth**0.5 + 0.01
    dx, dy = DIRECTIONS.get(motion, (0, 0))
    room = min(width, 1.1) if dx else 1.0
    travel = (room - 2 * reach) * rng.uniform(0.85, 1.0) if dx or dy else 0.0
    free_x = max(width / 2 - reach - abs(dx) * travel / 2, 0) * 0.7
    free_y = max(0.5 - reach - abs(dy) * travel / 2, 0) * 0.7
    x = width * (index + 0.5) + rng.uniform(-free_x, free_x)
    y = 0.5 + rng.uniform(-free_y, free_y)
    return Shape(*combination, x, y, radius, travel, growth)


def draw(
    scenes: Sequence[Scene], moments: Tensor, height: int, width: int, device: str | torch.device = "cpu"
) -> Tensor:
    """Renders scenes.

    Args:
        scenes: what to render; the second shape lies over the first.
        moments: B F, of each frame of each scene, 0 to 1.
        height, width: in pixels; pixels are square if width is `ASPECT` times height.
        device: where to.

    Returns:
        B 3 F H W, 0 to 1.
    """
    moments = moments.to(device, torch.float32)
    ys = ((torch.arange(height, device=device) + 0.5) / height)[:, None]
    xs = ((torch.arange(width, device=device) + 0.5) / width * ASPECT)[None, :]
    colours = torch.tensor([BACKGROUNDS[scene.background] for scene in scenes], device=device) / 255
    frames = colours[:, :, None, None, None].repeat(1, 1, moments.shape[1], height, width)
    for index in range(2):
        rows = [i for i, scene in enumerate(scenes) if len(scene.shapes) > index]
        if not rows:
            continue
        shapes = [scenes[i].shapes[index] for i in rows]
        x, y, radius = (place[:, :, None, None] for place in _places(shapes, moments[rows]))
        kinds = torch.tensor([SHAPES.index(shape.kind) for shape in shapes], device=device)
        inside = -_distance(kinds[:, None, None, None], xs - x, ys - y, radius)
        cover = (inside * height + 0.5).clamp(0, 1)[:, None]
        colours = torch.tensor([COLOURS[shape.colour] for shape in shapes], device=device) / 255
        frames[rows] = torch.lerp(frames[rows], colours[:, :, None, None, None], cover)
    return frames


def _places(shapes: Sequence[Shape], moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centre and radius of shapes, each B F; `moments` is B F."""
    numbers = []
    for shape in shapes:
        dx, dy = DIRECTIONS.get(shape.motion, (0, 0))
        growth = math.log(shape.growth) * {"growing": 1, "shrinking": -1}.get(shape.motion, 0)
        numbers.append((shape.x, shape.y, shape.radius, dx * shape.travel, dy * shape.travel, growth))
    x, y, radius, dx, dy, growth = torch.tensor(numbers, device=moments.device).T[..., None]
    swing = moments - 0.5
    return x + dx * swing, y + dy * swing, radius * (growth * swing).exp()


def _distance(kinds: Tensor, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Signed distance to a shape's edge, negative inside; exact near the edges, which is all that drawing needs."""
    circle = torch.hypot(x, y) - radius
    square = torch.maximum(x.abs(), y.abs()) - 0.9 * radius
    half, top, bottom = 1.1 * radius, -1.05 * radius, 0.85 * radius
    height = bottom - top
    flank = (x.abs() * height - (y - top) * half) / torch.hypot(height, half)
    triangle = torch.maximum(flank, y - bottom)
    return torch.where(kinds == 0, circle, torch.where(kinds == 1, square, triangle))


def moments(frames: int, total: int | None = None, start: int = 0, every: int = 1) -> Tensor:
    """When frames are: `frames` of a clip of `total`, from `start`, each `every`: F, 0 to 1."""
    return (start + every * torch.arange(frames)) / ((total or frames) - 1)
