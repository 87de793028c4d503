"""Keyframes: text → the first, few and small frames of a clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from show1_ray.clip import Clip
from show1_ray.show1 import settings as recipe
from show1_ray.stages.noise import Noise, draw_batch
from show1_ray.stages.sampling import NoiseSchedule, Scheduler, denoise, guided_as_set
from show1_ray.stages.torch_stage import Tensors, TorchStage, device_and_dtype


class Keyframes(TorchStage):
    """Text-to-video diffusion in pixels (Show-1, section 3.2; the published script's first pipeline).

    Takes `prompt_embeds` and `negative_prompt_embeds`, L D. Gives `keyframes`, 3 F H W in about [−1, 1], not clamped.

    Draws: one of 3 F H W.
    """

    name = "keyframes"
    takes = {"prompt_embeds": "l d", "negative_prompt_embeds": "l d"}  # noqa: RUF012
    gives = {"keyframes": "c f h w"}  # noqa: RUF012

    def __init__(self, unet: nn.Module, scheduler: Scheduler, settings: recipe.Keyframes) -> None:
        self.unet, self.scheduler, self.settings = unet.eval(), scheduler, settings
        self.device, self.dtype = device_and_dtype(unet)

    def run(self, clips: Sequence[Clip], tensors: Sequence[Tensors], noise: Sequence[Noise]) -> list[dict[str, Tensor]]:
        """See `TorchStage`."""
        settings = self.settings
        text, negative = self.batch(tensors, "prompt_embeds"), self.batch(tensors, "negative_prompt_embeds")
        x = draw_batch(noise, (3, settings.frames, settings.height, settings.width), like=text)
        schedule = NoiseSchedule.of(self.scheduler, settings.steps)
        x = denoise(guided_as_set(self.unet, text, negative, settings, schedule), x, schedule, noise)
        return [{"keyframes": frames} for frames in x.cpu()]

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """See `TorchStage`."""
        return {"unet": self.unet}
