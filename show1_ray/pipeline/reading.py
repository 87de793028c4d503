"""The line's first stage if rows bring images and videos: reads them near the work, in tasks on CPUs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from show1_ray.clip import Clip
from show1_ray.line.spec import StageSpec
from show1_ray.pipeline import Pipeline
from show1_ray.pipeline.columns import of_content
from show1_ray.pipeline.inputs import Input, InputError
from show1_ray.pipeline.media import MOST_BYTES, read_image, read_video
from show1_ray.pipeline.sources import Sources
from show1_ray.pipeline.wiring import INPUTS
from show1_ray.stage import StageError

READ_SECONDS = 0.1
"""Seconds to read a file, until the line has measured it."""


def reading_stage(pipeline: Pipeline, sources: Sources) -> StageSpec | None:
    """The stage that reads images and videos that stages take; None where there are none.

    Besides the arrays it gives the SHA-256 of each file as the plain value `<input>_sha256`: a URL may lead to another
    file some day.
    """
    taken = {ref.name: ref.line for stage in pipeline.wired() for ref in stage.takes.values() if ref.stage == INPUTS}
    files = {one: taken[one.name] for one in pipeline.inputs if one.is_file and one.name in taken}
    if not files:
        return None
    return StageSpec(
        name=INPUTS,
        build=partial(Reading.on, files, sources),
        gives=tuple(files.values()),
        plain=tuple(of_content(one.name) for one in files),
        on="cpu",
        seconds=READ_SECONDS,
    )


class UnusableError(StageError):
    """A file that is not there, not allowed, or not what it should be, now and later."""

    is_permanent = True


@dataclass(frozen=True)
class Reading:
    """Reads the files of clips.

    Attributes:
        files: inputs, and their names on the line.
        sources: what may be read.
    """

    files: Mapping[Input, str]
    sources: Sources

    @classmethod
    def on(cls, files: Mapping[Input, str], sources: Sources, device: str) -> Reading:
        """As a `StageSpec` builds it."""
        return cls(files, sources)

    def __call__(self, clips: Sequence[Clip], arrays: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Gives each clip's images (`h w c`) and videos (`f h w c`), uint8.

        Raises:
            StageError: one cannot be read; it names the column, and says whether another attempt may do better.
        """
        return [self._read(clip) for clip in clips]

    def _read(self, clip: Clip) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for one, line in self.files.items():
            try:
                data = self.sources.read(clip.inputs[one.name], MOST_BYTES[one.kind])
                found[line] = read_image(data) if one.kind == "image" else read_video(data)
            except InputError as error:
                kind = StageError if error.passing else UnusableError
                raise kind(clip.id, INPUTS, f"column {one.name!r} {error}") from None
            found[of_content(one.name)] = hashlib.sha256(data).hexdigest()
        return found
