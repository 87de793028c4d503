"""What stages and pipelines say of themselves, as plain data: for `show1-ray stages`, `check` and `schema`."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from pydantic import BaseModel
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo

from show1_ray.errors import ConfigError
from show1_ray.pipeline.checkpoints import folder_of
from show1_ray.pipeline.code import Code
from show1_ray.pipeline.inputs import KINDS
from show1_ray.pipeline.part import Part
from show1_ray.pipeline.pipeline import Head, Pipeline
from show1_ray.pipeline.registry import RegistryError, installed, names, own_stages, stage_class
from show1_ray.pipeline.settings import keys_of
from show1_ray.pipeline.wiring import Ref, Wired
from show1_ray.stage import Shape, Stage


def list_stages(code: Code | None = None) -> list[dict[str, str]]:
    """All stages: name, where they come from, and a line of what they do.

    A stage that cannot be imported has the reason in place of that line.
    """
    return [_listed(name, code) for name in [*names(), *(own_stages(code) if code else ())]]


def describe_stage(name: str, code: Code | None = None) -> dict[str, Any]:
    """A stage: settings with types, defaults and meaning, what it takes and gives.

    Raises:
        ConfigError: there is none of that name.
    """
    try:
        cls = stage_class(name, code)
    except RegistryError as error:
        raise ConfigError(str(error)) from None
    takes, gives = _default_signature(name, cls, code)
    return {
        "name": name,
        "class": f"{cls.__module__}:{cls.__qualname__}",
        "description": inspect.getdoc(cls) or "",
        "version": cls.version,
        "takes": dict(takes),
        "gives": dict(gives),
        "tensors": cls.tensors,
        "row_settings": sorted(cls.row_settings),
        "settings": list(_fields(cls.Settings)),
        "execution": list(_fields(cls.Execution)),
    }


def check(pipeline: Pipeline) -> dict[str, Any]:
    """A pipeline: its stages in order, what passes between them, checkpoints, memory and operations.

    No weight is loaded; that folders of this machine have what stages load is seen.

    Raises:
        UserError: a folder that lacks something, a class that cannot say what its stage costs.
    """
    half = pipeline.dtype != "float32"
    for _, need in pipeline.needs():
        if need.checkpoint.is_local:
            folder_of(need.checkpoint, need.components, half=half, variants=need.variants)
    parts = {piece.name: piece for part in pipeline.parts for piece in part.pieces()}
    video = pipeline.video
    counts: dict[str, dict[str, Any]] = {"weights_bytes": pipeline.weights(), "operations": pipeline.operations()}
    return {
        "name": pipeline.name,
        "description": pipeline.description,
        "file": str(pipeline.file or ""),
        "dtype": pipeline.dtype,
        "fps": pipeline.fps,
        "inputs": {one.name: one.as_plain() for one in pipeline.inputs},
        "stages": [
            {**_checked(one, parts[one.name]), **{key: count[one.name] for key, count in counts.items()}}
            for one in pipeline.wired()
        ],
        "clip": {"value": str(video), **_shape(pipeline.video_shape)},
        "notes": pipeline.notes(),
    }


def schema() -> dict[str, Any]:
    """A JSON schema of pipeline files, for editors: keys with their types and meaning.

    Files may extend others, so that nothing is required; what does not fit together, `check` finds.
    """
    definitions: dict[str, Any] = {}
    stages, executions = {}, {}
    reserved = {
        "uses": {"type": "string", "description": "the stage's name, or MODULE:CLASS, where the key is not its name"},
        "before": {"type": "string", "description": "the stage that it stands before"},
        "after": {"type": "string", "description": "the stage that it stands after"},
        "takes": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "where it takes values from: NAME: STAGE.VALUE, or STAGE.VALUE[0] for one frame",
        },
    }
    for name in names():
        try:
            cls = stage_class(name)
        except RegistryError:
            continue
        stages[name] = _definition(cls.Settings, f"{name}.settings", definitions, reserved)
        stages[name] = {"anyOf": [stages[name], {"type": "null"}], "description": _line(cls)}
        executions[name] = _definition(cls.Execution, f"{name}.execution", definitions, {})
    _definition(Head, "head", definitions, {})
    found = definitions.pop("head")
    others = {"anyOf": [{"type": "object", "properties": reserved}, {"type": "null"}]}
    kinds = {kind: {"type": ["string", "null"], "description": "the setting that it sets"} for kind in KINDS}
    found["properties"] |= {
        "extends": {"type": "string", "description": "a pipeline's name, or a file, that this one changes"},
        "inputs": {
            "type": "object",
            "description": "columns of the manifest that are a part of each clip",
            "additionalProperties": {
                "anyOf": [
                    {"enum": list(KINDS)},
                    {"type": "null"},
                    {"type": "object", "properties": kinds | {"default": {}}, "additionalProperties": False},
                ]
            },
        },
        "stages": {"type": "object", "properties": stages, "additionalProperties": others},
        "execution": {"type": "object", "properties": executions, "additionalProperties": {"type": "object"}},
    }
    about = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A pipeline file of show1-ray"}
    return found | about | {"$defs": definitions}


def _listed(name: str, code: Code | None) -> dict[str, str]:
    try:
        cls = stage_class(name, code)
    except RegistryError as error:
        return {"name": name, "from": _origin(name, code), "description": str(error)}
    return {"name": name, "from": _origin(name, code), "description": _line(cls)}


def _origin(name: str, code: Code | None) -> str:
    if ":" in name:
        return f"--code {code.given}" if code else ""
    points = installed().get(name, ())
    return points[0].dist.name if points and points[0].dist else "show1-ray"


def _line(cls: type[Stage]) -> str:
    """The first line of a class's docstring, its own."""
    return (inspect.cleandoc(cls.__doc__).splitlines() or [""])[0] if cls.__doc__ else ""


