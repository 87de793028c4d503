"""A batch of clips through a whole pipeline of diffusers, as its own call computes each. Stations import this."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from show1_ray.clip import Clip
from show1_ray.stage import Context, NonFiniteError, StageError
from show1_ray.stages.diffusers import checks, families, loading, outputs, prompts
from show1_ray.stages.diffusers.layout import signature
from show1_ray.stages.diffusers.settings import Settings
from show1_ray.stages.host_copy import HostCopy


class RefusedError(StageError):
    """A clip that the pipeline would not make as its row says; another attempt would end the same."""

    is_permanent: ClassVar[bool] = True


class Loaded:
    """A pipeline with (some of) its components on a device, from where they may go and come back.

    Args:
        settings, context: of the stage.
        device: "cpu" or "cuda:0".
        components: networks that it needs; None: all.
    """

    def __init__(self, settings: Settings, context: Context, device: str, components: Sequence[str] | None = None):
        self.settings, self.context, self.device, self.held = settings, context, device, components
        self._host: HostCopy | None = None
        self._load()

    def _load(self) -> None:
        self.pipe: Any = loading.load_pipeline(self.settings, self.context.dtype, self.device, self.held)
        pipeline = signature(self.settings)
        assert pipeline is not None
        self.signature = pipeline
        self.watch = prompts.watched(self.pipe)
        self.batch: Sequence[Clip] = ()

    @property
    def networks(self) -> list[nn.Module]:
        """All networks."""
        return [one for one in self.pipe.components.values() if isinstance(one, nn.Module)]

    def loaded_bytes(self) -> int:
        """Bytes of the weights."""
        tensors = {id(one): one for network in self.networks for one in (*network.parameters(), *network.buffers())}
        return sum(one.numel() * one.element_size() for one in tensors.values())

    def leave(self) -> None:
        """The weights to host memory; quantised ones, which do not move, are let go."""
        if self.settings.quantize is not None:
            del self.pipe
        else:
            self._host = self._host or HostCopy(self.networks)
            self._host.leave()
        self.device = "cpu"

    def enter(self, device: str) -> None:
        """Back from where `leave` put them."""
        self.device = device
        if self._host is None:
            self._load()
        else:
            self._host.enter(device)

    @contextmanager
    def calling(self, clips: Sequence[Clip]) -> Iterator[None]:
        """Within it the pipeline is called for a batch."""
        self.batch = clips
        try:
            with loading.attention_of(self.settings):
                yield
        finally:
            self.batch = ()
            self.pipe.maybe_free_model_hooks()  # caches of a call that did not end

    def as_pictures(self) -> dict[str, Any]:
        """Arguments by which the call gives pictures of 8 bits, as far as it knows them."""
        asked = {"output_type": "pil", "return_dict": True}
        return {name: value for name, value in asked.items() if name in self.signature.call}

    def refuse_cut_prompts(self) -> None:
        """Raises RefusedError if a prompt of the batch was cut."""
        cut = self.watch.cut
        if cut is not None and self.settings.long_prompts == "refuse" and self.batch:
            clip = self.batch[min(cut.place, len(self.batch) - 1)]
            raise RefusedError(
                clip.id,
                self.context.name,
                f"its prompt has {cut.tokens} tokens, but {self.signature.name} encodes {cut.limit}: shorten it, or "
                "set long_prompts: cut",
            )

    def texts(self, clip: Clip) -> dict[str, str]:
        """What the call is given of a clip's texts. Raises RefusedError for a negative prompt where there is none."""
        found = {"prompt": clip.prompt} if "prompt" in self.signature.call else {}
        negative = clip.negative_prompt if clip.negative_prompt is not None else self.settings.negative_prompt
        if negative and (reason := checks.no_negative(self.settings, self.signature)):
            raise RefusedError(clip.id, self.context.name, f"it has a negative prompt, but {reason}")
        if negative is not None and "negative_prompt" in self.signature.call:
            found["negative_prompt"] = negative
        return found

    def together(
        self, clips: Sequence[Clip], extra: Sequence[Collection[str]], shapes: Sequence[Any] | None = None
    ) -> Iterator[slice]:
        """Clips that are called together: on CPUs each alone, so that it is the same bit for bit in any batch.

        Args:
            clips: the batch.
            extra: of each clip, names of values that it brings as arguments: such a clip is called alone.
            shapes: of each clip; those that are called together have the same.
        """
        fits = self.device != "cpu" and families.may_batch(self.signature, self.pipe.scheduler, self.settings)
        start = 0
        while start < len(clips):
            end = start + 1
            keys = self.texts(clips[start]).keys()
            while (
                fits
                and end < len(clips)
                and not extra[start]
                and not extra[end]
                and self.texts(clips[end]).keys() == keys
                and (shapes is None or shapes[start] == shapes[end])
            ):
                end += 1
            yield slice(start, end)
            start = end

    def arguments(self, clips: Sequence[Clip], given: Mapping[str, Any]) -> dict[str, Any]:
        """What the call is given of a batch, but for generators."""
        texts = [self.texts(clip) for clip in clips]
        own = texts[0] if len(clips) == 1 else {name: [one[name] for one in texts] for name in texts[0]}
        return {**self.settings.call, **{name: outputs.as_argument(value) for name, value in given.items()}, **own}

    def generators(self, clips: Sequence[Clip], values: Sequence[Mapping[str, Any]]) -> list[torch.Generator]:
        """One for each clip: new, or as far as an earlier piece of the pipeline left it."""
        found = [torch.Generator("cpu").manual_seed(clip.generator_seed) for clip in clips]
        for generator, value in zip(found, values, strict=True):
            if "generator" in value:
                generator.set_state(value["generator"])
        return found

    def as_argument(self, generators: Sequence[torch.Generator]) -> dict[str, Any]:
        """Generators as the call takes them."""
        if "generator" not in self.signature.call:
            return {}
        return {"generator": generators[0] if len(generators) == 1 else list(generators)}

    def check(self, clip: Clip, frames: np.ndarray) -> None:
        """Raises RefusedError where something else came out than was asked for."""
        frames_name = families.frames_argument(self.signature) or ""
        for axis, name in enumerate((frames_name, "height", "width")):
            asked, got = self.settings.call.get(name), frames.shape[axis]
            is_multiple = isinstance(asked, int) and asked > 0 and got >= 2 * asked and got % asked == 0
            if isinstance(asked, int) and asked != got and not (is_multiple and axis > 0):
                what = f"{name}: {asked} was asked for, but {self.signature.name} makes {got} of it: give {got}"
                raise RefusedError(clip.id, self.context.name, what)


