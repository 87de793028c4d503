"""The line-up: the stages of a pipeline as the line sees them, from what they declare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from show1_ray.clip import Clip
from show1_ray.errors import UserError
from show1_ray.line.spec import Order, StageSpec
from show1_ray.pipeline import Pipeline
from show1_ray.pipeline.adapter import Blueprint, Given, Later, Taken
from show1_ray.pipeline.inputs import InputError
from show1_ray.pipeline.reading import reading_stage
from show1_ray.pipeline.sources import Sources
from show1_ray.pipeline.wiring import INPUTS, VIDEO, Ref, Wired
from show1_ray.stage import FLOAT_FRAMES, FRAMES, PLAIN, Axes

if TYPE_CHECKING:
    from show1_ray.planning.costs import Costs


def stage_specs(
    pipeline: Pipeline, costs: Costs, deliver: bool = False, sources: Sources | None = None
) -> list[StageSpec]:
    """The pipeline's stages as the line sees them.

    Args:
        pipeline: whose stages they are.
        costs: of each of them.
        deliver: the clip is given as `video`, 8-bit frames, whatever the pipeline calls it.
        sources: where images and videos of `inputs` may be read; the stage that does it comes first.
    """
    reading = reading_stage(pipeline, sources or Sources())
    specs = [] if reading is None else [reading]
    for stage, blueprint in zip(pipeline.wired(), blueprints(pipeline, deliver), strict=True):
        cost = costs[stage.name]
        specs.append(
            StageSpec(
                name=stage.name,
                build=Later(Blueprint.build, blueprint),
                takes=_lines(taken.line for taken in blueprint.takes.values() if taken.wanted != PLAIN),
                values=_lines(taken.line for taken in blueprint.takes.values() if taken.wanted == PLAIN),
                gives=_lines(line for given in blueprint.gives.values() if given.axes != PLAIN for line in given.lines),
                plain=_lines(line for given in blueprint.gives.values() if given.axes == PLAIN for line in given.lines),
                batch_size=stage.execution.batch_size,
                seconds=cost.seconds,
                load_seconds=cost.load_seconds,
                swap_seconds=cost.swap_seconds,
                memory=cost.memory,
                output_bytes=output_bytes(stage) or 0,
                on=runs_on(stage),
                cpus=max(1, stage.execution.cpus),
            )
        )
    return specs


def order(pipeline: Pipeline, clip: Clip, given: Mapping[str, Any] | None = None) -> Order:
    """What the line is given of a clip: plain inputs as values that stages take, and whom it may share batches with.

    Args:
        pipeline: that renders it.
        clip: whose inputs have their types and defaults.
        given: other values for stages.
    """
    values = {
        f"{INPUTS}.{one.name}": clip.inputs[one.name]
        for one in pipeline.inputs
        if not one.is_file and one.setting is None and one.name in clip.inputs
    }
    return Order(clip, {**values, **(given or {})}, keys=pipeline.batch_keys(clip.inputs))


def order_of_anybody(pipeline: Pipeline, clip: Clip) -> Order:
    """`order` of a clip that comes from no manifest.

    Raises:
        UserError: an input that the pipeline does not have, one that is missing, or a wrong value.
    """
    unknown = [name for name in clip.inputs if name not in pipeline.input_columns.names]
    if unknown:
        known = ", ".join(map(repr, pipeline.input_columns.names)) or "none"
        raise UserError(f"clip {clip.id!r}: {pipeline.name} has no input {unknown[0]!r}; there is {known}")
    try:
        return order(pipeline, replace(clip, inputs=pipeline.input_columns.read(clip.inputs)))
    except InputError as error:
        raise UserError(f"clip {clip.id!r}: {error}") from None


def blueprints(pipeline: Pipeline, deliver: bool = False) -> list[Blueprint]:
    """What stations know of the pipeline's stages, in their order; see `stage_specs`."""
    wired = pipeline.wired()
    axes = given_axes(wired)
    names = line_names(wired, pipeline.video) if deliver else {}
    return [
        replace(_blueprint(stage, axes, names, pipeline.video if deliver else None), rows=pipeline.sets(stage.key))
        for stage in wired
    ]


