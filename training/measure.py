"""What can be seen in a clip, by plain image analysis, and whether it is what the prompt says.

Nothing here is learned, and `measure` knows nothing of the prompt but the number of shapes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from training.captions import caption
from training.world import BACKGROUNDS, COLOURS, Scene, Shape, sample_scene

ATTRIBUTES = ("colour", "motion", "shape", "background")
HELD_OUT_EVERY, TWO_SHAPES_EVERY = 4, 5

Pixels = NDArray[np.float32]

CORNER = 1 / 12
"""Side of the corners that show the background, in frame heights: shapes hardly reach there."""
MIDDLE = (0.35, 0.65)
"""Between these parts of the width lies the gap between two shapes."""
FILLS = {"square": (1.0, 0.0), "circle": (0.785, 0.0), "triangle": (0.5, 1 / 6)}
"""How much of its bounding box a shape fills, and how far its centroid lies below the box's middle, in box heights."""
LEAST_AREA = 0.004
"""Of the frame: a shape smaller than this is not there."""
LEAST_GROWTH = 2.0
"""Factor of the area, from first to last frames, from which on a shape grows."""
LEAST_TRAVEL = 0.08
"""In frame heights: from here on a shape moves."""


@dataclass(frozen=True)
class Seen:
    """A shape that was measured; `path` is F 2, its centroid (x, y) in frame heights, NaN where it is not seen."""

    colour: str
    kind: str
    motion: str
    path: NDArray[np.float64]

    @property
    def jitter(self) -> float:
        """Root mean square of the centroid's second difference from frame to frame, in frame heights: 0 is smooth."""
        return float(np.sqrt(np.nanmean(np.diff(self.path, n=2, axis=0) ** 2)))


@dataclass(frozen=True)
class Score:
    """What is right in a clip: one value for each shape (for each clip, where it is the background), and the jitter."""

    right: dict[str, list[bool]]
    jitter: list[float]
    held_out: bool
    two_shapes: bool


def measure(video: NDArray[np.uint8], shapes: int) -> tuple[str, list[Seen | None]]:
    """Background and shapes of a clip.

    Args:
        video: F H W 3.
        shapes: how many to look for: 1, or 2 side by side.

    Returns:
        The background's name; the shapes from left to right, None for one that is not to be seen.
    """
    frames = video.astype(np.float32)
    side = max(round(frames.shape[1] * CORNER), 1)
    corners = [
        frames[:, y, x].reshape(-1, 3)
        for y in (slice(side), slice(-side, None))
        for x in (slice(side), slice(-side, None))
    ]
    background = np.median(np.concatenate(corners), axis=0)
    name = nearest(background, BACKGROUNDS)
    distance = np.linalg.norm(frames - background, axis=-1)
    edges = [0, *_gap(distance), frames.shape[2]] if shapes == 2 else [0, frames.shape[2]]
    found = [_measure_shape(frames, distance, background, slice(a, b)) for a, b in pairwise(edges)]
    return name, found


def nearest(colour: Pixels, palette: Mapping[str, tuple[int, int, int]]) -> str:
    """The palette's name for a colour."""
    return min(palette, key=lambda name: float(np.linalg.norm(colour - np.array(palette[name]))))


def _gap(distance: Pixels) -> list[int]:
    """The column between two shapes: of those in the middle the one with the least foreground."""
    columns = (distance > 60).sum(axis=(0, 1)).astype(np.float32)
    start, stop = (round(part * len(columns)) for part in MIDDLE)
    middle = columns[start:stop]
    lowest = np.flatnonzero(middle == middle.min())
    return [start + int(lowest[np.argmin(np.abs(lowest - len(middle) / 2))])]


