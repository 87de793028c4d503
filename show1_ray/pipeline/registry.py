"""Stages by name: of the package, of installed packages, or `module:Class` of the user's code.

Listing names imports nothing; a class is imported when it is asked for.
"""

from __future__ import annotations

import difflib
import math
import re
import traceback
from collections.abc import Iterable, Mapping, Set
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

from show1_ray.pipeline.code import Code, is_of_code
from show1_ray.pipeline.settings import keys_of
from show1_ray.stage import PLAIN, Stage, StageExecution, StageSettings

PACKAGED = {
    "text": "show1_ray.show1.stages:Text",
    "keyframes": "show1_ray.show1.stages:Keyframes",
    "interpolation": "show1_ray.show1.stages:Interpolation",
    "super_resolution": "show1_ray.show1.stages:SuperResolution",
    "latent_super_resolution": "show1_ray.show1.stages:LatentSuperResolution",
    "diffusers": "show1_ray.stages.diffusers:Diffusers",
    "resize": "show1_ray.stages.resize:Resize",
}
"""The package's stages."""

GROUP = "show1_ray.stages"
"""Of the entry points of installed packages: `name = "module:Class"`."""

RESERVED = ("uses", "before", "after", "takes")
"""Keys of a stage in a pipeline file besides its settings."""

_NAME = re.compile(r"[A-Za-z]\w*")
_AXES = re.compile(r"[A-Za-z]\w*( [A-Za-z]\w*)*")


class RegistryError(Exception):
    """A stage that is not there, or that is none: one line for people."""


@cache
def installed() -> Mapping[str, tuple[EntryPoint, ...]]:
    """Entry points of installed packages, by name."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for point in entry_points(group=GROUP):
        if point.value not in [other.value for other in found.get(point.name, ())]:
            found[point.name] = (*found.get(point.name, ()), point)
    return found


def names() -> list[str]:
    """Names of all stages of the package and of installed packages."""
    return [*PACKAGED, *sorted(installed().keys() - PACKAGED.keys())]


def stage_class(uses: str, code: Code | None = None) -> type[Stage]:
    """The class that a pipeline file names.

    Args:
        uses: a name, or `module:Class`.
        code: where `module:Class` may come from.

    Raises:
        RegistryError: there is none, it cannot be imported, or it is no stage.
    """
    if ":" in uses:
        return _of_code(uses, code)
    if uses in PACKAGED:
        return _checked(_load(PACKAGED[uses], uses), uses)
    points = installed().get(uses, ())
    if len(points) > 1:
        raise RegistryError(f"{uses!r} is a stage of several packages: {', '.join(one.value for one in points)}")
    if not points:
        near = difflib.get_close_matches(uses, names(), 3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {', '.join(names())}"
        raise RegistryError(f"no stage {uses!r}; {hint} (one of your own: uses: MODULE:CLASS, with --code)")
    return _checked(_load(f"{points[0].module}:{points[0].attr}", uses), uses)


def _of_code(uses: str, code: Code | None) -> type[Stage]:
    module, _, name = uses.partition(":")
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", module) or not name.isidentifier():
        raise RegistryError(f"write it as MODULE:CLASS, such as brighten:Brighten (it is {uses!r})")
    if code is None:
        raise RegistryError(
            f"{uses!r} is code of somebody's own, which runs only where you say so: "
            f"give --code {module.partition('.')[0]}.py, or the folder that has it"
        )
    if module not in code.modules:
        near = ", ".join(sorted(code.modules)[:5])
        raise RegistryError(f"--code {code.given} has no module {module!r} (it has {near})")
    code.install()
    return _checked(_load(uses, uses, code), uses)


def _load(path: str, uses: str, code: Code | None = None) -> Any:
    """What `module:Class` names; imports the module."""
    module, _, name = path.partition(":")
    found: Any = _imported(module, uses, code)
    *outer, name = name.split(".")
    for one in outer:  # of an entry point
        found = getattr(found, one, None)
    if not hasattr(found, name):
        classes = [one.__name__ for one in vars(found).values() if isinstance(one, type) and issubclass(one, Stage)]
        near = difflib.get_close_matches(name, classes, 1) or [one for one in classes if one != Stage.__name__]
        raise RegistryError(f"{module} has no {name!r}" + (f"; it has {', '.join(near)}" if near else ""))
    return getattr(found, name)


def _imported(module: str, uses: str, code: Code | None) -> ModuleType:
    if code is not None:
        code.forget(module)
    try:
        found = import_module(module)
    except Exception as error:  # whatever a module does when it is imported
        raise RegistryError(f"{uses!r} cannot be imported: {explained(error, code)}") from error
    if code is not None and not is_of_code(found):
        place = getattr(found, "__file__", None) or "a module of Python"
        raise RegistryError(f"{uses!r}: the name of the module is taken ({place}): rename yours")
    return found


def own_stages(code: Code) -> list[str]:
    """Stages of code of one's own, as `module:Class`; modules that say nothing of stages are not imported."""
    code.install()
    found = []
    for module, path in code.modules.items():
        if b"Stage" not in dict(code.files).get(path, b""):
            continue
        try:
            classes = vars(_imported(module, module, code)).values()
        except RegistryError:
            continue
        found += [
            f"{module}:{one.__name__}"
            for one in classes
            if isinstance(one, type) and issubclass(one, Stage) and one.__module__ == module
        ]
    return found


