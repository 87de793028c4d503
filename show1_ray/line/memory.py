"""Memory of devices: how it is measured, and how large batches may be after running out of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

GROW_AFTER = 16
"""Batches of a smaller size that go well before one card tries a larger one; four times as many after each failure."""


class Gauge(Protocol):
    """Measures what this process has of a device's memory, in bytes."""

    def used(self) -> int:
        """What it has now."""

    def restart(self) -> None:
        """Begin to look for the most."""

    def most(self) -> int:
        """The most since `restart`."""

    def release(self) -> None:
        """Give back what is kept for later."""


@dataclass
class Cap:
    """Clips of a stage that there was room for. `scout` is the card that tries twice as many."""

    clips: int
    full: int
    patience: int = GROW_AFTER
    good: int = 0
    scout: str = ""

    def most(self, card: str) -> int:
        """For a card."""
        return min(self.full, self.clips * 2) if card and card == self.scout else self.clips

    def failed(self, card: str, clips: int) -> None:
        """A batch was too large."""
        self.good = 0
        if card == self.scout and clips > self.clips:
            self.patience *= 4
        else:
            self.clips = max(1, min(self.clips, clips // 2))
        self.scout = ""

    def did(self, card: str, clips: int) -> None:
        """A batch succeeded."""
        if clips > self.clips:
            self.clips, self.good, self.scout = clips, 0, ""
        elif clips == self.clips:
            self.good += 1
            if self.good >= self.patience and not self.scout:
                self.good, self.scout = 0, card


class Caps:
    """Of all stages (by number): kept for a card, and, when a second one of its kind has failed too, for its kind.

    One card alone may have too little memory because of a neighbour: another process that has left by and by. So caps
    are tried again, by one card at a time.
    """

    def __init__(self) -> None:
        self._caps: dict[tuple[int, str, str], Cap] = {}
        """By stage, kind, and card; "": of all cards of the kind."""

    def most(self, stage: int, kind: str, card: str, full: int) -> int:
        """The largest batch that a card has room for, as far as is known."""
        found = (self._caps.get((stage, kind, whose)) for whose in ("", card))
        return min((cap.most(card) for cap in found if cap is not None), default=full)

    def failed(self, stage: int, kind: str, card: str, clips: int, full: int, of_kind: Iterable[str]) -> None:
        """A batch was too large for a card; `of_kind` are all the cards of its kind."""
        cap = self._caps.get((stage, kind, ""))
        if cap is None:
            others = [one for one in of_kind if one != card]
            known = [one for one in others if (stage, kind, one) in self._caps]
            whose = "" if known or not others else card
            cap = self._caps.setdefault((stage, kind, whose), Cap(full, full))
            for one in (card, *known) if not whose else ():
                self._caps.pop((stage, kind, one), None)
        cap.failed(card, clips)

    def did(self, stage: int, kind: str, card: str, clips: int) -> None:
        """A batch succeeded."""
        for whose in ("", card):
            cap = self._caps.get((stage, kind, whose))
            if cap is not None:
                cap.did(card, clips)
                if cap.clips >= cap.full:
                    del self._caps[stage, kind, whose]
