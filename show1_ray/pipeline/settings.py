"""Settings of stages, from what a pipeline file says and back: YAML has fewer types than Python."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, time
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from show1_ray.errors import one_line
from show1_ray.pipeline.checkpoints import Checkpoint
from show1_ray.stage import StageSettings


class UnwritableError(Exception):
    """Settings that a pipeline file cannot say: the reason."""


def validated(model: type[BaseModel], said: Mapping[str, Any]) -> Any:
    """Settings from what YAML, or an input, says.

    Lists, texts and keys stand for what JSON has no own form of, as pydantic knows them in JSON: tuples and sets,
    enumerations, paths, dates, mappings with numbers for keys. Otherwise types are strict: "5" is no number.

    Raises:
        pydantic.ValidationError: what cannot be.
    """
    try:
        return model.model_validate(said)
    except ValidationError:
        try:
            text = json.dumps(said, default=_in_json)
        except TypeError:  # values of Python's that no file says
            text = None
        if text is None:
            raise
    return model.model_validate_json(text)


def plain(settings: BaseModel, is_recipe: bool = False) -> dict[str, Any]:
    """Settings as JSON's types, as `validated` takes them; sets are sorted.

    Args:
        settings: of a stage.
        is_recipe: leave out what is no part of a recipe: licences, the place of local checkpoints, settings that came
            later than recipes and have their defaults.
    """
    with warnings.catch_warnings():  # of values that are not of their types, which `check_writable` says
        warnings.simplefilter("ignore")
        dumped = settings.model_dump(mode="json", by_alias=True, round_trip=True)
    return _sorted(settings, _reduced(settings, dumped) if is_recipe else dumped)


def check_writable(settings: BaseModel) -> None:
    """Sees that what a dataset keeps of settings says the same settings again.

    Raises:
        UnwritableError: it does not, or they cannot be written at all.
    """
    try:
        text = json.dumps(plain(settings), allow_nan=False)
        again = validated(type(settings), json.loads(text))
    except Exception as error:  # of serializers and validators of somebody's own, too
        reason = _first(error) if isinstance(error, ValidationError) else one_line(error)
    else:
        if bool(again == settings):
            return
        changed = [name for name, value in settings if getattr(again, name) != value]
        reason = f"{', '.join(changed)} would be read as another value"
    raise UnwritableError(f"its settings cannot be written into a pipeline file and read again: {reason}")


def changed(settings: Any, path: Sequence[str], value: Any) -> Any:
    """Settings with another value at a key.

    Args:
        settings: of a stage.
        path: the key, as a file has it: of a field, of a field of that, or of a mapping.
        value: as a file, or an input, has it.

    Raises:
        pydantic.ValidationError: it cannot be.
    """
    whole = node = plain(settings)
    for key in path[:-1]:
        node[key] = node.get(key) or {}
        node = node[key]
    node[path[-1]] = value
    return validated(type(settings), whole)


def key_of(name: str, field: FieldInfo) -> str:
    """What a file calls a field: its alias, if it has one."""
    return field.serialization_alias or field.alias or name


def keys_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Fields by what a file calls them."""
    return {key_of(name, field): field for name, field in model.model_fields.items()}


def _first(error: ValidationError) -> str:
    fault = error.errors()[0]
    return f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"


def _in_json(value: Any) -> str:
    """Dates as YAML reads them. Raises TypeError for anything else."""
    if isinstance(value, date | time):
        return value.isoformat()
    raise TypeError


def _pairs(value: Any, dumped: Any) -> Iterator[tuple[Any, Any]]:
    """Keys or indices of what was dumped, with the values that these came from."""
    if isinstance(value, BaseModel) and isinstance(dumped, dict):
        for name, inner in value:
            field = type(value).model_fields.get(name)
            key = name if field is None else key_of(name, field)
            if key in dumped:
                yield key, inner
    elif isinstance(value, Mapping) and isinstance(dumped, dict) and len(value) == len(dumped):
        yield from zip(dumped, value.values(), strict=True)
    elif isinstance(value, list | tuple | set | frozenset) and isinstance(dumped, list) and len(value) == len(dumped):
        yield from enumerate(value)


def _sorted(value: Any, dumped: Any) -> Any:
    """What was dumped, with sets in an order that does not change from process to process."""
    for key, inner in list(_pairs(value, dumped)):
        dumped[key] = _sorted(inner, dumped[key])
    if isinstance(value, set | frozenset) and isinstance(dumped, list):
        return sorted(dumped, key=lambda one: json.dumps(one, sort_keys=True))
    return dumped


def _reduced(value: Any, dumped: Any) -> Any:
    """What was dumped, without what is no part of a recipe."""
    if isinstance(value, Checkpoint):
        dumped.pop("licence")
        return dumped | {"repo": "local"} if value.is_local else dumped
    if isinstance(value, StageSettings):
        for name in value.later | value.unrecorded:
            field = type(value).model_fields[name]
            is_default = getattr(value, name) == field.get_default(call_default_factory=True)
            if name in value.unrecorded or is_default:
                dumped.pop(key_of(name, field), None)
    for key, inner in list(_pairs(value, dumped)):
        dumped[key] = _reduced(inner, dumped[key])
    return dumped
