"""Stages of anybody's between the line's arrays: types, frames, checks, and errors that say where."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from enum import IntEnum, StrEnum
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from pydantic import Field

from show1_ray.clip import Clip
from show1_ray.line.spec import Rejected
from show1_ray.pipeline.adapter import Blueprint, Given, OnArrays, Taken
from show1_ray.pipeline.arrays import is_finite, plain_array, to_array, to_tensor, turned
from show1_ray.stage import (
    FLOAT_FRAMES,
    FRAMES,
    PLAIN,
    Context,
    NonFiniteError,
    Reject,
    Stage,
    StageError,
    StageExecution,
    StageSettings,
)

CLIPS = [Clip("a", "a red circle"), Clip("b", "a blue square")]


class Same(Stage):
    """Gives what it takes, and keeps it."""

    takes: ClassVar = {"x": "a"}
    gives: ClassVar = {"x": "a"}
    got: Any = None

    def run(self, clips, values):
        self.got = values
        return [{"x": value["x"]} for value in values]


class SameTensor(Same):
    """The same with torch's tensors."""

    tensors = "torch"


def blueprint(cls: type[Stage], settings: Any = None, takes: Mapping[str, Taken] | None = None) -> Blueprint:
    """A stage by itself: values have its own names on the line."""
    wanted, gives = cls.signature(settings)
    return Blueprint(
        cls,
        settings or cls.Settings(),
        StageExecution(),
        Context("mine"),
        takes or {name: Taken(name, axes, axes) for name, axes in wanted.items()},
        {name: Given({name: axes}, axes) for name, axes in gives.items()},
    )


def on_arrays(cls: type[Stage], **changes: Any) -> OnArrays:
    return blueprint(cls, **changes).build("cpu")


def one(stage: OnArrays, **values: Any) -> Any:
    """What a stage gives for one clip."""
    return stage(CLIPS[:1], [values])[0]


NUMPY = [
    np.array([1, -2, 3], np.int16),
    np.array([1, 65535], np.uint16),
    np.array([True, False]),
    np.array([1.5, 2], np.float16),
    np.array([1 + 2j], np.complex64),
    np.array([2**63], np.uint64),
]
NUMPY_ALONE = [
    np.array([1, 2], ">i4"),
    np.array(["2020-01-01"], "datetime64[D]"),
    np.array(["red", "blue"]),
    np.array([(1, 2.5)], [("label", "i4"), ("score", "f4")]),
    np.array([1.5], np.longdouble),
    np.array([(7,)], [("floats", "<u4")]),
    np.array([(7,)], [("complexity", "<u8")]),
    np.array([(7,)], [("bits", "u1")]),
    np.zeros((0, 3), np.int16).ravel(),
    np.arange(12, dtype=np.int16)[::-2],
]


@pytest.mark.parametrize("array", [*NUMPY, *NUMPY_ALONE], ids=lambda array: str(array.dtype))
def test_any_type_of_numpy_comes_through_a_stage_as_it_is(array):
    stage = on_arrays(Same)
    given = one(stage, x=array)["x"]
    assert given.dtype == array.dtype == stage.stage.got[0]["x"].dtype
    assert np.array_equal(given, array)


@pytest.mark.parametrize("array", NUMPY, ids=lambda array: str(array.dtype))
def test_what_torch_has_too_arrives_there_with_its_type_and_comes_back_with_it(array):
    stage = on_arrays(SameTensor)
    given = one(stage, x=array)["x"]
    assert str(stage.stage.got[0]["x"].dtype) == f"torch.{array.dtype}"
    assert given.dtype == array.dtype
    assert np.array_equal(given, array)


