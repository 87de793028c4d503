"""What was computed of equal texts, kept for the next time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

KEPT = 64
"""Answers that are kept: of texts that a station has seen lately."""


class Kept(OrderedDict[str, Any]):
    """The last answers, by what was asked."""

    def found(self, key: str, make: Callable[[], Any]) -> Any:
        """What was asked so before, or is made now."""
        if key not in self:
            self[key] = make()
            if len(self) > KEPT:
                self.popitem(last=False)
        self.move_to_end(key)
        return self[key]


def remembering(encode: Callable[..., Any], kept: Kept) -> Callable[..., Any]:
    """Encodes equal texts, such as the negative prompt of all clips, once; arguments that are not plain, such as
    tensors, are never taken for equal.
    """

    @wraps(encode)
    def encoded(*given: Any, **named: Any) -> Any:
        if not all(map(_is_plain, (*given, *named.values()))):
            return encode(*given, **named)
        return kept.found(repr((given, sorted(named.items()))), lambda: encode(*given, **named))

    return encoded


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float | bool | torch.device | torch.dtype)
