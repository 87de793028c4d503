"""Wan 2.1 1.3B's transformer at 480p and 81 frames, with random weights: no Ray, no hub.

    python benchmarks/wan.py OUT                  # on a GPU
    python benchmarks/wan.py OUT --size tiny      # on a CPU

A step is what `WanPipeline` does of one: the transformer for the prompt, then for the negative prompt, in bf16 with the
parts in fp32 that it keeps there. The first mode is that; the others change one thing or two, and say by how much a
prediction differs. Modes build on one another: what is compiled stays so. Operations are counted on the meta device;
the peak is that of large matrix products, measured in the same run. Results are written to OUT/wan.jsonl as they come.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from cascade import matrix_peak, timed
from diffusers import WanTransformer3DModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

SIZES: dict[str, tuple[dict[str, Any], tuple[int, ...], int]] = {  # configuration, latents' C F H W, tokens of text
    "1.3b": (
        {
            "num_attention_heads": 12,
            "attention_head_dim": 128,
            "in_channels": 16,
            "out_channels": 16,
            "text_dim": 4096,
            "freq_dim": 256,
            "ffn_dim": 8960,
            "num_layers": 30,
            "patch_size": (1, 2, 2),
            "cross_attn_norm": True,
            "qk_norm": "rms_norm_across_heads",
        },
        (16, 21, 60, 104),
        512,
    ),
    "tiny": (
        {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 16, "ffn_dim": 32, "num_layers": 2},
        (16, 3, 8, 8),
        6,
    ),
}
MODES = ("plain", "attention _native_flash", "batched guidance", "compiled", "compiled, batched")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a folder")
    parser.add_argument("--size", default="1.3b", choices=SIZES)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--modes", default=";".join(MODES), help="separated by semicolons")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps; their median counts")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(options.device)
    network = build(options.size, device)
    text = [torch.randn(1, SIZES[options.size][2], network.config.text_dim, device=device) for _ in range(2)]
    latents = torch.randn(1, *SIZES[options.size][1], device=device).bfloat16()
    text = [t.bfloat16() for t in text]
    peak, operations = matrix_peak(device, torch.bfloat16), 2 * count(options.size)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    keep = functools.partial(write, options.out / "wan.jsonl")
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    keep(device=name, **versions, peak=peak, tflop_a_step=operations / 1e12)
    expected = None
    for mode in options.modes.split(";"):
        try:
            step = step_of(mode, network, latents, text)
            first = timed(step, device)
            seconds = statistics.median(timed(step, device) for _ in range(options.repeats))
            found = step().float()
        except Exception as error:  # a backend that is not there is a result too
            keep(mode=mode, error=str(error).splitlines()[0][:200])
            continue
        expected = found if expected is None else expected
        difference = ((found - expected).norm() / expected.norm()).item()
        keep(mode=mode, first=first, seconds=seconds, share=operations / seconds / peak, difference=difference)


def write(file: Path, **row: Any) -> None:
    """Writes a result at once, and prints it."""
    with file.open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)


def build(size: str, device: torch.device) -> Any:
    """The transformer on the device, in the number formats that loading it in bf16 gives."""
    begin = time.perf_counter()
    torch.manual_seed(0)
    with device:
        network = WanTransformer3DModel.from_config(SIZES[size][0]).eval()
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        kept = any(part in network._keep_in_fp32_modules for part in name.split("."))
        tensor.data = tensor.data.to(torch.float32 if kept else torch.bfloat16)
    print(f"built in {time.perf_counter() - begin:.1f} s", file=sys.stderr)
    return network


def count(size: str) -> int:
    """Operations of one call."""
    config, shape, tokens = SIZES[size]
    with torch.device("meta"):
        network = WanTransformer3DModel.from_config(config).bfloat16()
        inputs = torch.empty(1, *shape).bfloat16(), torch.empty(1), torch.empty(1, tokens, network.config.text_dim)
        with FlopCounterMode(display=False) as counter:
            network(inputs[0], inputs[1], inputs[2].bfloat16())
    return counter.get_total_flops()


def step_of(mode: str, network: Any, latents: Tensor, text: list[Tensor]) -> Callable[[], Tensor]:
    """A step in a mode, which the network is brought into; it returns both predictions."""
    if mode.startswith("attention "):
        network.set_attention_backend(mode.removeprefix("attention "))
    else:
        network.set_attention_backend("native")
    if "compiled" in mode:
        network.compile_repeated_blocks(dynamic=False)
    timestep = torch.tensor([900], device=latents.device)

    def one_by_one() -> Tensor:
        return torch.cat([network(latents, timestep, t, return_dict=False)[0] for t in text])

    def batched() -> Tensor:
        both = torch.cat([latents, latents]), torch.cat([timestep, timestep]), torch.cat(text)
        return network(*both, return_dict=False)[0]

    return batched if "batched" in mode else one_by_one


if __name__ == "__main__":
    main()
