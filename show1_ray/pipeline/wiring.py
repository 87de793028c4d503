"""Who gives what to whom: a pipeline's stages in their order become a plan for the line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from show1_ray.stage import FLOAT_FRAMES, FRAMES, PLAIN, Axes, Context, Shape, Stage

INPUTS = "inputs"
"""Stands for the pipeline's inputs where a stage's name is expected."""

VIDEO = "video"
"""What the clip is called where it lands and is delivered, whatever the pipeline calls it."""

_TURNED = {FRAMES: FLOAT_FRAMES, FLOAT_FRAMES: FRAMES, "h w c": "c h w", "c h w": "h w c"}
"""Axes of frames (and of one frame), and those that they are turned into where a stage wants them so."""

_REFERENCE = re.compile(r"(?:(?P<stage>\w+)\.)?(?P<name>\w+)(?:\[(?P<index>-?\d+)\])?")

Fault = tuple[tuple[str, ...], str]
"""A key of a pipeline file, and the reason why its value cannot be."""


@dataclass(frozen=True)
class Part:
    """A stage of a pipeline file.

    Attributes:
        name: its key.
        cls: what it is.
        settings, execution: of the class's `Settings` and `Execution`.
        uses: the class's name as the file has it; None: the key is the name.
        takes: taken name → where it is taken from, as the file has it.
    """

    name: str
    cls: type[Stage]
    settings: Any
    execution: Any
    uses: str | None = None
    takes: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Ref:
    """A value that a stage takes.

    Attributes:
        line: its name on the line.
        stage: who gives it; `INPUTS`: the pipeline's inputs.
        name: what the giver calls it.
        axes: as it is given.
        index: of the one frame that is meant; None: all of it.
    """

    line: str
    stage: str
    name: str
    axes: Axes
    index: int | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it is a small plain value, and no array."""
        return self.axes == PLAIN

    def __str__(self) -> str:
        return f"{self.stage}.{self.name}" + (f"[{self.index}]" if self.index is not None else "")


@dataclass(frozen=True)
class Wired:
    """A stage of a pipeline, with who gives what it takes.

    Attributes:
        name, cls, settings, execution: see `Part`.
        context: what the stage knows of the pipeline.
        takes: taken name → the value; frames are turned where `Ref.axes` are not `taken[name].axes`.
        gives: given name → its name on the line.
        taken: shapes of what it takes, as it takes it.
        shapes: shapes of what it gives.
    """

    name: str
    cls: type[Stage]
    settings: Any
    execution: Any
    context: Context
    takes: Mapping[str, Ref] = field(default_factory=dict, hash=False)
    gives: Mapping[str, str] = field(default_factory=dict, hash=False)
    taken: Mapping[str, Shape] = field(default_factory=dict, hash=False)
    shapes: Mapping[str, Shape] = field(default_factory=dict, hash=False)

    @property
    def frames(self) -> tuple[str, ...]:
        """Names of the frames that it gives."""
        return tuple(name for name, shape in self.shapes.items() if shape.axes in (FRAMES, FLOAT_FRAMES))


@dataclass(frozen=True)
class Wiring:
    """Stages in their order, the value that is the clip (None: there are no frames), and what does not fit."""

    stages: tuple[Wired, ...]
    clip: Ref | None
    faults: tuple[Fault, ...] = ()


def wire(
    parts: Sequence[Part],
    context: Context,
    inputs: Mapping[str, Shape] | None = None,
    clip: str | None = None,
) -> Wiring:
    """Finds who gives what each stage takes.

    Args:
        parts: the stages in their order.
        context: what all stages know of the pipeline.
        inputs: shapes of the pipeline's inputs.
        clip: the value that is the clip, as the file has it; None: the newest frames.
    """
    values = _Values(parts, inputs or {})
    faults: list[Fault] = []
    wired = []
    for part in parts:
        own = replace(context, name=part.name, execution=part.execution)
        takes, gives = part.cls.signature(part.settings)
        for name in part.takes.keys() - takes.keys():
            faults.append((("stages", part.name, "takes", name), f"it takes {_some(takes)}"))
        found: dict[str, Ref] = {}
        for name, axes in takes.items():
            said = part.takes.get(name)
            key = ("stages", part.name, *(() if said is None else ("takes", name)))
            try:
                found[name] = values.find(name if said is None else said, part.name)
                _check_axes(name, axes, found[name])
            except WiringError as error:
                faults.append((key, str(error)))
        taken = {name: _as_taken(values.shapes[ref.stage, ref.name], ref, takes[name]) for name, ref in found.items()}
        shapes: dict[str, Shape] = {name: Shape(axes) for name, axes in gives.items()}
        if len(taken) == len(takes):
            shapes |= part.cls.shapes(part.settings, own, taken)
            faults += [(_key(part.name, key), why) for key, why in part.cls.faults(part.settings, own, taken)]
        lines = {name: values.line_name(part.name, name) for name in gives}
        wired.append(Wired(part.name, part.cls, part.settings, part.execution, own, found, lines, taken, shapes))
        values.give(part.name, shapes)
    try:
        return Wiring(tuple(wired), values.clip(clip), tuple(faults))
    except WiringError as error:
        return Wiring(tuple(wired), None, (*faults, (("stages",) if clip is None else ("clip",), str(error))))


class WiringError(Exception):
    """A value that nobody gives, or that does not fit."""


