"""Half precision against single: the stages on networks and inputs of the published code's golden runs.

python benchmarks/numerics.py [--device cpu] [--out numerics.json]

Differences are from the published code's own output (in single precision), on frames in about [-1, 1]: the largest, the
root mean square, and the PSNR that it stands for. These networks are small and random, and the loops have few steps:
the table says how the number formats compare, not what a trained network's clip loses.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging
from torch import Tensor

from show1_ray.show1 import settings as recipe
from show1_ray.show1.execution import put_channels_last
from show1_ray.show1.fused import fuse
from show1_ray.show1.interpolation import Interpolation
from show1_ray.show1.keyframes import Keyframes
from show1_ray.show1.latent_super_resolution import LatentSuperResolution
from show1_ray.show1.super_resolution import FirstFrame, SuperResolution
from show1_ray.stages.noise import draw_batch
from tests.goldens import ANY, Case, Golden

CASES = ("keyframe", "interp", "sr1_image", "sr1", "sr2")
DTYPES = ("float32", "float16", "bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="JSON")
    options = parser.parse_args()
    rows = []
    print(f"torch {torch.__version__}, {options.device}")
    print(f"{'case':12}{'dtype':10}{'largest':>10}{'rms':>10}{'PSNR, dB':>10}")
    for row in differences(torch.device(options.device)):
        rows.append(row)
        print(
            f"{row['case']:12}{row['dtype']:10}{row['largest']:10.2g}{row['rms']:10.2g}{row['psnr']:10.1f}", flush=True
        )
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


def differences(device: torch.device, fused: bool = False) -> Iterator[dict[str, Any]]:
    """A row for each case and dtype; `fused` with the networks that `show1/fused.py` makes of them."""
    logging.set_verbosity_error()  # diffusers advises against casting networks that have no part to be kept single
    with tempfile.TemporaryDirectory() as folder:
        golden = Golden.unpacked(Path(folder))
        for name in CASES:
            for dtype in DTYPES:
                case = Case(golden, name)
                with torch.inference_mode():
                    output = run(case, golden, device, getattr(torch, dtype), fused)
                error = output.float().cpu() - case.expected
                rms = error.square().mean().sqrt().item()
                psnr = 20 * math.log10(2 / max(rms, 1e-10))
                yield {"case": name, "dtype": dtype, "largest": error.abs().max().item(), "rms": rms, "psnr": psnr}


def run(case: Case, golden: Golden, device: torch.device, dtype: torch.dtype, fused: bool = False) -> Tensor:
    """The case's stage on a device, in a dtype; noise is what the published code drew, rounded to it."""
    unet = case.unet.to(device, dtype)
    if fused:
        put_channels_last(fuse(unet))
    inputs = {
        name: tensor.to(device, dtype) if tensor.is_floating_point() else tensor for name, tensor in case.inputs.items()
    }
    text = inputs["prompt_embeds"], inputs["negative_prompt_embeds"]
    stage: Any
    if case.name == "keyframe":
        size = {"frames": case.call["f"], "height": case.call["h"], "width": case.call["w"]}
        stage = Keyframes(unet, case.scheduler, case.settings(recipe.Keyframes, **size))
        return torch.stack([given["keyframes"] for given in stage.run(case.clips, case.tensors(), case.noise)])
    if case.name == "interp":
        stage = Interpolation(unet, case.scheduler, case.settings(recipe.Interpolation, window=case.call["f"]))
        tensors = case.tensors(keyframes=case.inputs["pixel_values"][:, :, [0, -1]])
        return torch.stack([given["frames"] for given in stage.run(case.clips, tensors, case.noise)])
    if case.name == "sr1_image":
        settings = case.settings(recipe.FirstFrame, noise_level=case.call["noise_level"])
        return FirstFrame(unet, case.scheduler, case.noising, settings)(inputs["image"], *text, 4, case.noise)
    if case.name == "sr1":
        first_frame: Any = recipe.FirstFrame(checkpoint=ANY, steps=1, guidance=1)
        more = {"window": case.call["f"], "noise_level": case.call["noise_level"], "first_frame": first_frame}
        settings = case.settings(recipe.SuperResolution, **more)
        stage = SuperResolution(unet, case.scheduler, case.noising, first_frame, settings)
        noise = case.noise
        x, condition_noise = (draw_batch(noise, case.expected.shape[1:], like=inputs["image"]) for _ in range(2))
        first = inputs["first_frame_cond"][:, :, 0]
        return stage.upscale_window(inputs["image"], first, *text, x, condition_noise)
    settings = case.settings(recipe.LatentSuperResolution, strength=case.call["strength"])
    vae, encoder = golden.network("B_stage/vae").to(device, dtype), None
    stage = LatentSuperResolution(unet, vae, encoder, case.scheduler, settings, vae_frames=2)  # type: ignore[arg-type]
    return stage.upscale(inputs["video_uint8"][None], *text, case.noise)


if __name__ == "__main__":
    main()