def test_a_type_that_torch_lacks_is_refused_by_name():
    with pytest.raises(StageError, match=r"clip a: stage mine: x is no tensor for torch: .*datetime64"):
        one(on_arrays(SameTensor), x=np.array(["2020-01-01"], "datetime64[D]"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_types_that_only_torch_has_travel_and_numpy_stages_get_them_in_single_precision(dtype):
    tensor = torch.tensor([[1.5, -2.0], [0.25, 0]]).to(getattr(torch, dtype))
    travelling = to_array(tensor.T)
    assert travelling.dtype == np.dtype([(dtype, f"<u{tensor.element_size()}")])
    assert torch.equal(to_tensor(travelling).float(), tensor.T.float())
    assert plain_array(travelling).dtype == np.float32
    assert plain_array(travelling).tolist() == tensor.T.float().tolist()


def test_int16_is_no_bfloat16():
    tensor = to_tensor(np.array([16256], np.int16))
    assert (tensor.dtype, tensor.item()) == (torch.int16, 16256)


def test_what_numpy_stages_are_given_cannot_be_written_and_tensors_are_their_own():
    shared = np.zeros(3, np.float32)
    stage, tensors = on_arrays(Same), on_arrays(SameTensor)
    one(stage, x=shared)
    one(tensors, x=shared)
    with pytest.raises(ValueError, match="read-only"):
        stage.stage.got[0]["x"][0] = 1
    tensors.stage.got[0]["x"][0] = 1
    assert shared.tolist() == [0, 0, 0]


class Frames(Stage):
    """Takes 8-bit frames, gives floats."""

    takes: ClassVar = {"video": FRAMES}
    gives: ClassVar = {"video": FLOAT_FRAMES}

    def run(self, clips, values):
        return [{"video": np.moveaxis(value["video"] / 127.5 - 1, -1, 0)} for value in values]


def test_frames_are_turned_into_the_form_that_a_stage_takes():
    floats = np.linspace(-1.2, 1.2, 3 * 2 * 4 * 5, dtype=np.float32).reshape(3, 2, 4, 5)
    stage = on_arrays(Frames, takes={"video": Taken("frames", FLOAT_FRAMES, FRAMES)})
    given = one(stage, frames=floats)["video"]
    assert given.shape == floats.shape
    assert np.abs(given - floats.clip(-1, 1)).max() <= 2 / 255
    eight = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    back = turned(turned(eight, FRAMES, FLOAT_FRAMES), FLOAT_FRAMES, FRAMES)
    assert np.abs(back.astype(int) - eight).max() <= 1


def test_bfloat16_frames_become_the_same_8_bits_as_in_single_precision():
    frames = torch.linspace(-1.2, 1.2, 3 * 2 * 4 * 5).reshape(3, 2, 4, 5).bfloat16()
    ours = turned(to_array(frames), FLOAT_FRAMES, FRAMES)
    assert np.array_equal(ours, turned(frames.float().numpy(), FLOAT_FRAMES, FRAMES))


class FirstFrame(Stage):
    """Looks at a single frame."""

    takes: ClassVar = {"frame": "h w c"}
    gives: ClassVar = {"brightness": PLAIN}

    def run(self, clips, values):
        return [{"brightness": value["frame"].mean()} for value in values]


@pytest.mark.parametrize("axes", [FRAMES, FLOAT_FRAMES])
def test_one_frame_of_a_value_can_be_taken(axes):
    frames = np.stack([np.full((4, 6, 3), level, np.uint8) for level in (10, 20, 250)])
    on_the_line = turned(frames, FRAMES, axes)
    for index, level in ((0, 10), (-1, 250)):
        stage = on_arrays(FirstFrame, takes={"frame": Taken("video", axes, "h w c", index)})
        assert one(stage, video=on_the_line)["brightness"] == pytest.approx(level, abs=1)
    with pytest.raises(StageError, match="there is no frame 3 of 3"):
        one(on_arrays(FirstFrame, takes={"frame": Taken("video", axes, "h w c", 3)}), video=on_the_line)


class Colour(StrEnum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Says(Stage):
    """Gives what its settings say, for the second clip of a batch."""

    class Settings(StageSettings):
        what: str

    gives: ClassVar = {"video": FRAMES, "note": PLAIN}

    def run(self, clips, values):
        video = np.zeros((2, 4, 6, 3), np.uint8)
        good = {"video": video, "note": "good"}
        return [
            good,
            {
                "float frames": good | {"video": video.astype(float)},
                "a list of frames": good | {"video": list(video)},
                "one frame": good | {"video": video[0]},
                "nothing": {},
                "a number": 3,
                "an array for a note": good | {"note": np.zeros(3)},
                "NumPy's number": good | {"note": np.float32(0.5)},
                "a tensor's number": good | {"note": torch.tensor(7)},
                "not a number": good | {"note": float("nan")},
                "words": good | {"video": [["a"]]},
                "rejected": Reject("too dark", {"note": np.float64(0.25)}),
                "rejected by words alone": Reject("too dark"),
                "rejected in two lines": Reject("too\ndark \x1b[31m"),
                "rejected at length": Reject("x" * 100_000),
                "rejected without a reason": Reject(None),
                "rejected with nothing": Reject(" "),
                "rejected with another value": Reject("too dark", {"brightness": 3}),
                "rejected with a list": Reject("too dark", ["note"]),
                "rejected with a list for a value": Reject("too dark", {"note": [1]}),
                "the class": Reject,
                "a huge number": good | {"note": 2**63},
                "a long text": good | {"note": "x" * 100_000},
                "half a character": good | {"note": "a\ud800"},
                "an enumeration": good | {"note": Colour.RED},
                "a number with a name": good | {"note": Level.HIGH},
                "NumPy's text": good | {"note": np.str_("red")},
            }[self.settings.what],
        ]


def said(what: str) -> Any:
    return on_arrays(Says, settings=Says.Settings(what=what))(CLIPS, [{}, {}])[1]


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("float frames", r"video is float64; frames \(f h w c\) are uint8"),
        ("one frame", r"video has shape \(4, 6, 3\); wanted f h w c"),
        ("words", r"video has shape \(1, 1\); wanted f h w c"),
        ("nothing", r"video \(f h w c\) was not given"),
        ("a number", "int given; `run` gives a mapping of names to values for each clip, or a Reject"),
        ("an array for a note", "note is a ndarray; a plain value is text, a number, true or false"),
        ("not a number", "note is nan"),
        ("a huge number", "note is 9223372036854775808, which 64 bits do not hold"),
        ("a long text", "note has 100,000 characters; a plain value has 65,536 at most"),
        ("half a character", r"note is 'a\\ud800', which is not valid Unicode"),
        ("rejected without a reason", "a Reject has None for its reason; give a line of text"),
        ("rejected with nothing", "a Reject has ' ' for its reason; give a line of text"),
        (
            "rejected with another value",
            "a Reject has the value 'brightness', but the plain values that it gives are 'note'",
        ),
        ("rejected with a list", r"a Reject has \['note'\] for its values; give a mapping"),
        ("rejected with a list for a value", "note is a list; a plain value is text, a number, true or false"),
        ("the class", "type given; `run` gives a mapping of names to values for each clip, or a Reject"),
    ],
)
def test_what_was_not_declared_is_refused_with_clip_stage_and_value(what, reason):
    with pytest.raises(StageError, match=f"^clip b: stage mine: {reason}$") as error:
        said(what)
    assert error.value.clip_id == "b"


def test_numbers_become_pythons_own_and_lists_arrays():
    assert said("NumPy's number")["note"] == 0.5
    assert type(said("NumPy's number")["note"]) is float
    assert said("a tensor's number")["note"] == 7
    assert said("a list of frames")["video"].shape == (2, 4, 6, 3)


def test_a_rejection_reaches_the_line_with_its_plain_values():
    assert said("rejected") == Rejected("too dark", {"note": 0.25})
    assert said("rejected by words alone") == Rejected("too dark", {})
    assert said("rejected in two lines") == Rejected("too dark \\x1b[31m", {})
    assert said("rejected at length").reason == "x" * 2000 + "…"


@pytest.mark.parametrize(
    ("what", "value"), [("an enumeration", "red"), ("a number with a name", 3), ("NumPy's text", "red")]
)
def test_a_plain_value_needs_no_class_of_its_authors_where_it_arrives(what, value):
    note = said(what)["note"]
    assert note == value
    assert type(note) is type(value)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_values_that_are_not_finite_name_clip_and_stage(bad, dtype):
    array = to_array(torch.tensor([0.0, bad]).to(getattr(torch, dtype)))
    assert not is_finite(array)
    assert is_finite(to_array(torch.tensor([0.0, -3e4]).to(getattr(torch, dtype))))
    with pytest.raises(NonFiniteError, match="clip a: stage mine: x has NaN or infinite values"):
        one(on_arrays(SameTensor), x=array)


BUGGY = """
from show1_ray.stage import Stage

class Buggy(Stage):
    gives = {"video": "f h w c"}

    def run(self, clips, values):
        return [{"video": half(len(values))} for _ in clips]


def half(count):
    return 1 / (count - 1)


class Unloadable(Buggy):
    def load(self, device):
        raise OSError("no\\nsuch weights")
"""


@pytest.fixture
def buggy(tmp_path, monkeypatch):
    (tmp_path / "users_own.py").write_text(BUGGY)
    monkeypatch.syspath_prepend(tmp_path)
    import users_own

    yield users_own
    import sys

    del sys.modules["users_own"]


def test_a_bug_says_the_stage_and_the_file_and_line_of_its_authors_code(buggy):
    import traceback

    with pytest.raises(ZeroDivisionError) as error:
        on_arrays(buggy.Buggy)(CLIPS[:1], [{}])
    text = "".join(traceback.format_exception(error.value))
    place = f"{buggy.__file__}, line 12, in half"
    assert text.strip().rpartition("\n")[2] == f"stage mine: {place}: ZeroDivisionError: division by zero"
    assert "return 1 / (count - 1)" in text


def test_a_stage_that_cannot_be_loaded_says_so_too(buggy):
    with pytest.raises(OSError, match="such weights") as error:
        on_arrays(buggy.Unloadable)
    [note] = error.value.__notes__
    assert note == f"stage mine: {buggy.__file__}, line 17, in load: OSError: no such weights"


def test_a_number_of_results_that_is_not_the_batchs_is_refused():
    class Few(Same):
        def run(self, clips, values):
            return []

    with pytest.raises(TypeError, match="stage mine: `run` gave 0 for 2 clips"):
        on_arrays(Few)(CLIPS, [{"x": np.zeros(1)}] * 2)


class Rows(Stage):
    """Has a setting that rows may set, deep in its settings."""

    class Settings(StageSettings):
        call: dict[str, int] = Field(default_factory=lambda: {"frames": 3, "steps": 5})

    row_settings = frozenset({"call"})
    gives: ClassVar = {"said": PLAIN}

    def run(self, clips, values):
        return [{"said": f"{self.settings.call}"} for _ in clips]


def test_a_rows_inputs_set_settings_and_the_next_batch_has_its_own():
    base = blueprint(Rows)
    stage = Blueprint(**{**vars(base), "rows": {"frames": ("call", "frames")}}).build("cpu")
    for frames in (9, 4):
        [given] = stage([Clip("a", "a", inputs={"frames": frames})], [{}])
        assert given["said"] == str({"frames": frames, "steps": 5})


def test_a_stage_goes_to_host_memory_only_if_it_can():
    class Moving(Same):
        places: ClassVar[list] = []

        def leave(self):
            self.places.append("host")

        def enter(self, device):
            self.places.append(device)

    assert not hasattr(on_arrays(Same), "to")
    stage: Any = on_arrays(Moving)
    stage.to("cpu")
    stage.to("cuda:0")
    assert Moving.places == ["host", "cuda:0"]


def test_a_blueprint_is_small_and_can_be_sent():
    assert len(pickle.dumps(blueprint(Same))) < 2000
