"""Inputs that set a stage's setting for their row."""

from __future__ import annotations

import types
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from show1_ray.errors import ConfigError, shown
from show1_ray.pipeline.inputs import Input
from show1_ray.pipeline.registry import RegistryError
from show1_ray.pipeline.settings import changed, keys_of
from show1_ray.pipeline.wiring import Fault

if TYPE_CHECKING:
    from show1_ray.pipeline.pipeline import Pipeline

KEPT = 1024
"""How many combinations of settings are remembered; rows tend to repeat a few."""


class RowSettings:
    """Pipelines by what a clip's inputs set.

    Args:
        inputs: of the pipeline.
    """

    def __init__(self, inputs: tuple[Input, ...]) -> None:
        self.inputs = tuple(one for one in inputs if one.setting)
        self._of = lru_cache(KEPT)(self._made)

    def __call__(self, pipeline: Any, inputs: Mapping[str, Any]) -> Any:
        """See `Pipeline.row`."""
        said = tuple((one.name, inputs[one.name]) for one in self.inputs if inputs.get(one.name) is not None)
        if not said:
            return pipeline
        found = self._of(pipeline, said)
        if isinstance(found, str):
            raise ConfigError(found)
        return found

    def __reduce__(self) -> Any:
        return RowSettings, (self.inputs,)

    def _made(self, pipeline: Pipeline, said: tuple[tuple[str, Any], ...]) -> Any:
        """The pipeline, or the reason why there is none."""
        before = {part.name: part for part in pipeline.parts}
        parts = dict(before)
        settings = {one.name: one.setting or () for one in self.inputs}
        for one, value in said:
            _, stage, *path = settings[one]
            try:
                parts[stage] = replace(parts[stage], settings=changed(parts[stage].settings, path, value))
            except ValidationError as error:
                fault = error.errors()[0]
                return f"{one!r} is {shown(value)}: {fault['msg']}"
        values = ", ".join(f"{name!r} is {shown(value)}" for name, value in said)
        for name, part in parts.items():
            try:
                if part.signature != before[name].signature:
                    return f"{values}: stages.{name}: it would take or give other values than for other clips"
            except RegistryError as error:
                return f"{values}: stages.{name}: {error}"
        row = replace(pipeline, parts=tuple(parts.values()), inputs=pipeline.inputs)
        for key, reason in row.faults():
            return f"{values}: {'.'.join(key)}: {reason}"
        return row


def batch_keys(pipeline: Pipeline, inputs: Mapping[str, Any]) -> dict[str, Hashable]:
    """What clips must have in common to share a batch, by stage.

    These are values of the inputs that set a stage's settings, and sizes of what it takes, where inputs change them.
    Where sizes are not known, it is the values of inputs that may change them: those of the stages it comes from.
    """
    settings = {one.name: one.setting for one in pipeline.inputs if one.setting}
    if not settings:
        return {}
    keys: dict[str, Hashable] = {}
    reach: dict[str, set[str]] = {}  # inputs that may change what a stage gives
    for stage in pipeline.row(inputs).wired():
        own = {name for name, path in settings.items() if path[1] == stage.key}
        unsure: set[str] = set()
        sizes = []
        reach[stage.name] = set(own)
        for name, ref in stage.takes.items():
            changing = reach.get(ref.stage, set())
            reach[stage.name] |= changing
            shape = stage.taken[name]
            if changing and not ref.is_plain:
                if shape.sizes and None not in shape.sizes:
                    sizes.append((name, shape.sizes))
                else:
                    unsure |= changing
        if own or unsure or sizes:
            keys[stage.name] = (*(inputs.get(name) for name in sorted(own | unsure)), *sizes)
    return keys


def faults_of_settings(pipeline: Pipeline) -> Iterator[Fault]:
    """Inputs that set what is not there, or what a stage cannot take from row to row."""
    parts = {part.name: part for part in pipeline.parts}
    seen: dict[tuple[str, ...], str] = {}
    for one in pipeline.inputs:
        if one.setting is None:
            continue
        place = ("inputs", one.name, one.kind)
        _, stage, *key = one.setting
        path = ".".join(one.setting)
        if stage not in parts:
            yield place, f"{path}: there is no stage {stage!r}; there is {', '.join(parts)}"
            continue
        cls = parts[stage].cls
        if not _is_there(cls.Settings, key):
            yield place, f"{path}: {stage} has no such setting"
        elif not any(_begins(key, allowed.split(".")) for allowed in cls.row_settings):
            allowed = ", ".join(f"stages.{stage}.{name}" for name in sorted(cls.row_settings)) or "none"
            yield place, f"{path}: is the same for all clips; settings that a row may change: {allowed}"
        elif one.setting in seen:
            yield place, f"{path}: {seen[one.setting]!r} sets it, too"
        elif one.default is not None:
            try:
                changed(parts[stage].settings, key, one.default)
            except ValidationError as error:
                yield ("inputs", one.name, "default"), f"{error.errors()[0]['msg']} (it is {shown(one.default)})"
        seen.setdefault(one.setting, one.name)


def _begins(key: list[str], allowed: list[str]) -> bool:
    return key[: len(allowed)] == allowed


def _is_there(kind: Any, key: list[str]) -> bool:
    """Whether settings have a key: a field, of a field, or anything in a mapping."""
    if not key:
        return True
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        field = keys_of(kind).get(key[0])
        return field is not None and _is_there(field.annotation, key[1:])
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return any(_is_there(one, key) for one in get_args(kind))
    if origin is not None and hasattr(kind, "__metadata__"):  # Annotated
        return _is_there(get_args(kind)[0], key)
    return kind in (Any, dict, Mapping) or origin in (dict, Mapping) or kind is Any
