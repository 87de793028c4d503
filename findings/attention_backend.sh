#!/usr/bin/env bash
# diffusers 0.42.1: `set_attention_backend` of one model changes what every other model of the process computes with.
# Beside the model's own processors it sets the backend that holds for all that have none of their own, and nothing
# takes that back: two pipelines in one process are no longer what each is alone. Here the other model is one that
# nobody has touched; its output differs in the last bits, because the backend computes softmax by another path.
# `with attention_backend(...)` around the call restores what was there before.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 transformers==5.24.0
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import diffusers
import torch
from diffusers import WanTransformer3DModel
from diffusers.models.attention_dispatch import attention_backend

torch.set_num_threads(1)
print("diffusers", diffusers.__version__, "torch", torch.__version__)


def model() -> WanTransformer3DModel:
    torch.manual_seed(0)
    sizes = {"attention_head_dim": 12, "num_attention_heads": 2, "in_channels": 16, "out_channels": 16}
    return WanTransformer3DModel(
        patch_size=(1, 2, 2), text_dim=32, freq_dim=256, ffn_dim=32, num_layers=2, rope_max_seq_len=32, **sizes
    ).eval()


@torch.no_grad()
def output(network: WanTransformer3DModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 16, 2, 16, 16, generator=generator)
    text = torch.randn(1, 16, 32, generator=generator)
    return network(latents, torch.tensor([500]), text, return_dict=False)[0]


mine, other = model(), model()
before = output(other)
assert torch.equal(before, output(other))
mine.set_attention_backend("_native_math")
changed = output(other)
print("the other model's output is what it was:", torch.equal(before, changed))
print("largest difference:", (before - changed).abs().max().item())
assert not torch.equal(before, changed)
with attention_backend("native"):
    assert torch.equal(before, output(other))
print("with attention_backend('native') around the call: it is")
PYTHON
