"""Pipeline files as trees of keys: found, read, merged over what they extend, changed by `--set`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from show1_ray.errors import ConfigError, shown
from show1_ray.pipeline.bounded import load_yaml

_PACKAGE = Path(__file__).parent.parent
_PACKAGED, _CHECKOUT = _PACKAGE / "pipelines", _PACKAGE.parent / "pipelines"
PIPELINE_FOLDERS = [_PACKAGED if _PACKAGED.is_dir() else _CHECKOUT]

Key = tuple[str, ...]
LONGEST_SHOWN = 120
"""Characters of an override that an error shows."""


@dataclass
class Tree:
    """What a pipeline file and those that it extends say.

    Attributes:
        path: the file that was asked for.
        keys: nested mappings.
        origins: for each value, what says it: a file, or an override as it was typed; what was said last stands last.
    """

    path: Path
    keys: dict[str, Any]
    origins: dict[Key, str] = field(default_factory=dict)

    def put(self, key: Key, value: Any, origin: str) -> None:
        """Changes the value of a key.

        Raises:
            ConfigError: a part of the key is a value already.
        """
        node = self.keys
        for parent in key[:-1]:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{origin}: {parent} has no keys")
        node[key[-1]] = value
        self.origins = _over(self.origins, dict.fromkeys(_ends(value, key), origin))

    def faults(
        self,
        error: ValidationError,
        below: Key = (),
        said: Mapping[str, Any] | None = None,
        hint: Callable[[Key], str] = lambda key: "",
    ) -> Iterator[str]:
        """One line for each key that pydantic finds wrong: what says it, the key, and the reason, or the several
        reasons of a key that may have several types.

        Args:
            error: the findings.
            below: the key of what was validated.
            said: what was validated.
            hint: what to add where a key is not known.
        """
        found: dict[tuple[Key, bool], list[str]] = {}
        for fault in error.errors():
            key = (*below, *_key_said(fault, said))
            reason = _reason(fault) + (hint(key) if fault["type"] == "extra_forbidden" else "")
            found.setdefault((key, fault["type"] == "missing"), []).append(reason)
        for (key, is_missing), reasons in found.items():
            origin = str(self.path) if is_missing else self._origin(key)
            yield f"{origin}: {'.'.join(key)}: {'; or: '.join(dict.fromkeys(reasons))}"

    def fault(self, key: Key, reason: str) -> str:
        """The line of a fault: what says the key, the key, and the reason."""
        return f"{self._origin(key)}: {'.'.join(key)}: {reason}"

    def _origin(self, key: Key) -> str:
        """Of a key, of what it is a part of, or of the last part of it that was said."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.origins:
                return self.origins[key[:length]]
        below = [origin for other, origin in self.origins.items() if other[: len(key)] == key]
        return below[-1] if below else str(self.path)


def names() -> list[str]:
    """Names of the pipelines that the package brings."""
    return sorted({path.stem for folder in PIPELINE_FOLDERS for path in folder.glob("*.yaml")})


def find(name: str | Path) -> Path:
    """The file of a pipeline; see `Pipeline.load`.

    Raises:
        ConfigError: there is none.
    """
    packaged = [folder / f"{name}.yaml" for folder in PIPELINE_FOLDERS]  # names may have a dot: wan2.2-14b
    candidates = [Path(name), *packaged] if Path(name).suffix else packaged
    for path in candidates:
        if os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises for names that no file can have
            return path
    raise ConfigError(f"no pipeline {shown(str(name))}: give a .yaml file, or one of {', '.join(names())}")


