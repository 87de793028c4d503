"""Who gives what to whom: a pipeline's stages in their order become a plan for the line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from show1_ray.pipeline.code import Code, Portable
from show1_ray.pipeline.part import Part
from show1_ray.pipeline.registry import RegistryError
from show1_ray.stage import FLOAT_FRAMES, FRAMES, PLAIN, Axes, Context, Shape, Stage

INPUTS = "inputs"
"""Stands for the pipeline's inputs where a stage's name is expected."""

VIDEO = "video"
"""What the clip is called where it lands and is delivered, whatever the pipeline calls it."""

ANY_FRAMES = (FRAMES, FLOAT_FRAMES)
FRAME, FLOAT_FRAME = "h w c", "c h w"
_TURNED = {FRAMES: FLOAT_FRAMES, FLOAT_FRAMES: FRAMES, FRAME: FLOAT_FRAME, FLOAT_FRAME: FRAME}
"""Axes of frames (and of one frame), and those that they are turned into where a stage wants them so."""

_REFERENCE = re.compile(r"(?:(?P<stage>\w+)\.)?(?P<name>\w+)(?:\[(?P<index>-?\d+)\])?")

Fault = tuple[tuple[str, ...], str]
"""A key of a pipeline file, and the reason why its value cannot be."""


class WiringError(Exception):
    """A value that nobody gives, or that does not fit."""


@dataclass(frozen=True)
class Ref:
    """A value that a stage takes.

    Attributes:
        line: its name on the line.
        stage: who gives it; `INPUTS`: the pipeline's inputs.
        name: what the giver calls it.
        axes: as it is given, or as one frame of it has them.
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


@dataclass(frozen=True, eq=False)
class Wired(Portable):
    """A stage of a pipeline, with who gives what it takes.

    Attributes:
        name, cls, settings, execution, code: see `Part`.
        context: what the stage knows of the pipeline.
        takes: taken name → the value; frames are turned where `Ref.axes` are not those of `taken`.
        gives: given name → its name on the line.
        taken: shapes of what it takes, as it takes it.
        shapes: shapes of what it gives.
        of: see `Part`.
    """

    name: str
    cls: type[Stage]
    settings: Any
    execution: Any
    context: Context
    takes: Mapping[str, Ref] = field(default_factory=dict)
    gives: Mapping[str, str] = field(default_factory=dict)
    taken: Mapping[str, Shape] = field(default_factory=dict)
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    code: Code | None = None
    of: str | None = None

    @property
    def key(self) -> str:
        """The stage's key in the pipeline file."""
        return self.of or self.name

    @property
    def frames(self) -> tuple[str, ...]:
        """Names of the frames that it gives."""
        return tuple(name for name, shape in self.shapes.items() if shape.axes in ANY_FRAMES)

    @property
    def plain(self) -> tuple[str, ...]:
        """Names of the plain values that it gives."""
        return tuple(name for name, shape in self.shapes.items() if shape.axes == PLAIN)


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
    dropped: Mapping[str, str] | None = None,
    whole: bool = False,
) -> Wiring:
    """Finds who gives what each stage takes.

    Args:
        parts: the stages in their order.
        context: what all stages know of the pipeline.
        inputs: shapes of the pipeline's inputs.
        clip: the value that is the clip, as the file has it; None: the newest frames.
        dropped: values that stages would give which the file dropped → the stage; for messages.
        whole: do not cut stages into pieces.
    """
    try:
        parts = list(parts) if whole else cut(parts)
        values = _Values(parts, inputs or {}, dropped or {})
    except _UnsaidError as error:
        return Wiring((), None, (error.fault,))
    faults: list[Fault] = []
    wired = []
    for part in parts:
        own = replace(context, name=part.name, execution=part.execution)
        found = _found(part, values, faults)
        takes, gives = part.signature
        taken = {
            name: _as_taken(values.shapes[ref.stage, ref.name], ref, takes.get(name) or _eight_bit(ref.axes))
            for name, ref in found.items()
        }
        shapes = {name: Shape(axes, (), "uint8" if axes == FRAMES else None) for name, axes in gives.items()}
        if takes.keys() <= taken.keys():
            try:
                shapes |= part.shapes(own, taken)
                faults += [(_key(part.key, key), why) for key, why in part.faults(own, taken)]
            except RegistryError as error:
                faults.append((("stages", part.key), str(error)))
        lines = {name: values.line_name(part.name, name) for name in gives}
        one = Wired(
            part.name, part.cls, part.settings, part.execution, own, found, lines, taken, shapes, part.code, part.of
        )
        wired.append(one)
        values.give(part.name, shapes)
    try:
        return Wiring(tuple(wired), values.clip(clip), tuple(faults))
    except WiringError as error:
        return Wiring(tuple(wired), None, (*faults, (("stages",) if clip is None else ("clip",), str(error))))


