"""Sample sheets: what a phase's network makes of a few captions so far."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import imageio.v3 as iio
import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from show1_ray.show1.random import published_config
from show1_ray.stages.sampling import NoiseSchedule, denoise, guided, make_scheduler
from training import networks
from training.loop import Draw, Trainer
from training.phases import HEIGHT, KEYFRAMES, LAMBDA_MIN, WIDTH, scenes_and_captions

if TYPE_CHECKING:
    from training.train import Training

ROWS = 12


def write(training: Training, trainer: Trainer) -> None:
    """Writes `<phase>.png` beside the phase's state: for keyframes, a row a caption; nothing for other phases."""
    name = trainer.phase.name
    if name not in ("keyframe_images", "keyframes"):
        return
    unet = trainer.phase.network
    weights = {key: value.clone() for key, value in unet.state_dict().items()}
    unet.load_state_dict(trainer.average)
    unet.eval()
    with torch.no_grad():
        if name == "keyframes":
            video = keyframes(training, unet, KEYFRAMES)
        else:
            with networks.single_frames(unet):
                video = keyframes(training, unet, 1)
    unet.load_state_dict(weights)
    unet.train()
    picture(video, trainer.folder / f"{name}.png")


def keyframes(training: Training, unet: Any, frames: int, guidance: float = 3.0, steps: int = 12) -> Tensor:
    """Samples: ROWS 3 F H W."""
    draw = Draw.of("sheet", 0, training.seed, training.device)
    _, captions = scenes_and_captions(draw, ROWS)
    texts = training.texts
    text, nothing = texts.embed(captions, draw.device), texts.embed([""] * ROWS, draw.device)
    begin = LAMBDA_MIN["keyframes"]
    scheduler = make_scheduler(published_config("show-1-base", "scheduler"), lambda_min_clipped=begin)
    x = draw.noise(torch.empty(ROWS, 3, frames, HEIGHT, WIDTH))
    return denoise(guided(unet, text, nothing, guidance), x, NoiseSchedule.of(scheduler, steps))


def picture(video: Tensor, path: Path, factor: int = 3) -> None:
    """Writes videos, B 3 F H W in [−1, 1], as a PNG: a row a video, each pixel `factor` pixels wide."""
    rows = rearrange(video.float().cpu().clamp(-1, 1), "b c f h w -> (b h) (f w) c")
    pixels = ((rows + 1) * 127.5).to(torch.uint8).numpy()
    iio.imwrite(path, np.repeat(np.repeat(pixels, factor, 0), factor, 1))
