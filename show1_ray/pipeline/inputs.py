"""A pipeline's `inputs`: what a manifest's rows bring besides prompt and seed."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from show1_ray.errors import ConfigError, shown, unsigned
from show1_ray.stage import FRAMES, PLAIN, Shape

Kind = Literal["text", "int", "float", "image", "video"]
KINDS: tuple[str, ...] = get_args(Kind)
FILES = ("image", "video")
"""Kinds whose values are bytes or URLs, read near the work."""
TAKEN = ("id", "prompt", "negative_prompt", "seed")
"""Columns of every manifest."""
MOST_DIGITS = 20

Value = str | int | float | bytes


class InputError(Exception):
    """A declaration, or a row's value, that cannot be: the reason, for people. `passing`: it may do later."""

    def __init__(self, reason: str, passing: bool = False) -> None:
        super().__init__(reason)
        self.passing = passing


@dataclass(frozen=True)
class Input:
    """A column of the manifest that is a part of a clip.

    Attributes:
        name: the column, and the value that stages may take.
        kind: what it holds: text, int, float, image or video (bytes, or URLs).
        setting: the key that it sets for its row, such as ("stages", "video", "call", "num_frames"); None: none.
        default: of rows that leave it empty; None: they may not, unless it sets something, which is then as it is.
    """

    name: str
    kind: Kind
    setting: tuple[str, ...] | None = None
    default: Value | None = None

    @property
    def is_file(self) -> bool:
        """Whether it is read near the work."""
        return self.kind in FILES

    @property
    def shape(self) -> Shape:
        """As a value that stages may take."""
        if self.kind == "image":
            return Shape("h w c", (None, None, 3), "uint8")
        return Shape(FRAMES, (None, None, None, 3), "uint8") if self.kind == "video" else Shape(PLAIN)

    def read(self, given: Any) -> Value | None:
        """A row's value in the input's type; None where it is left out and stands for what a setting is anyway.

        Args:
            given: as a table gives it; None, "" and NaN: nothing. Digits of a CSV file are numbers, whole floats
                (pandas makes them of integers with gaps) are integers, `{"bytes", "path"}` is how `datasets` keeps
                files.

        Raises:
            InputError: another type, or nothing where there is no default; what is wrong, without the name.
        """
        if given is None or given == "" or (isinstance(given, float) and math.isnan(given)):
            if self.default is None and self.setting is None:
                raise InputError("is empty, and has no default in the pipeline's inputs")
            return self.default
        match self.kind:
            case "text":
                return _text(given)
            case "int":
                return _integer(given)
            case "float":
                return _number(given)
        return _file(given)

    def as_plain(self) -> Any:
        """As a pipeline file has it."""
        said: dict[str, Any] = {self.kind: None if self.setting is None else ".".join(self.setting)}
        return self.kind if self.setting is None and self.default is None else said | _default(self.default)


@dataclass(frozen=True)
class InputColumns:
    """The columns of a manifest that are a part of its clips.

    Attributes:
        inputs: of the pipeline.
        check: is given the values of a row; raises ConfigError where they do not go together.
        taken: columns of the metadata that the pipeline fills → with what, for people: no others can be called so.
    """

    inputs: tuple[Input, ...] = ()
    check: Callable[[Mapping[str, Any]], object] = lambda values: None
    taken: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all columns."""
        return tuple(one.name for one in self.inputs)

    @property
    def needed(self) -> tuple[str, ...]:
        """Of those that a manifest must have."""
        return tuple(one.name for one in self.inputs if one.default is None and one.setting is None)

    @property
    def has_files(self) -> bool:
        """Whether a row may hold whole images or videos."""
        return any(one.is_file for one in self.inputs)

    def read(self, given: Mapping[str, Any]) -> dict[str, Value]:
        """A row's values, typed, with defaults; what is left out is not there.

        Raises:
            InputError: what is wrong, with the column.
        """
        values: dict[str, Value] = {}
        for one in self.inputs:
            try:
                value = one.read(given.get(one.name))
            except InputError as error:
                raise InputError(f"{one.name!r} {error}") from None
            if value is not None:
                values[one.name] = value
        try:
            self.check(values)
        except ConfigError as error:
            raise InputError(str(error)) from None
        return values


NO_INPUTS = InputColumns()


def noted(values: Mapping[str, Value]) -> dict[str, str | int | float]:
    """Inputs as metadata and identities have them: bytes by their content, "sha256:…", URLs without their signatures,
    which are secret, and others when they are renewed.
    """
    return {name: _noted(value) for name, value in values.items()}


def _noted(value: Value) -> str | int | float:
    if isinstance(value, bytes):
        return f"sha256:{hashlib.sha256(value).hexdigest()}"
    return unsigned_value(value)


def unsigned_value(value: Any) -> Any:
    """A row's value as datasets keep it: signatures of URLs stay with the manifest, also in lists and structs."""
    if isinstance(value, str):
        return unsigned(value) if "://" in value else value
    if isinstance(value, Mapping):
        return {name: unsigned_value(one) for name, one in value.items()}
    return [unsigned_value(one) for one in value] if isinstance(value, list) else value