def cut(parts: Sequence[Part]) -> list[Part]:
    """The stages of the line: those of the file, or their pieces. Raises _UnsaidError."""
    found: list[Part] = []
    for part in parts:
        try:
            found += part.pieces()
        except RegistryError as error:
            raise _UnsaidError((("stages", part.name), str(error))) from None
    seen: dict[str, str] = {}
    for part in found:
        if part.name in seen:
            what = f"the stages of {part.key!r} would be called {part.name!r}, as one that there is: rename that"
            raise _UnsaidError((("stages", part.key), what))
        seen[part.name] = part.key
    return found


def _found(part: Part, values: _Values, faults: list[Fault]) -> dict[str, Ref]:
    """Who gives what a stage takes, as far as somebody does; the rest are faults."""
    takes, _ = part.signature
    found = _arguments(part, values, faults)
    for name, axes in takes.items():
        said = part.takes.get(name)
        try:
            ref = values.find(said or name, part.name, is_said=said is not None)
            if axes not in (ref.axes, _TURNED.get(ref.axes)):
                raise WiringError(f"it takes {name!r} as {axes!r}, but {ref} is {ref.axes!r}")
            found[name] = ref
        except WiringError as error:
            faults.append((("stages", part.key, *(() if said is None else ("takes", name))), str(error)))
    return found


def _arguments(part: Part, values: _Values, faults: list[Fault]) -> dict[str, Ref]:
    """What a stage takes besides what its class always does (`Stage.arguments`)."""
    takes, _ = part.signature
    arguments = part.arguments()
    found: dict[str, Ref] = {}
    for name in sorted(part.takes.keys() - takes.keys()):
        if arguments is not None and name not in arguments:
            known = [*takes, *arguments]
            near = difflib.get_close_matches(name, known, 1)
            what = f"; did you mean {near[0]!r}?" if near else f", but {_some(known)}"
            faults.append((("stages", part.key, "takes", name), f"it takes no {name!r}{what}"))
            continue
        try:
            found[name] = values.find(part.takes[name], part.name)
        except WiringError as error:
            faults.append((("stages", part.key, "takes", name), str(error)))
    for name, is_needed in (arguments or {}).items():
        if name not in (*found, *part.takes, *takes) and values.is_given(name, None if is_needed else INPUTS):
            found[name] = values.find(name if is_needed else f"{INPUTS}.{name}", part.name, is_said=False)
    return found


