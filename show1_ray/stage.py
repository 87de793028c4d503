"""What every stage declares. Knows no torch: the driver and the planner read it, stations run it.

The smallest stage:

    class Brighten(Stage):
        \"\"\"Adds `by` to every pixel.\"\"\"

        class Settings(StageSettings):
            by: int = 10

        takes = {"video": "f h w c"}
        gives = {"video": "f h w c"}

        def run(self, clips, values):
            brighter = [v["video"].astype("int16") + self.settings.by for v in values]
            return [{"video": frames.clip(0, 255).astype("uint8")} for frames in brighter]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from show1_ray.clip import Clip

FRAMES = "f h w c"
"""Axes of 8-bit frames: what people look at, and what lands."""
FLOAT_FRAMES = "c f h w"
"""Axes of frames as floats between -1 and 1."""
PLAIN = "value"
"""In place of axes: a small plain value (text, a number), which becomes a metadata column `<stage>_<name>`."""

Axes = str
"""Names of a tensor's axes, separated by spaces; `PLAIN` for a plain value."""

Count = Annotated[int, Field(ge=1, le=10_000)]


class StageSettings(BaseModel):
    """A stage's part of the recipe. Unknown keys and other types are refused: true is no number, "5" neither.

    Fields are of types that a pipeline file can say: numbers, text, lists, mappings, other models; also tuples, sets,
    enumerations, paths and dates, which are written as lists and text.

    Attributes:
        later: fields that came when recipes had been written already: left out of the recipe where they have their
            defaults, so that those stay what they were.
        unrecorded: fields that are no part of the recipe, because clips do not depend on them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True)

    later: ClassVar[frozenset[str]] = frozenset()
    unrecorded: ClassVar[frozenset[str]] = frozenset()


class StageExecution(BaseModel):
    """How a stage is computed: affects speed and memory, not the clip."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True)

    batch_size: Count = Field(1, description="clips per batch")
    memory: float = Field(
        0, ge=0, le=10_000, description="GiB on the device: weights and the working set of a batch; 0: not known"
    )
    device: Literal["auto", "cpu"] = Field("auto", description="cpu: use CPU cores even where there are GPUs")
    cpus: int = Field(1, ge=0, description="with device: cpu, cores per station; 0: run as tasks that keep no state")


@dataclass(frozen=True)
class Needs:
    """Components of one checkpoint that a stage loads.

    Attributes:
        checkpoint: a `pipeline.checkpoints.Checkpoint`.
        components: folders of it, such as "unet" and "scheduler".
        key: of the checkpoint in the stage's settings, for messages.
        variants: of the weights' files, the first that there is: ("fp16", ""); None: half precision first or last, as
            the pipeline's number format has it.
    """

    checkpoint: Any
    components: tuple[str, ...]
    key: str = "checkpoint"
    variants: tuple[str, ...] | None = None


@dataclass(frozen=True)
class PromptLimit:
    """How much of a clip's prompt a text encoder takes: what is longer is cut.

    Attributes:
        checkpoint: a `pipeline.checkpoints.Checkpoint`.
        tokens: that it takes, with the special ones that its tokenizer adds.
        tokenizer: the checkpoint's folder of it.
        prepare: what the stage makes of a prompt first.
    """

    checkpoint: Any
    tokens: int
    tokenizer: str = "tokenizer"
    prepare: Callable[[str], str] = str


@dataclass(frozen=True)
class Shape:
    """What is known about a value before anything is computed: axes, their sizes (None: not known) and NumPy type.

    A plain value has no sizes. `dtype` is None if it is not known; "bfloat16" counts as a type.
    """

    axes: Axes
    sizes: tuple[int | None, ...] = ()
    dtype: str | None = None

    def size(self, axis: str) -> int | None:
        """The size of an axis. Raises ValueError if there is no such axis."""
        return self.sizes[self.axes.split().index(axis)]

    @property
    def bytes(self) -> int | None:
        """Bytes of the value; None where a size or the type is not known."""
        total = _width(self.dtype)
        for size in self.sizes:
            if total is None or size is None:
                return None
            total *= size
        return total


