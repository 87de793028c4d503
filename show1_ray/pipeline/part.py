"""A stage of a pipeline file, and what its class says of itself: asked with care, for anybody may have written it."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from show1_ray.errors import UserError, one_line, shown
from show1_ray.pipeline.checkpoints import Checkpoint
from show1_ray.pipeline.code import Code, Portable
from show1_ray.pipeline.registry import RegistryError, explained, signature_problems
from show1_ray.stage import FLOAT_FRAMES, FRAMES, Axes, Context, Needs, Piece, PromptLimit, Shape, Stage

LARGEST = 2**62
"""Of a size."""


@dataclass(frozen=True, eq=False)
class Part(Portable):
    """A stage of a pipeline file.

    What its class says of itself is asked here; each answer raises RegistryError where the class fails (with the line
    of its code) or says what cannot be.

    Attributes:
        name: its key.
        cls: what it is.
        settings, execution: of the class's `Settings` and `Execution`.
        uses: the class's name as the file has it; None: the key is the name.
        takes: taken name → where it is taken from, as the file has it.
        code: where the class comes from, if it is somebody's own.
        of: the stage of the file that it is a piece of, if it is one.
    """

    name: str
    cls: type[Stage]
    settings: Any
    execution: Any
    uses: str | None = None
    takes: Mapping[str, str] = field(default_factory=dict)
    code: Code | None = None
    of: str | None = None

    @property
    def key(self) -> str:
        """The stage's key in the pipeline file."""
        return self.of or self.name

    def pieces(self) -> list[Part]:
        """The stages of the line that do its work; itself where it is not cut."""
        pieces = self._list("pieces", self.settings, self.execution)
        if not all(isinstance(one, Piece) for one in pieces):
            raise self._wrong("pieces", "must give Pieces")
        return [
            replace(self, name=f"{self.name}_{one.name}", cls=one.cls, execution=one.execution, of=self.name)
            for one in pieces
        ] or [self]

    def arguments(self) -> Mapping[str, bool] | None:
        """What it takes besides, where the file says so: name → whether it cannot do without; None: anything."""
        arguments = self._ask("arguments", self.settings)
        if arguments is not None and not isinstance(arguments, Mapping):
            raise self._wrong("arguments", f"must give a mapping, or None (it gives {shown(arguments)})")
        return arguments

    def notes(self, context: Context) -> list[str]:
        """What people should know of how it runs, a line each."""
        return [" ".join(str(one).split()) for one in self._list("notes", self.settings, context)]

    @cached_property
    def signature(self) -> tuple[Mapping[str, Axes], Mapping[str, Axes]]:
        """What it takes and gives."""
        signature = self._ask("signature", self.settings)
        if not isinstance(signature, tuple) or len(signature) != 2:
            raise self._wrong("signature", "must give two mappings, takes and gives")
        for what, values in zip(("takes", "gives"), signature, strict=True):
            for problem in signature_problems(what, values):
                raise RegistryError(problem)
        return signature

    def checkpoints(self) -> Sequence[Needs]:
        """What it loads."""
        needs = self._list("checkpoints", self.settings)
        if not all(isinstance(one, Needs) and isinstance(one.checkpoint, Checkpoint) for one in needs):
            raise self._wrong("checkpoints", "must give Needs of Checkpoints")
        for one in needs:
            if isinstance(one.components, str) or not all(isinstance(name, str) for name in one.components):
                reason = f"the components of {one.checkpoint.name} must be a tuple of names (it is {one.components!r})"
                raise self._wrong("checkpoints", reason)
        return needs

    def prompt_limits(self) -> Sequence[PromptLimit]:
        """What it takes of prompts."""
        limits = self._list("prompt_limits", self.settings)
        if not all(isinstance(one, PromptLimit) and isinstance(one.checkpoint, Checkpoint) for one in limits):
            raise self._wrong("prompt_limits", "must give PromptLimits of Checkpoints")
        return limits

    def shapes(self, context: Context, taken: Mapping[str, Shape]) -> dict[str, Shape]:
        """Shapes of what it gives, as far as it says them; sizes are Python's integers, types have NumPy's names."""
        said = self._ask("shapes", self.settings, context, taken)
        if not isinstance(said, Mapping):
            raise self._wrong("shapes", "must give a mapping of names to shapes")
        return {name: self._shape(name, shape) for name, shape in said.items()}

    def faults(self, context: Context, taken: Mapping[str, Shape]) -> list[tuple[str, str]]:
        """What it finds wrong: keys of its settings, and reasons of one line."""
        found = []
        for one in self._list("faults", self.settings, context, taken):
            if not isinstance(one, tuple | list) or len(one) != 2 or not all(isinstance(text, str) for text in one):
                raise self._wrong("faults", f"must give pairs of a key and a reason (there is {shown(one)})")
            found.append((one[0], " ".join(one[1].split())))
        return found

    def operations(self, context: Context, taken: Mapping[str, Shape]) -> float | None:
        """Floating-point operations a clip; None: not known. May import torch."""
        return self._count("operations", self._ask("operations", self.settings, context, taken), float)

    def weights(self, context: Context) -> int | None:
        """Bytes of its weights on the device; None: not known. May import torch."""
        return self._count("weights", self._ask("weights", self.settings, context), int)

    def _ask(self, method: str, *given: Any) -> Any:
        try:
            return getattr(self.cls, method)(*given)
        except UserError:
            raise
        except Exception as error:
            raise self._failed(method, error) from error

    def _list(self, method: str, *given: Any) -> list[Any]:
        """What an iterable gives; a generator fails only now."""
        answer = self._ask(method, *given)
        try:
            return list(answer)
        except UserError:
            raise
        except Exception as error:
            if not hasattr(answer, "__iter__"):
                raise self._wrong(method, f"must give a list (it gives {shown(answer)})") from None
            raise self._failed(method, error) from error

    def _shape(self, name: str, said: Any) -> Shape:
        gives = self.signature[1]
        if name not in gives or not isinstance(said, Shape) or said.axes != gives[name]:
            raise self._wrong("shapes", f"{name!r} is no Shape of {gives.get(name)!r}")
        try:
            sizes = tuple(None if size is None else operator.index(size) for size in said.sizes)
        except TypeError:
            raise self._wrong("shapes", f"sizes of {name!r} are whole numbers (it has {shown(said.sizes)})") from None
        if len(sizes) not in (0, len(said.axes.split())):
            raise self._wrong("shapes", f"{name!r} has {len(sizes)} sizes, {said.axes!r}")
        for axis, size in zip(said.axes.split(), sizes, strict=False):
            least = 1 if said.axes in (FRAMES, FLOAT_FRAMES) else 0
            if size is not None and not least <= size < LARGEST:
                raise self._wrong("shapes", f"{name!r} cannot have {size} for its {axis!r}")
        return replace(said, sizes=sizes, dtype=self._type(name, said))

    def _type(self, name: str, said: Shape) -> str | None:
        """NumPy's name of a type that may be given as `np.uint8`, too; torch's name of one that NumPy lacks."""
        dtype = said.dtype
        if dtype is not None and not (isinstance(dtype, str) and dtype.startswith(("bfloat", "float8", "float4"))):
            try:
                dtype = np.dtype(dtype).name
            except TypeError:
                raise self._wrong("shapes", f"the type of {name!r} is none of NumPy's: {shown(said.dtype)}") from None
        if said.axes == FRAMES and dtype not in (None, "uint8"):
            raise self._wrong("shapes", f"{name!r} is {dtype}, but frames ({FRAMES}) are uint8")
        return dtype

    def _count(self, method: str, said: Any, kind: Any) -> Any:
        """A number that is none of NumPy's, or None."""
        if said is None:
            return None
        try:
            number = kind(said)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if isinstance(said, str | bool) or not math.isfinite(number) or number < 0:
            raise self._wrong(method, f"must give a number from 0, or None (it gives {shown(said)})")
        return number

    def _failed(self, method: str, error: Exception) -> RegistryError:
        return RegistryError(f"{self.cls.__name__}.{method} failed: {explained(error, self.code)}")

    def _wrong(self, method: str, reason: str) -> RegistryError:
        return RegistryError(one_line(f"{self.cls.__name__}.{method}: {reason}"))
