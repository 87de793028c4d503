"""A clip: one video to render. Clips travel down the line."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

MAX_SEED = 2**63 - 1
GENERATOR_SEEDS = 2**32
"""Torch's CPU generators are seeded with 32 bits; of a larger number they silently take the low ones."""

SeedRule = Literal["mixed", "low"]
"""How seeds of 63 bits become 32: "mixed" (see `mixed_seed`), or "low", the low ones, as datasets do that were begun
when there was no other rule."""


def mixed_seed(seed: int) -> int:
    """A seed of up to 63 bits, mixed into 32 bits that each depend on all of it; below 2³² it stays as it is.

    From 2³² on it is the first 32 bits of the SHA-256 of its decimal digits.
    """
    if seed < GENERATOR_SEEDS:
        return seed
    return int.from_bytes(hashlib.sha256(b"%d" % seed).digest()[:4], "big")


@dataclass(frozen=True, slots=True)
class Clip:
    """One video to render.

    A clip's frames are a function of `prompt`, `negative_prompt`, `seed`, `inputs` and the pipeline's recipe; `id` only
    names it. With `negative_prompt` None, each stage uses its own default. `seed_rule` belongs to the recipe, and
    matters for seeds from 2³² on; stages seed their generators with `generator_seed`. `inputs` holds the values of the
    pipeline's `inputs`: text, numbers, images and videos (bytes, or URLs).
    """

    id: str
    prompt: str
    negative_prompt: str | None = None
    seed: int = 0
    seed_rule: SeedRule = "mixed"
    inputs: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"clip {self.id!r}: seed {self.seed} is not between 0 and 2**63 - 1")

    @property
    def generator_seed(self) -> int:
        """The seed for this clip's generators: 0 to 2³² − 1."""
        return self.seed % GENERATOR_SEEDS if self.seed_rule == "low" else mixed_seed(self.seed)
