"""What diffusers' classes are called with, read from its source: the driver imports neither it nor torch."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from math import lcm
from pathlib import Path
from typing import Any

UNKNOWN = object()
"""A default that is no literal."""
REQUIRED = object()
"""No default."""

_TABLES = {"pipelines": "pipelines/__init__.py", "schedulers": "schedulers/__init__.py"}
_SIMPLE = {"int", "float", "str", "bool", "None", "list", "List", "tuple", "Tuple", "dict", "Dict", "Any", "object"}


class UnknownClassError(Exception):
    """diffusers has no class of that name: the reason, with the nearest."""


@dataclass(frozen=True)
class Argument:
    """An argument of a method.

    Attributes:
        default: a literal's value, `UNKNOWN` or `REQUIRED`.
        annotation: as the source has it; "" without.
    """

    name: str
    default: Any
    annotation: str = ""

    @property
    def is_required(self) -> bool:
        """Whether there is no default."""
        return self.default is REQUIRED

    def why_not(self, value: Any) -> str | None:
        """Why a value of a pipeline file cannot be given for it, as far as its annotation tells; else None."""
        kinds = set(re.findall(r"[A-Za-z_][\w.]*", self.annotation))
        tops = _tops(self.annotation)
        if not tops or not tops <= _SIMPLE or tops & {"Any", "object"} or kinds & {"Any", "Callable"} & tops:
            return None
        if value is None:  # what is optional is seldom annotated so
            return None if "None" in tops or self.default is None else f"must be {_worded(tops)} (it is null)"
        fits = {
            "bool": isinstance(value, bool),
            "int": isinstance(value, int) and not isinstance(value, bool),
            "float": isinstance(value, int | float) and not isinstance(value, bool),
            "str": isinstance(value, str),
            **dict.fromkeys(("list", "List", "tuple", "Tuple"), isinstance(value, list | tuple)),
            **dict.fromkeys(("dict", "Dict"), isinstance(value, Mapping)),
        }
        return None if any(fits.get(kind, False) for kind in tops) else f"must be {_worded(tops)} (it is {value!r})"


@dataclass(frozen=True)
class Signature:
    """A class of diffusers as its source tells it.

    Attributes:
        name: of the class.
        call, init: arguments of `__call__` and `__init__`, without self.
        folder: the package of diffusers that it lies in, such as "wan".
        divisors: numbers by which its `check_inputs` wants "height" and "width" to be divisible, if it says so.
        gives_audio: whether its output is sound alone.
        cuts_strength: whether it walks `int(num_inference_steps * strength)` steps; others walk one at least.
    """

    name: str
    call: Mapping[str, Argument]
    init: Mapping[str, Argument]
    folder: str
    divisors: Mapping[str, int]
    gives_audio: bool = False
    cuts_strength: bool = False


@cache
def pipeline(name: str) -> Signature:
    """A pipeline class. Raises UnknownClassError."""
    return _signature(name, "pipelines", "pipeline")


@cache
def scheduler(name: str) -> Signature:
    """A scheduler class. Raises UnknownClassError."""
    return _signature(name, "schedulers", "scheduler")


@cache
def cache_configs() -> dict[str, dict[str, Argument]]:
    """Classes that configure diffusers' caches (`enable_cache`) → their fields."""
    found = {}
    taken = {node.id for node in ast.walk(_tree(_root() / "models" / "cache_utils.py")) if isinstance(node, ast.Name)}
    for path in sorted((_root() / "hooks").glob("*.py")):
        for node in _tree(path).body:
            if isinstance(node, ast.ClassDef) and node.name in taken and _is_dataclass(node):
                found[node.name] = {
                    one.target.id: Argument(
                        one.target.id,
                        REQUIRED if one.value is None else _literal(one.value),
                        ast.unparse(one.annotation),
                    )
                    for one in node.body
                    if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
                }
    return found


@cache
def attention_backends() -> tuple[str, ...]:
    """Names that `set_attention_backend` takes."""
    for node in _tree(_root() / "models" / "attention_dispatch.py").body:
        if isinstance(node, ast.ClassDef) and node.name == "AttentionBackendName":
            values = [one.value for one in node.body if isinstance(one, ast.Assign)]
            return tuple(one.value for one in values if isinstance(one, ast.Constant) and isinstance(one.value, str))
    return ()


@cache
def quantization_backends() -> tuple[str, ...]:
    """Names of `PipelineQuantizationConfig`'s backends."""
    path = _root() / "quantizers" / "auto.py"
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "AUTO_QUANTIZATION_CONFIG_MAPPING":
            keys = node.value.keys if isinstance(node.value, ast.Dict) else []
            return tuple(key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str))
    return ()


def near(name: str, known: Sequence[str] | Mapping[str, Any], shown: int = 12) -> str:
    """ "; did you mean …?", or what there is."""
    close = difflib.get_close_matches(str(name), list(known), 1)
    close = close or [one for one in known if len(str(name)) > 2 and str(name).lower() in one.lower()][:1]
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there is {', '.join(list(known)[:shown])}{', …' if len(known) > shown else ''}"


@cache
def names(kind: str) -> dict[str, str]:
    """Classes that diffusers exports: name → the module or folder below its kind ("pipelines", "schedulers")."""
    table: dict[str, str] = {}
    for node in ast.walk(_tree(_root() / _TABLES[kind])):
        module, listed = _entry(node)
        for one in listed:
            table[one] = module
    return table


