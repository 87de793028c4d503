"""Untrusted YAML, read within bounds, so that no file can make a job hang or fill memory."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import yaml

from show1_ray.errors import shown

MOST_BYTES = 256 * 1024
"""Of a file: the largest that the package brings has 2 kB."""
MOST_VALUES = 20_000
"""Keys and values, counted at each place where an anchor puts them."""
MOST_NUMBER = 2**63 - 1
"""Python reads numbers of any length, and takes minutes to write some of them down again."""

_REFERENCE = re.compile(r"(?<=: )([A-Za-z_][\w.]*\[-?\d+\])(?=\s*[,}])")
"""`keyframes[0]` as a value between braces, where YAML would have it in quotes."""


def load_yaml(text: str) -> Any:
    """What a YAML text says, in plain Python values; the keys of its mappings are text.

    What anchors share is there once for each place.

    Raises:
        ValueError: why it cannot be taken, in one line: no YAML, tags that are not YAML's own, too large, anchors
            that multiply beyond `MOST_VALUES` or contain themselves.
    """
    size = len(text.encode(errors="surrogatepass"))
    if size > MOST_BYTES:
        raise ValueError(f"{size} bytes, but {MOST_BYTES} are the most")
    try:
        return _loaded(text)
    except yaml.YAMLError as error:
        quoted = _REFERENCE.sub(r'"\1"', text)
        if quoted != text:
            with suppress(yaml.YAMLError):
                return _loaded(quoted)
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _loaded(text: str) -> Any:
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        return _unshared(_values(loader, node))
    finally:
        loader.dispose()


def _values(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    try:
        return loader.construct_document(node)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # of dates that are none, …
        raise ValueError(f"not YAML: a value is not what its tag or form says: {error}") from None


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """The values that a node stands for, anchors followed. Raises ValueError beyond `MOST_VALUES`, or for a circle."""
    if id(node) in known:
        if not known[id(node)]:
            raise ValueError("an anchor is a part of itself")
        return known[id(node)]
    known[id(node)] = 0  # as long as it is not known
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        inner = [one for pair in node.value for one in pair]
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    count = 1 + sum(_count(one, known) for one in inner)
    if count > MOST_VALUES:
        raise ValueError(f"more than {MOST_VALUES} values, counting each place of an anchor")
    known[id(node)] = count
    return count


def _check_keys(node: yaml.MappingNode) -> None:
    """Raises ValueError for a key that is there twice, of which YAML's reader takes the last without a word."""
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            line = key.start_mark.line + 1
            if key.value in lines:
                raise ValueError(f"the key {shown(key.value)} is there twice, in lines {lines[key.value]} and {line}")
            lines[key.value] = line


def _unshared(tree: Any) -> Any:
    """A copy in which nothing is shared. Raises ValueError for a key that is no text, and for a huge number."""
    if isinstance(tree, dict):
        for key in tree:
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r} is not text: write it in quotes")
        return {key: _unshared(value) for key, value in tree.items()}
    if isinstance(tree, int) and abs(tree) > MOST_NUMBER:
        raise ValueError("a number beyond 2**63")
    return [_unshared(value) for value in tree] if isinstance(tree, list) else tree
