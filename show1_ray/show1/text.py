"""Text: prompts → embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from show1_ray.clip import Clip
from show1_ray.show1 import settings as recipe
from show1_ray.show1.stages import lower
from show1_ray.stages.noise import Noise
from show1_ray.stages.torch_stage import Tensors, TorchStage, device_and_dtype

CACHED_TEXTS = 256


class TextEncoder:
    """A tokenizer and its text model, as published: padded to a fixed length, truncated, last hidden state.

    Args:
        tokenizer: T5's or CLIP's, of transformers.
        model: `T5EncoderModel` or `CLIPTextModel`.
        max_tokens: embeddings a text.
        attends_mask: whether padding is hidden from the text model's own attention: True for T5, False for Stable
            Diffusion's CLIP, as in the published pipelines. (The UNets attend to padding all the same.)
    """

    def __init__(self, tokenizer: Any, model: nn.Module, max_tokens: int, *, attends_mask: bool) -> None:
        self.tokenizer, self.model = tokenizer, model
        self.max_tokens, self.attends_mask = max_tokens, attends_mask
        self._known: dict[str, Tensor] = {}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Encodes each distinct text once, and keeps the last `CACHED_TEXTS`: above all the negative prompt's.

        One at a time: sums differ in their last bits with the size of a batch, and a clip must not depend on its batch.

        Returns:
            B L D, on the CPU.
        """
        return torch.stack([self._encode(text) for text in texts])

    def forget(self) -> None:
        """Drops what is kept."""
        self._known.clear()

    def _encode(self, text: str) -> Tensor:
        if text not in self._known:
            while len(self._known) >= CACHED_TEXTS:
                self._known.pop(next(iter(self._known)))
            self._known[text] = self._embed(text)
        self._known[text] = self._known.pop(text)  # the last one used stands at the end
        return self._known[text]

    def _embed(self, text: str) -> Tensor:
        tokens = self.tokenizer(
            [text], padding="max_length", max_length=self.max_tokens, truncation=True, return_tensors="pt"
        )
        device, _ = device_and_dtype(self.model)
        mask = tokens.attention_mask.to(device) if self.attends_mask else None
        with torch.inference_mode():
            return self.model(tokens.input_ids.to(device), attention_mask=mask)[0][0].cpu()


class Text(TorchStage):
    """T5 embeddings of prompt and negative prompt, for all pixel stages.

    Takes nothing. Gives `prompt_embeds` and `negative_prompt_embeds`, each L D.
    """

    name = "text"
    gives = {"prompt_embeds": "l d", "negative_prompt_embeds": "l d"}  # noqa: RUF012

    def __init__(self, encoder: TextEncoder, settings: recipe.Text, dtype: torch.dtype) -> None:
        self.encoder, self.settings = encoder, settings
        self.device, _ = device_and_dtype(encoder.model)
        self.dtype = dtype

    def run(self, clips: Sequence[Clip], tensors: Sequence[Tensors], noise: Sequence[Noise]) -> list[dict[str, Tensor]]:
        """See `TorchStage`; draws no noise."""
        prompts = [self.prepare(clip.prompt) for clip in clips]
        negatives = [
            self.prepare(self.settings.negative_prompt if clip.negative_prompt is None else clip.negative_prompt)
            for clip in clips
        ]
        positive, negative = self.encoder(prompts + negatives).to(self.dtype).split(len(clips))
        return [{"prompt_embeds": p, "negative_prompt_embeds": n} for p, n in zip(positive, negative, strict=True)]

    def prepare(self, prompt: str) -> str:
        """The prompt as T5 is given it: lower case without white space around it, or DeepFloyd IF's cleaning."""
        if not self.settings.clean_caption:
            return lower(prompt)
        from diffusers.pipelines.deepfloyd_if.pipeline_if import IFPipeline  # slow, and seldom needed

        # The cleaning is a method that uses nothing of the pipeline but its own regular expressions.
        return object.__new__(IFPipeline)._text_preprocessing(prompt, clean_caption=True)[0]

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """See `TorchStage`."""
        return {"text_encoder": self.encoder.model}
