"""A pipeline of diffusers cut into text, denoising and decoding, whichever pipeline it is. Stations import this.

Each piece runs the pipeline's own call, with only its networks: encoding stops it where it comes to its first latents;
denoising gives it what was encoded in place of `encode_prompt`, and takes the latents; decoding gives it those in place
of its first latents, and a scheduler without steps. So nothing of a pipeline is written again here, and what comes out
is equal to the whole, bit for bit.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from show1_ray.clip import Clip
from show1_ray.stage import NonFiniteError
from show1_ray.stages.diffusers import families, loading, outputs
from show1_ray.stages.diffusers.remember import Kept, remembering
from show1_ray.stages.diffusers.whole import Loaded

Values = Mapping[str, Any]


class _EncodedError(Exception):
    """Ends a call whose texts have been encoded."""


class Part(Loaded):
    """A pipeline with some of its networks.

    Args:
        settings, context: of the stage.
        device: "cpu" or "cuda:0".
        holds: whether a network is one of its own.
    """

    def __init__(self, settings: Any, context: Any, device: str, holds: Callable[[str], bool]) -> None:
        found = loading.fetched(settings, ())[1]
        super().__init__(settings, context, device, [name for name in found.networks if holds(name)])

    def _load(self) -> None:
        super()._load()
        split = families.split_of(self.signature)
        assert split is not None
        self.split = split
        self.own = {*split.texts, "latents", "generator", "solver"}

    def call(self, clips: Sequence[Clip], values: Sequence[Values], **more: Any) -> Any:
        """The pipeline's call for a batch that goes through together."""
        given = {name: value for name, value in values[0].items() if name not in self.own}
        with self.calling(clips):
            return self.pipe(**self.arguments(clips, given) | more)

    def batches(self, clips: Sequence[Clip], values: Sequence[Values]) -> Iterator[tuple[list[Clip], list[Values]]]:
        """Clips that go through one call; see `Whole`."""
        extra = [value.keys() - self.own for value in values]
        for batch in self.together(clips, extra, [_shapes(value) for value in values]):
            yield list(clips[batch]), list(values[batch])


class Text(Part):
    """Prompts become what `encode_prompt` gives."""

    def _load(self) -> None:
        super()._load()
        self.kept, self.halves = Kept(), Kept()
        self.encoded: list[Any] = []
        encode = self.pipe.encode_prompt

        def stop(*_: Any, **__: Any) -> Any:
            raise _EncodedError

        def listen(*given: Any, **named: Any) -> Any:
            found = encode(*given, **named)
            self.encoded += found if isinstance(found, tuple | list) else [found]
            return found

        self.pipe.encode_prompt = wraps(encode)(listen)
        self.pipe.prepare_latents = stop
        self.pipe.scheduler.set_timesteps = wraps(self.pipe.scheduler.set_timesteps)(stop)
        for name in dir(type(self.pipe)):
            if name.startswith("_get_") and name.endswith("prompt_embeds"):
                setattr(self.pipe, name, remembering(getattr(self.pipe, name), self.halves))

    def __call__(self, clips: Sequence[Clip], values: Sequence[Values]) -> list[dict[str, Tensor]]:
        """Of each clip, what its texts become; equal texts are encoded once.

        Raises:
            RefusedError: a prompt that would be cut, a negative prompt that would be dropped.
        """
        return [self._text(clip, value) for clip, value in zip(clips, values, strict=True)]

    def _text(self, clip: Clip, value: Values) -> dict[str, Tensor]:
        if any(isinstance(one, Tensor) for one in value.values()):
            return self._encoded(clip, value)
        key = repr((self.texts(clip), self.settings.call, sorted(value.items())))
        found: dict[str, Tensor] = self.kept.found(key, lambda: self._encoded(clip, value))
        return found

    def _encoded(self, clip: Clip, value: Values) -> dict[str, Tensor]:
        self.encoded.clear()
        self.watch.begin()
        with suppress(_EncodedError):
            self.call([clip], [value])
        self.batch = [clip]
        try:
            self.refuse_cut_prompts()
        except Exception:
            self.halves.clear()  # so that it is noticed again
            raise
        return self._named()

    def _named(self) -> dict[str, Tensor]:
        """What was encoded, without its batch axis; what there is not, such as the negative half without guidance, is
        empty.
        """
        found = {}
        for place, (name, axes) in enumerate(self.split.texts.items()):
            tensor = self.encoded[place] if place < len(self.encoded) else None
            found[name] = torch.empty([0] * len(axes.split())) if tensor is None else tensor[0].cpu()
        return found


