"""The pipeline file: what a clip is (its recipe) and how it is computed (its execution settings)."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from show1_ray.errors import ConfigError
from show1_ray.pipeline import columns
from show1_ray.pipeline import recipe as recipes
from show1_ray.pipeline.checkpoints import Checkpoint, folder_of, resolve
from show1_ray.pipeline.code import Code
from show1_ray.pipeline.file import PIPELINE_FOLDERS, Tree, as_typed, find, parse_override, read
from show1_ray.pipeline.head import Dtype, Head, Stages
from show1_ray.pipeline.inputs import Input, InputColumns, read_inputs
from show1_ray.pipeline.part import Part
from show1_ray.pipeline.parts import Reader
from show1_ray.pipeline.registry import RegistryError
from show1_ray.pipeline.rows import RowSettings, batch_keys, faults_of_settings
from show1_ray.pipeline.settings import plain
from show1_ray.pipeline.wiring import Fault, Ref, Wired, Wiring, wire
from show1_ray.stage import FRAMES, Context, Needs, PromptLimit, Shape

__all__ = ["Head", "Pipeline", "Stages"]

MOST_BYTES = 16 * 2**30
"""Of a clip's frames as float32: 7,700 frames of 576x320."""


@dataclass(frozen=True, eq=False)
class Pipeline:
    """A pipeline file, checked. `load` reads one.

    Attributes:
        name: what it is called in metadata.
        parts: the stages, in their order.
        description: a line for `show1-ray pipelines`.
        dtype: of the weights, of what is computed, and of the noise that is drawn.
        fps: frames a second of the clips.
        clip: the value that is the clip, as the file has it; None: the newest frames.
        inputs: columns of the manifest that are a part of each clip.
        file: where it was loaded from.
        code: code of somebody's own that it runs.
        dropped: values that would be there if an extending file had not dropped their stages → the stage.
    """

    name: str
    parts: tuple[Part, ...]
    description: str = ""
    dtype: Dtype = "float16"
    fps: float = 8
    clip: str | None = None
    inputs: tuple[Input, ...] = ()
    file: Path | None = None
    code: Code | None = None
    dropped: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, name: str | Path, overrides: Iterable[str] = (), code: str | Path | Code | None = None) -> Self:
        """Reads a pipeline file.

        Args:
            name: of a pipeline that the package brings (`names` lists them), or the path of a file.
            overrides: `key=value`, such as `keyframes.steps=50`; the key of a stage may leave out `stages.` or
                `execution.`, the value is YAML.
            code: a Python file, a folder or a module, whose classes `uses: module:Class` may name.

        Raises:
            ConfigError: no such file, no YAML, an unknown key or stage, a wrong type, stages that do not fit together;
                one line for each fault, with file (or override), key and reason.
        """
        path = find(name)
        if code is not None and not isinstance(code, Code):
            code = Code.at(code)
        tree = read(path)
        reader = Reader(tree, code)
        for override in overrides:
            key, value = parse_override(override)
            tree.put(reader.whole_key(key), value, as_typed(override))
        reader = Reader(tree, code)  # whose stages are those after the overrides
        head = _head(tree, path, reader.faults)
        inputs, wrong = read_inputs(tree.keys.get("inputs"))
        parts = reader.read()
        _refuse(reader.faults + [tree.fault(key, reason) for key, reason in wrong])
        assert head is not None
        pipeline = cls(
            parts=tuple(parts),
            inputs=tuple(inputs),
            file=path.resolve(),
            code=code,
            dropped=reader.dropped,
            **head.model_dump(),
        )
        # What does not fit together is the fault of the whole, unless one place says it.
        _refuse([f"{tree.origins.get(key, path)}: {'.'.join(key)}: {why}" for key, why in pipeline.faults()])
        return pipeline

    def __getstate__(self) -> dict[str, Any]:
        """Without what was found out since: it is found out again."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @cached_property
    def stages(self) -> Stages:
        """What the stages do: their settings."""
        return Stages({part.name: part.settings for part in self.parts})

    @cached_property
    def execution(self) -> Stages:
        """How they do it: their execution settings."""
        return Stages({part.name: part.execution for part in self.parts})

    def wired(self) -> tuple[Wired, ...]:
        """The stages in their order, with who gives what they take."""
        return self._wiring.stages

    @property
    def video(self) -> Ref:
        """The value that is the clip."""
        assert self._wiring.clip is not None  # `load` saw to it
        return self._wiring.clip

    @property
    def video_shape(self) -> Shape:
        """Of the clip, as frames to look at: frames, height, width, 3; None where a size is not known."""
        shape = self._shape(self.video)
        sizes = dict(zip(shape.axes.split(), shape.sizes, strict=True)) if shape.sizes else {}
        return Shape(FRAMES, tuple(sizes.get(axis) for axis in FRAMES.split()), "uint8")

    @property
    def total_frames(self) -> int:
        """Frames of a clip; see `video_shape`. Raises ConfigError where nobody knows before it is rendered."""
        count = self.video_shape.size("f")
        if count is None:
            raise ConfigError(f"{self.name}: its stages do not say how many frames a clip has")
        return count

    def default_takes(self, stage: str) -> Mapping[str, Ref]:
        """Where a stage would take its values from if the file did not say it."""
        return next((one.takes for one in self._unsaid.stages if one.name == stage), {})

    def whole(self) -> Wiring:
        """The stages of the file, none of them cut into pieces; recipes are of these."""
        return self._whole

    def notes(self) -> list[str]:
        """What people should know of how its stages run, a line each."""
        try:
            return [f"{part.name}: {one}" for part in self.parts for one in part.notes(self._own(part))]
        except RegistryError as error:
            raise ConfigError(f"{self.file or self.name}: {error}") from None

    def default_video(self) -> Ref | None:
        """What the clip would be if the file did not say it."""
        return self._unsaid.clip

    def checkpoints(self) -> list[Checkpoint]:
        """All checkpoints, each once."""
        needed = [need.checkpoint for _, need in self.needs()]
        inside = [one for part in self.parts for one in recipes.checkpoints_in(part.settings)]
        return list(dict.fromkeys([*needed, *inside]))

    def needs(self) -> list[tuple[str, Needs]]:
        """What each stage loads. Raises ConfigError where a stage cannot say it."""
        try:
            return [(part.name, need) for part in self.parts for need in part.checkpoints()]
        except RegistryError as error:
            raise ConfigError(f"{self.file or self.name}: {error}") from None

    def operations(self) -> dict[str, float | None]:
        """Floating-point operations a clip of each stage; None where it does not know. May import torch.

        Raises:
            ConfigError: a stage that cannot say it.
        """
        return self._asked(lambda part, stage: part.operations(stage.context, stage.taken))

    def weights(self) -> dict[str, int | None]:
        """Bytes of each stage's weights; None where it does not know. May import torch.

        Raises:
            ConfigError: a stage that cannot say it.
        """
        return self._asked(lambda part, stage: part.weights(stage.context))

    @property
    def as_arguments(self) -> str:
        """What names it on a command line: the package's name or the file, and its code; without its overrides."""
        file = str(self.file or self.name)
        if self.file is not None and self.file.parent in [folder.resolve() for folder in PIPELINE_FOLDERS]:
            file = self.file.stem
        return shlex.join([file, *(["--code", self.code.given] if self.code else [])])

    def prompt_limits(self) -> list[tuple[str, PromptLimit]]:
        """What each stage's text encoders take of prompts. Raises ConfigError where a stage cannot say it."""
        try:
            return [(part.name, limit) for part in self.parts for limit in part.prompt_limits()]
        except RegistryError as error:
            raise ConfigError(f"{self.file or self.name}: {error}") from None

    def fetch(self) -> list[Path]:
        """Downloads everything the pipeline needs that is not there yet; returns its folders, stage by stage.

        Raises:
            UserError: see `pipeline.checkpoints.folder_of`.
        """
        half = self.dtype != "float32"
        for part in self.parts:
            part.cls.look(part.settings)
        return [
            folder_of(need.checkpoint, need.components, half=half, variants=need.variants) for _, need in self.needs()
        ]

    def check_access(self) -> None:
        """Shows the licences of checkpoints on the hub and sees that they may be read, without fetching them.

        Raises:
            UserError: see `pipeline.hub.check_access`.
        """
        for checkpoint in self.checkpoints():
            if not checkpoint.is_local:
                from show1_ray.pipeline import hub

                hub.check_access(checkpoint)

    def resolved(self) -> Self:
        """The same pipeline with each revision made exact: the hub's commit, or a fingerprint of a local folder.

        Raises:
            UserError: a checkpoint that is not there, or not to be had (see `pipeline.checkpoints`).
            ConfigError: what turns out not to fit together once checkpoints have been looked at.
        """
        before = list(self.faults())
        for part in self.parts:
            part.cls.look(part.settings)
        revisions = {checkpoint: resolve(checkpoint) for checkpoint in self.checkpoints()}
        found = replace(
            self,
            parts=tuple(replace(part, settings=recipes.pinned(part.settings, revisions)) for part in self.parts),
        )
        _refuse([f"{self.file or self.name}: {'.'.join(key)}: {why}" for key, why in found.faults() if not before])
        return found

    def recipe(self) -> dict[str, Any]:
        """All that decides what a clip's frames are, as plain data; see `pipeline.recipe`."""
        return recipes.recipe(self)

    def recipe_hash(self) -> str:
        """Identifies the recipe: 16 hexadecimal digits of its SHA-256. Meaningful for a `resolved` pipeline."""
        return recipes.recipe_hash(self.recipe())

    def document(self, *, portable: bool = False) -> dict[str, Any]:
        """A pipeline file that says the same, whole, with execution settings.

        Args:
            portable: as a recipe has it, without places of this machine.
        """
        stages = {}
        for part in self.parts:
            entry = {"uses": part.uses} if part.uses else {}
            takes = {"takes": dict(part.takes)} if part.takes else {}
            stages[part.name] = {**entry, **takes, **plain(part.settings, is_recipe=portable)}
            stages[part.name] |= recipes.unrecorded(part.settings)
        found: dict[str, Any] = {"description": self.description, "dtype": self.dtype, "fps": self.fps}
        if self.clip is not None:
            found["clip"] = self.clip
        if self.inputs:
            found["inputs"] = {one.name: one.as_plain() for one in self.inputs}
        execution = {name: plain(settings) for name, settings in self.execution.items()}
        return found | {"stages": stages, "execution": execution}

    def row(self, inputs: Mapping[str, Any]) -> Self:
        """The pipeline for a clip whose inputs set settings of stages; itself where they set none.

        Args:
            inputs: of the clip, in their types.

        Raises:
            ConfigError: settings that cannot be; the reason.
        """
        return self._rows(self, inputs)

    def sets(self, stage: str) -> dict[str, tuple[str, ...]]:
        """Settings of a stage that inputs set: input → the setting's path within the stage's settings."""
        setting = {one.name: one.setting for one in self.inputs if one.setting}
        return {name: path[2:] for name, path in setting.items() if path[1] == stage}

    def batch_keys(self, inputs: Mapping[str, Any]) -> dict[str, Hashable]:
        """What clips must have in common to share a batch, by stage; see `rows.batch_keys`."""
        return batch_keys(self, inputs)

    @property
    def input_columns(self) -> InputColumns:
        """What a manifest's rows bring for `inputs`."""
        return InputColumns(self.inputs, self.row, self.columns)

    def faults(self) -> list[Fault]:
        """What does not fit together: keys and reasons."""
        found = list(self._wiring.faults)
        for part in self.parts:
            try:
                part.checkpoints()
            except RegistryError as error:
                found.append((("stages", part.name), str(error)))
        found += columns.clashes((column, key, what) for column, (key, what) in self._columns())
        return [*found, *faults_of_settings(self)] or list(self._misfits())

    @property
    def columns(self) -> dict[str, str]:
        """Columns of the metadata that inputs and plain values become → what each is, for people."""
        return {column: what for column, (_, what) in self._columns()}

    def _columns(self) -> Iterator[tuple[str, tuple[tuple[str, ...], str]]]:
        for one in self.inputs:
            key = ("inputs", one.name)
            yield columns.of_input(one.name), (key, f"the input {one.name!r}")
            if one.is_file:
                yield columns.of_content(one.name), (key, f"the SHA-256 of the input {one.name!r}")
        for stage in self.wired():
            for name in stage.plain:
                key = ("stages", stage.key)
                yield columns.of_value(stage.name, name), (key, f"the value {name!r} of the stage {stage.name!r}")

    @cached_property
    def _wiring(self) -> Wiring:
        return self._wire(self.parts, self.clip)

    @cached_property
    def _whole(self) -> Wiring:
        return self._wire(self.parts, self.clip, whole=True)

    @cached_property
    def _unsaid(self) -> Wiring:
        return self._wire([replace(part, takes={}) for part in self.parts], None, whole=True)

    @cached_property
    def _rows(self) -> RowSettings:
        return RowSettings(self.inputs)

    def _wire(self, parts: Iterable[Part], clip: str | None, whole: bool = False) -> Wiring:
        context = Context("", self.dtype, self.fps)
        inputs = {one.name: one.shape for one in self.inputs if not one.setting}
        return wire(tuple(parts), context, inputs, clip, self.dropped, whole)

    def _own(self, part: Part) -> Context:
        return Context(part.name, self.dtype, self.fps, part.execution)

    def _asked(self, ask: Callable[[Part, Wired], Any]) -> dict[str, Any]:
        """What each stage's class says."""
        found, faults = {}, []
        pieces = {piece.name: piece for part in self.parts for piece in part.pieces()}
        for stage in self.wired():
            try:
                found[stage.name] = ask(pieces[stage.name], stage)
            except RegistryError as error:
                faults.append(f"{self.file or self.name}: stages.{stage.key}: {error}")
        _refuse(faults)
        return found

    def _shape(self, ref: Ref) -> Shape:
        return next(stage.shapes[ref.name] for stage in self.wired() if stage.name == ref.stage)

    def _misfits(self) -> Iterator[Fault]:
        """Frames that no station could hold, or that no video file can."""
        for stage in self.wired():
            for name in stage.frames:
                shape = stage.shapes[name]
                sizes = dict(zip(shape.axes.split(), shape.sizes, strict=True)) if shape.sizes else {}
                frames, width, height = (sizes.get(axis) or 1 for axis in "fwh")
                known = bool(sizes.get("h") and sizes.get("w"))
                size = 12 * frames * width * height
                what = f"{frames} frames of {width}x{height}"
                if size > MOST_BYTES:
                    reason = f"a clip of {what} is {size / 2**30:.0f} GiB; {MOST_BYTES // 2**30} are the most"
                    yield ("stages", stage.key), reason
                is_clip = (stage.name, name) == (self.video.stage, self.video.name)
                if is_clip and sizes.get("c") not in (None, 3):
                    yield ("stages", stage.key), f"frames of {sizes['c']} channels, but those of a clip are RGB: 3"
                if is_clip and (width % 2 or height % 2) and known:
                    yield ("stages", stage.key), f"{width}x{height} frames, but H.264 needs an even width and height"


def _head(tree: Tree, path: Path, faults: list[str]) -> Head | None:
    """What stands beside the stages; None, and faults, where it cannot be."""
    said = {key: value for key, value in tree.keys.items() if key not in ("stages", "execution", "inputs")}
    try:
        return Head.model_validate({"name": path.stem, **said})
    except ValidationError as error:
        faults += tree.faults(error)
    return None


def _refuse(faults: list[str]) -> None:
    if faults:
        raise ConfigError("\n".join(dict.fromkeys(faults)))