def _default_signature(name: str, cls: type[Stage], code: Code | None) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """What a stage takes and gives with its default settings; what its class says where it has no such settings."""
    with suppress(Exception):  # settings that are needed, validators of somebody's own
        return Part(name, cls, cls.Settings(), None, code=code).signature
    return cls.takes, cls.gives


def _fields(model: type[BaseModel], below: str = "") -> Iterator[dict[str, Any]]:
    """Settings with type, default and meaning; those of nested ones with dots."""
    types = _schema(model).get("properties", {})
    for name, field in keys_of(model).items():
        nested = _model_of(field.annotation)
        one = _field(f"{below}{name}", field, types.get(name, {}))
        if nested is None:
            yield one
            continue
        if not field.is_required() and field.default is None:
            yield {**one, "type": "mapping or null"}
        yield from _fields(nested, f"{below}{name}.")


def _field(key: str, field: FieldInfo, type_of: Mapping[str, Any]) -> dict[str, Any]:
    default: Any = None
    if field.default_factory is None or not field.default_factory_takes_validated_data:
        default = None if field.is_required() else field.get_default(call_default_factory=True)
    if isinstance(default, set | frozenset):
        default = sorted(default, key=str)
    return {
        "key": key,
        "type": _type(type_of),
        "required": field.is_required(),
        "default": json.loads(json.dumps(default, default=str)),
        "meaning": field.description or "",
    }


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    """A model's JSON schema; empty where it has a type that JSON lacks, which `check` refuses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return model.model_json_schema()
        except PydanticUserError:
            return {}


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """The settings that a field holds, if it holds some."""
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return next((one for one in candidates if isinstance(one, type) and issubclass(one, BaseModel)), None)


def _type(said: Mapping[str, Any]) -> str:
    """A type of a JSON schema, for people."""
    if "anyOf" in said:
        return " or ".join(dict.fromkeys(_type(one) for one in said["anyOf"]))
    if "enum" in said or "const" in said:
        return " | ".join(map(str, said.get("enum", [said.get("const")])))
    if said.get("type") == "array":
        inner = said.get("prefixItems") or [said.get("items", {})]
        return f"list of {' and '.join(dict.fromkeys(map(_type, inner)))}"
    words = {"object": "mapping", "string": "text", "boolean": "true or false"}
    name = words.get(said.get("type", ""), said.get("type", "anything"))
    low, high = said.get("minimum", said.get("exclusiveMinimum")), said.get("maximum", said.get("exclusiveMaximum"))
    if low is None and high is None:
        return name
    bounds = f"from {low}" * (low is not None) + f" to {high}" * (high is not None)
    return f"{name} {bounds.strip()}"


def _checked(stage: Wired, part: Part) -> dict[str, Any]:
    _, gives = part.signature
    return {
        "name": stage.name,
        "uses": part.uses or stage.name,
        "class": f"{stage.cls.__module__}:{stage.cls.__qualname__}",
        "version": stage.cls.version,
        "takes": {
            name: {"from": str(ref), **_shape(stage.taken[name]), **_turned(ref, stage.taken[name].axes)}
            for name, ref in stage.takes.items()
        },
        "gives": {name: {"on_the_line": stage.gives[name], **_shape(stage.shapes[name])} for name in gives},
        "checkpoints": [
            {
                "checkpoint": str(need.checkpoint),
                "licence": need.checkpoint.licence,
                "components": list(need.components),
            }
            for need in part.checkpoints()
        ],
        "batch_size": stage.execution.batch_size,
        "device": stage.execution.device,
        "memory_gib": stage.execution.memory or None,
    }


def _shape(shape: Shape) -> dict[str, Any]:
    return {
        "axes": shape.axes,
        "sizes": list(shape.sizes),
        "type": shape.dtype,
        "bytes": shape.bytes if shape.sizes else None,
    }


def _turned(ref: Ref, axes: str) -> dict[str, Any]:
    return {"turned_from": ref.axes} if ref.axes != axes else {}


def _definition(
    model: type[BaseModel], name: str, definitions: dict[str, Any], more: Mapping[str, Any]
) -> dict[str, Any]:
    """Adds a model's schema to the definitions, its own ones under names of their own; returns the reference."""
    said = _schema(model)
    inner = said.pop("$defs", {})
    text = json.dumps({name: said, **{f"{name}.{key}": value for key, value in inner.items()}})
    for key in inner:
        text = text.replace(f'"#/$defs/{key}"', f'"#/$defs/{name}.{key}"')
    for key, value in json.loads(text).items():
        definitions[key] = _optional(value)
    definitions[name].setdefault("properties", {}).update(more)
    return {"$ref": f"#/$defs/{name}"}


def _optional(said: Any) -> Any:
    """Without what is required: an extending file says a part."""
    if isinstance(said, dict):
        return {
            key: _optional(value) for key, value in said.items() if not (key == "required" and isinstance(value, list))
        }
    return [_optional(one) for one in said] if isinstance(said, list) else said