class _UnsaidError(Exception):
    """A stage that does not say what it takes and gives."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


class _Values:
    """What has been given so far, the newest last."""

    def __init__(self, parts: Sequence[Part], inputs: Mapping[str, Shape], dropped: Mapping[str, str]) -> None:
        self.parts, self.dropped = parts, dropped
        self.ends = {part.key: part.name for part in parts}
        self.shapes: dict[tuple[str, str], Shape] = {}
        self._axes = {(INPUTS, name): shape.axes for name, shape in inputs.items()}
        for part in parts:
            try:
                self._axes |= {(part.name, name): axes for name, axes in part.signature[1].items()}
            except RegistryError as error:
                raise _UnsaidError((("stages", part.name), str(error))) from None
        self._last = {name: stage for stage, name in self._axes}
        self.give(INPUTS, inputs)

    def give(self, stage: str, shapes: Mapping[str, Shape]) -> None:
        """What a stage gives is there from now on."""
        self.shapes |= {(stage, name): shape for name, shape in shapes.items()}

    def is_given(self, name: str, by: str | None = None) -> bool:
        """Whether there is a value of that name so far; `by`: of that stage, or of the inputs."""
        return any(given == name and by in (None, stage) for stage, given in self.shapes)

    def line_name(self, stage: str, name: str) -> str:
        """A value's name on the line: bare for the last of its name; the others, and plain ones, say whose they are."""
        is_plain = self._axes[stage, name] == PLAIN
        return f"{stage}.{name}" if is_plain or self._last[name] != stage else name

    def find(self, reference: str, asking: str, is_said: bool = True) -> Ref:
        """The newest value that a reference means: a value, a stage's value, or a stage. Raises WiringError."""
        match = _REFERENCE.fullmatch(reference)
        if match is None:
            raise WiringError(f"write it as VALUE, STAGE.VALUE or VALUE[0] (it is {reference!r})")
        stage, name, index = match["stage"], match["name"], match["index"]
        stage = self.ends.get(stage, stage) if stage else None
        given = [key for key in self.shapes if key[1] == name and stage in (None, key[0])]
        if not given and stage is None and is_said:
            given = self._only_of(name)
        if not given:
            raise WiringError(self._why_not(stage, name, asking))
        return self._ref(given[-1], None if index is None else int(index))

    def clip(self, reference: str | None) -> Ref:
        """The value that is the clip. Raises WiringError."""
        if reference is not None:
            found = self.find(reference, "clip")
            if found.stage == INPUTS:
                raise WiringError(f"a clip is what a stage gives; {found} comes with the manifest")
            if found.axes not in ANY_FRAMES or found.index is not None:
                raise WiringError(f"a clip is frames, {FRAMES!r} or {FLOAT_FRAMES!r}; {found} is {found.axes!r}")
            return found
        frames = [key for key, shape in self.shapes.items() if shape.axes in ANY_FRAMES and key[0] != INPUTS]
        if not frames:
            raise WiringError(f"no stage gives frames ({FRAMES!r} or {FLOAT_FRAMES!r}), so that there is no clip")
        return self._ref(frames[-1], None)

    def _ref(self, key: tuple[str, str], index: int | None) -> Ref:
        axes = self.shapes[key].axes
        if index is not None:
            if axes not in ANY_FRAMES:
                raise WiringError(f"{'.'.join(key)} is no frames of which one could be taken (it is {axes!r})")
            count = self.shapes[key].size("f") if self.shapes[key].sizes else None
            if count is not None and not -count <= index < count:
                raise WiringError(f"{'.'.join(key)} has {count} frames, and none with the number {index}")
            axes = FRAME if axes == FRAMES else FLOAT_FRAME
        return Ref(self.line_name(*key), *key, axes, index)

    def _only_of(self, stage: str) -> list[tuple[str, str]]:
        """What is meant by a stage's name: its frames, or its only value."""
        stage = self.ends.get(stage, stage)
        values = {key: shape for key, shape in self.shapes.items() if key[0] == stage and stage != INPUTS}
        frames = [key for key, shape in values.items() if shape.axes in ANY_FRAMES]
        if len(frames) == 1 or len(values) == 1:
            return frames if len(frames) == 1 else list(values)
        if values:
            raise WiringError(f"{stage} gives {_some(name for _, name in values)}: write {stage}.VALUE")
        return []

    def _why_not(self, stage: str | None, name: str, asking: str) -> str:
        """Why a reference means nothing: what comes later, what is written wrongly, what there is instead."""
        if stage is None and name in {part.name for part in self.parts}:
            return f"{name!r} comes later, or gives nothing"
        stages = [part.name for part in self.parts]
        if stage is not None and stage not in (*stages, INPUTS):
            return f"there is no stage {stage!r}{_near(stage, stages)}"
        givers = [giver for giver, given in self._axes if given == name and stage in (None, giver) and giver != asking]
        if givers:
            round_again = [giver for giver in givers if asking in self._needed_by(giver)]
            why = f" and needs {asking!r} itself: they go round in a circle" if round_again else ""
            return f"it takes {name!r}, which only {_some(givers)} gives, and that comes later{why}"
        if stage is None and name in self.dropped:
            return f"it takes {name!r}, which no stage before it gives: {self.dropped[name]!r} is dropped"
        if stage is None:
            known = list(dict.fromkeys(given for _, given in self.shapes))
            return f"it takes {name!r}, which no stage before it gives{_near(name, known)}"
        known = [given for giver, given in self._axes if giver == stage]
        if (stage, name) in self._axes:
            return f"a stage cannot take {name!r} from itself"
        return f"{stage!r} gives no {name!r}{_near(name, known)}"

    def _needed_by(self, stage: str) -> set[str]:
        """Stages that a stage takes something from, or might, and those that these take from, and so on."""
        needed: set[str] = set()
        asked = [stage]
        while asked:
            part = next((part for part in self.parts if part.name == asked[-1]), None)
            asked.pop()
            for name in () if part is None else part.signature[0]:
                match = _REFERENCE.fullmatch(part.takes.get(name, name)) if part else None
                wanted = (match["stage"], match["name"]) if match else (None, name)
                givers = {giver for giver, given in self._axes if given == wanted[1] and wanted[0] in (None, giver)}
                asked += givers - needed
                needed |= givers
        return needed


def _eight_bit(axes: Axes) -> Axes:
    """Of frames those in 8 bits."""
    return {FLOAT_FRAMES: FRAMES, FLOAT_FRAME: FRAME}.get(axes, axes)


def _as_taken(shape: Shape, ref: Ref, wanted: Axes) -> Shape:
    """The shape of a value as a stage takes it: of one frame, and turned."""
    sizes = dict(zip(shape.axes.split(), shape.sizes, strict=True)) if shape.sizes else {}
    dtype = shape.dtype
    if ref.axes != wanted:
        dtype = "uint8" if wanted in (FRAMES, FRAME) else "float32"
    return Shape(wanted, tuple(sizes.get(axis) for axis in wanted.split()) if sizes else (), dtype)


def _key(stage: str, key: str) -> tuple[str, ...]:
    """Of a stage's settings, or of its execution where it begins with that word."""
    parts = tuple(key.split(".")) if key else ()
    if parts[:1] == ("execution",):
        return ("execution", stage, *parts[1:])
    return ("stages", stage, *parts)


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; there is {_some(known)}"


def _some(names: Iterable[str]) -> str:
    return ", ".join(map(repr, dict.fromkeys(names))) or "nothing"