def _entry(node: ast.AST) -> tuple[str, list[str]]:
    """`_import_structure["wan"] = [...]` and `….extend([...])`: the module and the classes."""
    target: ast.expr | None = None
    value: ast.expr | None = None
    if isinstance(node, ast.Assign):
        target, value = node.targets[0], node.value
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("extend", "append"):
        target, value = node.func.value, node.args[0] if node.args else None
    if not (isinstance(target, ast.Subscript) and getattr(target.value, "id", "") == "_import_structure"):
        return "", []
    module = target.slice.value if isinstance(target.slice, ast.Constant) else ""
    elements = value.elts if isinstance(value, ast.List) else [value]
    return str(module), [one.value for one in elements if isinstance(one, ast.Constant) and isinstance(one.value, str)]


def _signature(name: str, kind: str, what: str) -> Signature:
    table = names(kind)
    if name not in table:
        raise UnknownClassError(f"diffusers has no {what} {name!r}{near(name, table, 5)}")
    found = _definitions(name, _root() / kind / table[name].replace(".", "/"))
    if not found:
        raise UnknownClassError(f"{what} {name!r} of diffusers has no source here")
    call, init = _method(found, "__call__"), _method(found, "__init__")
    check, steps = _method(found, "check_inputs"), _method(found, "get_timesteps")
    answer = "" if call is None or call.returns is None else ast.unparse(call.returns)
    returned = {ast.unparse(one.func) for one in ast.walk(call or found[0]) if isinstance(one, ast.Call)}
    return Signature(
        name,
        _arguments(call),
        _arguments(init),
        table[name].partition(".")[0],
        {} if check is None else dict(_divisors(check)),
        "AudioPipelineOutput" in {answer, *returned},
        steps is not None and "int(num_inference_steps * strength)" in ast.unparse(steps),
    )


def _definitions(name: str, place: Path) -> list[ast.ClassDef]:
    """The class and those that it derives from, nearest first, as far as they lie in the same module or folder."""
    files = [place.with_suffix(".py")] if place.with_suffix(".py").is_file() else sorted(place.rglob("*.py"))
    for path in files:
        if re.search(rf"^class {name}\b", path.read_text(encoding="utf-8"), re.MULTILINE):
            for node in _tree(path).body:
                if isinstance(node, ast.ClassDef) and node.name == name:
                    bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
                    return [node, *(one for base in bases if base != name for one in _definitions(base, place))]
    if place.is_dir() and name in names("pipelines"):
        other = _root() / "pipelines" / names("pipelines")[name].replace(".", "/")
        return [] if other == place else _definitions(name, other)
    return []


def _method(classes: Sequence[ast.ClassDef], name: str) -> ast.FunctionDef | None:
    found = [node for one in classes for node in one.body if isinstance(node, ast.FunctionDef) and node.name == name]
    return found[0] if found else None


def _arguments(method: ast.FunctionDef | None) -> dict[str, Argument]:
    if method is None:
        return {}
    plain = [*method.args.posonlyargs, *method.args.args]
    defaults = [REQUIRED] * (len(plain) - len(method.args.defaults)) + [_literal(one) for one in method.args.defaults]
    pairs = [*zip(plain, defaults, strict=True)]
    for one, default in zip(method.args.kwonlyargs, method.args.kw_defaults, strict=True):
        pairs.append((one, REQUIRED if default is None else _literal(default)))
    return {
        one.arg: Argument(one.arg, default, ast.unparse(one.annotation) if one.annotation else "")
        for one, default in pairs
        if one.arg not in ("self", "cls")
    }


def _divisors(check: ast.FunctionDef) -> Iterator[tuple[str, int]]:
    """Of `if height % 16 != 0 or width % 16 != 0: raise …`."""
    found: dict[str, int] = {}
    for test in (node.test for node in ast.walk(check) if isinstance(node, ast.If)):
        for node in ast.walk(test):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod) and isinstance(node.left, ast.Name):
                by = node.right.value if isinstance(node.right, ast.Constant) else None
                if node.left.id in ("height", "width") and isinstance(by, int) and by > 1:
                    found[node.left.id] = lcm(found.get(node.left.id, 1), by)
    yield from found.items()


def _tops(annotation: str) -> set[str]:
    """The kinds of which a value may be: of "Optional[int] | list[str]" None, int and list."""
    try:
        return set(_kinds(ast.parse(annotation, mode="eval").body)) if annotation else set()
    except SyntaxError:
        return set()


def _kinds(node: ast.expr) -> Iterator[str]:
    match node:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            yield from _kinds(left)
            yield from _kinds(right)
        case ast.Subscript(value=ast.Name(id="Optional" | "Union" as word), slice=inner):
            if word == "Optional":
                yield "None"
            for one in inner.elts if isinstance(inner, ast.Tuple) else [inner]:
                yield from _kinds(one)
        case ast.Subscript(value=value):
            yield from _kinds(value)
        case ast.Constant(value=None):
            yield "None"
        case _:
            yield ast.unparse(node)


def _worded(kinds: set[str]) -> str:
    words = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"}
    words |= {
        **dict.fromkeys(("list", "List", "tuple", "Tuple"), "a list"),
        **dict.fromkeys(("dict", "Dict"), "a mapping"),
    }
    return " or ".join(dict.fromkeys(words[kind] for kind in sorted(kinds) if kind in words))


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return UNKNOWN


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(one) for one in node.decorator_list)


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _root() -> Path:
    spec = find_spec("diffusers")
    if spec is None or spec.origin is None:
        raise UnknownClassError("diffusers is not installed")
    return Path(spec.origin).parent
