"""How long prompts are for a pipeline's text encoders, which silently cut prompts that are too long."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

from show1_ray.errors import UserError
from show1_ray.manifest import Manifest
from show1_ray.pipeline import Pipeline
from show1_ray.pipeline.checkpoints import CheckpointError
from show1_ray.pipeline.tokens import Counter

AT_ONCE = 4096


@dataclass
class TooLong:
    """Prompts that an encoder of a stage cuts: how many, and the first one's place and tokens."""

    stage: str
    limit: int
    count: int = 0
    first: tuple[str, int, int] = ("", 0, 0)

    def see(self, places: list[tuple[str, int, str]], tokens: list[int]) -> None:
        """More prompts, in their order."""
        for (url, row, _), number in zip(places, tokens, strict=True):
            if number > self.limit:
                self.first = self.first if self.count else (url, row, number)
                self.count += 1


class Prompts:
    """Counts tokens of prompts, as far as a pipeline's stages say what they take of them.

    Args:
        pipeline: whose stages are asked; their tokenizers are fetched if they are not there yet.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.why_not = ""
        """Why nothing is counted, where stages say what they take."""
        self._counters: list[tuple[str, Counter]] = []
        try:
            self._counters = [(stage, Counter(limit)) for stage, limit in pipeline.prompt_limits()]
        except CheckpointError as error:
            self.why_not = str(error)

    def columns(self, prompt: str) -> dict[str, Any]:
        """What the metadata has of a prompt: its tokens for the first encoder, and whether one of them cuts it."""
        if not self._counters:
            return {}
        tokens = [(counter([prompt])[0], counter.limit.tokens) for _, counter in self._counters]
        return {"prompt_tokens": tokens[0][0], "prompt_truncated": any(number > limit for number, limit in tokens)}

    def notes(self, manifest: Manifest) -> list[str]:
        """Which prompts are cut, a line for each encoder that cuts some."""
        if self.why_not:
            return [f"prompts are not counted: {self.why_not}"]
        found, total = self._too_long(manifest)
        return [
            f"{one.count:,} of {total:,} prompts are longer than the {one.limit} tokens that stage {one.stage} takes, "
            f"which cuts them: the first is row {one.first[1]} of {one.first[0]}, with {one.first[2]}"
            for one in found
        ]

    def refuse(self, manifest: Manifest) -> None:
        """Raises UserError where a prompt is cut, or where that is not known."""
        if not self._counters:
            why = self.why_not or "no stage of the pipeline says how much it takes of a prompt"
            raise UserError(f"--strict-prompts: prompts cannot be counted: {why}")
        found, total = self._too_long(manifest)
        for one in found:
            url, row, tokens = one.first
            raise UserError(
                f"manifest {url}: row {row}: 'prompt' has {tokens} tokens, and stage {one.stage} takes {one.limit}; "
                f"{one.count:,} of {total:,} prompts are too long: shorten them, or render without --strict-prompts"
            )

    def _too_long(self, manifest: Manifest) -> tuple[list[TooLong], int]:
        """Encoders that cut prompts, and how many prompts there are."""
        if not self._counters:
            return [], 0
        found = [TooLong(stage, counter.limit.tokens) for stage, counter in self._counters]
        prompts, total = manifest.prompts(), 0
        while places := list(islice(prompts, AT_ONCE)):
            total += len(places)
            for one, (_, counter) in zip(found, self._counters, strict=True):
                one.see(places, counter([prompt for _, _, prompt in places]))
        return [one for one in found if one.count], total
