"""What a pipeline of diffusers computes for a clip, from its configurations alone: for plans and checks. Imports torch.

The pipeline's own call is made with networks on the meta device: each tells what it would compute and answers with
zeros of the right shapes, so that steps, guidance and experts are counted as they are walked, of any pipeline.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, wraps
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from show1_ray.errors import one_line
from show1_ray.stage import FRAMES, Context, Shape
from show1_ray.stages.diffusers import loading
from show1_ray.stages.diffusers.layout import Layout
from show1_ray.stages.diffusers.settings import Settings
from show1_ray.stages.diffusers.signatures import Signature
from show1_ray.stages.operations import weight_bytes

TOKENS = 512
"""Of a text, where the checkpoint's tokenizer does not say how many it takes."""
PICTURE = 512
"""Pixels of an image's sides that nobody knows before; pipelines resize it to what they are asked for."""


class UncountableError(Exception):
    """A call that cannot be counted: the reason."""


class _DoneError(Exception):
    """Ends a call where its frames would be made into pictures."""


def operations(
    settings: Settings,
    context: Context,
    given: Mapping[str, Shape],
    pipeline: Signature,
    found: Layout,
    networks: Collection[str] | None = None,
) -> float | None:
    """Floating-point operations a clip, of all networks or some of them; None where they cannot be counted."""
    shapes = tuple(sorted((name, shape) for name, shape in given.items()))
    try:
        counted = _count(settings.model_dump_json(), context.dtype, shapes, pipeline.name, str(found.place))
    except UncountableError:
        return None
    return float(sum(count for name, count in counted.items() if networks is None or name in networks))


def weights(settings: Settings, context: Context, found: Layout, networks: Collection[str] | None = None) -> int | None:
    """Bytes of the weights of all networks, or some of them; None where they are quantised, and not known."""
    if settings.quantize is not None:
        return None
    names = [name for name in found.networks if networks is None or name in networks]
    return sum(_bytes(str(found.place), name, context.dtype) for name in names)


@lru_cache(64)
def _bytes(place: str, name: str, dtype: str) -> int:
    return weight_bytes(loading.skeleton(_layout(place), name, dtype))


@lru_cache(32)
def _count(
    settings: str, dtype: str, given: tuple[tuple[str, Shape], ...], pipeline: str, place: str
) -> Mapping[str, int]:
    """Network → operations. Raises UncountableError.

    Latents are on the meta device, too, if the pipeline bears it; else there are some of zeros on the CPU, and its
    schedulers' arithmetic takes a while.
    """
    said = Settings.model_validate_json(settings)
    found = _layout(place)
    for device in ("meta", "cpu"):
        pipe, counted = _pretended(pipeline, found, dtype, device)
        loading.change(pipe, said.model_copy(update={"lora": (), "vae": (), "attention": None, "cache": None}))
        call, times = _arguments(said, dict(given), _parameters(pipe))
        try:
            with _quiet(), torch.no_grad():
                pipe(**call)
        except _DoneError:
            pass
        except Exception as error:
            if device == "cpu":
                raise UncountableError(one_line(error)) from error
            continue
        break
    return {name: count * times for name, count in counted.items()}


def _layout(place: str) -> Layout:
    return Layout(Path(place), json.loads((Path(place) / "model_index.json").read_text()))


def _pretended(pipeline: str, found: Layout, dtype: str, latents: str) -> tuple[Any, dict[str, int]]:
    """The pipeline whose networks count and give zeros, and what they have counted. Raises UncountableError."""
    cls = getattr(diffusers, pipeline)
    counted: dict[str, int] = dict.fromkeys(found.networks, 0)
    parts: dict[str, Any] = {}
    try:
        names = _parameters(cls.__init__)
        for name, (library, kind) in found.components.items():
            if name in names:
                parts[name] = None if library is None else _component(found, name, str(library), str(kind), dtype)
        values = {name: value for name, value in found.index.items() if name in names and name not in parts}
        pipe = cls(**parts, **values)
    except Exception as error:
        raise UncountableError(one_line(error)) from error
    for name in found.networks:
        if name in parts:
            pipe.__dict__[name] = Counting(name, parts[name], counted, json.dumps([dtype, found.config(name)]))
            if name.startswith("vae"):
                pipe.__dict__[name].device = torch.device(latents)  # pipelines send it their latents
    if hasattr(pipe, "prepare_latents"):
        prepare = pipe.prepare_latents
        pipe.prepare_latents = wraps(prepare)(lambda *given, **named: _moved(prepare(*given, **named), latents))
    for processor in vars(pipe).values():
        for method in ("postprocess", "postprocess_video"):
            if hasattr(processor, method):
                setattr(processor, method, _done)
    pipe.set_progress_bar_config(disable=True)
    return pipe, counted


