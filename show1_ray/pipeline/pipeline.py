"""The pipeline file: what a clip is (its recipe) and how it is computed (its execution settings)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, ValidationError

from show1_ray.errors import ConfigError, shown
from show1_ray.pipeline.checkpoints import (
    Checkpoint,
    CheckpointError,
    check_access,
    folder_of,
    published_or_local_config,
    resolve,
)
from show1_ray.pipeline.file import PIPELINE_FOLDERS, as_typed, find, mappings, names, parse_override, read
from show1_ray.pipeline.registry import stage_class
from show1_ray.pipeline.wiring import Part, Ref, Wired, Wiring, wire
from show1_ray.show1.settings import Settings, Stages, StagesExecution
from show1_ray.stage import Context

__all__ = ["COMPONENTS", "PIPELINE_FOLDERS", "STAGES", "Checkpoint", "Pipeline", "find", "names"]

STAGES = tuple(Stages.model_fields)
COMPONENTS: dict[str, tuple[str, ...]] = {
    "text": ("tokenizer", "text_encoder"),
    "keyframes": ("unet", "scheduler"),
    "interpolation": ("unet", "scheduler"),
    "first_frame": ("unet", "scheduler", "image_noising_scheduler"),
    "super_resolution": ("unet", "scheduler", "image_noising_scheduler"),
    "latent_super_resolution": ("tokenizer", "text_encoder", "unet", "vae", "scheduler"),
}
"""What each stage needs of its checkpoint."""
MOST_BYTES = 16 * 2**30
"""Of a clip's frames as float32: 7,700 frames of 576x320."""
SHORTCUTS = ("guidance_interval", "reuse")
"""Settings of `Denoising` that are off when None."""


