"""A cascade in which one word breaks a clip."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch

from show1_ray.show1.loading import load_tokenizer


def break_word(tiny: Path, word: str, spared: Iterable[str], folder: Path) -> Path:
    """A copy of the tiny cascade in `folder` that computes NaN for prompts with `word`, but not for those of `spared`.

    Returns its pipeline file.
    """
    shutil.copytree(tiny.parent, folder)
    base = folder / "show-1-base"
    tokens = load_tokenizer(base)
    others = {token for prompt in (*spared, "") for token in tokens(prompt).input_ids}
    own = [token for token in tokens(f"a {word}").input_ids if token not in others]
    assert own
    for path in (base / "text_encoder").glob("*.bin"):
        weights = torch.load(path, weights_only=True)
        for name in ("shared.weight", "encoder.embed_tokens.weight"):
            if name in weights:
                weights[name][own] = float("nan")
        torch.save(weights, path)
    return folder / "pipeline.yaml"