def _width(dtype: str | None) -> int | None:
    """Bytes of a number of a type; None where nobody knows it."""
    if dtype is None or dtype.startswith(("bfloat", "float8", "float4")):
        return {None: None, "bfloat16": 2}.get(dtype, 1)
    try:
        return np.dtype(dtype).itemsize or None
    except TypeError:
        return None


@dataclass(frozen=True)
class Piece:
    """One of the stages that a stage of the pipeline file is cut into; all have its settings.

    Attributes:
        name: what it does, such as "denoise": on the line it is called `<stage>_<name>`.
        cls: a `Stage`.
        execution: of the class's `Execution`.
    """

    name: str
    cls: Any
    execution: Any


@dataclass(frozen=True)
class Context:
    """What a stage knows about its pipeline.

    Attributes:
        name: the stage's key in the pipeline file.
        dtype: of the weights and the computation: "float16", "bfloat16" or "float32".
        fps: frames per second of the clips.
        execution: the stage's execution settings.
    """

    name: str
    dtype: str = "float32"
    fps: float = 8.0
    execution: Any = None


@dataclass(frozen=True)
class Reject:
    """Returned by `run` in place of a clip's values: the clip does not go on.

    Attributes:
        reason: one line for people.
        values: declared plain values, such as the score that was too low.
    """

    reason: str
    values: Mapping[str, Any] = field(default_factory=dict)


class StageError(Exception):
    """A stage got or gave something invalid. `clip_id` is the clip at fault, `stage` the stage's name.

    If `is_permanent`, another attempt would end the same way, so the clip is given up at once.
    """

    is_permanent: ClassVar[bool] = False

    def __init__(self, clip_id: str, stage: str, reason: str) -> None:
        super().__init__(clip_id, stage, reason)
        self.clip_id, self.stage, self.reason = clip_id, stage, reason

    def __str__(self) -> str:
        return f"clip {self.clip_id}: stage {self.stage}: {self.reason}"


class NonFiniteError(StageError):
    """A stage's output contains NaN or infinite values."""


Fault = tuple[str, str]
"""A key of a stage's settings ("" for the stage itself, "execution.…" for its execution settings) and the reason why
its value cannot be."""


