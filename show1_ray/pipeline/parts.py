"""The stages of a pipeline file: which they are, in which order, with which settings; and every fault of theirs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from show1_ray.errors import one_line, shown
from show1_ray.pipeline.code import Code
from show1_ray.pipeline.file import Key, Tree
from show1_ray.pipeline.part import Part
from show1_ray.pipeline.registry import RESERVED, RegistryError, stage_class
from show1_ray.pipeline.settings import UnwritableError, check_writable, keys_of, validated
from show1_ray.pipeline.wiring import INPUTS
from show1_ray.stage import Stage

TAKEN = (INPUTS, "land", "clip", "seconds", "batch_size")
"""Names that a stage cannot have: of the line's own stages, and of columns of the metadata."""


class Reader:
    """Reads the stages of a tree.

    Args:
        tree: the file, what it extends, and the overrides.
        code: where `module:Class` may come from.

    Attributes:
        faults: a line for each.
    """

    def __init__(self, tree: Tree, code: Code | None = None) -> None:
        self.tree, self.code = tree, code
        self.faults: list[str] = []
        self._classes: dict[str, type[Stage]] = {}
        stages = tree.keys.get("stages")
        self.said: dict[str, Any] = stages if isinstance(stages, dict) else {}

    def read(self) -> list[Part]:
        """The stages, in their order, as far as they have no faults."""
        if "stages" not in self.tree.keys:
            self.faults.append(f"{self.tree.path}: stages: is missing")
            return []
        stages = self.tree.keys["stages"]
        if not isinstance(stages, dict):
            self._add(("stages",), f"must be a mapping of keys to values (it is {shown(stages)})")
            return []
        present = {name: said for name, said in stages.items() if said is not None}
        if not present:
            self._add(("stages",), "is empty: name at least one stage")
        moves = {}
        for name, said in present.items():
            if self._check_entry(name, said):
                self.class_of(name)
                for word in ("before", "after"):
                    if isinstance(said.get(word), str):
                        moves[name] = (word, said[word])
        order, wrong = ordered(list(present), moves)
        for name, reason in wrong:
            self._add(("stages", name, moves[name][0]), reason)
        executions = self._executions(present)
        parts = [self._part(name, present[name], executions.get(name, {})) for name in order if name in self._classes]
        return [part for part in parts if part is not None]

    @property
    def dropped(self) -> dict[str, str]:
        """What stages would give that were dropped, as far as it is known → the stage."""
        found: dict[str, str] = {}
        for name in (name for name, said in self.said.items() if said is None):
            with suppress(RegistryError):
                found |= dict.fromkeys(stage_class(name, self.code).gives, name)
        return found

    def whole_key(self, key: Key) -> Key:
        """An override's key from the top: `keyframes.steps` is `stages.keyframes.steps`."""
        if len(key) == 1 or key[0] not in self.said:
            return key
        execution = self._fields(key[0], "Execution")
        is_execution = key[1] in execution and key[1] not in (*RESERVED, *self._fields(key[0], "Settings"))
        return ("execution" if is_execution else "stages", *key)

    def class_of(self, name: str) -> type[Stage] | None:
        """The class of a stage; None, with a fault, where there is none."""
        said = self.said.get(name)
        uses = said.get("uses", name) if isinstance(said, dict) else name
        if not isinstance(uses, str):
            return None  # which is a fault of its own
        try:
            self._classes[name] = stage_class(uses, self.code)
        except RegistryError as error:
            is_said = isinstance(said, dict) and "uses" in said
            self._add(("stages", name, *(["uses"] if is_said else [])), str(error))
        return self._classes.get(name)

    def _check_entry(self, name: str, said: Any) -> bool:
        """Whether a stage is written so that the rest of it can be looked at."""
        before = len(self.faults)
        if not name.isidentifier() or name.startswith("_") or name in TAKEN:
            what = "is taken" if name in TAKEN else "letters, digits and _ make a name"
            self._add(("stages", name), f"{what}: give the stage another name")
        elif not isinstance(said, dict):
            self._add(("stages", name), f"must be a mapping of keys to values (it is {shown(said)})")
        else:
            for word in ("uses", "before", "after"):
                if word in said and not (isinstance(said[word], str) and said[word]):
                    self._add(("stages", name, word), f"must be a name (it is {shown(said[word])})")
            takes = said.get("takes", {})
            if not isinstance(takes, dict):
                self._add(("stages", name, "takes"), f"must be a mapping of names to values (it is {shown(takes)})")
            else:
                for taken, value in takes.items():
                    if not isinstance(value, str):
                        self._add(("stages", name, "takes", taken), f"must be a value's name (it is {shown(value)})")
            if "before" in said and "after" in said:
                self._add(("stages", name, "after"), "stands beside 'before': give one of them")
        return len(self.faults) == before

    def _part(self, name: str, said: Mapping[str, Any], execution: Mapping[str, Any]) -> Part | None:
        cls = self._classes[name]
        settings = {key: value for key, value in said.items() if key not in RESERVED}
        found = [
            self._validated(cls.Settings, settings, ("stages", name)),
            self._validated(cls.Execution, execution, ("execution", name)),
        ]
        if None in found:
            return None
        uses = said.get("uses", name)
        own = self.code if ":" in uses else None
        settings_of, execution_of = found
        takes = dict(said.get("takes", {}))
        return Part(name, cls, settings_of, execution_of, None if uses == name else uses, takes, own)

    def _validated(self, model: Any, said: Mapping[str, Any], key: Key) -> Any:
        try:
            settings = validated(model, said)
            check_writable(settings)
            return settings
        except ValidationError as error:
            self.faults += self.tree.faults(error, key, said, self._hint)
        except UnwritableError as error:
            self._add(key, str(error))
        except Exception as error:  # of a validator of somebody's own
            self._add(key, f"{model.__qualname__} cannot be made: {type(error).__name__}: {one_line(error)}")
        return None

    def _executions(self, present: Mapping[str, Any]) -> dict[str, Any]:
        executions = self.tree.keys.get("execution", {})
        if not isinstance(executions, dict):
            self._add(("execution",), f"must be a mapping of keys to values (it is {shown(executions)})")
            return {}
        found = {}
        for name, said in executions.items():
            if name not in self.said:
                self._add(("execution", name), f"there is no such stage{_near(name, list(present))}")
            elif not isinstance(said, dict):
                self._add(("execution", name), f"must be a mapping of keys to values (it is {shown(said)})")
            elif name in present:
                found[name] = said
        return found

    def _hint(self, key: Key) -> str:
        """What somebody might have meant with a key that is not known."""
        part, stage, *rest = key
        if len(rest) != 1:
            return ""
        own, other = ("Settings", "Execution") if part == "stages" else ("Execution", "Settings")
        if rest[0] in self._fields(stage, other):
            return f"; it is written {'execution' if part == 'stages' else 'stages'}.{stage}.{rest[0]}"
        whose = [name for name in self._classes if rest[0] in self._fields(name, own)]
        if whose:
            return f"; it is a setting of {', '.join(whose)}"
        near = difflib.get_close_matches(rest[0], list(self._fields(stage, own)), 1)
        return f"; did you mean {near[0]!r}?" if near else ""

    def _fields(self, stage: str, which: str) -> Iterable[str]:
        """Fields of a stage's Settings or Execution; none where its class is not known."""
        if stage not in self._classes:
            before = list(self.faults)
            self.class_of(stage)
            self.faults = before
        cls = self._classes.get(stage)
        return () if cls is None else keys_of(getattr(cls, which))

    def _add(self, key: Key, reason: str) -> None:
        self.faults.append(self.tree.fault(key, reason))


