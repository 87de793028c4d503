"""Prompts that a tokenizer cuts: noticed while a pipeline encodes them, whichever pipeline it is.

diffusers' pipelines cut long prompts in silence, or with a line in the log, each with a limit of its own. So the
tokenizers themselves are asked: where one cuts a text, it is counted how long it was.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Cut:
    """A text that was cut: its place among the texts that were given, its tokens, and how many are encoded."""

    place: int
    tokens: int
    limit: int


@dataclass
class Watch:
    """What the tokenizers of a pipeline did since `begin`."""

    limits: dict[str, int] = field(default_factory=dict)
    cuts: dict[str, list[Cut]] = field(default_factory=dict)

    def begin(self) -> None:
        """Forgets what was."""
        self.limits.clear()
        self.cuts.clear()

    @property
    def cut(self) -> Cut | None:
        """A text of which something is lost: the tokenizer that takes most has cut it, too.

        Of pipelines with several encoders one reads the whole prompt, and the others its beginning, as they are meant
        to.
        """
        if not self.limits:
            return None
        widest = max(self.limits.values())
        return next((cuts[0] for name, cuts in self.cuts.items() if cuts and self.limits[name] == widest), None)

    def heard(self, name: str, texts: list[str], limit: int, lengths: list[int]) -> None:
        """A tokenizer read texts."""
        self.limits[name] = max(limit, self.limits.get(name, 0))
        found = [Cut(place, length, limit) for place, length in enumerate(lengths) if length > limit]
        self.cuts.setdefault(name, []).extend(found)


def watched(pipe: Any) -> Watch:
    """Watches a pipeline's tokenizers from now on."""
    watch = Watch()
    for name, component in pipe.components.items():
        tokenizer = component
        if component is not None and not isinstance(component, PreTrainedTokenizerBase | nn.Module):
            tokenizer = getattr(component, "tokenizer", None)
        if isinstance(tokenizer, PreTrainedTokenizerBase):
            tokenizer.__class__ = _listening(type(tokenizer), watch, name)
    return watch


def _listening(cls: type[Any], watch: Watch, name: str) -> type[Any]:
    """The tokenizer's class, which tells what it cuts."""

    def call(self: Any, text: Any = None, *more: Any, **named: Any) -> Any:
        encoded = cls.__call__(self, text, *more, **named)
        texts = [text] if isinstance(text, str) else text
        is_texts = isinstance(texts, list | tuple) and all(isinstance(one, str) for one in texts)
        if named.get("truncation") in (True, "longest_first", "only_first") and is_texts and not more:
            limit = named.get("max_length") or self.model_max_length
            special = named.get("add_special_tokens", True)
            whole = cls.__call__(self, list(texts), add_special_tokens=special, verbose=False)
            watch.heard(name, list(texts), limit, [len(ids) for ids in whole["input_ids"]])
        return encoded

    return type(cls.__name__, (cls,), {"__call__": call, "__module__": cls.__module__})
