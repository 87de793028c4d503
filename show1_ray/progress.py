"""A job's progress: a live table in a terminal, one line every half minute elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from show1_ray.errors import Notice
from show1_ray.line.events import ClipFailed, NodeAvoided, Snapshot, StationLost, StationsAwaited, StationShutOut
from show1_ray.output import Console

if TYPE_CHECKING:
    from show1_ray.job import Summary

LINE_SECONDS = 30.0


class Progress:
    """Shows the line's events on `console`. A context manager; `observe` is called with each event."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = Live(console=console, refresh_per_second=4, transient=False) if console.is_terminal else None
        self._next_line = 0.0

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def print(self, text: str, style: str | None = None) -> None:
        """A line, which scrolls away above the table."""
        self.console.print(text, style=style)

    def observe(self, event: Any) -> None:
        """Shows what is worth it."""
        match event:
            case Snapshot() if self.live:
                self.live.update(table(event))
            case Snapshot():
                if time.monotonic() >= self._next_line:
                    self._next_line = time.monotonic() + LINE_SECONDS
                    self.print(line(event))
            case ClipFailed():
                self.print(f"clip {event.clip.id} failed in {event.stage}: {event.reason}", style="red")
            case Notice() | NodeAvoided() | StationsAwaited():
                self.print(event.text, style="yellow")
            case StationLost():
                self.print(f"station {event.station} lost: {event.text}", style="yellow")
            case StationShutOut():
                self.print(f"station {event.station}: {event.text}", style="yellow")


def line(snapshot: Snapshot) -> str:
    """A snapshot in one line."""
    queues = ", ".join(f"{stage.name} {stage.waiting}+{stage.running}" for stage in snapshot.stages)
    failed = f", {snapshot.failed} failed" if snapshot.failed else ""
    failed += f", {snapshot.rejected} rejected" if snapshot.rejected else ""
    return (
        f"{snapshot.done}{of(snapshot.total)} clips{failed}, {snapshot.clips_an_hour:.0f}/h, "
        f"{left(snapshot.seconds_left)}, {stations(snapshot)} {snapshot.busy_share:.0%} busy; "
        f"waiting+running: {queues}"
    )


def table(snapshot: Snapshot) -> RenderableType:
    """A snapshot as a table of stages, with the stations that work on each."""
    stages = Table("stage", "waiting", "running", "s/clip", "batch", "stations", box=None, pad_edge=False)
    for column in stages.columns[1:5]:
        column.justify = "right"
    for stage in snapshot.stages:
        at_work = [station for station in snapshot.stations if station.doing == stage.name]
        holding = [s for s in snapshot.stations if stage.name in s.holds and s.doing is None]
        blocks = Text("█" * len(at_work), style="green") + Text("░" * len(holding), style="dim")
        numbers = (str(stage.waiting or "·"), str(stage.running or "·"))
        stages.add_row(stage.name, *numbers, f"{stage.seconds:.2g}", str(stage.batch_size), blocks)
    failed = f"  [red]{snapshot.failed} failed[/]" if snapshot.failed else ""
    failed += f"  {snapshot.rejected} rejected" if snapshot.rejected else ""
    head = Text.from_markup(
        f"[bold]{snapshot.done}{of(snapshot.total)}[/] clips{failed}  [bold]{snapshot.clips_an_hour:.0f}[/]/h  "
        f"{left(snapshot.seconds_left)}  {stations(snapshot)} [bold]{snapshot.busy_share:.0%}[/] busy  "
        f"{snapshot.in_flight} in flight"
    )
    return Group(head, stages)


def summary_lines(summary: Summary, before: bool = False) -> str:
    """What a job is about to do, or what it did."""
    if before:
        failed = f", {summary.skipped_failures} failed before (--retry-failed)" if summary.skipped_failures else ""
        failed += f", {summary.rejected_before} rejected before" if summary.rejected_before else ""
        head = f"{summary.out}: {summary.done_before} of {summary.total} clips done{failed}, {summary.left} to render"
        return "\n".join([head, *(f"note: {note}" for note in summary.notes)])
    again = (
        f", {summary.skipped_failures} failed before and skipped (--retry-failed)" if summary.skipped_failures else ""
    )
    did = f"{summary.rendered} clips rendered in {summary.seconds:.0f} s, {summary.failed} failed"
    did += f", {summary.rejected} rejected" if summary.rejected else ""
    lines = [f"{summary.clips}: {did}{again}"]
    lines += _listed("failed", summary.failures, summary.failed)
    lines += _listed("failed before", summary.failures_before, summary.skipped_failures)
    if summary.stopped:
        lines.append(f"stopped: {summary.stopped}")
    if summary.interrupted:
        lines.append("interrupted; rerun the same command to resume")
    return "\n".join(lines)


def _listed(what: str, failures: list[dict[str, str]], count: int) -> list[str]:
    lines = [f"{what}: {one['id']} in {one['stage']}: {one['error']}" for one in failures]
    more = count - len(failures)
    return [*lines, f"{what}: {more} more, which `show1-ray status` lists"] if more > 0 else lines


def of(total: int | None) -> str:
    """ " of 12", if it is known."""
    return "" if total is None else f" of {total}"


def stations(snapshot: Snapshot) -> str:
    """Those that are up, those that the cluster is asked for, and those that get no work."""
    shut_out = sum(station.shut_out for station in snapshot.stations)
    more = [f"{snapshot.starting} more requested"] if snapshot.starting else []
    more += [f"{shut_out} shut out"] if shut_out else []
    return f"{len(snapshot.stations)} stations" + (f" ({', '.join(more)})" if more else "")


def left(seconds: float | None) -> str:
    """The time left, in hours and minutes."""
    if seconds is None:
        return "time left unknown"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02} left"
