"""A pipeline's line that stays open, as its documentation shows it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from show1_ray.show1.stages import STAGES
from tests.own_ray import own_ray

PAGE = Path(__file__).parent.parent / "docs/reference/python.md"


def test_the_example_of_the_documentation_runs(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(import asyncio\n.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert example.count('"nano"') == 1
    with own_ray(1):
        exec(example.replace('"nano"', repr(str(tiny))), {"__name__": "__main__"})
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said[:-1]] == list(STAGES)
    assert said[1].endswith("['keyframes']")
    assert re.fullmatch(r"\(\d+, \d+, \d+, 3\)", said[-1])
