"""Show-1's stages, as the driver and the planner know them: no torch until a station loads one.

What they compute is in the modules that `load` imports, as plain classes over tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from show1_ray.clip import Clip
from show1_ray.errors import shown
from show1_ray.pipeline.checkpoints import Checkpoint, CheckpointError, published_or_local_config
from show1_ray.show1 import settings as recipe
from show1_ray.stage import FLOAT_FRAMES, FRAMES, Axes, Context, Fault, Needs, PromptLimit, Shape, Stage

LOOP = ("steps", "guidance", "guidance_interval", "reuse")
"""Settings of a denoising loop that may differ from row to row: its scheduler is made when a stage is loaded."""
TEXTS = {"prompt_embeds": "l d", "negative_prompt_embeds": "l d"}
"""T5's outputs, for all pixel stages."""
COLOURS = 3
CLIP_TOKENS = 77


class CascadeStage(Stage):
    """What the five stages share: torch tensors, and networks that may wait in pinned host memory."""

    Execution = recipe.Execution
    tensors = "torch"

    stage: Any

    def load(self, device: str) -> None:
        """See `Stage`.

        Raises:
            CheckpointError: weights that are not to be had or do not fit.
            ConfigError: a network's or a scheduler's configuration that is not known.
        """
        from show1_ray.show1.cascade import build

        self.stage = build(self, device)
        self.device = device

    def loaded_bytes(self) -> int | None:
        """See `Stage`."""
        from show1_ray.stages.operations import weight_bytes

        return sum(map(weight_bytes, self.stage.networks.values()))

    def leave(self) -> None:
        """See `Stage`."""
        self.stage.leave()

    def enter(self, device: str) -> None:
        """See `Stage`."""
        self.stage.enter(device)

    def run(self, clips: Sequence[Clip], values: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """See `Stage`."""
        return self.stage(clips, values)

    @classmethod
    def operations(cls, settings: Any, context: Context, given: Mapping[str, Shape]) -> float | None:
        """Those of its networks; None where a configuration is not known without fetching it. Imports torch."""
        from show1_ray.show1.works import operations

        return operations(cls.__name__, settings, context, given)

    @classmethod
    def weights(cls, settings: Any, context: Context) -> int | None:
        """Bytes of its networks' weights; None as for `operations`. Imports torch."""
        from show1_ray.show1.works import weights

        return weights(cls.__name__, settings, context)

    def configure(self, settings: Any) -> None:
        """See `Stage`."""
        super().configure(settings)
        self.stage.settings = settings


class DenoisingStage(CascadeStage):
    """What those share that walk a denoising loop."""

    @classmethod
    def checkpoints(cls, settings: Any) -> Sequence[Needs]:
        """See `Stage`."""
        return (Needs(settings.checkpoint, ("unet", "scheduler")),)


class Text(CascadeStage):
    """T5: prompt and negative prompt become embeddings for the pixel stages."""

    Settings = recipe.Text
    gives = TEXTS
    relative_seconds = 0.05
    working_set = 1.2  # texts are encoded one at a time
    row_settings = frozenset({"clean_caption", "negative_prompt"})

    @classmethod
    def checkpoints(cls, settings: recipe.Text) -> Sequence[Needs]:
        """See `Stage`."""
        return (Needs(settings.checkpoint, ("tokenizer", "text_encoder")),)

    @classmethod
    def prompt_limits(cls, settings: recipe.Text) -> Sequence[PromptLimit]:
        """See `Stage`; `clean_caption` may leave fewer tokens."""
        return (PromptLimit(settings.checkpoint, settings.max_tokens, prepare=lower),)

    @classmethod
    def shapes(cls, settings: recipe.Text, context: Context, given: Mapping[str, Shape]) -> Mapping[str, Shape]:
        """See `Stage`."""
        config = published_or_local_config(settings.checkpoint, "text_encoder") or {}
        embeds = Shape("l d", (settings.max_tokens, config.get("d_model")), context.dtype)
        return dict.fromkeys(TEXTS, embeds)


class Keyframes(DenoisingStage):
    """Text becomes the first, few and small frames of a clip (Show-1, section 3.2)."""

    Settings = recipe.Keyframes
    takes = TEXTS
    gives: ClassVar[Mapping[str, Axes]] = {"keyframes": FLOAT_FRAMES}
    relative_seconds = 1.0
    row_settings = frozenset({"frames", "height", "width", *LOOP})

    @classmethod
    def shapes(cls, settings: recipe.Keyframes, context: Context, given: Mapping[str, Shape]) -> Mapping[str, Shape]:
        """See `Stage`."""
        return {"keyframes": float_frames(context, settings.frames, settings.height, settings.width)}

    @classmethod
    def faults(cls, settings: recipe.Keyframes, context: Context, given: Mapping[str, Shape]) -> Iterable[Fault]:
        """See `Stage`."""
        yield from _indivisible("", settings.checkpoint, "unet", settings.height, settings.width)
        yield from _faults_of_reuse("", settings, context)


class Interpolation(DenoisingStage):
    """Each gap between neighbouring keyframes is filled: all frames of a clip, still small."""

    Settings = recipe.Interpolation
    takes: ClassVar[Mapping[str, Axes]] = {"keyframes": FLOAT_FRAMES, **TEXTS}
    gives: ClassVar[Mapping[str, Axes]] = {"frames": FLOAT_FRAMES}
    relative_seconds = 3.0
    row_settings = frozenset({"window", *LOOP})

    @classmethod
    def shapes(
        cls, settings: recipe.Interpolation, context: Context, given: Mapping[str, Shape]
    ) -> Mapping[str, Shape]:
        """Neighbouring windows share a frame."""
        count, height, width = _sizes(given, "keyframes")
        frames = None if count is None else (count - 1) * (settings.window - 1) + 1
        return {"frames": float_frames(context, frames, height, width)}

    @classmethod
    def faults(cls, settings: recipe.Interpolation, context: Context, given: Mapping[str, Shape]) -> Iterable[Fault]:
        """See `Stage`."""
        count, height, width = _sizes(given, "keyframes")
        if count == 1:
            yield "", "it fills the gaps between keyframes, and is given a single one"
        yield from _indivisible("", settings.checkpoint, "unet", height, width)
        yield from _faults_of_reuse("", settings, context)


class SuperResolution(DenoisingStage):
    """Small frames become `scale` times as wide and high, in windows, the first frame by an image model."""

    Settings = recipe.SuperResolution
    takes: ClassVar[Mapping[str, Axes]] = {"frames": FLOAT_FRAMES, **TEXTS}
    gives: ClassVar[Mapping[str, Axes]] = {"frames_sr": FLOAT_FRAMES}
    relative_seconds = 7.0
    row_settings = frozenset(
        {"scale", "window", "stride", "noise_level", *LOOP} | {f"first_frame.{name}" for name in ("noise_level", *LOOP)}
    )

    @classmethod
    def checkpoints(cls, settings: recipe.SuperResolution) -> Sequence[Needs]:
        """See `Stage`."""
        components = ("unet", "scheduler", "image_noising_scheduler")
        return (
            Needs(settings.first_frame.checkpoint, components, "first_frame.checkpoint"),
            Needs(settings.checkpoint, components),
        )

    @classmethod
    def shapes(
        cls, settings: recipe.SuperResolution, context: Context, given: Mapping[str, Shape]
    ) -> Mapping[str, Shape]:
        """See `Stage`."""
        count, height, width = _sizes(given, "frames")
        height, width = _times(height, settings.scale), _times(width, settings.scale)
        return {"frames_sr": float_frames(context, count, height, width)}

    @classmethod
    def faults(cls, settings: recipe.SuperResolution, context: Context, given: Mapping[str, Shape]) -> Iterable[Fault]:
        """See `Stage`."""
        count, height, width = _sizes(given, "frames")
        if count is not None and settings.window > count:
            yield "window", f"{settings.window} frames, but a clip has {count}"
        if settings.stride >= settings.window:
            yield "stride", f"{settings.stride} must be less than the window, {settings.window}"
        height, width = _times(height, settings.scale), _times(width, settings.scale)
        yield from _indivisible("first_frame", settings.first_frame.checkpoint, "unet", height, width)
        yield from _indivisible("", settings.checkpoint, "unet", height, width)
        yield from _faults_of_reuse("first_frame", settings.first_frame, context)
        yield from _faults_of_reuse("", settings, context)

    def configure(self, settings: recipe.SuperResolution) -> None:
        """See `Stage`."""
        super().configure(settings)
        self.stage.first_frame.settings = settings.first_frame


class LatentSuperResolution(DenoisingStage):
    """Frames are resized, and denoised once more in a VAE's latent space (Show-1, section 3.3): the clip."""

    Settings = recipe.LatentSuperResolution
    Execution = recipe.LatentExecution
    takes: ClassVar[Mapping[str, Axes]] = {"frames_sr": FLOAT_FRAMES}
    gives: ClassVar[Mapping[str, Axes]] = {"video": FRAMES}
    relative_seconds = 2.5
    row_settings = frozenset({"height", "width", "strength", "negative_prompt", *LOOP})

    @classmethod
    def checkpoints(cls, settings: recipe.LatentSuperResolution) -> Sequence[Needs]:
        """See `Stage`."""
        return (Needs(settings.checkpoint, ("tokenizer", "text_encoder", "unet", "vae", "scheduler")),)

    @classmethod
    def prompt_limits(cls, settings: recipe.LatentSuperResolution) -> Sequence[PromptLimit]:
        """See `Stage`: CLIP's."""
        config = published_or_local_config(settings.checkpoint, "text_encoder") or {}
        return (PromptLimit(settings.checkpoint, int(config.get("max_position_embeddings", CLIP_TOKENS))),)

    @classmethod
    def shapes(
        cls, settings: recipe.LatentSuperResolution, context: Context, given: Mapping[str, Shape]
    ) -> Mapping[str, Shape]:
        """See `Stage`."""
        count, _, _ = _sizes(given, "frames_sr")
        return {"video": Shape(FRAMES, (count, settings.height, settings.width, COLOURS), "uint8")}

    @classmethod
    def faults(
        cls, settings: recipe.LatentSuperResolution, context: Context, given: Mapping[str, Shape]
    ) -> Iterable[Fault]:
        """See `Stage`."""
        if int(settings.steps * settings.strength) < 1:
            yield "strength", f"{settings.strength} of {settings.steps} steps is not one step"
        if settings.width % 2 or settings.height % 2:
            yield "", f"{settings.width}x{settings.height} frames, but H.264 needs an even width and height"
        yield from _indivisible("", settings.checkpoint, "vae", settings.height, settings.width)
        yield from _faults_of_reuse("", settings, context)


STAGES: dict[str, type[CascadeStage]] = {
    "text": Text,
    "keyframes": Keyframes,
    "interpolation": Interpolation,
    "super_resolution": SuperResolution,
    "latent_super_resolution": LatentSuperResolution,
}
"""The cascade, in its order, by the names that pipeline files use."""


def lower(prompt: str) -> str:
    """A prompt as T5 is given it, but for `clean_caption`."""
    return prompt.lower().strip()


def float_frames(context: Context, frames: int | None, height: int | None, width: int | None) -> Shape:
    """Frames in about [−1, 1], in the pipeline's number format."""
    return Shape(FLOAT_FRAMES, (COLOURS, frames, height, width), context.dtype)


def _sizes(given: Mapping[str, Shape], name: str) -> tuple[int | None, int | None, int | None]:
    """Frames, height and width of what it is given, as far as they are known."""
    shape = given.get(name)
    if shape is None or not shape.sizes:
        return None, None, None
    return shape.size("f"), shape.size("h"), shape.size("w")


def _times(size: int | None, scale: int) -> int | None:
    return None if size is None else size * scale


def _indivisible(
    key: str, checkpoint: Checkpoint, component: str, height: int | None, width: int | None
) -> Iterable[Fault]:
    """A size that a network cannot halve as often as it does."""
    factor = 2 ** (levels_of(checkpoint, component) - 1)
    if (width or 0) % factor or (height or 0) % factor:
        yield key, f"{width}x{height} frames, but its {component} needs width and height divisible by {factor}"


def _faults_of_reuse(key: str, loop: recipe.Denoising, context: Context) -> Iterable[Fault]:
    """No level would be left to be reused; or features would lie where a CUDA graph writes its next ones."""
    if loop.reuse is None:
        return
    if context.execution is not None and context.execution.compile == "graphs":
        yield "execution.compile", "graphs do not go with reuse of deep features: use blocks"
    levels = levels_of(loop.checkpoint, "unet")
    if 1 < levels <= loop.reuse.levels:
        reason = f"{loop.reuse.levels} of the unet's {levels} levels leave none to reuse"
        yield f"{key}.reuse.levels".removeprefix("."), reason


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
