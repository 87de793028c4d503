"""A pipeline of diffusers cut into stages: text, denoising, decoding. As the driver knows them, without torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from show1_ray.clip import Clip
from show1_ray.stage import FRAMES, Axes, Context, Fault, Piece, Shape
from show1_ray.stages.diffusers import families
from show1_ray.stages.diffusers import settings as recipe
from show1_ray.stages.diffusers.stage import DiffusersStage, known, shape_of

TEXTS, DECODERS = ("text_encoder",), ("vae",)
"""Beginnings of the names of networks that encode texts, and of those that decode latents; all others denoise."""
STATE = "byte"
"""Axes of what only the next piece can read: a generator's state, or a solver's."""


class DiffusersPiece(DiffusersStage):
    """What the pieces share: torch tensors, and a pipeline with some of its networks. What each does is the class of
    its name in `split`.
    """

    tensors = "torch"

    def load(self, device: str) -> None:
        """See `Stage`.

        Raises:
            CheckpointError: weights that are not to be had or do not fit.
        """
        from show1_ray.stages.diffusers import split

        self.work = getattr(split, type(self).__name__)(self.settings, self.context, device, self.holds)
        self.device = device

    def run(self, clips: Sequence[Clip], values: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """See `Stage`."""
        return list(self.work(clips, values))

    @classmethod
    def faults(cls, settings: recipe.Settings, context: Context, given: Mapping[str, Shape]) -> Iterable[Fault]:
        """See `checks`; what comes from the piece before is none of the user's."""
        takes, _ = cls.signature(settings)
        return super().faults(settings, context, {name: one for name, one in given.items() if name not in takes})

    @classmethod
    def shapes(cls, settings: recipe.Settings, context: Context, given: Mapping[str, Shape]) -> Mapping[str, Shape]:
        """Not known before."""
        return {}

    @classmethod
    def texts(cls, settings: recipe.Settings) -> dict[str, Axes]:
        """What encoding gives."""
        return dict(_split(settings).texts)

    @classmethod
    def latents(cls, settings: recipe.Settings) -> dict[str, Axes]:
        """What denoising gives: latents, and how far the clip's generator is."""
        return {"latents": _split(settings).latents, "generator": STATE}


class Text(DiffusersPiece):
    """Prompt and negative prompt become embeddings."""

    relative_seconds = 0.05
    working_set = 1.2

    @classmethod
    def holds(cls, network: str) -> bool:
        """See `DiffusersStage`."""
        return network.startswith(TEXTS)

    @classmethod
    def signature(cls, settings: recipe.Settings) -> tuple[Mapping[str, Axes], Mapping[str, Axes]]:
        """See `Stage`."""
        return {}, cls.texts(settings)


class Denoise(DiffusersPiece):
    """Embeddings become latents."""

    relative_seconds = 1.0

    @classmethod
    def holds(cls, network: str) -> bool:
        """See `DiffusersStage`."""
        return not network.startswith((*TEXTS, *DECODERS))

    @classmethod
    def signature(cls, settings: recipe.Settings) -> tuple[Mapping[str, Axes], Mapping[str, Axes]]:
        """See `Stage`."""
        return cls.texts(settings), cls.latents(settings)


class HighNoise(Denoise):
    """Embeddings become latents of which the noise is taken until `boundary_ratio`; with the solver's state."""

    relative_seconds = 0.5

    @classmethod
    def holds(cls, network: str) -> bool:
        """See `DiffusersStage`."""
        return super().holds(network) and network != "transformer_2"

    @classmethod
    def signature(cls, settings: recipe.Settings) -> tuple[Mapping[str, Axes], Mapping[str, Axes]]:
        """See `Stage`."""
        return cls.texts(settings), {**cls.latents(settings), "solver": STATE}


class LowNoise(Denoise):
    """The other transformer goes on where the first one stopped."""

    relative_seconds = 0.5

    @classmethod
    def holds(cls, network: str) -> bool:
        """See `DiffusersStage`."""
        return super().holds(network) and network != "transformer"

    @classmethod
    def signature(cls, settings: recipe.Settings) -> tuple[Mapping[str, Axes], Mapping[str, Axes]]:
        """See `Stage`."""
        return {**cls.texts(settings), **cls.latents(settings), "solver": STATE}, cls.latents(settings)


class Decode(DiffusersPiece):
    """Latents become 8-bit frames."""

    relative_seconds = 0.1
    working_set = 8.0

    @classmethod
    def holds(cls, network: str) -> bool:
        """See `DiffusersStage`."""
        return network.startswith(DECODERS)

    @classmethod
    def signature(cls, settings: recipe.Settings) -> tuple[Mapping[str, Axes], Mapping[str, Axes]]:
        """See `Stage`."""
        return cls.latents(settings), {"video": FRAMES}

    @classmethod
    def shapes(cls, settings: recipe.Settings, context: Context, given: Mapping[str, Shape]) -> Mapping[str, Shape]:
        """See `Diffusers`."""
        return {"video": shape_of(settings, {})}


def pieces(settings: recipe.Settings, execution: recipe.Execution) -> Sequence[Piece]:
    """The stages that a pipeline is cut into; none where it runs whole."""
    pipeline, found = known(settings)
    if not settings.split or pipeline is None or found is None or families.split_of(pipeline) is None:
        return ()
    denoising = [("denoise", Denoise)]
    if settings.split == "experts" and not why_no_experts(settings):
        denoising = [("high_noise", HighNoise), ("low_noise", LowNoise)]
    return (
        Piece("text", Text, execution.of("text")),
        *(Piece(name, cls, execution.of("denoise")) for name, cls in denoising),
        Piece("decode", Decode, execution.of("decode")),
    )


def why_no_experts(settings: recipe.Settings) -> str:
    """Why a pipeline has no two experts that could be apart; "": it has."""
    pipeline, found = known(settings)
    if pipeline is None or found is None:
        return ""
    split = families.split_of(pipeline)
    if split is None or not split.experts:
        return f"{pipeline.name} has no experts that are known"
    if not {"transformer", "transformer_2"} <= set(found.present) or found.index.get("boundary_ratio") is None:
        return "the checkpoint has one transformer"
    return ""


def _split(settings: recipe.Settings) -> families.Split:
    pipeline, _ = known(settings)
    split = None if pipeline is None else families.split_of(pipeline)
    assert split is not None  # else there are no pieces
    return split
