"""A clip: one video to render, and what travels down the line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Clip:
    """One video to render.

    A clip's frames are a function of `prompt`, `negative_prompt`, `seed`, `inputs` and the pipeline's recipe; `id` only
    names it. `inputs` has what the pipeline's `inputs` name, of the manifest's row.
    `negative_prompt` is None where the manifest gives none: each stage then uses its own default.
    """

    id: str
    prompt: str
    negative_prompt: str | None = None
    seed: int = 0
    inputs: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"clip {self.id!r}: seed {self.seed} is not between 0 and 2**63 - 1")