def read_inputs(said: Any) -> tuple[list[Input], list[tuple[tuple[str, ...], str]]]:
    """Inputs as a pipeline file has them, and what is wrong with them (key and reason)."""
    if said is None:
        return [], []
    if not isinstance(said, Mapping):
        return [], [(("inputs",), f"must be a mapping of names to types (it is {shown(said)})")]
    inputs: list[Input] = []
    faults: list[tuple[tuple[str, ...], str]] = []
    for name, one in said.items():
        if one is None:  # an extending file drops it
            continue
        try:
            inputs.append(_input(name, one))
        except InputError as error:
            faults.append((("inputs", name), str(error)))
    return inputs, faults


def _input(name: str, said: Any) -> Input:
    """`image`, or `{int: stages.video.call.num_frames, default: 9}`. Raises InputError."""
    if not re.fullmatch(r"[A-Za-z]\w*", name):
        raise InputError("letters, digits and _ make a name")
    if name in TAKEN:
        raise InputError(f"is the name of a column that every manifest may have ({', '.join(TAKEN)})")
    if isinstance(said, str):
        said = {said: None}
    if not isinstance(said, Mapping):
        raise InputError(f"write a type ({', '.join(KINDS)}), or {{TYPE: SETTING, default: …}} (it is {shown(said)})")
    kinds = [key for key in said if key != "default"]
    if len(kinds) != 1 or kinds[0] not in KINDS:
        raise InputError(f"give one type, {', '.join(KINDS)} (there is {', '.join(map(repr, kinds)) or 'none'})")
    kind, setting = kinds[0], said[kinds[0]]
    if setting is not None and (not isinstance(setting, str) or not re.fullmatch(r"stages(\.\w+){2,}", setting)):
        raise InputError(f"a setting is written stages.STAGE.KEY (it is {shown(setting)})")
    if setting is not None and kind in FILES:
        raise InputError(f"sets {setting}, but {kind}s are values that stages take, and set nothing")
    key = None if setting is None else tuple(setting.split("."))
    default = said.get("default")
    found = Input(name, kind, key)
    if default is not None:
        if isinstance(default, bytes):
            raise InputError("its default is bytes: give a URL")
        if kind in ("int", "float") and (isinstance(default, str) or default != default):
            raise InputError(f"its default is {shown(default)}, not {_KINDS_SHOWN[kind]}")
        try:
            default = found.read(default) if default != "" or kind != "text" else ""
        except InputError as error:
            raise InputError(f"its default {error}") from None
    return Input(name, kind, key, default)


_KINDS_SHOWN = {"int": "an integer", "float": "a finite number"}


def _default(default: Value | None) -> dict[str, Any]:
    return {} if default is None else {"default": default}


def _text(given: Any) -> str:
    if not isinstance(given, str):
        raise InputError(f"is {shown(given)}, not text")
    try:
        given.encode()
    except UnicodeEncodeError:
        raise InputError("is not valid Unicode") from None
    return given


def _integer(given: Any) -> int:
    value = given
    is_digits = isinstance(given, str) and re.fullmatch(rf"[+-]?[0-9]{{1,{MOST_DIGITS}}}", given.strip())
    if is_digits or (isinstance(given, float) and given.is_integer() and abs(given) < 2**53):
        value = int(given)
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise InputError(f"is {shown(given)}, not an integer")
    return value


def _number(given: Any) -> float:
    value = given
    if isinstance(value, str) and len(value) < 64:
        try:
            value = float(value)
        except ValueError:
            value = given
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"is {shown(given)}, not a finite number")
    return float(value)


def _file(given: Any) -> str | bytes:
    if isinstance(given, Mapping):
        given = given.get("bytes") or given.get("path")
    if isinstance(given, bytearray | memoryview):
        given = bytes(given)
    if isinstance(given, bytes) and given:
        return given
    if not isinstance(given, str) or not given.strip():
        raise InputError(f"is {shown(given)}, neither bytes nor a URL")
    return _text(given)
