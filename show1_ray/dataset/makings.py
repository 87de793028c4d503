"""What clips are made from besides the recipe, according to their rows: prompt, negative prompt, seed, inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from show1_ray.clip import Clip
from show1_ray.dataset.metadata import content_digest, digest
from show1_ray.pipeline.columns import of_content, of_input
from show1_ray.pipeline.inputs import FILES, noted

CONTENT = "sha256:"
"""So begins what stands for a file whose bytes the manifest gave."""


class Made(NamedTuple):
    """16 bytes that stand for what a clip is made from, twice: with files by their paths and URLs, as the manifest has
    them, and by their content, b"" where that is not known or there are none."""

    told: bytes
    content: bytes = b""

    def is_same(self, other: Made) -> bool:
        """Whether two clips of one id are made from the same: by content, where that is known of both."""
        return self.content == other.content if self.content and other.content else self.told == other.told


@dataclass(frozen=True)
class Makings:
    """Which columns of the metadata tell what a clip is made from.

    Attributes:
        columns: inputs of the pipeline → their columns.
        files: of these, images and videos.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    files: frozenset[str] = frozenset()

    @classmethod
    def of(cls, pipeline: Mapping[str, Any]) -> Self:
        """Of a pipeline's document, as `Origin.pipeline` has it."""
        said = pipeline.get("inputs") or {}
        kinds = {name: {one} if isinstance(one, str) else set(one) for name, one in said.items()}
        return cls(
            {name: of_input(name) for name in kinds},
            frozenset(name for name, kind in kinds.items() if kind.intersection(FILES)),
        )

    @property
    def read(self) -> list[str]:
        """All columns besides prompt, negative prompt and seed."""
        return [*self.columns.values(), *map(of_content, sorted(self.files))]

    def of_row(self, row: Mapping[str, Any]) -> Made:
        """Of a row of the metadata, or of what a video carries."""
        prompt = (row["prompt"], row["negative_prompt"], row["seed"])
        if not self.columns:
            return Made(content_digest(*prompt))
        inputs = {name: row.get(column) for name, column in self.columns.items()}
        return self._made(prompt, inputs, {name: row.get(of_content(name)) for name in self.files})

    def of_clip(self, clip: Clip, contents: Mapping[str, str | None] | None = None) -> Made:
        """Of a clip of a manifest; `contents` are the SHA-256 of its files where they are known."""
        prompt = (clip.prompt, clip.negative_prompt, clip.seed)
        return self._made(prompt, noted(clip.inputs), contents or {}) if self.columns else Made(content_digest(*prompt))

    def of_ending(self, row: Mapping[str, Any]) -> Made:
        """Of a row of failures or rejections, where inputs are JSON."""
        inputs = json.loads(row.get("inputs") or "{}")
        values = json.loads(row.get("values") or "{}")
        return self.of_row({**row, **{of_input(name): value for name, value in inputs.items()}, **values})

    def _made(self, prompt: tuple[Any, ...], inputs: Mapping[str, Any], contents: Mapping[str, str | None]) -> Made:
        given = {name: value for name, value in sorted(inputs.items()) if value is not None}
        by_content = {name: _content(value, contents.get(name)) for name, value in given.items() if name in self.files}
        told = _digest([*prompt, *([given] if given else [])])
        if not by_content or None in by_content.values():
            return Made(told)
        return Made(told, _digest([*prompt, {**given, **by_content}]))


def _digest(values: list[Any]) -> bytes:
    return digest(json.dumps(values, default=str))  # spoilt columns may hold anything


def _content(value: Any, sha256: str | None) -> str | None:
    told = str(value)
    return told if told.startswith(CONTENT) else sha256 and f"{CONTENT}{sha256}"
