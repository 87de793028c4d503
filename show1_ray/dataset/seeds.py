"""How a dataset's clips are seeded: a rule that is part of its recipe and never changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from show1_ray.clip import SeedRule
from show1_ray.dataset.identity import has_begun, read_identity
from show1_ray.dataset.storage import Storage

KEY = "seeds"
"""Of the recipe."""


@dataclass(frozen=True)
class Seeds:
    """How a dataset's clips are seeded.

    Attributes:
        rule: see `Clip.seed_rule`. "low" in datasets that were begun when there was no other rule, else "mixed".
        in_recipe: whether the rule decides what a clip is, and is a key of the recipe: where seeds from 2³² on are
            given and are mixed. Recipes of all other datasets are the pipeline's own.
    """

    rule: SeedRule = "mixed"
    in_recipe: bool = False

    def recipe(self, pipeline: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe of a pipeline's clips in this dataset."""
        return {**pipeline, KEY: self.rule} if self.in_recipe else dict(pipeline)


def seeds_of(url: str, has_large_seeds: bool) -> Seeds:
    """The rule of the dataset at `url`: its own if it has begun, or that of a new one.

    Args:
        url: of the dataset.
        has_large_seeds: whether the manifest gives seeds from 2³² on.

    Raises UserError, StorageError: see `read_identity`.
    """
    storage = Storage.at(url)
    about = read_identity(storage)
    if about is None or not has_begun(storage):
        return Seeds("mixed", has_large_seeds)
    if about.seeds is None:
        return Seeds("low", False)
    return Seeds("mixed", has_large_seeds or KEY in about.recipe)