def _component(found: Layout, name: str, library: str, kind: str, dtype: str) -> Any:
    if name in found.networks:
        return loading.skeleton(found, name, dtype)
    cls: Any = getattr(import_module(library), kind, None)
    if cls is not None and hasattr(cls, "load_config") and found.config(name):
        return cls.from_config(dict(found.config(name)))
    if "tokenizer" in name:
        return Tokens(found.place / name)
    if "processor" in name or "extractor" in name:
        return Pixels()
    return None


_CALLS: dict[Any, tuple[int, Any]] = {}
"""What calls of networks with a configuration compute, and what they give."""


class Counting:
    """A network on the meta device: its calls are counted, and answered with zeros.

    They are on the CPU, so that a pipeline may look at them, unless what it gave was on the meta device.
    """

    def __init__(self, name: str, network: nn.Module, counted: dict[str, int], config: str) -> None:
        self._name, self._network, self._counted, self._config = name, network, counted, config
        self.device = torch.device("cpu")

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._network, name)
        return _moved(found, "cpu") if isinstance(found, Tensor) else found

    def __call__(self, *given: Any, **named: Any) -> Any:
        return self._counting(self._network, "", given, named)

    def encode(self, *given: Any, **named: Any) -> Any:
        """Of an autoencoder."""
        return self._counting(self._network.encode, "encode", given, named)

    def decode(self, *given: Any, **named: Any) -> Any:
        """Of an autoencoder."""
        return self._counting(self._network.decode, "decode", given, named)

    def _counting(self, method: Any, kind: str, given: Sequence[Any], named: Mapping[str, Any]) -> Any:
        if "text_encoder" in self._name:  # a mask costs no operations, and transformers looks at its values
            named = {name: value for name, value in named.items() if name != "attention_mask"}
            given = given[:1]
        key = self._config, kind, repr((_described(list(given)), _described(dict(named))))
        if key not in _CALLS:
            meta, options = _moved(list(given), "meta"), _moved(dict(named), "meta")
            with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter, WholeMasks():
                answer = method(*meta, **options)
            _CALLS[key] = counter.get_total_flops(), answer
        count, answer = _CALLS[key]
        self._counted[self._name] += count
        return _moved(answer, "meta" if any(map(_is_meta, (*given, *named.values()))) else "cpu")


class WholeMasks(TorchFunctionMode):
    """Masks on the meta device choose everything; what inverts them chooses nothing."""

    def __torch_function__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        if function is Tensor.__getitem__ and isinstance(given[1], Tensor) and given[1].dtype == torch.bool:
            value, mask = given
            rows = value.flatten(0, mask.dim() - 1)
            return rows[:0] if getattr(mask, "is_inverted", False) else rows
        if function is Tensor.__bool__ and given[0].is_meta:
            return True  # "is all of it zero?"
        answer = function(*given, **(named or {}))
        if function in (Tensor.__invert__, torch.bitwise_not, Tensor.bitwise_not, torch.logical_not):
            answer.is_inverted = not getattr(given[0], "is_inverted", False)
        elif function in (Tensor.unsqueeze, Tensor.to) and getattr(given[0], "is_inverted", False):
            answer.is_inverted = True
        return answer