def read(path: Path, below: tuple[Path, ...] = ()) -> Tree:
    """A file, merged over what it extends; local checkpoints are made absolute.

    Raises:
        ConfigError: no YAML, no mapping, or `extends` that leads nowhere or round.
    """
    if path.resolve() in below:
        raise ConfigError(f"{path}: extends: leads back to itself")
    keys = _mapping(path)
    for node in mappings(keys):
        repo = node.get("repo")
        if isinstance(repo, str) and repo.startswith((".", "~")):
            node["repo"] = _absolute(repo, path)
    parent = keys.pop("extends", None)
    origins = dict.fromkeys(_ends(keys, ()), str(path))
    if parent is None:
        return Tree(path, keys, origins)
    if not isinstance(parent, str):
        raise ConfigError(f"{path}: extends: give the name of a pipeline or the path of a file (it is {shown(parent)})")
    try:
        parent_path = find(path.parent / parent if Path(parent).suffix else parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: extends: {error}") from None
    base = read(parent_path, (*below, path.resolve()))
    below_it = _without_replaced(base, keys)
    return Tree(path, _merged(below_it.keys, keys), _over(below_it.origins, origins))


def _without_replaced(base: Tree, keys: Mapping[str, Any]) -> Tree:
    """What a file extends, without what it says anew as a whole: a stage's place, and settings of another class; nor
    how a stage is computed that it drops.

    A stage that `uses` another class than before stays where it was.
    """
    gone: set[Key] = set()
    stages = _mapping_at(base.keys, "stages")
    for name, stage in _mapping_at(keys, "stages").items():
        before = stages.get(name)
        if stage is None:
            gone.add(("execution", name))
        if not isinstance(stage, dict) or not isinstance(before, dict):
            continue
        places = {word for word in ("before", "after") if word in before}
        if {"before", "after"} & stage.keys():
            gone |= {("stages", name, word) for word in places}
        if stage.get("uses", before.get("uses", name)) != before.get("uses", name):
            gone |= {("stages", name, key) for key in before.keys() - places} | {("execution", name)}
    return Tree(
        base.path,
        _pruned(base.keys, gone),
        {key: origin for key, origin in base.origins.items() if not any(key[: len(one)] == one for one in gone)},
    )


def _pruned(tree: Mapping[str, Any], gone: set[Key], at: Key = ()) -> dict[str, Any]:
    return {
        key: _pruned(value, gone, (*at, key)) if isinstance(value, dict) else value
        for key, value in tree.items()
        if (*at, key) not in gone
    }


def _mapping_at(keys: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = keys.get(name)
    return found if isinstance(found, dict) else {}


def _absolute(repo: str, path: Path) -> str:
    """The folder that a file at `path` means. Raises ConfigError for names that no folder can have."""
    try:
        return str((path.parent / Path(repo).expanduser()).resolve())
    except (OSError, RuntimeError, ValueError) as error:  # ~nobody, a loop of links, NUL
        raise ConfigError(f"{path}: repo: {shown(repo)} is no folder: {error}") from None


def mappings(tree: Any) -> Iterator[dict[str, Any]]:
    """All mappings in `tree`, itself included."""
    if isinstance(tree, dict):
        yield tree
    if isinstance(tree, dict | list):
        for value in list(tree.values() if isinstance(tree, dict) else tree):
            yield from mappings(value)


def parse_override(override: str) -> tuple[Key, Any]:
    """Key and value of a `key=value`, whose value is YAML.

    Raises:
        ConfigError: it is not written so.
    """
    key, equals, text = override.partition("=")
    said = as_typed(override)
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", key):
        raise ConfigError(f"{said}: write it as stage.key=value, such as keyframes.steps=50")
    try:
        value = text if key.endswith(".revision") else load_yaml(text)  # a commit of digits is no number
    except ValueError as error:
        raise ConfigError(f"{said}: the value cannot be taken: {error}") from None
    return tuple(key.split(".")), value


def as_typed(override: str) -> str:
    """An override for people, cut where it is long."""
    return f"--set {override if len(override) <= LONGEST_SHOWN else override[:LONGEST_SHOWN] + '…'}"


def _mapping(path: Path) -> dict[str, Any]:
    try:
        keys = load_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(keys, dict):
        raise ConfigError(f"{path}: a pipeline file is a mapping of keys to values")
    return keys


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def _over(earlier: Mapping[Key, str], later: Mapping[Key, str]) -> dict[Key, str]:
    """Both, in the order in which they were said last."""
    return {**{key: origin for key, origin in earlier.items() if key not in later}, **later}


def _ends(tree: Any, key: Key) -> Iterator[Key]:
    """The keys of all values that are no mappings, or empty ones."""
    if not isinstance(tree, dict) or not tree:
        yield key
        return
    for name, value in tree.items():
        yield from _ends(value, (*key, str(name)))


def _key_said(fault: Any, said: Any) -> Key:
    """A finding's key, without pydantic's names of the types that it tried, which stand among its parts."""
    key: list[str] = []
    for part in fault["loc"]:
        is_last = len(key) + 1 == len(fault["loc"])
        if key and said is not None and not _has(said, part) and not (is_last and fault["type"] == "missing"):
            continue
        key.append(str(part))
        said = said[part] if _has(said, part) else None
    return tuple(key)


def _has(said: Any, part: str | int) -> bool:
    if isinstance(said, Mapping):
        return part in said
    return isinstance(said, list) and isinstance(part, int) and part < len(said)


def _reason(fault: Any) -> str:
    """Pydantic's words, and what was given where that helps."""
    match fault["type"]:
        case "extra_forbidden":
            return "unknown key"
        case "missing":
            return "is missing"
        case "model_type":
            return f"must be a mapping of keys to values (it is {shown(fault['input'])})"
        case "value_error":  # of a mapping as a whole: the message says which key is meant
            return str(fault["msg"]).removeprefix("Value error, ")
    return f"{fault['msg']} (it is {shown(fault['input'])})"
