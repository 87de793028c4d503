"""A clip's life in the line: its table of transitions, and where it resumes after a fault."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from show1_ray.clip import Clip
from show1_ray.line.spec import ALL_PLAIN, RENDERING, StageSpec

State = Literal["queued", "running", "done", "rejected", "failed", "cancelled"]
TRANSITIONS: dict[State, frozenset[State]] = {
    "queued": frozenset({"running", "cancelled"}),
    "running": frozenset({"queued", "done", "rejected", "failed", "cancelled"}),
    "done": frozenset(),
    "rejected": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}


@dataclass
class Flight:
    """A clip in the line: queued before `stage`, or running in it."""

    clip: Clip
    stage: int = 0
    state: State = "queued"
    tensors: dict[str, Any] = field(default_factory=dict)
    """References to the tensors that a stage still to come takes."""
    seconds: dict[str, float] = field(default_factory=dict)
    batch_sizes: dict[str, int] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)
    """Values that it brought along."""
    plain: dict[str, Any] = field(default_factory=dict)
    """Plain values that stages gave for it."""
    keys: Mapping[str, Hashable] = field(default_factory=dict)
    """By a stage's name: it shares batches there with clips of the same key."""
    failures: int = 0
    """Times that it failed alone in its batch."""
    tries: int = 0
    """Times that it failed alone in this stage, whoever was at fault."""
    sound: set[str] = field(default_factory=set)
    """Cards where it failed alone in this stage although they had done well."""
    alone: set[str] = field(default_factory=set)
    """Cards where it failed alone in this stage."""
    avoid: set[str] = field(default_factory=set)
    """Cards where a batch failed in this stage that it was in."""
    losses: int = 0
    """Times that a tensor of it was lost."""
    outputs: frozenset[str] = frozenset()
    """Values for its follower."""
    unwanted: bool = False
    """It was cancelled while it ran: it leaves when its batch is over."""

    def inputs(self, spec: StageSpec) -> dict[str, Any]:
        """What a stage takes, by name: references to tensors, and values."""
        record = {"seconds": self.seconds, "batch_sizes": self.batch_sizes, "attempts": self.failures + 1}
        values = {**self.given, **self.plain, RENDERING: record, ALL_PLAIN: self.plain}
        tensors = {name: self.tensors[name] for name in spec.takes}
        return tensors | {name: values[name] for name in spec.values}

    def begin_stage(self) -> None:
        """Moves it to another stage, where earlier failures do not matter."""
        self.tries = 0
        self.sound.clear()
        self.alone.clear()
        self.avoid.clear()

    def move(self, state: State, stage: int | None = None) -> None:
        """Change the state (and the stage). Raises ValueError if there is no such transition."""
        if state not in TRANSITIONS[self.state]:
            raise ValueError(f"clip {self.clip.id!r} cannot go from {self.state} to {state}")
        self.state = state
        self.stage = self.stage if stage is None else stage


def halves(batch: Sequence[Flight]) -> list[list[Flight]]:
    """Splits a failed batch in two; repeated, this isolates the clip at fault."""
    middle = (len(batch) + 1) // 2
    return [half for half in (list(batch[:middle]), list(batch[middle:])) if half]


def restart_stage(specs: Sequence[StageSpec], stage: int, tensors: Iterable[str], results: Collection[str] = ()) -> int:
    """The latest stage, `stage` at most, from which a clip that still has `tensors` can go on to have `results`."""
    for start in range(stage, 0, -1):
        there = set(tensors)
        for spec in specs[start:]:
            if not there.issuperset(spec.takes):
                break
            there.update(spec.gives)
        else:
            if there.issuperset(results):
                return start
    return 0


def still_needed(specs: Sequence[StageSpec], stage: int, results: Iterable[str] = ()) -> set[str]:
    """Names of the tensors that `stage` or a later one takes, and of the line's results."""
    return {name for spec in specs[stage:] for name in spec.takes}.union(results)