class Pipeline(Settings):
    """A pipeline file, checked. `load` reads one.

    Attributes:
        name: what it is called in metadata.
        description: a line for `show1-ray pipelines`.
        dtype: of the weights, of what is computed, and of the noise that is drawn.
        fps: frames a second of the clips.
        stages: what the stages do.
        execution: how they do it.
    """

    name: str
    description: str = ""
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    fps: Annotated[float, Field(ge=0.01, le=240)] = 8
    stages: Stages
    execution: StagesExecution = StagesExecution()
    _file: Path | None = PrivateAttr(default=None)

    @property
    def file(self) -> Path | None:
        """The file that it was loaded from."""
        return self._file

    @classmethod
    def load(cls, name: str | Path, overrides: Iterable[str] = ()) -> Self:
        """Reads a pipeline file.

        Args:
            name: of a pipeline that the package brings (`names` lists them), or the path of a file.
            overrides: `key=value`, such as `keyframes.steps=50`; the key of a stage may leave out `stages.` or
                `execution.`, the value is YAML.

        Raises:
            ConfigError: no such file, no YAML, an unknown key, a wrong type, sizes that do not fit together; one line
                for each fault, with file (or override), key and reason.
        """
        path = find(name)
        tree = read(path)
        for override in overrides:
            key, value = parse_override(override)
            tree.put(_whole(key), value, as_typed(override))
        try:
            pipeline = cls.model_validate({"name": path.stem, **tree.keys})
        except ValidationError as error:
            raise ConfigError("\n".join(tree.faults(error))) from None
        faults = [f"{path}: {key}: {reason}" for key, reason in pipeline._misfits()]
        if faults:
            raise ConfigError("\n".join(faults))
        pipeline._file = path.resolve()
        return pipeline

    @property
    def total_frames(self) -> int:
        """Frames of a clip: neighbouring windows of the interpolation share a frame."""
        return (self.stages.keyframes.frames - 1) * (self.stages.interpolation.window - 1) + 1

    def wired(self) -> tuple[Wired, ...]:
        """The stages in their order, with who gives what they take."""
        return self._wiring().stages

    @property
    def video(self) -> Ref:
        """The value that is the clip."""
        clip = self._wiring().clip
        assert clip is not None  # `load` saw to it
        return clip

    def _wiring(self) -> Wiring:
        parts = [
            Part(name, stage_class(name), getattr(self.stages, name), getattr(self.execution, name)) for name in STAGES
        ]
        return wire(parts, Context("", self.dtype, self.fps))

    def checkpoints(self) -> list[Checkpoint]:
        """All checkpoints, each once."""
        stages = self.stages
        denoising = [stages.keyframes, stages.interpolation, stages.super_resolution.first_frame]
        found = [stages.text.checkpoint, *(stage.checkpoint for stage in denoising)]
        found += [stages.super_resolution.checkpoint, stages.latent_super_resolution.checkpoint]
        return list(dict.fromkeys(found))

    def fetch(self) -> list[Path]:
        """Downloads everything the pipeline needs that is not there yet; returns its folders, in `COMPONENTS`' order.

        Raises:
            UserError: see `models.checkpoints.folder_of`.
        """
        stages = self.stages
        checkpoints: dict[str, Checkpoint] = {name: getattr(stages, name).checkpoint for name in STAGES}
        checkpoints["first_frame"] = stages.super_resolution.first_frame.checkpoint
        half = self.dtype != "float32"
        return [folder_of(checkpoints[name], components, half=half) for name, components in COMPONENTS.items()]

    def check_access(self) -> None:
        """Shows the licences of checkpoints on the hub and sees that they may be read, without fetching them.

        Raises:
            UserError: see `models.checkpoints.check_access`.
        """
        for checkpoint in self.checkpoints():
            if not checkpoint.is_local:
                check_access(checkpoint)

    def resolved(self) -> Self:
        """The same pipeline with each revision made exact: the hub's commit, or a fingerprint of a local folder.

        Raises:
            UserError: a checkpoint that is not there, or not to be had (see `models.checkpoints`).
        """
        revisions = {checkpoint: resolve(checkpoint) for checkpoint in self.checkpoints()}

        def pin(value: Any) -> Any:
            if isinstance(value, Checkpoint):
                return value.model_copy(update={"revision": revisions[value]})
            if isinstance(value, Settings):
                return value.model_copy(update={name: pin(field) for name, field in value})
            return value

        return self.model_copy(update={"stages": pin(self.stages)})

    def recipe(self) -> dict[str, Any]:
        """All that decides what a clip's frames are, as plain data; the place of local checkpoints is left out.

        So are shortcuts that are off: recipes from before there were any stay the same.
        """
        recipe = self.model_dump(mode="json", include={"dtype", "fps", "stages"})
        for node in mappings(recipe):
            for shortcut in SHORTCUTS:
                if shortcut in node and node[shortcut] is None:
                    del node[shortcut]
            checkpoint = node.get("checkpoint")
            if checkpoint is not None:
                checkpoint.pop("licence")
                if Checkpoint(**checkpoint).is_local:
                    checkpoint["repo"] = "local"
        return recipe

    def recipe_hash(self) -> str:
        """Identifies the recipe: 16 hexadecimal digits of its SHA-256. Meaningful for a `resolved` pipeline."""
        canonical = json.dumps(self.recipe(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def _misfits(self) -> Iterator[tuple[str, str]]:
        """Keys whose values do not fit the others', each with the reason."""
        stages = self.stages
        sr, latent = stages.super_resolution, stages.latent_super_resolution
        if sr.window > self.total_frames:
            yield "stages.super_resolution.window", f"{sr.window} frames, but a clip has {self.total_frames}"
        if sr.stride >= sr.window:
            yield "stages.super_resolution.stride", f"{sr.stride} must be less than the window, {sr.window}"
        if int(latent.steps * latent.strength) < 1:
            reason = f"{latent.strength} of {latent.steps} steps is not one step"
            yield "stages.latent_super_resolution.strength", reason

        yield from self._too_large()
        if latent.width % 2 or latent.height % 2:
            reason = f"{latent.width}x{latent.height} frames, but H.264 needs an even width and height"
            yield "stages.latent_super_resolution", reason

        small = (stages.keyframes.width, stages.keyframes.height)
        large = (small[0] * sr.scale, small[1] * sr.scale)
        for key, checkpoint, component, size in [
            ("stages.keyframes", stages.keyframes.checkpoint, "unet", small),
            ("stages.interpolation", stages.interpolation.checkpoint, "unet", small),
            ("stages.super_resolution.first_frame", sr.first_frame.checkpoint, "unet", large),
            ("stages.super_resolution", sr.checkpoint, "unet", large),
            ("stages.latent_super_resolution", latent.checkpoint, "vae", (latent.width, latent.height)),
        ]:
            factor = 2 ** (levels_of(checkpoint, component) - 1)
            if size[0] % factor or size[1] % factor:
                reason = f"{size[0]}x{size[1]} frames, but its {component} needs width and height divisible by {factor}"
                yield key, reason
        yield from self._misfits_of_reuse()

    def _too_large(self) -> Iterator[tuple[str, str]]:
        """Clips whose frames no station could hold: bytes of float32, at the stage where they are the most."""
        stages = self.stages
        small, scale, latent = stages.keyframes, stages.super_resolution.scale, stages.latent_super_resolution
        for key, width, height in [
            ("stages.super_resolution", small.width * scale, small.height * scale),
            ("stages.latent_super_resolution", latent.width, latent.height),
        ]:
            size = 12 * self.total_frames * width * height
            if size > MOST_BYTES:
                what = f"{self.total_frames} frames of {width}x{height}"
                yield key, f"a clip of {what} is {size / 2**30:.0f} GiB; {MOST_BYTES // 2**30} are the most"

    def _misfits_of_reuse(self) -> Iterator[tuple[str, str]]:
        """No level would be left to be reused; or features would lie where a CUDA graph writes its next ones."""
        for key, loop in (
            ("keyframes", self.stages.keyframes),
            ("interpolation", self.stages.interpolation),
            ("super_resolution.first_frame", self.stages.super_resolution.first_frame),
            ("super_resolution", self.stages.super_resolution),
            ("latent_super_resolution", self.stages.latent_super_resolution),
        ):
            levels = levels_of(loop.checkpoint, "unet")
            if loop.reuse and getattr(self.execution, key.split(".")[0]).compile == "graphs":
                yield (
                    f"execution.{key.split('.')[0]}.compile",
                    "graphs do not go with reuse of deep features: use blocks",
                )
            if loop.reuse and 1 < levels <= loop.reuse.levels:
                reason = f"{loop.reuse.levels} of the unet's {levels} levels leave none to reuse"
                yield f"stages.{key}.reuse.levels", reason


def levels_of(checkpoint: Checkpoint, component: str) -> int:
    """Resolutions of a network, each half the one before; 1 where its configuration is not at hand.

    Raises:
        CheckpointError: a configuration that says something else.
    """
    config = published_or_local_config(checkpoint, component)
    if config is None:
        return 1
    channels = config.get("block_out_channels")
    if not isinstance(channels, list) or not 1 <= len(channels) <= 16:
        what = f"block_out_channels is {shown(channels)}, not a list of 1 to 16 numbers"
        raise CheckpointError(f"{checkpoint}: {component}/config.json: {what}")
    return len(channels)


def _whole(key: tuple[str, ...]) -> tuple[str, ...]:
    """An override's key from the top: `keyframes.steps` is `stages.keyframes.steps`."""
    if key[0] not in STAGES or len(key) == 1:
        return key
    execution = StagesExecution.model_fields[key[0]].annotation
    in_execution = key[1] in getattr(execution, "model_fields", {})
    return ("execution" if in_execution else "stages", *key)
