"""A pipeline of diffusers as a stage, as the driver and the planner know it: no torch until a station loads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from show1_ray.clip import Clip
from show1_ray.pipeline.checkpoints import CheckpointError
from show1_ray.pipeline.registry import RegistryError
from show1_ray.stage import FRAMES, Axes, Context, Fault, Needs, Piece, Shape, Stage
from show1_ray.stages.diffusers import checks, families
from show1_ray.stages.diffusers import settings as recipe
from show1_ray.stages.diffusers.layout import INDEX, Layout, layout, signature
from show1_ray.stages.diffusers.signatures import Signature

COLOURS = 3


class DiffusersStage(Stage):
    """What whole pipelines and pieces of them share: the declaration, and weights that come and go.

    Attributes:
        work: on stations, a `whole.Loaded`.
    """

    Settings = recipe.Settings
    Execution = recipe.Execution
    row_settings = frozenset({"call", "negative_prompt"})

    work: Any

    @classmethod
    def arguments(cls, settings: recipe.Settings) -> Mapping[str, bool] | None:
        """Arguments of the pipeline's call that a pipeline file may give."""
        pipeline, _ = known(settings)
        if pipeline is None:
            return None
        return {name: families.is_needed(pipeline, name) for name in checks.free_arguments(pipeline)}

    @classmethod
    def checkpoints(cls, settings: recipe.Settings) -> Sequence[Needs]:
        """The pipeline's components, and low-rank weights."""
        _, found = known(settings)
        others = () if found is None else found.networks
        components = [] if found is None else [one for one in found.present if one not in others or cls.holds(one)]
        variants = ("",) if settings.variant is None else (settings.variant, "")
        return (Needs(settings.checkpoint, (INDEX, *components), variants=variants),)

    @classmethod
    def holds(cls, network: str) -> bool:
        """Whether a network of the checkpoint is one of its own."""
        return True

    @classmethod
    def weights(cls, settings: recipe.Settings, context: Context) -> int | None:
        """Bytes of its networks' weights, by their files or, where these are not here, their configurations; quantised
        ones are not known. May import torch.
        """
        _, found = known(settings)
        if found is None or settings.quantize is not None:
            return None
        own = [name for name in found.networks if cls.holds(name)]
        known_here = found.weights(own, settings.variant, 4 if context.dtype == "float32" else 2)
        if known_here is not None:
            return known_here
        from show1_ray.stages.diffusers import works

        return works.weights(settings, context, found, own)

    @classmethod
    def faults(cls, settings: recipe.Settings, context: Context, given: Mapping[str, Shape]) -> Iterable[Fault]:
        """See `checks`."""
        return checks.faults(settings, context, given)

    @classmethod
    def no_negative_prompts(cls, settings: recipe.Settings) -> str:
        """See `Stage`."""
        pipeline, _ = known(settings)
        return "" if pipeline is None else checks.no_negative(settings, pipeline)

    @classmethod
    def look(cls, settings: recipe.Settings) -> None:
        """See `Stage`."""
        if not settings.checkpoint.is_local and layout(settings.checkpoint) is None:
            from show1_ray.pipeline import hub

            hub.fetch_configurations(settings.checkpoint, INDEX)

    @classmethod
    def operations(cls, settings: recipe.Settings, context: Context, given: Mapping[str, Shape]) -> float | None:
        """Those of its networks for all steps of a clip; None where configurations are not here. Imports torch."""
        pipeline, found = known(settings)
        if pipeline is None or found is None:
            return None
        from show1_ray.stages.diffusers import works

        takes, _ = cls.signature(settings)
        own = {name: shape for name, shape in given.items() if name not in takes}
        return works.operations(settings, context, own, pipeline, found, list(filter(cls.holds, found.networks)))

    def loaded_bytes(self) -> int | None:
        """See `Stage`."""
        return int(self.work.loaded_bytes())

    def leave(self) -> None:
        """See `Stage`."""
        self.work.leave()

    def enter(self, device: str) -> None:
        """See `Stage`."""
        self.work.enter(device)
        self.device = device

    def configure(self, settings: recipe.Settings) -> None:
        """See `Stage`."""
        super().configure(settings)
        self.work.settings = settings


