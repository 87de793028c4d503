"""Clips that share batches only with clips of the same key: counted by key before a stage, and admitted together."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item")

LOBBY = 4096
"""Clips that the line looks ahead in a manifest whose rows do not all share batches."""


class Counts:
    """How many clips wait, by their key. Finds the key to serve next without looking at all of them."""

    def __init__(self) -> None:
        self.total = 0
        self.mixed = False
        """Whether there was ever more than one key."""
        self._clips: dict[Hashable, int] = {}
        """In the order in which keys were served last, or came."""
        self._levels: dict[int, dict[Hashable, None]] = {}
        """Keys by their number of clips."""
        self._most = 0
        self._last: Hashable = self

    def add(self, clips: int, key: Hashable = None) -> None:
        """So many more wait."""
        before = self._clips.get(key, 0)
        self.mixed = self.mixed or (self._last is not self and key != self._last)
        self._last = key
        self._move(key, before, before + clips)

    def take(self, clips: int, key: Hashable = None) -> None:
        """So many do not wait any more. Raises KeyError or ValueError if there are not so many of this key."""
        before = self._clips[key]
        if clips > before:
            raise ValueError(f"{clips} clips are not among {before}")
        del self._clips[key]
        self._move(key, before, before - clips)

    def most(self) -> tuple[int, Hashable]:
        """The largest number of clips of one key, and that key."""
        for key in self._levels.get(self._most, ()):
            return self._most, key
        return 0, None

    def next(self) -> tuple[int, Hashable]:
        """The number of clips of the key that has not been served for longest, and that key."""
        for key, clips in self._clips.items():
            return clips, key
        return 0, None

    def _move(self, key: Hashable, before: int, after: int) -> None:
        self.total += after - before
        if before:
            level = self._levels[before]
            del level[key]
            if not level:
                del self._levels[before]
        if after:
            self._clips[key] = after
            self._levels.setdefault(after, {})[key] = None
            self._most = max(self._most, after)
        while self._most and self._most not in self._levels:
            self._most -= 1


class Lobby(Generic[Item]):
    """What waits to be let in, in the order in which it came, but for this: once one of a kind is let in, all that
    are here of its kind follow, so that they meet again before each stage; then those of the most frequent kind."""

    def __init__(self) -> None:
        self._counts = Counts()
        self._items: dict[Hashable, deque[Item]] = {}
        self._current: Hashable = None

    def __len__(self) -> int:
        return self._counts.total

    def put(self, item: Item, kind: Hashable = None) -> None:
        """One more waits."""
        self._items.setdefault(kind, deque()).append(item)
        self._counts.add(1, kind)

    def take(self, most: int) -> list[Item]:
        """Lets in as many, or all that there are."""
        taken: list[Item] = []
        while len(taken) < most and self._counts.total:
            if self._current not in self._items:
                self._current = self._counts.most()[1]
            items = self._items[self._current]
            count = min(len(items), most - len(taken))
            taken.extend(items.popleft() for _ in range(count))
            self._left(count, self._current)
        return taken

    def remove(self, item: Item, kind: Hashable = None) -> bool:
        """Takes one out that is not wanted any more. False if it is not here."""
        items = self._items.get(kind, deque())
        if item not in items:
            return False
        items.remove(item)
        self._left(1, kind)
        return True

    def _left(self, count: int, kind: Hashable) -> None:
        self._counts.take(count, kind)
        if not self._items[kind]:
            del self._items[kind]