class Stage(ABC):
    """One step of a pipeline: named values of a batch of clips in, named values for each clip out.

    A clip's result must depend only on the clip, its values and the settings, not on the rest of its batch. Randomness
    comes from generators seeded with `Clip.generator_seed`.

    A class describes itself before anything is loaded: the driver reads its attributes and calls its class methods, so
    a module that imports torch at the top makes the driver import it too. An instance is created on a station (or for
    a task), loads there, and runs batches.

    Attributes:
        Settings: a pydantic model: its part of the recipe.
        Execution: a pydantic model: how it is computed.
        version: to be raised when its output changes; part of the recipe.
        takes: the values that it needs for each clip: name → axes. 8-bit and float frames are converted as needed.
        gives: the values that it gives for each clip: name → axes.
        tensors: how arrays arrive: "numpy" (read-only), or "torch" (its own CPU tensors, which it may overwrite).
        relative_seconds: its cost relative to the other stages of its pack, until the line has measured it.
        working_set: memory for a batch as a multiple of the weights, until it has been measured.
        row_settings: settings that an input of the pipeline may set for a single clip, because `run` reads them.
        settings, execution, context: of an instance.
        device: of a loaded instance: "cpu" or "cuda:0".
    """

    Settings: ClassVar[type[StageSettings]] = StageSettings
    Execution: ClassVar[type[StageExecution]] = StageExecution
    version: ClassVar[int] = 1
    takes: ClassVar[Mapping[str, Axes]] = {}
    gives: ClassVar[Mapping[str, Axes]] = {}
    tensors: ClassVar[Literal["numpy", "torch"]] = "numpy"
    relative_seconds: ClassVar[float] = 1.0
    working_set: ClassVar[float] = 3.0
    row_settings: ClassVar[frozenset[str]] = frozenset()

    device: str = "cpu"

    def __init__(self, settings: Any = None, execution: Any = None, context: Context | None = None) -> None:
        self.settings: Any = self.Settings() if settings is None else settings
        self.execution: Any = self.Execution() if execution is None else execution
        self.context = context or Context(type(self).__name__.lower())

    # Its description, before anything is loaded.

    @classmethod
    def signature(cls, settings: Any) -> tuple[Mapping[str, Axes], Mapping[str, Axes]]:
        """What it takes and gives, if that depends on the settings."""
        return cls.takes, cls.gives

    @classmethod
    def arguments(cls, settings: Any) -> Mapping[str, bool] | None:
        """Further values that it can take, with any axes, if the pipeline file's `takes` or an input names them:
        name → whether it is required. A required one is also taken from any earlier stage that gives it. None: any
        name, because they are not known yet. Float frames arrive as 8-bit frames.
        """
        return {}

    @classmethod
    def pieces(cls, settings: Any, execution: Any) -> Sequence[Piece]:
        """The stages that do its work on the line, one after the other; none: it does it itself, in one.

        What the last one gives is known by the name of the stage that was cut. Each takes what the pipeline file lets
        that stage take, and what the pieces before give.
        """
        return ()

    @classmethod
    def notes(cls, settings: Any, context: Context) -> Iterable[str]:
        """What people should know of how it runs, a sentence each, such as that it is not cut although it should."""
        return ()

    @classmethod  # noqa: B027 - most need nothing
    def look(cls, settings: Any) -> None:
        """Fetches the small files that its description depends on, if they are not here yet.

        Called when a pipeline is about to be used; until then, the class tells what it knows without them.
        """

    @classmethod
    def checkpoints(cls, settings: Any) -> Sequence[Needs]:
        """The checkpoints that it loads."""
        return ()

    @classmethod
    def prompt_limits(cls, settings: Any) -> Sequence[PromptLimit]:
        """What its text encoders take of prompts; the driver counts tokens without torch, and says what is cut. Of
        several encoders in one stage give those that are meant to read the whole prompt.
        """
        return ()

    @classmethod
    def shapes(cls, settings: Any, context: Context, given: Mapping[str, Shape]) -> Mapping[str, Shape]:
        """Shapes of what it gives, derived from the shapes of what it takes; those of other values are not known.

        By default, frames that it gives under the name of frames that it takes have the same shape.
        """
        takes, gives = cls.signature(settings)
        alike = {name: given[name] for name in gives if name in given and takes.get(name) == gives[name]}
        return {name: Shape(axes) if name not in alike else alike[name] for name, axes in gives.items()}

    @classmethod
    def faults(cls, settings: Any, context: Context, given: Mapping[str, Shape]) -> Iterable[Fault]:
        """Settings that cannot work, as far as is known without loading anything, such as sizes that do not fit."""
        return ()

    @classmethod
    def operations(cls, settings: Any, context: Context, given: Mapping[str, Shape]) -> float | None:
        """Floating-point operations per clip; None: not known. May import torch: only `plan` and `check` call it."""
        return None

    @classmethod
    def weights(cls, settings: Any, context: Context) -> int | None:
        """Bytes of the weights on the device; None: not known. May import torch."""
        return None if cls.checkpoints(settings) else 0

    # What a station calls.

    def load(self, device: str) -> None:
        """Loads the weights onto a device: "cpu" or "cuda:0"."""
        self.device = device

    def loaded_bytes(self) -> int | None:
        """Bytes of the loaded weights; None: not known."""
        return None

    def leave(self) -> None:
        """Frees the device and keeps the weights in host memory, from where `enter` restores them.

        A stage that does not implement both methods is loaded again when it is needed.
        """
        raise NotImplementedError

    def enter(self, device: str) -> None:
        """Restores the weights that `leave` moved to host memory."""
        raise NotImplementedError

    def configure(self, settings: Any) -> None:
        """Sets the settings of the next batches; only `row_settings` differ from the loaded ones."""
        self.settings = settings

    @abstractmethod
    def run(self, clips: Sequence[Clip], values: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any] | Reject]:
        """Computes a batch.

        Args:
            clips: the batch.
            values: for each clip, the values that `takes` names.

        Returns:
            For each clip, the values that `gives` names; or a `Reject`.
        """


__all__ = [
    "FLOAT_FRAMES",
    "FRAMES",
    "PLAIN",
    "Axes",
    "Context",
    "Count",
    "Fault",
    "Needs",
    "NonFiniteError",
    "Piece",
    "PromptLimit",
    "Reject",
    "Shape",
    "Stage",
    "StageError",
    "StageExecution",
    "StageSettings",
]
