"""A stage as a station runs it: values go in and out as arrays, under the line's names."""

from __future__ import annotations

import inspect
import math
import pickle
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from show1_ray.clip import Clip
from show1_ray.errors import UserError, printable, shown
from show1_ray.line.spec import Rejected
from show1_ray.pipeline.arrays import EIGHT_BITS, is_finite, plain_array, to_array, to_tensor, turned
from show1_ray.pipeline.code import Code, Portable
from show1_ray.pipeline.settings import changed
from show1_ray.stage import PLAIN, Axes, Context, NonFiniteError, Reject, Stage, StageError

MOST_TEXT = 65_536
"""Most characters of a plain value."""
MOST_REASON = 2_000
"""Most characters of a rejection's reason."""


class Later:
    """Builds a stage from a pickle: a station that holds other stages imports nothing of what this one needs."""

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        self.pickled = pickle.dumps((make, arguments))

    def __call__(self, device: str) -> Any:
        """What `make` gives for the arguments and the device."""
        make, arguments = pickle.loads(self.pickled)
        return make(*arguments, device)


@dataclass(frozen=True)
class Taken:
    """A value that a stage takes.

    Attributes:
        line: its name on the line.
        axes: as it is given there.
        wanted: as the stage takes it.
        index: of the one frame that is meant; None: all of it.
    """

    line: str
    axes: Axes
    wanted: Axes
    index: int | None = None


@dataclass(frozen=True)
class Given:
    """A value that a stage gives: its names on the line with the axes that it has there, and the axes that it is of."""

    lines: Mapping[str, Axes]
    axes: Axes


@dataclass(frozen=True)
class Blueprint(Portable):
    """What a station needs to know of a stage; picklable, with the code that its class comes from.

    Attributes:
        cls, settings, execution, context: see `Stage`.
        takes, gives: by the stage's own names.
        rows: settings that inputs set for single clips: input → the setting's path.
        code: where the class comes from, if it is somebody's own.
    """

    cls: type[Stage]
    settings: Any
    execution: Any
    context: Context
    takes: Mapping[str, Taken] = field(default_factory=dict)
    gives: Mapping[str, Given] = field(default_factory=dict)
    rows: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    code: Code | None = None

    def build(self, device: str) -> OnArrays:
        """The stage, loaded onto a device."""
        with located(self.cls, self.context.name):
            stage = self.cls(self.settings, self.execution, self.context)
            stage.load(device)
        moves = self.cls.leave is not Stage.leave and self.cls.enter is not Stage.enter
        return (OnArraysAndOff if moves else OnArrays)(self, stage)