class Tokens:
    """In place of a tokenizer: texts of as many tokens as are encoded."""

    def __init__(self, place: Path) -> None:
        path = place / "tokenizer_config.json"
        said = json.loads(path.read_text()).get("model_max_length") if path.is_file() else None
        self.model_max_length = said if isinstance(said, int) and said < 10_000 else TOKENS
        self._last = self.model_max_length

    def __call__(self, text: Any = None, max_length: int | None = None, padding: Any = None, **_: Any) -> Any:
        self._last = self._last if padding == "longest" else max_length or self.model_max_length
        count = 1 if isinstance(text, str) else len(text)
        ids = torch.ones((count, self._last), dtype=torch.int64)
        return Encoded(input_ids=ids, attention_mask=torch.ones_like(ids))

    def apply_chat_template(self, texts: Any, max_length: int | None = None, **_: Any) -> Any:
        """Of chats."""
        return self(texts, max_length)

    def tokenize(self, *_: Any, **__: Any) -> list[str]:
        """None that an embedding of the user's would stand for."""
        return []

    def batch_decode(self, *_: Any, **__: Any) -> list[str]:
        """Nothing."""
        return []


class Encoded(dict[str, Any]):
    """What a tokenizer or an image processor gives."""

    def __getattr__(self, name: str) -> Any:
        return self[name]

    def to(self, *_: Any, **__: Any) -> Encoded:
        """Stays here."""
        return self


class Pixels:
    """In place of what prepares images for an image encoder."""

    def __call__(self, images: Any = None, **_: Any) -> Any:
        count = len(images) if isinstance(images, list) else 1
        return Encoded(pixel_values=torch.zeros((count, 3, 224, 224)))


def _arguments(said: Settings, given: Mapping[str, Shape], names: Collection[str]) -> tuple[dict[str, Any], int]:
    """What the call is given, and how often it is made for a clip. Raises UncountableError."""
    call: dict[str, Any] = {**said.call, "generator": torch.Generator("cpu").manual_seed(0), "prompt": "a text"}
    times = 1
    for name, shape in given.items():
        sizes = dict(zip(shape.axes.split(), shape.sizes, strict=True)) if shape.sizes else {}
        sides = [said.resize.width, said.resize.height] if said.resize else [sizes.get("w"), sizes.get("h")]
        if sides[0] is None:
            sides = [said.call.get("width", PICTURE), said.call.get("height", PICTURE)]
        picture = Image.new("RGB", (int(sides[0] or PICTURE), int(sides[1] or PICTURE)))
        if shape.axes == FRAMES and sizes.get("f") is None:
            raise UncountableError("how many frames there are is not known")
        if shape.axes == FRAMES and said.over is None:
            call[name] = [picture] * int(sizes["f"] or 1)
        elif shape.axes in (FRAMES, "h w c"):
            call[name] = picture
            times = int(sizes["f"] or 1) if shape.axes == FRAMES else times
    return {name: value for name, value in call.items() if name in names}, times


def _parameters(function: Any) -> list[str]:
    target = type(function).__call__ if isinstance(function, diffusers.DiffusionPipeline) else function
    return list(inspect.signature(target).parameters)


def _described(value: Any) -> Any:
    match value:
        case Tensor():
            return tuple(value.shape), str(value.dtype)
        case list() | tuple():
            return [_described(one) for one in value]
        case dict():
            return {key: _described(one) for key, one in value.items()}
        case int() | float() | str() | None:
            return value
    return type(value).__name__


def _moved(value: Any, device: str) -> Any:
    """Tensors there, as zeros."""
    match value:
        case Tensor():
            return torch.zeros(value.shape, dtype=value.dtype, device=device)
        case DiagonalGaussianDistribution():
            return DiagonalGaussianDistribution(_moved(value.parameters, device))
        case dict():
            moved = {key: _moved(one, device) for key, one in value.items()}
            return moved if type(value) is dict else type(value)(**moved)
        case list():
            return [_moved(one, device) for one in value]
        case tuple() if hasattr(value, "_fields"):
            return type(value)(*(_moved(one, device) for one in value))
        case tuple():
            return tuple(_moved(one, device) for one in value)
    if hasattr(value, "latent_dist"):
        return SimpleNamespace(latent_dist=_moved(value.latent_dist, device))
    return value


def _is_meta(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_is_meta, value))
    return isinstance(value, Tensor) and value.is_meta


def _done(*_: Any, **__: Any) -> Any:
    raise _DoneError


@contextmanager
def _quiet() -> Iterator[None]:
    """What diffusers logs of a call that only pretends is of no use."""
    logger = logging.getLogger("diffusers")
    before, logger.disabled = logger.level, True
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.disabled = False
        logger.setLevel(before)


__all__ = ["UncountableError", "operations", "weights"]