class Diffusers(DiffusersStage):
    """Any pipeline of diffusers that gives video or images, whole or cut into text, denoising and decoding.

    A clip is what `pipeline(prompt, …, generator=torch.Generator("cpu").manual_seed(seed))` gives, in 8 bits as
    `output_type="pil"` rounds; an image is a clip of one frame. Values of earlier stages, and inputs, are arguments of
    the call: `takes: {image: keyframes[0]}`. With `over: frames` an image pipeline is called for each frame that it
    takes: `takes: {image: super_resolution}`.
    """

    gives: ClassVar[Mapping[str, Axes]] = {"video": FRAMES}

    @classmethod
    def shapes(cls, settings: recipe.Settings, context: Context, given: Mapping[str, Shape]) -> Mapping[str, Shape]:
        """What is known from the call: the number of frames, and the size where it is said."""
        return {"video": shape_of(settings, given)}

    @classmethod
    def pieces(cls, settings: recipe.Settings, execution: recipe.Execution) -> Sequence[Piece]:
        """See `pieces`."""
        from show1_ray.stages.diffusers.pieces import pieces

        return pieces(settings, execution)

    @classmethod
    def notes(cls, settings: recipe.Settings, context: Context) -> Iterable[str]:
        """That it runs whole although it should be cut."""
        from show1_ray.stages.diffusers.pieces import why_no_experts

        pipeline, _ = known(settings)
        if settings.split and pipeline is not None and families.split_of(pipeline) is None:
            yield f"{pipeline.name} runs whole: how it would be split is not known"
        elif settings.split == "experts" and (reason := why_no_experts(settings)):
            yield f"denoising stays in one: {reason}"

    def load(self, device: str) -> None:
        """See `Stage`.

        Raises:
            CheckpointError: weights that are not to be had or do not fit.
        """
        if self.settings.over is not None:
            from show1_ray.stages.diffusers.frames import OverFrames as Whole
        else:
            from show1_ray.stages.diffusers.whole import Whole  # type: ignore[assignment]

        self.work = Whole(self.settings, self.context, device)
        self.device = device

    def run(self, clips: Sequence[Clip], values: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """See `Stage`."""
        return [{"video": frames} for frames in self.work(clips, values)]


def known(settings: recipe.Settings) -> tuple[Signature | None, Layout | None]:
    """The pipeline class and the checkpoint's layout, as far as they are known; `faults` says what is wrong."""
    try:
        return signature(settings), layout(settings.checkpoint)
    except (CheckpointError, RegistryError):
        return None, None


def shape_of(settings: recipe.Settings, given: Mapping[str, Shape]) -> Shape:
    """Of a clip; a size is None where it is not known before it is rendered.

    What the class has as a default counts where nothing is taken from elsewhere, such as an image whose size decides.
    """
    pipeline, found = known(settings)
    count: int | None = None
    sides: list[int | None] = [None, None]
    if pipeline is not None and settings.over is not None:
        count, *sides = _sizes_over_frames(settings, families.image_scale(pipeline, found), given)
    elif pipeline is not None:
        pictures = any(shape.axes.endswith("h w c") for shape in given.values())
        defaults = {} if pictures else {name: families.default_of(pipeline, {}, name) for name in ("height", "width")}
        frames = families.frames_argument(pipeline)
        count = None if frames is None else families.default_of(pipeline, settings.call, frames)
        sides = [settings.call.get(name, defaults.get(name)) for name in ("height", "width")]
    sizes = [one if isinstance(one, int) and one > 0 else None for one in (count, *sides)]
    return Shape(FRAMES, (*sizes, COLOURS), "uint8")


def _sizes_over_frames(
    settings: recipe.Settings, scale: int | None, given: Mapping[str, Shape]
) -> tuple[int | None, int | None, int | None]:
    """As many frames as there are; larger by what the pipeline makes of an image, or as large as was asked for."""
    frames = next((shape for shape in given.values() if shape.axes == FRAMES and shape.sizes), None)
    count, height, width = (None, None, None) if frames is None else map(frames.size, "fhw")
    if settings.resize is not None:
        height, width = settings.resize.height, settings.resize.width
    height, width = (None if scale is None or side is None else side * scale for side in (height, width))
    return count, settings.call.get("height", height), settings.call.get("width", width)