def explained(error: BaseException, code: Code | None = None) -> str:
    """An error of somebody's code in one line: what it says, and the innermost line of that code that raised it."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, SyntaxError):
        return text  # names file and line itself
    frames = traceback.extract_tb(error.__traceback__)
    own = [one for one in frames if code is not None and code.has(one.filename)] or [
        one for one in frames if "/show1_ray/pipeline/" not in one.filename and not one.filename.startswith("<")
    ]
    return f"{text} ({own[-1].filename}, line {own[-1].lineno})" if own else text


@cache
def _checked(found: Any, uses: str) -> type[Stage]:
    """Raises RegistryError if it is no stage, or declares something that cannot be."""
    if not isinstance(found, type) or not issubclass(found, Stage):
        raise RegistryError(f"{uses!r} is no stage: derive it from show1_ray.Stage")
    for problem in _problems(found):
        raise RegistryError(f"{uses!r}: {problem}")
    return found


def _problems(cls: type[Stage]) -> Iterable[str]:
    if getattr(cls, "__abstractmethods__", None):
        yield f"{cls.__name__} has no {', '.join(sorted(cls.__abstractmethods__))}()"
    for name, base in (("Settings", StageSettings), ("Execution", StageExecution)):
        inner = getattr(cls, name)
        if not isinstance(inner, type) or not issubclass(inner, base):
            yield f"its {name} must be derived from show1_ray.{base.__name__}"
            return
    for key in keys_of(cls.Settings).keys() & set(RESERVED):
        yield f"its Settings has a field {key!r}, which is a word of pipeline files: rename it"
    if not isinstance(cls.version, int) or isinstance(cls.version, bool) or cls.version < 1:
        yield f"its version must be a whole number from 1 (it is {cls.version!r})"
    if cls.tensors not in ("numpy", "torch"):
        yield f"its tensors must be 'numpy' or 'torch' (it is {cls.tensors!r})"
    for name in ("relative_seconds", "working_set"):
        value = getattr(cls, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            yield f"its {name} must be a number from 0 (it is {value!r})"
    yield from _row_problems(cls)
    for name in ("takes", "gives"):
        yield from signature_problems(name, getattr(cls, name))


def _row_problems(cls: type[Stage]) -> Iterable[str]:
    """What is wrong with a stage's `row_settings`."""
    rows = cls.row_settings
    if not isinstance(rows, Set | tuple | list) or not all(isinstance(one, str) for one in rows):
        yield f"its row_settings must be a set of names of settings (it is {rows!r})"
        return
    for one in rows:
        if one.partition(".")[0] not in keys_of(cls.Settings):
            yield f"its row_settings has {one!r}, which is no setting of it"


def signature_problems(what: str, values: Any) -> Iterable[str]:
    """What is wrong with a stage's `takes` or `gives`."""
    if not isinstance(values, Mapping):
        yield f"its {what} must be a mapping of names to axes (it is {values!r})"
        return
    for name, axes in values.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            yield f"its {what} has the name {name!r}: letters, digits and _ make a name"
        elif not isinstance(axes, str) or not _AXES.fullmatch(axes):
            yield f"its {what}[{name!r}] is {axes!r}: write axes with spaces between them, or {PLAIN!r}"
        elif len(set(axes.split())) < len(axes.split()):
            yield f"its {what}[{name!r}] is {axes!r}: each axis once"
        elif axes != PLAIN and PLAIN in axes.split():
            yield f"its {what}[{name!r}] is {axes!r}: {PLAIN!r} is no axis, and stands alone"
