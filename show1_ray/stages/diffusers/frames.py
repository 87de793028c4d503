"""An image pipeline of diffusers over the frames of clips (`over: frames`). Stations import this."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image

from show1_ray.clip import Clip
from show1_ray.stage import NonFiniteError
from show1_ray.stages.diffusers import families, outputs
from show1_ray.stages.diffusers.layout import layout
from show1_ray.stages.diffusers.remember import Kept, remembering
from show1_ray.stages.diffusers.whole import RefusedError, Whole
from show1_ray.stages.resize import resized


@dataclass(frozen=True)
class Frame:
    """One frame of a clip.

    Attributes:
        pictures: argument → its image.
        others: arguments that are the same for all frames of the clip.
    """

    clip: Clip
    number: int
    pictures: Mapping[str, Image.Image]
    others: Mapping[str, Any]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return next(iter(self.pictures.values())).size


class OverFrames(Whole):
    """Clips in, with frames as arguments; frames out, of which each is what the pipeline's call gives for it alone."""

    def _load(self) -> None:
        super()._load()
        self._texts = Kept()
        if hasattr(self.pipe, "encode_prompt"):
            self.pipe.encode_prompt = remembering(self.pipe.encode_prompt, self._texts)

    def __call__(self, clips: Sequence[Clip], values: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
        """Frames of each clip, f h w c.

        Raises:
            RefusedError: see `Whole`; frames that the pipeline would cut; as many frames of each argument are needed.
            NonFiniteError: see `Whole`.
        """
        each = [self._frames(clip, value) for clip, value in zip(clips, values, strict=True)]
        images: list[np.ndarray] = []
        self.watch.begin()
        try:
            for batch in self._batches_of([frame for frames in each for frame in frames]):
                images += self._images(batch)
        finally:
            self._texts.clear()
        rest = iter(images)
        return [np.concatenate(list(islice(rest, len(frames)))) for frames in each]

    def _frames(self, clip: Clip, values: Mapping[str, Any]) -> list[Frame]:
        """Raises RefusedError."""
        arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray) and value.ndim == 4}
        others = {name: outputs.as_argument(value) for name, value in values.items() if name not in arrays}
        counts = {name: len(value) for name, value in arrays.items()}
        if len(set(counts.values())) != 1:
            each = ", ".join(f"{count} of {name}" for name, count in counts.items()) or "none"
            raise RefusedError(clip.id, self.context.name, f"as many frames of each are needed, and there are {each}")
        frames = []
        for number in range(next(iter(counts.values()))):
            pictures = {name: self._picture(value[number]) for name, value in arrays.items()}
            frames.append(Frame(clip, number, pictures, others))
        for frame in frames[:1]:
            self._refuse_cut_frames(frame)
        return frames

    def _picture(self, array: np.ndarray) -> Image.Image:
        image: Image.Image = outputs.as_argument(array)
        size = self.settings.resize
        return image if size is None else resized(image, (size.width, size.height))

    def _refuse_cut_frames(self, frame: Frame) -> None:
        if self._asks_for_size:
            return
        width, height = frame.size
        sizes = {"height": height, "width": width}
        best = families.cut_size(self.signature, layout(self.settings.checkpoint), sizes)
        if best is not None:
            what = f"{self.signature.name} would cut its frames of {width}x{height}"
            near = f"resize: {{height: {best['height']}, width: {best['width']}}}"
            raise RefusedError(frame.clip.id, self.context.name, f"{what}: give {near}")

    @property
    def _asks_for_size(self) -> bool:
        return any(name in self.settings.call for name in ("height", "width"))

    def _batches_of(self, frames: Sequence[Frame]) -> Iterator[Sequence[Frame]]:
        """Frames that are computed together: on CPUs each alone, so that it is the same bit for bit."""
        scheduler = getattr(self.pipe, "scheduler", None)
        together = self.device != "cpu" and families.may_batch(self.signature, scheduler, self.settings)
        most = self.context.execution.frames if together else 1
        batch: list[Frame] = []
        for frame in frames:
            if batch and (len(batch) == most or not self._go_together(batch[0], frame)):
                yield batch
                batch = []
            batch.append(frame)
        if batch:
            yield batch

    def _go_together(self, one: Frame, other: Frame) -> bool:
        same = one.clip is other.clip or (
            not one.others and not other.others and self.texts(one.clip).keys() == self.texts(other.clip).keys()
        )
        return same and one.size == other.size

    def _images(self, frames: Sequence[Frame]) -> list[np.ndarray]:
        """Of each frame its image, 1 h w c."""
        try:
            found = outputs.clips_of(self._output(frames), len(frames))
        except outputs.NotFiniteError:
            if len(frames) > 1:  # each alone, to see whose it is
                return [image for frame in frames for image in self._images([frame])]
            reason = f"frame {frames[0].number} has NaN or infinite values"
            raise NonFiniteError(frames[0].clip.id, self.context.name, reason) from None
        for frame, image in zip(frames, found, strict=True):
            self._check_image(frame, image)
        return found

    def _output(self, frames: Sequence[Frame]) -> Any:
        generators = [torch.Generator("cpu").manual_seed(self.seed(frame)) for frame in frames]
        pictures: dict[str, Any] = dict(frames[0].pictures)
        if len(frames) > 1:
            pictures = {name: [frame.pictures[name] for frame in frames] for name in pictures}
        call = self.arguments([frame.clip for frame in frames], {**frames[0].others, **pictures})
        call |= self.as_argument(generators) | self.as_pictures()
        with self.calling([frame.clip for frame in frames]):
            output = self.pipe(**call)
            self.refuse_cut_prompts()
        return output

    def seed(self, frame: Frame) -> int:
        """Of a frame's noise: the clip's or, where each frame has its own, that for the first frame only."""
        seed = frame.clip.generator_seed
        if self.settings.noise == "same" or frame.number == 0:
            return seed
        return int.from_bytes(hashlib.sha256(b"%d/%d" % (seed, frame.number)).digest()[:4], "big")

    def _check_image(self, frame: Frame, image: np.ndarray) -> None:
        """Raises RefusedError where a frame became several images, or one of another size."""
        name = self.signature.name
        if len(image) != 1:
            raise RefusedError(frame.clip.id, self.context.name, f"{name} gives {len(image)} images for one frame")
        if self._asks_for_size:
            return
        (width, height), (got_height, got_width) = frame.size, image.shape[1:3]
        if got_height % height or got_width % width or got_height // height != got_width // width:
            what = f"of frames of {width}x{height} {name} makes {got_width}x{got_height}"
            raise RefusedError(frame.clip.id, self.context.name, f"{what}: give resize, a size that it takes as it is")