class Denoise(Part):
    """What was encoded becomes latents."""

    def _load(self) -> None:
        super()._load()
        self.waiting: list[Any] = []
        count = len(self.split.texts) // self.split.calls
        encode = self.pipe.encode_prompt

        def encoded(*_: Any, **__: Any) -> Any:
            found, self.waiting = self.waiting[:count], self.waiting[count:]
            return tuple(found)

        self.pipe.encode_prompt = wraps(encode)(encoded)

    def __call__(self, clips: Sequence[Clip], values: Sequence[Values]) -> list[dict[str, Tensor]]:
        """Of each clip its latents, and how far its generator is."""
        found = []
        for batch, given in self.batches(clips, values):
            found += self._denoised(batch, given)
        return found

    def _denoised(self, clips: Sequence[Clip], values: Sequence[Values]) -> list[dict[str, Tensor]]:
        self.waiting = [self._batch(values, name) for name in self.split.texts]
        generators = self.generators(clips, values)
        output = self.call(clips, values, **self.as_argument(generators), output_type="latent")
        latents = output[0] if isinstance(output, tuple) else next(iter(output.values()))
        return [
            {"latents": one.cpu(), "generator": generator.get_state()}
            for one, generator in zip(latents, generators, strict=True)
        ]

    def _batch(self, values: Sequence[Values], name: str) -> Tensor | None:
        tensors = [value[name] for value in values]
        return None if not tensors[0].numel() else torch.stack(tensors).to(self.device)


class Decode(Part):
    """Latents become frames."""

    def _load(self) -> None:
        super()._load()
        outputs.watch_values(self.pipe)
        self.latents: Tensor = torch.empty(0)
        encode, prepare = self.pipe.encode_prompt, self.pipe.prepare_latents
        kinds = list(self.split.texts.values())
        dtype = getattr(torch, self.context.dtype)

        def nothing(*_: Any, **__: Any) -> Any:
            count = len(kinds) // self.split.calls
            sizes = [(len(self.latents), *(8 for _ in axes.split())) for axes in kinds[:count]]
            return tuple(torch.zeros(size, dtype=dtype, device=self.device) for size in sizes)

        self.pipe.encode_prompt = wraps(encode)(nothing)
        self.pipe.prepare_latents = wraps(prepare)(lambda *_, **__: self.latents)
        without_steps(self.pipe.scheduler)

    def __call__(self, clips: Sequence[Clip], values: Sequence[Values]) -> list[dict[str, Any]]:
        """Of each clip its frames.

        Raises:
            RefusedError: other frames than asked.
            NonFiniteError: what was decoded has NaN or infinite values.
        """
        found = []
        for batch, given in self.batches(clips, values):
            self.latents = torch.stack([value["latents"] for value in given]).to(self.device)
            generators = self.generators(batch, given)
            try:
                output = self.call(batch, given, **self.as_argument(generators), output_type="pil")
                frames = outputs.clips_of(output, len(batch))
            except outputs.NotFiniteError:
                reason = "its frames have NaN or infinite values"
                raise NonFiniteError(batch[0].id, self.context.name, reason) from None
            for clip, one in zip(batch, frames, strict=True):
                self.check(clip, one)
            found += [{"video": one} for one in frames]
        return found


class HighNoise(Denoise):
    """The first expert: it stops at the boundary, and gives the solver's state besides."""

    goes_on = False

    def _load(self) -> None:
        super()._load()
        self.state: dict[str, Any] = {}
        self.steps = 0
        self.pipe.__class__ = type(
            type(self.pipe).__name__, (type(self.pipe),), {"interrupt": property(lambda _: self._skips())}
        )

    def _skips(self) -> bool:
        """Whether the step that comes is not this expert's; asked once for each, in their order."""
        scheduler = self.pipe.scheduler
        boundary = self.pipe.config.boundary_ratio * scheduler.config.num_train_timesteps
        step, self.steps = self.steps, self.steps + 1
        count = int((scheduler.timesteps >= boundary).sum())  # of the first expert's steps
        if self.goes_on:
            if step == count:
                set_state(scheduler, self.state, self.device)
            return step < count
        if step == count:
            self.state = state_of(scheduler)
        return step >= count

    def _denoised(self, clips: Sequence[Clip], values: Sequence[Values]) -> list[dict[str, Tensor]]:
        self.steps = 0
        self.state = {}
        found = super()._denoised(clips, values)
        states = apart(self.state or state_of(self.pipe.scheduler), len(clips))
        return [one | {"solver": packed(state)} for one, state in zip(found, states, strict=True)]