class OnArrays:
    """A stage whose values are NumPy arrays on the line, which Ray's object store shares without copying."""

    def __init__(self, blueprint: Blueprint, stage: Stage) -> None:
        self.blueprint, self.stage = blueprint, stage
        self.name = blueprint.context.name
        self.tensors = type(stage).tensors == "torch"

    def __call__(self, clips: Sequence[Clip], arrays: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | Rejected]:
        """Runs a batch; see `Stage.run`.

        Raises:
            StageError: what it gave of a clip is not what it declares.
            NonFiniteError: what it gave of a clip has NaN or infinite values.
        """
        values = [self._values(clip, given) for clip, given in zip(clips, arrays, strict=True)]
        if self.blueprint.rows and clips:
            settings = settings_of(self.blueprint.settings, self.blueprint.rows, clips[0].inputs)
            with located(type(self.stage), self.name):
                self.stage.configure(settings)
        with located(type(self.stage), self.name), without_gradients() if self.tensors else nullcontext():
            outputs = self.stage.run(clips, values)
        if not isinstance(outputs, Sequence) or len(outputs) != len(clips):
            count = len(outputs) if isinstance(outputs, Sequence) else type(outputs).__name__
            raise TypeError(f"stage {self.name}: `run` gave {count} for {len(clips)} clips: give a list with one each")
        return [self._result(clip, output) for clip, output in zip(clips, outputs, strict=True)]

    def _values(self, clip: Clip, given: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self._value(clip, name, taken, given[taken.line]) for name, taken in self.blueprint.takes.items()}

    def _value(self, clip: Clip, name: str, taken: Taken, value: Any) -> Any:
        if taken.wanted == PLAIN:
            return value
        axes = taken.axes
        if taken.index is not None:
            at = axes.split().index("f")
            if not -value.shape[at] <= taken.index < value.shape[at]:
                raise StageError(clip.id, self.name, f"{name}: there is no frame {taken.index} of {value.shape[at]}")
            value = value.take(taken.index, axis=at)
            axes = " ".join(axis for axis in axes.split() if axis != "f")
        value = turned(value, axes, taken.wanted)
        if self.tensors:
            try:
                return to_tensor(value)
            except TypeError as error:
                raise StageError(clip.id, self.name, f"{name} is no tensor for torch: {error}") from None
        value = plain_array(value).view()
        value.flags.writeable = False
        return value

    def _result(self, clip: Clip, output: Any) -> dict[str, Any] | Rejected:
        if isinstance(output, Reject):
            return self._rejected(clip, output)
        if not isinstance(output, Mapping):
            wanted = "`run` gives a mapping of names to values for each clip, or a Reject"
            raise StageError(clip.id, self.name, f"{type(output).__name__} given; {wanted}")
        result: dict[str, Any] = {}
        for name, given in self.blueprint.gives.items():
            if name not in output:
                raise StageError(clip.id, self.name, f"{name} ({given.axes}) was not given")
            if given.axes == PLAIN:
                result |= dict.fromkeys(given.lines, self._plain(clip, name, output[name]))
                continue
            array = self._array(clip, name, given.axes, output[name])
            for line, axes in given.lines.items():
                result[line] = np.ascontiguousarray(turned(array, given.axes, axes))
        return result

    def _rejected(self, clip: Clip, output: Reject) -> Rejected:
        """What was rejected, checked."""
        if not isinstance(output.reason, str) or not output.reason.strip():
            reason = f"a Reject has {shown(output.reason)} for its reason; give a line of text"
            raise StageError(clip.id, self.name, reason)
        if not isinstance(output.values, Mapping):
            raise StageError(clip.id, self.name, f"a Reject has {shown(output.values)} for its values; give a mapping")
        plain = {name: given.lines for name, given in self.blueprint.gives.items() if given.axes == PLAIN}
        for name in output.values:
            if name not in plain:
                known = ", ".join(map(repr, plain)) or "nothing"
                reason = f"a Reject has the value {shown(name)}, but the plain values that it gives are {known}"
                raise StageError(clip.id, self.name, reason)
        values = {name: self._plain(clip, name, value) for name, value in output.values.items()}
        why = printable(" ".join(output.reason.split()))
        return Rejected(
            why if len(why) <= MOST_REASON else f"{why[:MOST_REASON]}…",
            {line: value for name, value in values.items() for line in plain[name]},
        )

    def _array(self, clip: Clip, name: str, axes: Axes, value: Any) -> np.ndarray:
        """What was given, checked."""
        array = to_array(value) if _is_tensor(value) else np.asarray(value)
        if array.ndim != len(axes.split()):
            raise StageError(clip.id, self.name, f"{name} has shape {array.shape}; wanted {axes}")
        if array.dtype == object:
            raise StageError(clip.id, self.name, f"{name} is no array of numbers")
        if axes in EIGHT_BITS and array.dtype != np.uint8:
            raise StageError(clip.id, self.name, f"{name} is {array.dtype}; frames ({axes}) are uint8")
        if not is_finite(array):  # 8 bits, further on, would hide it
            raise NonFiniteError(clip.id, self.name, f"{name} has NaN or infinite values")
        return array

    def _plain(self, clip: Clip, name: str, value: Any) -> Any:
        """Text, a number, true or false, or None, as Python's own; checked."""
        if isinstance(value, np.generic) or (hasattr(value, "item") and getattr(value, "ndim", None) == 0):
            value = value.item()
        reason = None
        if isinstance(value, str):
            value = str.__str__(value) if not isinstance(value, Enum) else str(value.value)
            if len(value) > MOST_TEXT:
                reason = f"{name} has {len(value):,} characters; a plain value has {MOST_TEXT:,} at most"
            elif not value.isascii() and any("\ud800" <= one <= "\udfff" for one in value):
                reason = f"{name} is {shown(value)}, which is not valid Unicode"
        elif isinstance(value, int) and not isinstance(value, bool):
            value = int(value)
            if not -(2**63) <= value < 2**63:
                reason = f"{name} is {shown(value)}, which 64 bits do not hold"
        elif isinstance(value, float):
            value = float(value)
            if not math.isfinite(value):
                raise NonFiniteError(clip.id, self.name, f"{name} is {value}")
        elif value is not None and not isinstance(value, bool):
            reason = f"{name} is a {type(value).__name__}; a plain value is text, a number, true or false"
        if reason:
            raise StageError(clip.id, self.name, reason)
        return value


class OnArraysAndOff(OnArrays):
    """One that leaves its device for host memory, and comes back."""

    def to(self, device: str) -> None:
        """See `Stage.leave` and `Stage.enter`; what the device does not need any more, others may have."""
        with located(type(self.stage), self.name):
            if device == "cpu":
                self.stage.leave()
            else:
                self.stage.enter(device)
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()


def settings_of(settings: Any, rows: Mapping[str, tuple[str, ...]], inputs: Mapping[str, Any]) -> Any:
    """A stage's settings as a clip's inputs set them; what these leave out stays as it is."""
    for name, path in rows.items():
        if name in inputs:
            settings = changed(settings, path, inputs[name])
    return settings


@contextmanager
def without_gradients() -> Iterator[None]:
    """What stages do, whoever wrote them; a stage that needs gradients asks for them with `torch.enable_grad`."""
    import torch

    with torch.no_grad():
        yield


@contextmanager
def located(cls: type[Stage], name: str) -> Iterator[None]:
    """Errors of a stage say, in their last line, the stage, file and line of its author's code, and what they are."""
    try:
        yield
    except (UserError, StageError):
        raise  # they say it already
    except Exception as error:
        place = _place(cls, error)
        text = " ".join(str(error).split())
        error.add_note(f"stage {name}: {place}: {type(error).__name__}{': ' if text else ''}{text}")
        raise


def _place(cls: type[Stage], error: BaseException) -> str:
    """File and line of the author's code where an error came about: the deepest frame that is of no library."""
    frames = traceback.extract_tb(error.__traceback__)
    libraries = {sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    ours = str(Path(__file__).parent.parent)
    own = [
        frame
        for frame in frames
        if not any(frame.filename.startswith((f"{place}/", "<")) for place in (*libraries, ours))
    ]
    try:
        home = inspect.getfile(cls)
    except (TypeError, OSError):
        home = ""
    in_class = [frame for frame in frames if frame.filename == home]
    frame = (own or in_class or frames)[-1]
    return f"{frame.filename}, line {frame.lineno}, in {frame.name}"


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)