class Whole(Loaded):
    """A whole pipeline: clips in, 8-bit frames out."""

    def _load(self) -> None:
        super()._load()
        outputs.watch_values(self.pipe)
        for network in loading.denoisers(self.pipe).values():
            network.register_forward_pre_hook(lambda *_: self.refuse_cut_prompts())

    def __call__(self, clips: Sequence[Clip], values: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
        """Frames of each clip, f h w c.

        Raises:
            RefusedError: a prompt that would be cut, a negative prompt that would be dropped, other frames than asked.
            NonFiniteError: what was decoded has NaN or infinite values.
        """
        found: list[np.ndarray] = []
        for batch in self.together(clips, values):
            frames = self._called(clips[batch], values[batch])
            for clip, one in zip(clips[batch], frames, strict=True):
                self.check(clip, one)
            found += frames
        return found

    def _called(self, clips: Sequence[Clip], values: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
        call = self.arguments(clips, values[0]) | self.as_argument(self.generators(clips, values)) | self.as_pictures()
        self.watch.begin()
        try:
            with self.calling(clips):
                output = self.pipe(**call)
                self.refuse_cut_prompts()
            return outputs.clips_of(output, len(clips))
        except outputs.NotFiniteError:
            raise NonFiniteError(clips[0].id, self.context.name, "its frames have NaN or infinite values") from None