def ordered(names: Sequence[str], moves: Mapping[str, tuple[str, str]]) -> tuple[list[str], list[tuple[str, str]]]:
    """Stages in their order.

    Args:
        names: as they are written.
        moves: stage → ("before" or "after", another).

    Returns:
        The order; and stages that cannot be where they should, with the reason.
    """
    order = [name for name in names if name not in moves]
    after = dict.fromkeys(names, 0)
    waiting = [name for name in names if name in moves]
    while ready := [name for name in waiting if moves[name][1] in order]:
        name = ready[0]
        word, other = moves[name]
        place = order.index(other)
        if word == "after":
            after[other] += 1
            place += after[other]
        order.insert(place, name)
        waiting.remove(name)
    wrong: list[tuple[str, str]] = []
    told: set[str] = set()
    for name in waiting:
        other = moves[name][1]
        if other not in names:
            wrong.append((name, f"there is no stage {other!r}{_near(other, [one for one in names if one != name])}"))
            continue
        walk = [name]
        while walk[-1] in moves and walk[-1] not in walk[:-1]:
            walk.append(moves[walk[-1]][1])
        if walk[-1] == name and name not in told:
            told |= set(walk)
            wrong.append((name, f"goes round in a circle: {' → '.join(walk)}"))
    return [*order, *waiting], wrong


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; there is {', '.join(known) or 'none'}"