class _Values:
    """What has been given so far, the newest last."""

    def __init__(self, parts: Sequence[Part], inputs: Mapping[str, Shape]) -> None:
        self.parts = parts
        self.shapes: dict[tuple[str, str], Shape] = {}
        self._last = dict.fromkeys(inputs, INPUTS)
        for part in parts:
            self._last |= dict.fromkeys(part.cls.signature(part.settings)[1], part.name)
        self._axes = {
            (part.name, name): axes for part in parts for name, axes in part.cls.signature(part.settings)[1].items()
        } | {(INPUTS, name): shape.axes for name, shape in inputs.items()}
        self.give(INPUTS, inputs)

    def give(self, stage: str, shapes: Mapping[str, Shape]) -> None:
        """What a stage gives is there from now on."""
        self.shapes |= {(stage, name): shape for name, shape in shapes.items()}

    def line_name(self, stage: str, name: str) -> str:
        """A value's name on the line: bare for the last of its name, so that it is found; plain ones say whose."""
        is_plain = self._axes[stage, name] == PLAIN
        return f"{stage}.{name}" if is_plain or self._last[name] != stage else name

    def find(self, reference: str, asking: str) -> Ref:
        """The newest value that a reference means. Raises WiringError."""
        match = _REFERENCE.fullmatch(reference)
        if match is None:
            raise WiringError(f"write it as VALUE, STAGE.VALUE or VALUE[0] (it is {reference!r})")
        stage, name, index = match["stage"], match["name"], match["index"]
        given = [key for key in self.shapes if key[1] == name and stage in (None, key[0])]
        if not given and stage is None:
            given = self._only_of(name)
        if not given:
            raise WiringError(self._why_not(stage, name, asking))
        return self._ref(given[-1], None if index is None else int(index))

    def clip(self, reference: str | None) -> Ref:
        """The value that is the clip. Raises WiringError."""
        if reference is not None:
            found = self.find(reference, "clip")
            if found.axes not in (FRAMES, FLOAT_FRAMES) or found.index is not None:
                raise WiringError(f"{reference} is no frames: a clip is {FRAMES!r} or {FLOAT_FRAMES!r}")
            return found
        frames = [
            key for key, shape in self.shapes.items() if shape.axes in (FRAMES, FLOAT_FRAMES) and key[0] != INPUTS
        ]
        if not frames:
            raise WiringError(f"no stage gives frames ({FRAMES!r} or {FLOAT_FRAMES!r}): there is no clip")
        return self._ref(frames[-1], None)

    def _ref(self, key: tuple[str, str], index: int | None) -> Ref:
        axes = self.shapes[key].axes
        if index is not None:
            if "f" not in axes.split():
                raise WiringError(f"{key[0]}.{key[1]} has no frames of which one could be taken (it is {axes!r})")
            axes = " ".join(axis for axis in axes.split() if axis != "f")
        return Ref(self.line_name(*key), *key, axes, index)

    def _only_of(self, stage: str) -> list[tuple[str, str]]:
        """What is meant by a stage's name: its frames, or its only value."""
        values = {key: shape for key, shape in self.shapes.items() if key[0] == stage}
        frames = [key for key, shape in values.items() if shape.axes in (FRAMES, FLOAT_FRAMES)]
        if len(frames) == 1 or len(values) == 1:
            return frames if len(frames) == 1 else list(values)
        if values:
            raise WiringError(f"{stage} gives {_some(name for _, name in values)}: write {stage}.VALUE")
        return []

    def _why_not(self, stage: str | None, name: str, asking: str) -> str:
        givers = [part.name for part in self.parts if name in part.cls.signature(part.settings)[1]]
        if stage is not None and all(stage != part.name for part in self.parts) and stage != INPUTS:
            near = difflib.get_close_matches(stage, [part.name for part in self.parts], 1)
            return f"no stage {stage!r}" + (f"; did you mean {near[0]!r}?" if near else "")
        later = [giver for giver in givers if giver != asking and stage in (None, giver)]
        if later:
            return f"takes {name!r}, which only {later[0]!r} gives, and that comes later"
        known = list(dict.fromkeys(given for _, given in self.shapes))
        near = difflib.get_close_matches(name, known, 1)
        whose = "no stage before it" if stage is None else repr(stage) + " does not"
        hint = f"did you mean {near[0]!r}?" if near else f"there is {_some(known)}"
        return f"takes {name!r}, which {whose} gives; {hint}" if stage is None else f"{whose} give {name!r}; {hint}"


def _check_axes(name: str, wanted: Axes, ref: Ref) -> None:
    if wanted not in (ref.axes, _TURNED.get(ref.axes)):
        raise WiringError(f"takes {name!r} as {wanted!r}, but {ref} is {ref.axes!r}")


def _as_taken(shape: Shape, ref: Ref, wanted: Axes) -> Shape:
    """The shape of a value as a stage takes it: of one frame, and turned."""
    sizes = dict(zip(shape.axes.split(), shape.sizes, strict=True)) if shape.sizes else {}
    dtype = shape.dtype
    if ref.axes != wanted:
        dtype = "uint8" if wanted in (FRAMES, "h w c") else "float32"
    return Shape(wanted, tuple(sizes.get(axis) for axis in wanted.split()) if sizes else (), dtype)


def _key(stage: str, key: str) -> tuple[str, ...]:
    """Of a stage's settings, or of its execution where it begins with that word."""
    parts = tuple(key.split(".")) if key else ()
    if parts[:1] == ("execution",):
        return ("execution", stage, *parts[1:])
    return ("stages", stage, *parts)


def _some(names: Any) -> str:
    return ", ".join(map(repr, names)) or "nothing"