class LowNoise(HighNoise):
    """The second expert: it takes latents, generator and solver where the first one left them."""

    goes_on = True

    def _load(self) -> None:
        super()._load()
        self.latents: Tensor = torch.empty(0)
        self.pipe.prepare_latents = wraps(self.pipe.prepare_latents)(lambda *_, **__: self.latents)

    def _denoised(self, clips: Sequence[Clip], values: Sequence[Values]) -> list[dict[str, Tensor]]:
        self.steps = 0
        self.state = joined([unpacked(value["solver"]) for value in values])
        self.latents = torch.stack([value["latents"] for value in values]).to(self.device)
        return Denoise._denoised(self, clips, values)


def without_steps(scheduler: Any) -> None:
    """Lets a scheduler have no steps, whatever it is asked for; in place."""
    set_timesteps = scheduler.set_timesteps

    @wraps(set_timesteps)
    def none(*given: Any, **named: Any) -> None:
        set_timesteps(*given, **named)
        scheduler.timesteps = scheduler.timesteps[:0]

    scheduler.set_timesteps = none


_SET = ("timesteps", "sigmas", "betas", "alphas", "alphas_cumprod", "alpha_t", "sigma_t", "lambda_t", "_internal_dict")
"""What a scheduler's configuration and number of steps decide."""


def state_of(scheduler: Any) -> dict[str, Any]:
    """What a scheduler remembers of the steps that were: tensors, numbers, lists of them."""
    return {name: _copied(value) for name, value in vars(scheduler).items() if name not in _SET and _is_plain(value)}


def set_state(scheduler: Any, state: Mapping[str, Any], device: str) -> None:
    """Lets a scheduler go on from a state."""
    for name, value in state.items():
        setattr(scheduler, name, _moved(value, device))


def apart(state: Any, count: int) -> list[Any]:
    """The state of each clip of a batch: tensors of latents by their first axis."""
    if isinstance(state, Tensor) and state.dim() > 2:
        return [state[i : i + 1] for i in range(count)]
    if isinstance(state, dict):
        pieces = {name: apart(value, count) for name, value in state.items()}
        return [{name: values[i] for name, values in pieces.items()} for i in range(count)]
    if isinstance(state, list):
        lists = [apart(value, count) for value in state]
        return [[values[i] for values in lists] for i in range(count)]
    return [state] * count


def joined(states: Sequence[Any]) -> Any:
    """The state of a batch; see `apart`."""
    first = states[0]
    if isinstance(first, Tensor) and first.dim() > 2:
        return torch.cat(list(states))
    if isinstance(first, dict):
        return {name: joined([state[name] for state in states]) for name in first}
    if isinstance(first, list):
        return [joined(values) for values in zip(*states, strict=True)]
    return first


def packed(state: Mapping[str, Any]) -> Tensor:
    """A state as bytes."""
    file = io.BytesIO()
    torch.save(dict(state), file)
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)


def unpacked(state: Tensor) -> dict[str, Any]:
    """What `packed` made bytes of."""
    found: dict[str, Any] = torch.load(io.BytesIO(state.numpy().tobytes()), weights_only=True)
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(one) for one in value)
    return value is None or isinstance(value, Tensor | int | float | bool | str)


def _copied(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_copied(one) for one in value]
    return value.cpu().clone() if isinstance(value, Tensor) else value


def _moved(value: Any, device: str) -> Any:
    """Latents to the device; the small tensors of schedulers stay where they are."""
    if isinstance(value, list):
        return [_moved(one, device) for one in value]
    return value.to(device) if isinstance(value, Tensor) and value.dim() > 2 else value


def _shapes(values: Values) -> Any:
    return {name: tuple(value.shape) for name, value in values.items() if isinstance(value, Tensor)}


__all__ = ["Decode", "Denoise", "HighNoise", "LowNoise", "Text"]