def stage_names(pipeline: Pipeline) -> tuple[str, ...]:
    """Names of the stages as the line sees them, in their order; see `stage_specs`."""
    reading = reading_stage(pipeline, Sources())
    return (*([] if reading is None else [reading.name]), *(stage.name for stage in pipeline.wired()))


def runs_on(stage: Wired) -> Any:
    """Where the line runs a stage: "station", "cpus" (stations of CPU cores) or "cpu" (tasks without state)."""
    if stage.execution.device != "cpu":
        return "station"
    return "cpus" if stage.execution.cpus else "cpu"


def output_bytes(stage: Wired) -> int | None:
    """Bytes of what a stage gives for a clip; None where it does not say."""
    sizes = [shape.bytes for shape in stage.shapes.values() if shape.axes != PLAIN]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def frames_of(pipeline: Pipeline, deliver: bool = False) -> dict[str, tuple[str, Axes]]:
    """Stages whose frames can be saved and shown besides the clip: the line's name of these, and their axes."""
    wired = pipeline.wired()
    names = line_names(wired, pipeline.video) if deliver else {}
    found = {}
    for stage in wired:
        for name in stage.frames:
            if (stage.name, name) != (pipeline.video.stage, pipeline.video.name):
                line = stage.gives[name]
                found[stage.name] = (names.get(line, line), stage.shapes[name].axes)
    return found


def saved_frames(pipeline: Pipeline, stages: list[str]) -> dict[str, tuple[str, Axes]]:
    """`frames_of` the stages that `--save-stages` names.

    Raises:
        UserError: no such stage, or one that gives no frames.
    """
    there = frames_of(pipeline)
    for name in stages:
        if name not in there:
            raise UserError(f"--save-stages {name}: no such stage; there are {', '.join(there) or 'none'}")
    return {name: there[name] for name in stages}


def given_axes(wired: tuple[Wired, ...]) -> dict[tuple[str, str], Axes]:
    """Axes of all values that stages give, by stage and name."""
    return {
        (stage.name, name): axes for stage in wired for name, axes in stage.cls.signature(stage.settings)[1].items()
    }


def line_names(wired: tuple[Wired, ...], clip: Ref) -> dict[str, str]:
    """Names on the line that change where the clip is delivered as `video`: what else is called so says whose it is."""
    if clip.line == VIDEO and clip.axes == FRAMES:
        return {}
    whose = next((stage.name for stage in wired if VIDEO in stage.gives.values()), None)
    return {} if whose is None else {VIDEO: f"{whose}.{VIDEO}"}


def _blueprint(
    stage: Wired, axes: Mapping[tuple[str, str], Axes], names: Mapping[str, str], clip: Ref | None
) -> Blueprint:
    _, gives = stage.cls.signature(stage.settings)
    return Blueprint(
        stage.cls,
        stage.settings,
        stage.execution,
        stage.context,
        {
            name: Taken(names.get(ref.line, ref.line), _axes_on_the_line(ref, axes), stage.taken[name].axes, ref.index)
            for name, ref in stage.takes.items()
        },
        {name: _given(stage, name, axes, names, clip) for name, axes in gives.items()},
        code=stage.code,
    )


def _axes_on_the_line(ref: Ref, axes: Mapping[tuple[str, str], Axes]) -> Axes:
    """Of the whole value, also where one frame of it is meant."""
    whole = {"h w c": FRAMES, "c h w": FLOAT_FRAMES}.get(ref.axes, ref.axes) if ref.index is not None else ref.axes
    return axes.get((ref.stage, ref.name), whole)


def _given(stage: Wired, name: str, axes: Axes, names: Mapping[str, str], clip: Ref | None) -> Given:
    line = names.get(stage.gives[name], stage.gives[name])
    is_clip = clip is not None and (clip.stage, clip.name) == (stage.name, name)
    return Given({line: axes, VIDEO: FRAMES} if is_clip else {line: axes}, axes)


def _lines(names: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
