"""What a pipeline file says beside its stages, and their settings by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from show1_ray.stage import StageSettings

Dtype = Literal["float16", "bfloat16", "float32"]


class Head(StageSettings):
    """What a pipeline file says beside its stages."""

    name: str
    description: str = Field("", description="a line for `show1-ray pipelines`")
    dtype: Dtype = Field("float16", description="of the weights, of what is computed, and of the noise that is drawn")
    fps: Annotated[float, Field(ge=0.01, le=240)] = Field(8, description="frames a second of the clips")
    clip: str | None = Field(None, description="the value that is the clip; default: the newest frames")


class Stages(Mapping[str, Any]):
    """Settings by stage, in order: `stages["keyframes"]`, or `stages.keyframes`."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = dict(settings)

    def __getitem__(self, name: str) -> Any:
        return self._settings[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._settings:
            raise AttributeError(f"the pipeline has no stage {name!r}; it has {', '.join(self.__dict__['_settings'])}")
        return self._settings[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._settings)

    def __len__(self) -> int:
        return len(self._settings)

    def __repr__(self) -> str:
        return f"Stages({self._settings!r})"
