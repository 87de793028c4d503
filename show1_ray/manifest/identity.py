"""What names a clip: ids and seeds that rows give, and those that are derived where they give none."""

from __future__ import annotations

import hashlib
import json
import re
from decimal import Decimal
from typing import Any

from show1_ray.clip import GENERATOR_SEEDS, MAX_SEED, SeedRule
from show1_ray.manifest.rows import Row
from show1_ray.manifest.types import WHOLE, is_whole
from show1_ray.pipeline.inputs import noted


def derived_id(row_digest: bytes, sample: int, occurrence: int) -> str:
    """The id of a row that has none: 32 hex digits.

    They are the beginning of sha256(JSON [digest, sample, occurrence]), where the digest is the first 32 hex
    digits of sha256(JSON [prompt, negative prompt, seed]), with null for what is not given; where the row has inputs,
    these follow as an object, sorted by name, with "sha256:…" in place of bytes.
    """
    return digest(row_digest.hex(), sample, occurrence).hex()


def derived_seed(clip_id: str, seed: int, rule: SeedRule = "mixed") -> int:
    """The seed of a row that has none, a function of its id and `seed` alone: 32 bits of sha256("<seed>:<id>").

    By the rule "low" it is the first 63 bits, of which generators take the low 32: those that "mixed" gives. So the
    same row is the same clip by both rules, and only what is written down as its seed differs.
    """
    bits = int.from_bytes(hashlib.sha256(f"{seed}:{clip_id}".encode()).digest()[:8], "big") >> 1
    return bits if rule == "low" else bits % GENERATOR_SEEDS


def given_seed(value: Any) -> int | None:
    """The seed as an integer, None where it is not given (null, or the NaN that pandas makes of null).

    Whole floats and decimals below 2**53 count as integers (pandas turns integer columns with gaps into floats), and so
    do the digits of a string (CSV), also with .0 behind them. Raises ValueError.
    """
    if value is None or value != value:
        return None
    if isinstance(value, str):
        value = value.strip()
        value = value.removesuffix(".0") if WHOLE.fullmatch(value) and int(value[:-2]) < 2**53 else value
    is_digits = isinstance(value, str) and re.fullmatch(r"[0-9]{1,19}", value)
    if is_digits or (isinstance(value, float | Decimal) and is_whole(value)):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_SEED:
        raise ValueError(value)
    return value


def row_digest(row: Row) -> bytes:
    """16 bytes that tell rows without an id apart."""
    return digest(*content_of(row))


def content_of(row: Row) -> list[Any]:
    """What makes a row's clip."""
    inputs = [dict(sorted(noted(row.inputs).items()))] if row.inputs else []
    return [row.prompt, row.negative_prompt, given_seed(row.seed), *inputs]


def digest(*values: Any) -> bytes:
    """The first 16 bytes of the sha256 of values as JSON."""
    return hashlib.sha256(as_json(*values)).digest()[:16]


def as_json(*values: Any) -> bytes:
    """Values as JSON that is the same everywhere: ids and fingerprints are made from it."""
    return json.dumps(values, separators=(",", ":")).encode()
