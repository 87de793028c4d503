"""Profiles and estimates for people, as text and tables."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table

from show1_ray.planning.estimate import NEAR_LEAST, Estimate
from show1_ray.planning.gpus import GIB
from show1_ray.planning.profile import Profile


def profile_report(profile: Profile) -> Iterator[RenderableType]:
    """A heading, and a row for each stage and batch size."""
    versions = ", ".join(f"{name} {version}" for name, version in profile.versions.items())
    yield f"{profile.pipeline} ({profile.dtype}, recipe {profile.recipe_hash}) on {profile.device}"
    yield f"{versions}; imports {profile.import_seconds:.1f} s"
    memory = "peak MiB" if profile.memory == "peak" else "MiB"
    table = _table("stage", "batch", "s/clip", memory, "weights", "load s", "out s", "in s")
    for name, stage in profile.stages.items():
        for batch in stage.batches:
            table.add_row(
                name,
                str(batch.size),
                f"{batch.seconds:.4g}",
                f"{batch.memory / 2**20:.0f}",
                f"{stage.weights / 2**20:.0f}",
                f"{stage.load_seconds:.2f}",
                f"{stage.leave_seconds:.2f}",
                f"{stage.swap_seconds:.2f}",
            )
    yield table


def plan_report(plan: Estimate) -> Iterator[RenderableType]:
    """The requested estimate, its basis, where stages are pinned, and what other numbers of GPUs would take."""
    unit, asked = plan.unit, plan.asked
    yield (
        f"{plan.pipeline}, {plan.clips:,} clips on {asked.gpus} x {plan.device}: {_hours(asked.hours)} "
        f"({asked.gpu_hours:,.1f} {unit}-hours"
        + (f", cost {asked.cost:,.2f}" if asked.cost is not None else "")
        + f"), {asked.clips_an_hour:,.0f} clips per hour, {unit}s busy {asked.busy_share:.0%}"
    )
    yield f"from {plan.source}"
    for assumption in plan.assumptions:
        yield f"  {assumption}"
    yield ""
    stages = _table("stage", "batch", "s/clip", "of the work", "GiB", "load s")
    for stage in plan.stages:
        stages.add_row(
            stage.name,
            str(stage.batch_size),
            f"{stage.seconds:.3g}",
            f"{stage.share:.0%}",
            f"{stage.memory / GIB:.2g}",
            f"{stage.load_seconds:.1f}",
        )
    yield stages
    if plan.beside:
        yield f"on CPU cores beside the {unit}s: {', '.join(plan.beside)}"
    yield ""
    for count, pinned in plan.pins:
        names = "every stage" if len(pinned) == len(plan.stages) else ", ".join(pinned) or "whatever is waiting"
        yield f"pinned to {count} {unit}{'s' if count > 1 else ''}: {names}"
    yield ""
    has_price = asked.cost is not None
    choices = _table(f"{unit}s", "hours", f"{unit}-hours", *(["cost"] if has_price else []), "clips/hour", "busy", "")
    for choice in plan.choices:
        notes = [*(["asked"] if choice == asked else []), *(["best"] if choice.gpus == plan.best else [])]
        choices.add_row(
            str(choice.gpus),
            f"{choice.hours:,.3g}",
            f"{choice.gpu_hours:,.3g}",
            *([f"{choice.cost:,.2f}"] if choice.cost is not None else []),
            f"{choice.clips_an_hour:,.0f}",
            f"{choice.busy_share:.0%}",
            ", ".join(notes),
        )
    yield choices
    near = f"{NEAR_LEAST - 1:.0%}"
    yield f"best: {plan.best}, the most {unit}s of these whose {unit}-hours are within {near} of the least"


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first, no_wrap=True, overflow="ignore")
    for name in others:
        table.add_column(name, justify="left" if not name else "right")
    return table


def _hours(hours: float) -> str:
    return f"{hours * 60:.1f} minutes" if hours < 2 else f"{hours:,.1f} hours"
