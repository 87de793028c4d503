"""What of a pipeline decides what a clip is, as plain data that can be hashed and compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from show1_ray.pipeline.checkpoints import Checkpoint
from show1_ray.pipeline.settings import plain

if TYPE_CHECKING:
    from show1_ray.pipeline.pipeline import Pipeline

FIRST = ("text", "keyframes", "interpolation", "super_resolution", "latent_super_resolution")
"""The stages, and their order, of recipes that do not say it: Show-1's."""


def recipe(pipeline: Pipeline) -> dict[str, Any]:
    """All that decides what a clip's frames are; the place of local checkpoints is left out.

    What is as it always was is left out, too, so that recipes stay what they were: settings that came `later` and have
    their defaults, the order of Show-1's stages, versions that are 1, values that are taken where they would be anyway.
    """
    wiring = pipeline.whole()
    wired = {stage.name: stage for stage in wiring.stages}
    stages = {}
    for part in pipeline.parts:
        entry = {"uses": part.uses} if part.uses else {}
        default = pipeline.default_takes(part.name)
        takes = {
            name: str(wired[part.name].takes[name])
            for name in part.takes
            if wired[part.name].takes[name] != default.get(name)
        }
        stages[part.name] = entry | ({"takes": takes} if takes else {}) | plain(part.settings, is_recipe=True)
    found: dict[str, Any] = {"dtype": pipeline.dtype, "fps": pipeline.fps, "stages": stages}
    found |= _if_any("order", [] if tuple(stages) == FIRST and not _uses(pipeline) else list(stages))
    found |= _if_any("versions", {part.name: part.cls.version for part in pipeline.parts if part.cls.version > 1})
    found |= _if_any("code", {part.name: part.code.digest for part in pipeline.parts if part.code})
    found |= _if_any("inputs", {one.name: one.as_plain() for one in pipeline.inputs})
    return found | _if_any("clip", "" if wiring.clip == pipeline.default_video() else str(wiring.clip))


def recipe_hash(recipe: Mapping[str, Any]) -> str:
    """Identifies a recipe: 16 hexadecimal digits of its SHA-256."""
    canonical = json.dumps(recipe, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def unrecorded(settings: Any) -> dict[str, Any]:
    """Settings that are no part of a recipe, where they are not as by default."""
    fields = type(settings).model_fields
    return {
        name: getattr(settings, name)
        for name in sorted(settings.unrecorded)
        if getattr(settings, name) != fields[name].get_default(call_default_factory=True)
    }


def checkpoints_in(value: Any) -> Iterator[Checkpoint]:
    """All checkpoints in settings, however deep."""
    if isinstance(value, Checkpoint):
        yield value
    elif isinstance(value, BaseModel):
        for _, field in value:
            yield from checkpoints_in(field)
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from checkpoints_in(inner)
    elif isinstance(value, list | tuple | set | frozenset):
        for inner in value:
            yield from checkpoints_in(inner)


def pinned(value: Any, revisions: Mapping[Checkpoint, str]) -> Any:
    """Settings with the revision of each checkpoint made exact."""
    if isinstance(value, Checkpoint):
        return value.model_copy(update={"revision": revisions[value]})
    if isinstance(value, BaseModel):
        return value.model_copy(update={name: pinned(field, revisions) for name, field in value})
    if isinstance(value, Mapping):
        return {name: pinned(inner, revisions) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        inner = [pinned(one, revisions) for one in value]
        return value._make(inner) if hasattr(value, "_make") else type(value)(inner)
    return value


def _uses(pipeline: Pipeline) -> bool:
    return any(part.uses for part in pipeline.parts)


def _if_any(key: str, value: Any) -> dict[str, Any]:
    return {key: value} if value else {}
