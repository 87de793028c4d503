"""The line of a pipeline, kept open for clips that come one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from show1_ray.cluster.connection import checked_address, cluster
from show1_ray.line import LineSettings, Service
from show1_ray.line.events import Event
from show1_ray.pipeline import Pipeline
from show1_ray.pipeline.lineup import order_of_anybody, stage_specs
from show1_ray.pipeline.sources import Sources
from show1_ray.pipeline.wiring import VIDEO
from show1_ray.planning.costs import costs_of_job, job_device
from show1_ray.planning.gpus import gauge, memory_for_stages


@contextmanager
def open_line(
    pipeline: str | Path | Pipeline = "nano",
    *,
    overrides: Sequence[str] = (),
    code: str | Path | None = None,
    allow_private_urls: bool = False,
    address: str | None = None,
    max_waiting: int = 64,
    settings: LineSettings | None = None,
    observe: Callable[[Event], None] | None = None,
) -> Iterator[Service]:
    """Opens a pipeline's line for clips that come one by one; each is submitted, followed and cancelled by itself.

        with show1_ray.open_line("nano") as line:
            async for event in line.render(Clip("a", "a red circle", seed=7), outputs=["keyframes"]):
                ...

    It yields a `show1_ray.line.Service`, which describes the events. Outputs of the Show-1 stages are "keyframes",
    "frames" (of interpolation) and "frames_sr" (of super-resolution): arrays C F H W in [−1, 1], which
    `pipeline.arrays.to_uint8` converts to viewable frames. `ClipDone.result["video"]` is the clip: F H W 3, uint8, with
    the same frames that `show1_ray.render` makes from the same prompt, negative prompt and seed.

    Args:
        pipeline: a name, a pipeline file, or a loaded pipeline.
        overrides: `stage.key=value` changes to it; see `Pipeline.load`.
        code: a Python file, folder or module whose stages the pipeline may use.
        allow_private_urls: also read images and videos among clips' inputs at addresses that are not public, and from
            local files outside the current folder.
        address: a Ray cluster, as for `render`. An existing connection is used, and left open.
        max_waiting: how many clips may wait for their first stage; more are refused with `FullError`.
        settings: of the line; default: one station per GPU, or per CPU core, which loads its stages before they are
            needed (`line.warm` is set when they are loaded).
        observe: called with each event of the line, in the line's thread.

    Raises:
        UserError: bad input, no cluster, or stages that do not fit.
    """
    address = checked_address(address)
    loaded = pipeline if isinstance(pipeline, Pipeline) else Pipeline.load(pipeline, overrides, code)
    loaded = loaded.resolved()
    loaded.fetch() if address == "local" else loaded.check_access()
    settings = settings or LineSettings(warm=True, measure_memory=memory_for_stages, gauge=gauge)
    sources = Sources(str(Path.cwd()), allow_private_urls)
    with cluster(address, settings.variables(settings.threads)) as watch:
        settings = replace(settings, inherited=watch.inherited)
        costs = costs_of_job(loaded, job_device(address, settings))
        specs = stage_specs(loaded, costs, deliver=True, sources=sources)
        orders = partial(order_of_anybody, loaded)
        with Service(specs, settings, max_waiting, observe, results=(VIDEO,), order=orders) as line:
            watch.when_gone(line.end)
            yield line
