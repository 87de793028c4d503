"""Settings of a stage of anybody's: of every type that a class may declare, from a file, in a recipe, and back."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
import yaml

from show1_ray.errors import ConfigError
from show1_ray.pipeline import Pipeline
from show1_ray.pipeline.describe import describe_stage

HEAD = """
from datetime import date
from decimal import Decimal
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any, Callable, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, Field, SecretStr, computed_field, field_validator

from show1_ray import Stage, StageExecution, StageSettings

class Mode(StrEnum):
    SOFT = "soft"
    HARD = "hard"

class Inner(BaseModel):
    low: int = 1

class Size(NamedTuple):
    width: int
    height: int
"""


@pytest.fixture
def stage(tmp_path: Path):
    """A pipeline of one stage whose settings are declared so, and said so."""

    def load(declared: str, said: str = "", inputs: str = "") -> Pipeline:
        rows = "row_settings = {'x'}" if inputs else ""
        fields = "\n        ".join(declared.splitlines())
        (tmp_path / "own.py").write_text(
            f"{HEAD}\nclass Own(Stage):\n    gives = {{'video': 'f h w c'}}\n"
            f"    class Settings(StageSettings):\n        {fields}\n    {rows}\n"
            "    def run(self, clips, values):\n        return []\n"
        )
        (tmp_path / "own.yaml").write_text(f"stages: {{own: {{uses: 'own:Own'{said and f', {said}'}}}}}\n{inputs}")
        return Pipeline.load(tmp_path / "own.yaml", code=tmp_path / "own.py")

    return load


def again(pipeline: Pipeline, folder: Path) -> Pipeline:
    """From the file that a dataset keeps of it."""
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(pipeline.document(portable=True), sort_keys=False))
    return Pipeline.load(folder / "pipeline.yaml", code=folder / "own.py")


@pytest.mark.parametrize(
    ("declared", "said", "value"),
    [
        ("x: tuple[int, int] = (3, 4)", "x: [5, 6]", (5, 6)),
        ("x: tuple[float, ...] = ()", "x: [.5, 1]", (0.5, 1.0)),
        ("x: set[str] = {'a'}", "x: [b, c]", {"b", "c"}),
        ("x: frozenset[str] = frozenset(('a', 'b', 'c', 'd'))", "", frozenset("abcd")),
        ("x: Mode = Mode.SOFT", "x: hard", "hard"),
        ("x: Path = Path('a')", "x: b/c", Path("b/c")),
        ("x: date = date(2020, 1, 1)", "x: 2021-02-03", date(2021, 2, 3)),
        ("x: date = date(2020, 1, 1)", "x: '2021-02-03'", date(2021, 2, 3)),
        ("x: dict[int, str] = {1: 'a'}", "x: {'2': b}", {2: "b"}),
        ("x: bytes = b'a'", "x: bc", b"bc"),
        ("x: tuple[int, int] | None = None", "x: [1, 2]", (1, 2)),
        ("x: list[tuple[int, int]] = []", "x: [[1, 2], [3, 4]]", [(1, 2), (3, 4)]),
        ("x: Size = Size(1, 2)", "x: [3, 4]", (3, 4)),
        ("x: int = 3\n@computed_field\n@property\ndef twice(self) -> int:\n    return 2 * self.x", "x: 4", 4),
        ("x: int = Field(3, alias='from')", "from: 4", 4),
        ("y: int = 2\nx: list[int] = Field(default_factory=lambda data: [data['y']])", "y: 3", [3]),
        ("x: Any = None", "x: {a: [1, 2.5, null, true, text]}", {"a": [1, 2.5, None, True, "text"]}),
    ],
)
def test_settings_of_any_type_are_said_in_a_file_kept_with_a_dataset_and_read_again(
    stage, tmp_path, declared, said, value
):
    pipeline = stage(declared, said)
    assert pipeline.stages.own.x == value
    kept = again(pipeline, tmp_path)
    assert kept.stages.own == pipeline.stages.own
    assert kept.recipe_hash() == pipeline.recipe_hash()
    described = describe_stage("own:Own", pipeline.code)["settings"]
    assert {row["key"] for row in described} >= set(pipeline.document()["stages"]["own"]) - {"uses"}


def test_a_set_gives_the_same_recipe_in_every_process(stage, tmp_path):
    stage("x: set[str] = {'a'}", "x: [red, green, blue, grey, black]")
    program = (
        "from show1_ray import Pipeline; print(Pipeline.load('own.yaml', code='own.py').recipe_hash(), "
        "Pipeline.load('own.yaml', code='own.py').document()['stages']['own']['x'])"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(said) == 1


@pytest.mark.parametrize(
    ("declared", "said", "reason"),
    [
        ("x: Callable = print", "", "own: its settings cannot be written into a pipeline file .*builtin_function"),
        ("x: Any = np.zeros(3)", "", "own: its settings cannot be written into a pipeline file .*ndarray"),
        ("x: SecretStr = SecretStr('a')", "x: b", "own: its settings cannot be written .*x would be read as another"),
        ("x: float = float('inf')", "", r"own\.x: Input should be a finite number \(it is inf"),
        ("x: int = 'text'", "", r"own\.x: Input should be a valid integer \(it is 'text'"),
        ("x: tuple[int, int] = (1, 2)", "x: [1]", r"own\.x.*: .*"),
        ("x: tuple[int, int] = (1, 2)", "x: [1, a]", r"own\.x\.1: Input should be a valid integer \(it is 'a'"),
        ("x: Mode = Mode.SOFT", "x: loud", r"own\.x: Input should be 'soft' or 'hard' \(it is 'loud'"),
        ("x: int | str = 1", "x: true", r"own\.x: .*valid integer .*; or: .*valid string \(it is True\)$"),
        ("x: list[Inner] = []", "x: [{low: a}]", r"own\.x\.0\.low: Input should be a valid integer.* \(it is 'a'"),
        ("x: dict[int, str] = {}", "x: {a: b}", r"own\.x\.a: Input should be a valid integer"),
        ("x: int = 1", "x: '5'", r"own\.x: Input should be a valid integer \(it is '5'"),
        (
            "x: int = 1\n@field_validator('x')\n@classmethod\ndef grow(cls, value):\n    return value + 1",
            "x: 3",
            "own: its settings cannot be written .*x would be read as another",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_with_one_line_and_their_key(stage, declared, said, reason):
    with pytest.raises(ConfigError, match=rf"own\.yaml: stages\.{reason}") as caught:
        stage(declared, said)
    assert "\n" not in str(caught.value)


def test_what_a_row_sets_is_of_the_settings_type_and_as_its_validators_leave_it(stage):
    for declared, kind, value, expected in [
        ("x: Mode = Mode.SOFT", "text", "hard", "hard"),
        ("x: Path = Path('a')", "text", "b", Path("b")),
        ("x: float = 1.5", "int", 3, 3.0),
        (
            "x: int = 4\n@field_validator('x')\n@classmethod\ndef even(cls, value):\n    return value // 2 * 2",
            "int",
            7,
            6,
        ),
    ]:
        pipeline = stage(declared, "", f"inputs: {{given: {{{kind}: stages.own.x}}}}")
        in_recipe = pipeline.row({"given": value}).stages.own.x
        assert in_recipe == expected
        assert type(in_recipe) is type(pipeline.stages.own.x)


def test_a_stage_without_its_settings_is_described_by_what_its_class_says(tmp_path):
    (tmp_path / "own.py").write_text(
        f"{HEAD}\nclass Own(Stage):\n    class Settings(StageSettings):\n        out: str = 'film'\n"
        "    @classmethod\n    def signature(cls, settings):\n        return {}, {settings.out: 'f h w c'}\n"
        "    def run(self, clips, values):\n        return []\n"
    )
    from show1_ray.pipeline.code import Code

    assert describe_stage("own:Own", Code.at(tmp_path / "own.py"))["gives"] == {"film": "f h w c"}
