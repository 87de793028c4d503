"""What a class of anybody's says of its stage: taken with care, and refused with the class and the reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from show1_ray.errors import ConfigError, UserError
from show1_ray.pipeline import Pipeline
from show1_ray.pipeline.describe import check
from show1_ray.planning.costs import count_stages, weights_elsewhere
from show1_ray.stage import Shape

HEAD = """
import numpy as np
from show1_ray import Needs, Pipeline, Shape, Stage, StageSettings
from show1_ray.pipeline import Checkpoint

class Own(Stage):
    takes = {}
    gives = {"video": "f h w c"}
    def run(self, clips, values):
        return []
"""
SHAPES = "@classmethod\ndef shapes(cls, settings, context, given):\n    return "
FAULTS = "@classmethod\ndef faults(cls, settings, context, given):\n    return "
OPERATIONS = "@classmethod\ndef operations(cls, settings, context, given):\n    return "
WEIGHTS = "@classmethod\ndef weights(cls, settings, context):\n    return "
CHECKPOINTS = "@classmethod\ndef checkpoints(cls, settings):\n    return "


@pytest.fixture
def own(tmp_path: Path):
    """A pipeline of one stage that has this in its class."""

    def load(body: str, more: str = "") -> Pipeline:
        (tmp_path / "own.py").write_text(HEAD + textwrap.indent(body, "    ") + "\n")
        (tmp_path / "own.yaml").write_text(f"stages: {{own: {{uses: 'own:Own'}}}}\n{more}")
        return Pipeline.load(tmp_path / "own.yaml", code=tmp_path / "own.py")

    return load


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"{FAULTS}None", "Own.faults: must give a list"),
        (f"{FAULTS}'text'", "Own.faults: must give pairs of a key and a reason"),
        (f"{FAULTS}[('key',)]", "Own.faults: must give pairs"),
        (f"{FAULTS}[(1, 2)]", "Own.faults: must give pairs"),
        (f"{FAULTS}(1 / 0 for _ in 'a')", r"Own.faults failed: ZeroDivisionError: .*own\.py, line"),
        (f"{FAULTS}[('by', 'two\\nlines')]", "two lines"),
        (f"{SHAPES}None", "Own.shapes: must give a mapping"),
        (f"{SHAPES}{{'video': Shape('f h w c', ('a', 2, 2, 3))}}", "Own.shapes: sizes of 'video' are whole numbers"),
        (f"{SHAPES}{{'video': Shape('f h w c', 5)}}", "Own.shapes: sizes of 'video' are whole numbers"),
        (f"{SHAPES}{{'video': Shape('f h w c', (2, -2, 2, 3))}}", "Own.shapes: 'video' cannot have -2 for its 'h'"),
        (
            f"{SHAPES}{{'video': Shape('f h w c', (2, 2, 2, 4), 'uint8')}}",
            "frames of 4 channels, but .* are RGB",
        ),
        (f"{SHAPES}{{'video': Shape('f h w c', (0, 2, 2, 3))}}", "Own.shapes: 'video' cannot have 0 for its 'f'"),
        (f"{SHAPES}{{'video': Shape('f h w c', (10**30, 2, 2, 3))}}", "Own.shapes: 'video' cannot have 10000"),
        (f"{SHAPES}{{'video': Shape('f h w c', (2, 2, 2, 3), 'float')}}", "'video' is float64, but frames .* uint8"),
        (
            f"{SHAPES}{{'video': Shape('f h w c', (2, 2, 2, 3), 'flt')}}",
            "type of 'video' is none of NumPy's: 'flt'",
        ),
        (f"{CHECKPOINTS}None", "Own.checkpoints: must give a list"),
        (
            f"{CHECKPOINTS}[Needs(Checkpoint(repo='a/b', revision='main'), 'unet')]",
            "Own.checkpoints: the components of a/b must be a tuple of names",
        ),
        ("row_settings = 'by'", "its row_settings must be a set of names"),
        ("row_settings = {'by'}", "its row_settings has 'by', which is no setting of it"),
        ("row_settings = None", "its row_settings must be a set of names"),
        ("relative_seconds = 'long'", "its relative_seconds must be a number"),
        ("working_set = None", "its working_set must be a number"),
        ("gives = {'video': 'f h value'}", "'value' is no axis, and stands alone"),
    ],
)
def test_what_a_class_says_wrongly_is_refused_with_one_line(own, body, reason):
    with pytest.raises(ConfigError, match=rf"own\.yaml: stages\.own\S*: .*{reason}") as caught:
        own(body)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"{OPERATIONS}1 / 0", r"Own.operations failed: ZeroDivisionError: .*own\.py, line"),
        (f"{OPERATIONS}'many'", "Own.operations: must give a number from 0, or None"),
        (f"{OPERATIONS}float('nan')", "Own.operations: must give a number from 0, or None"),
        (f"{OPERATIONS}-1", "Own.operations: must give a number from 0, or None"),
        (f"{WEIGHTS}1 / 0", r"Own.weights failed: ZeroDivisionError: .*own\.py, line"),
        (f"{WEIGHTS}float('inf')", "Own.weights: must give a number from 0, or None"),
        ("def weights(self, settings, context):\n    return 3", "Own.weights failed: TypeError"),
    ],
)
def test_so_are_costs_by_all_that_ask_for_them(own, body, reason):
    pipeline = own(body)
    for ask in (check, count_stages, *([weights_elsewhere] if "weights" in body.split("\n")[-2] else [])):
        with pytest.raises(UserError, match=rf"own\.yaml: stages\.own: {reason}"):
            ask(pipeline)


def test_a_process_that_has_no_torch_is_told_so_too(own, tmp_path):
    own(f"{WEIGHTS}1 / 0")
    program = (
        "from show1_ray import Pipeline; from show1_ray.planning.costs import weights_elsewhere;"
        "weights_elsewhere(Pipeline.load('own.yaml', code='own.py'))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={**os.environ}, capture_output=True, text=True, check=False
    )
    assert "ConfigError: " in run.stderr.splitlines()[-1]
    assert "stages.own: Own.weights failed: ZeroDivisionError" in run.stderr.splitlines()[-1]


def test_numbers_and_types_of_numpys_are_as_good_as_pythons(own):
    sizes = "tuple(np.array([2, 4, 6, 3]))"
    pipeline = own(
        f"{SHAPES}{{'video': Shape('f h w c', {sizes}, np.uint8)}}\n{OPERATIONS}np.float32(2)\n{WEIGHTS}np.int64(5)"
    )
    assert pipeline.video_shape == Shape("f h w c", (2, 4, 6, 3), "uint8")
    (stage,) = json.loads(json.dumps(check(pipeline)))["stages"]
    assert (stage["operations"], stage["weights_bytes"]) == (2.0, 5)
    assert (stage["gives"]["video"]["type"], stage["gives"]["video"]["bytes"]) == ("uint8", 144)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "uint64", "float64", "complex64", "complex128", "S5"])
def test_bytes_are_known_for_every_type_of_numpy(dtype):
    assert Shape("a b", (3, 4), dtype).bytes == np.zeros((3, 4), dtype).nbytes
    assert Shape("a", (3,), "bfloat16").bytes == 6
    assert Shape("a", (3,), "float8_e4m3fn").bytes == 3
    assert Shape("a", (3,), "nothing").bytes is None


def test_a_clip_does_not_come_from_the_manifest(own):
    for said in ("inputs.source", "inputs.source[0]"):
        with pytest.raises(ConfigError, match=r"own\.yaml: clip: a clip is .*inputs\.source"):
            own("pass", f"inputs: {{source: video}}\nclip: '{said}'")


def test_a_row_cannot_change_what_a_stage_takes_or_gives(own):
    signature = "return {}, {'video': 'f h w c', **({'mask': 'f h w'} if settings.masks else {})}"
    pipeline = own(
        "class Settings(StageSettings):\n    masks: int = 0\nrow_settings = frozenset({'masks'})\n"
        f"@classmethod\ndef signature(cls, settings):\n    {signature}",
        "inputs: {masks: {int: stages.own.masks}}",
    )
    with pytest.raises(ConfigError, match=r"'masks' is 1: stages\.own: it would take or give other values"):
        pipeline.row({"masks": 1})


def test_a_module_that_somebody_imported_before_is_read_anew(own, tmp_path, monkeypatch):
    own("version = 2")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own", raising=False)
    import own as before

    assert before.Own.version == 2
    assert own("version = 3").parts[0].cls.version == 3


def test_advice_names_the_file_and_the_code(own):
    with pytest.raises(UserError, match=r"`show1-ray profile \S+own\.yaml --code \S+own\.py`"):
        count_stages(own("pass", "execution: {own: {device: cpu}}"))