def _measure_shape(frames: Pixels, distance: Pixels, background: Pixels, part: slice) -> Seen | None:
    """The shape in a part of the width."""
    frames, distance = frames[:, :, part], distance[:, :, part]
    height, least = frames.shape[1], LEAST_AREA * distance[0].size
    foreground = distance > 60
    if foreground.sum() < least * len(frames):
        return None
    core = foreground & (distance >= np.quantile(distance[foreground], 0.4))
    colour = np.median(frames[core], axis=0)
    direction = (colour - background) / max(float(np.sum((colour - background) ** 2)), 1.0)
    cover = np.clip((frames - background) @ direction, 0, 1)

    path, areas, fills = [], [], []
    for mask in cover > 0.5:
        ys, xs = np.nonzero(mask)
        areas.append(len(ys))
        if len(ys) < least:
            path.append((np.nan, np.nan))
            continue
        path.append((xs.mean() / height, ys.mean() / height))
        top, rows, columns = ys.min(), np.ptp(ys) + 1, np.ptp(xs) + 1
        fills.append((len(ys), len(ys) / (rows * columns), (ys.mean() - top + 0.5) / rows - 0.5))
    if len(fills) < len(frames) / 2:
        return None
    sizes, fill, below = np.array(fills).T
    large = sizes >= np.median(sizes)  # a shape is clearer in the frames where it is large
    features = np.array([fill[large].mean(), below[large].mean()])
    kind = min(FILLS, key=lambda name: float(np.linalg.norm((features - FILLS[name]) * (1, 1.5))))
    centroids = np.array(path)
    return Seen(nearest(colour, COLOURS), kind, _motion(centroids, np.array(areas, float)), centroids)


def _motion(path: NDArray[np.float64], areas: NDArray[np.float64], ends: int = 3) -> str:
    """How a shape moves, from its centroids and areas at the clip's ends."""
    growth = (areas[-ends:].mean() + 1) / (areas[:ends].mean() + 1)
    if growth > LEAST_GROWTH:
        return "growing"
    if growth < 1 / LEAST_GROWTH:
        return "shrinking"
    seen = path[~np.isnan(path[:, 0])]
    dx, dy = seen[-ends:].mean(axis=0) - seen[:ends].mean(axis=0)
    if max(abs(dx), abs(dy)) < LEAST_TRAVEL:
        return "still"
    if abs(dx) > abs(dy):
        return "right" if dx > 0 else "left"
    return "down" if dy > 0 else "up"


def sample_prompts(count: int, seed: int) -> list[tuple[Scene, str]]:
    """Scenes and captions: every fourth held out, every fifth with two shapes."""
    rng = np.random.default_rng([seed, 2**31])
    prompts = []
    for i in range(count):
        shapes = 2 if i % TWO_SHAPES_EVERY == 1 else 1
        scene = sample_scene(rng, shapes=shapes, held_out=i % HELD_OUT_EVERY == 0)
        prompts.append((scene, caption(scene, rng)))
    return prompts


def score(scene: Scene, video: NDArray[np.uint8]) -> Score:
    """Compares what is seen in a clip with its scene. Two shapes may have changed places: prompts do not name them."""
    background, seen = measure(video, len(scene.shapes))
    orders = [list(scene.shapes), list(reversed(scene.shapes))]
    wanted = max(
        orders, key=lambda order: sum(_matches(shape, found) for shape, found in zip(order, seen, strict=True))
    )
    pairs = list(zip(wanted, seen, strict=True))
    right = {
        "colour": [found is not None and found.colour == shape.colour for shape, found in pairs],
        "motion": [found is not None and found.motion == shape.motion for shape, found in pairs],
        "shape": [found is not None and found.kind == shape.kind for shape, found in pairs],
        "background": [background == scene.background],
    }
    jitter = [found.jitter for found in seen if found is not None]
    return Score(right, jitter, scene.held_out, len(scene.shapes) == 2)


def _matches(shape: Shape, found: Seen | None) -> int:
    """Colour decides who is who, then the other attributes."""
    if found is None:
        return 0
    return 3 * (found.colour == shape.colour) + (found.kind == shape.kind) + (found.motion == shape.motion)


def wilson(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share (Wilson 1927), 95 %."""
    if not count:
        return 0.0, 1.0
    share = right / count
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max((middle - half) / (1 + z * z / count), 0.0), min((middle + half) / (1 + z * z / count), 1.0)
