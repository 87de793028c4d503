"""What Show-1's stages declare: settings, what they take and give, their checkpoints. Knows no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from show1_ray.clip import Clip
from show1_ray.show1 import settings as of
from show1_ray.stage import FLOAT_FRAMES, FRAMES, Needs, Reject, Stage

EMBEDDINGS = {"prompt_embeds": "l d", "negative_prompt_embeds": "l d"}
DENOISING = ("unet", "scheduler")
NOISING = (*DENOISING, "image_noising_scheduler")


class _Cascade(Stage):
    """A stage of Show-1."""

    Execution = of.Execution
    tensors = "torch"

    def run(self, clips: Sequence[Clip], values: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any] | Reject]:
        """See `Stage.run`."""
        raise NotImplementedError


class Text(_Cascade):
    """T5: prompts to embeddings."""

    Settings = of.Text
    relative_seconds = 0.05
    gives = EMBEDDINGS

    @classmethod
    def checkpoints(cls, settings: of.Text) -> Sequence[Needs]:
        """See `Stage.checkpoints`."""
        return [Needs(settings.checkpoint, ("tokenizer", "text_encoder"))]


class Keyframes(_Cascade):
    """Embeddings to a few small frames, denoised from noise."""

    Settings = of.Keyframes
    takes = EMBEDDINGS
    gives: ClassVar[Mapping[str, str]] = {"keyframes": FLOAT_FRAMES}

    @classmethod
    def checkpoints(cls, settings: of.Keyframes) -> Sequence[Needs]:
        """See `Stage.checkpoints`."""
        return [Needs(settings.checkpoint, DENOISING)]


class Interpolation(_Cascade):
    """Frames between the keyframes, a window for each pair of neighbours."""

    Settings = of.Interpolation
    relative_seconds = 3.0
    takes: ClassVar[Mapping[str, str]] = {"keyframes": FLOAT_FRAMES, **EMBEDDINGS}
    gives: ClassVar[Mapping[str, str]] = {"frames": FLOAT_FRAMES}

    @classmethod
    def checkpoints(cls, settings: of.Interpolation) -> Sequence[Needs]:
        """See `Stage.checkpoints`."""
        return [Needs(settings.checkpoint, DENOISING)]


class SuperResolution(_Cascade):
    """Frames of `scale` times the width and height, window by window."""

    Settings = of.SuperResolution
    relative_seconds = 7.0
    takes: ClassVar[Mapping[str, str]] = {"frames": FLOAT_FRAMES, **EMBEDDINGS}
    gives: ClassVar[Mapping[str, str]] = {"frames_sr": FLOAT_FRAMES}

    @classmethod
    def checkpoints(cls, settings: of.SuperResolution) -> Sequence[Needs]:
        """See `Stage.checkpoints`."""
        return [
            Needs(settings.first_frame.checkpoint, NOISING, "first_frame.checkpoint"),
            Needs(settings.checkpoint, NOISING),
        ]


class LatentSuperResolution(_Cascade):
    """Frames of the final size, denoised from noised latents of a VAE."""

    Settings = of.LatentSuperResolution
    relative_seconds = 2.5
    Execution = of.LatentExecution
    takes: ClassVar[Mapping[str, str]] = {"frames_sr": FLOAT_FRAMES}
    gives: ClassVar[Mapping[str, str]] = {"video": FRAMES}

    @classmethod
    def checkpoints(cls, settings: of.LatentSuperResolution) -> Sequence[Needs]:
        """See `Stage.checkpoints`."""
        return [Needs(settings.checkpoint, ("tokenizer", "text_encoder", "unet", "vae", "scheduler"))]
