"""Does nano draw what the prompt says? Renders prompts that training never saw and measures the final clips' pixels.

python benchmarks/quality.py [--pipeline nano] [--count 400] [--seed 1] [--sheet quality.png]
python benchmarks/quality.py --stages        each later stage against resizing the one before it, given true inputs

A quarter of the prompts has a combination of colour, shape and motion that training left out, a fifth has two shapes,
each scored with its own attributes. Intervals are Wilson's, 95 %.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from show1_ray.clip import Clip
from show1_ray.pipeline import Pipeline
from show1_ray.show1.cascade import load_stages, run_stages
from show1_ray.show1.interpolation import join_windows, window_conditions
from show1_ray.show1.latent_super_resolution import resize, to_uint8
from show1_ray.show1.super_resolution import upscale
from training.measure import ATTRIBUTES, Score, sample_prompts, score, wilson
from training.world import Scene, draw, moments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pipeline", default="nano", help="a pipeline's name or file; `truth` scores the world's own clips"
    )
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="STAGE.KEY=VALUE")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet, one row a clip")
    parser.add_argument("--rows", type=int, default=40, help="of the contact sheet")
    parser.add_argument("--stages", action="store_true", help="each later stage against resizing the one before it")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pipeline = Pipeline.load("nano" if options.pipeline == "truth" else options.pipeline, options.overrides)
    if options.stages:
        compare_stages(pipeline, options.count, options.seed)
        return
    prompts = sample_prompts(options.count, options.seed)
    clips = true_clips(prompts, pipeline) if options.pipeline == "truth" else rendered(prompts, pipeline, options.seed)
    scores: list[Score] = []
    rows: list[NDArray[np.uint8]] = []
    start = time.monotonic()
    for (scene, text), video in zip(prompts, clips, strict=True):
        scores.append(score(scene, video))
        if options.sheet and len(rows) < options.rows:
            rows.append(sheet_row(text, video, scores[-1]))
            if len(rows) % 10 == 0 or len(rows) == min(options.rows, options.count):
                Image.fromarray(np.concatenate(rows)).save(options.sheet)
    print_table(scores)
    print(f"{(time.monotonic() - start) / len(scores):.2f} s a clip with {options.threads} thread(s)")


def rendered(prompts: Iterable[tuple[Scene, str]], pipeline: Pipeline, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Clips of the prompts, F H W 3, one after the other."""
    stages = load_stages(pipeline)
    for i, (_, text) in enumerate(prompts):
        yield run_stages(stages, [Clip(id=str(i), prompt=text, seed=1_000_000 * seed + i)])[0].numpy()


def true_clips(prompts: Iterable[tuple[Scene, str]], pipeline: Pipeline) -> Iterator[NDArray[np.uint8]]:
    """The world's own clips of the prompts, of the pipeline's size: what the measurement itself can reach."""
    size = pipeline.stages.latent_super_resolution
    for scene, _ in prompts:
        video = draw([scene], moments(pipeline.total_frames)[None], size.height, size.width)[0]
        yield to_uint8(2 * video - 1).numpy()


def print_table(scores: Sequence[Score]) -> None:
    """A line for each attribute, a column for each part of the prompts."""
    parts = {
        "all": list(scores),
        "held out": [s for s in scores if s.held_out],
        "the rest": [s for s in scores if not s.held_out],
        "two shapes": [s for s in scores if s.two_shapes],
    }
    print(f"{'':12}" + "".join(f"{f'{name} ({len(part)} clips)':>30}" for name, part in parts.items()))
    for attribute in ATTRIBUTES:
        cells = []
        for part in parts.values():
            values = [value for s in part for value in s.right[attribute]]
            low, high = wilson(sum(values), len(values))
            cells.append(f"{sum(values) / max(len(values), 1):7.1%} [{low:.1%}, {high:.1%}]")
        print(f"{attribute:12}" + "".join(f"{cell:>30}" for cell in cells))
    jitter = [value for s in scores for value in s.jitter]
    if jitter:
        median, most = np.median(jitter), np.quantile(jitter, 0.9)
        print(f"jitter of the centroid: median {median:.2%}, 90th percentile {most:.2%} of the height")


def sheet_row(text: str, video: NDArray[np.uint8], found: Score, columns: int = 8) -> NDArray[np.uint8]:
    """The prompt, what is wrong, and eight frames: H W 3."""
    frames = video[np.linspace(0, len(video) - 1, columns).round().astype(int)]
    label = Image.new("RGB", (230, frames.shape[1]), "white")
    wrong = [name for name, values in found.right.items() if not all(values)]
    words, lines = text.split(), [""]
    for word in words:
        lines = [*lines[:-1], f"{lines[-1]} {word}".strip()] if len(lines[-1]) + len(word) < 34 else [*lines, word]
    if wrong:
        lines.append(f"wrong: {', '.join(wrong)}")
    ImageDraw.Draw(label).multiline_text((6, 6), "\n".join(lines), fill="black")
    return np.concatenate(
        [np.asarray(label), *np.pad(frames, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)[:, 1:-1]], axis=1
    )


def compare_stages(pipeline: Pipeline, count: int, seed: int) -> None:
    """Each stage after the keyframes, given the world's own frames, against what resizing or blending makes of them.

    Prints PSNR over all pixels of all scenes, and the root mean square error of the differences between neighbouring
    pixels ("edges"), also as a share of the plain way's. (A mean of the scenes' PSNRs would tell little: where nothing
    moves a blend is exact, and its PSNR without bound.)
    """
    text, _, interpolation, sr, latent = load_stages(pipeline)
    keyframes, final = pipeline.stages.keyframes, pipeline.stages.latent_super_resolution
    small, scale = (keyframes.height, keyframes.width), pipeline.stages.super_resolution.scale
    times = moments(pipeline.total_frames)[None]
    results: dict[str, list[tuple[float, float, float, float]]] = {}
    for i, (scene, prompt) in enumerate(sample_prompts(count, seed)):
        clip = [Clip(id=str(i), prompt=prompt, seed=seed * 1_000_000 + i)]
        given = text(clip, [{}])[0]

        def true(height: int, width: int, scene: Scene = scene) -> Tensor:
            return 2 * draw([scene], times, height, width)[0] - 1

        low, middle, high = true(*small), true(small[0] * scale, small[1] * scale), true(final.height, final.width)
        sparse = low[:, :: pipeline.stages.interpolation.window - 1]
        blend = join_windows(
            window_conditions(sparse[None], pipeline.stages.interpolation.window)[:, :3], sparse.shape[1] - 1
        )[0]
        larger = upscale(low.transpose(0, 1), scale).transpose(0, 1)
        resized = _signed(resize(to_uint8(middle), (final.width, final.height)))
        made = {
            "interpolation": (interpolation(clip, [{**given, "keyframes": sparse}])[0]["frames"], blend, low),
            "super_resolution": (sr(clip, [{**given, "frames": low}])[0]["frames_sr"], larger, middle),
            "latent_super_resolution": (
                _signed(latent(clip, [{**given, "frames_sr": middle}])[0]["video"]),
                resized,
                high,
            ),
        }
        for name, (stage, plain, truth) in made.items():
            results.setdefault(name, []).append((*squared_errors(stage, truth), *squared_errors(plain, truth)))
    found: dict[str, dict[str, float]] = {}
    print(f"{'stage':26}{'PSNR':>9}{'plain':>9}{'edges':>9}{'plain':>9}{'ratio':>8}   ({count} scenes)")
    for name, rows in results.items():
        pixels, edges, plain_pixels, plain_edges = np.mean(rows, axis=0)
        found[name] = {
            "psnr": psnr(pixels),
            "plain_psnr": psnr(plain_pixels),
            "edges": math.sqrt(edges),
            "plain_edges": math.sqrt(plain_edges),
            "ratio": math.sqrt(edges / plain_edges),
        }
        print(f"{name:26}" + "{:9.2f}{:9.2f}{:9.4f}{:9.4f}{:8.2f}".format(*found[name].values()))
    print(json.dumps({name: {key: round(x, 4) for key, x in values.items()} for name, values in found.items()}))


def psnr(mean_square: float) -> float:
    """Peak signal-to-noise ratio in dB of frames in [−1, 1]."""
    return -10 * math.log10(max(mean_square / 4, 1e-10))


def squared_errors(frames: Tensor, truth: Tensor) -> tuple[float, float]:
    """Mean square errors of pixels, and of the differences between neighbouring pixels."""
    error = frames.clamp(-1, 1) - truth
    edges = (error.diff(dim=-1).square().mean() + error.diff(dim=-2).square().mean()) / 2
    return error.square().mean().item(), edges.item()


def _signed(video: Tensor) -> Tensor:
    """F H W 3, uint8 → 3 F H W in [−1, 1]."""
    return video.permute(3, 0, 1, 2).float() / 127.5 - 1


if __name__ == "__main__":
    main()
