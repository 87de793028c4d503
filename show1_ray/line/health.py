"""Whose fault is it, the clip's or the card's? Pure: events go in, what to do with a card comes out.

A card is what a station stands on: a GPU of a node, whatever process runs there. When a batch fails, its clips are on
trial, and so is the card. If all of them are done by other cards, the card is to blame; if one of them fails on another
card that is sound, the clip is. A card that fails twice in a row, with different clips, while others do not, is held:
it gets no work until that is judged. To blame, it is recycled (a new process); if that does not help, it is shut out,
for longer each time, and then tried again. All this is kept by stage, too: a card that fails in one stage only goes on
with the others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal

STREAK = 2
"""Failed batches in a row, of different clips, after which a card is held; 1 for one that is tried again."""
BLAMES = 3.0
"""Times that a card is to blame, though it works in between, after which it is recycled; each batch that it does takes
a tenth away."""
LOADING = ""
"""Stands for the clips of a batch that there was none of yet: the stage could not be loaded."""
SOUND_BATCHES = 20
"""Batches that a card has to do before one of its strikes is forgotten."""


@dataclass
class Track:
    """What a card did in one stage. `last` are the clips of the last batch that failed."""

    streak: int = 0
    done: int = 0
    loaded: bool = False
    blames: float = 0.0
    last: frozenset[str] = frozenset()
    on_probation: bool = False


@dataclass
class Hold:
    """A card gets no work. `until` None: until it is judged."""

    until: float | None
    reason: str


@dataclass
class Card:
    """One card: its name, its node, and how it has done. `holds` is by stage; None: all of them."""

    name: str
    node: str
    present: bool = True
    tracks: dict[int, Track] = field(default_factory=dict)
    holds: dict[int | None, Hold] = field(default_factory=dict)
    cannot: frozenset[int] = frozenset()
    """Stages that are not for it: too big, or pinned elsewhere."""
    streak: int = 0
    strikes: int = 0
    good: int = 0
    """Batches since the last strike."""
    on_probation: bool = False

    def track(self, stage: int) -> Track:
        """What it did in a stage."""
        return self.tracks.setdefault(stage, Track())

    def may_run(self, stage: int) -> bool:
        """Whether it is there, has room for the stage, and is not held."""
        return self.present and stage not in self.cannot and None not in self.holds and stage not in self.holds

    @property
    def is_shut_out(self) -> bool:
        """Whether it gets no work at all for a time."""
        hold = self.holds.get(None)
        return hold is not None and hold.until is not None


@dataclass(eq=False)
class Trial:
    """A batch that failed on a card; `left` are its clips that no other card has done yet."""

    card: str
    stage: int
    left: set[str]
    reason: str
    is_open: bool = True


@dataclass(frozen=True)
class Change:
    """What is to be done with a card (`stage` None: in all stages).

    "hold": give it no work for now; "release": give it work again; "recycle": a new process; "shut out": no work for so
    many `seconds`; "retry": that is over, begin with a new process.
    """

    what: Literal["hold", "release", "recycle", "shut out", "retry"]
    card: str
    stage: int | None
    reason: str = ""
    seconds: float = 0.0


class Health:
    """How all cards have done. Times are seconds of any clock that does not go back."""

    def __init__(self, pause: float = 60.0, longest_pause: float = 3600.0) -> None:
        self.pause, self.longest_pause = pause, longest_pause
        self.cards: dict[str, Card] = {}
        self.coming = 0
        """Stations that are on their way: what a clip may still wait for."""
        self.nodes_out: dict[str, float] = {}
        """Nodes that are shut out, and until when."""
        self._trials: dict[tuple[int, str], list[Trial]] = {}
        self._open: dict[str, list[Trial]] = {}
        self._later: list[Change] = []

    # What happened.

    def arrive(self, name: str, node: str, now: float, cannot: frozenset[int] = frozenset()) -> None:
        """A station is up on a card, with a new process; `cannot` are the stages that it will not run."""
        card = self.cards.setdefault(name, Card(name, node))
        card.present, card.cannot = True, cannot
        card.streak = 0
        for track in card.tracks.values():
            track.streak, track.blames, track.last = 0, 0.0, frozenset()
        until = self.nodes_out.get(node, now)
        if until > now and any(one.node != node and one.present and not one.is_shut_out for one in self.cards.values()):
            card.holds.setdefault(None, Hold(until, "its node is shut out"))

    def leave(self, name: str, troubled: bool = False) -> None:
        """Its station is gone; `troubled`: because of a fault of its own, maybe."""
        card = self.cards[name]
        card.present = False
        card.on_probation = card.on_probation or troubled

    def is_sound(self, name: str, stage: int) -> bool:
        """Whether what fails there is rather the clip's fault: it has worked, and nothing speaks against it."""
        card = self.cards[name]
        track = card.track(stage)
        clean = not card.streak and not track.streak and track.blames < 1.0
        return clean and track.done > 0 and not card.on_probation and not track.on_probation

    def candidates(self, stage: int, but: Collection[str] = ()) -> list[str]:
        """Cards that may run a stage and have not failed in it lately, without those of `but`."""
        return [name for name in self.able(stage, but) if not self.cards[name].track(stage).streak]

    def able(self, stage: int, but: Collection[str] = ()) -> list[str]:
        """Cards that may run a stage, without those of `but`."""
        return [card.name for card in self.cards.values() if card.may_run(stage) and card.name not in but]

    def others(self, stage: int, but: Collection[str]) -> bool:
        """Whether there are cards for a stage besides those of `but`, or are likely to come: more stations than would
        stand on cards of `but` again."""
        gone = sum(name in self.cards and not self.cards[name].present for name in but)
        return self.coming > gone or bool(self.able(stage, but))

    def failed(
        self, name: str, stage: int, clips: Iterable[str], now: float, reason: str, loading: bool = False
    ) -> list[Change]:
        """A batch failed on a card, or (`loading`) the stage could not be loaded there."""
        card, failing = self.cards[name], frozenset((LOADING,) if loading else clips)
        track = card.track(stage)
        changes = self._witness(name, stage, failing) if self.is_sound(name, stage) else []
        if loading or not failing & track.last:
            track.streak += 1
            card.streak += 1
        track.last = failing
        if failing:
            self._try(Trial(name, stage, set(failing), reason))
        limit = 1 if card.on_probation or track.on_probation else STREAK
        if max(card.streak, track.streak) < limit or not self.candidates(stage, but=(name,)):
            return changes
        scope = self._scope(card, stage)
        if scope not in card.holds and None not in card.holds:
            card.holds[scope] = Hold(None, reason)
            changes.append(Change("hold", name, scope, reason))
        if loading and any(one.track(stage).loaded for one in self.cards.values() if one.name != name):
            changes += self._strike(card, scope, reason, now)
        return changes

    def succeeded(self, name: str, stage: int, clips: Collection[str], now: float) -> list[Change]:
        """A batch is done on a card, or (no clips) a stage is loaded there: that says nothing of its batches."""
        card = self.cards[name]
        track = card.track(stage)
        track.loaded = True
        if clips or track.last == {LOADING}:
            track.streak = card.streak = 0
            track.last = frozenset()
        if clips:
            track.done += 1
            track.on_probation = card.on_probation = False
            track.blames *= 0.9
            card.good += 1
        if card.good >= SOUND_BATCHES:
            card.good, card.strikes = 0, max(0, card.strikes - 1)
        changes: list[Change] = []
        for clip in (LOADING, *clips):
            for trial in self._trials.pop((stage, clip), []):
                if not trial.is_open:
                    continue
                if trial.card == name:  # it went well there after all: this says nothing
                    changes += self._drop(trial)
                    continue
                trial.left.discard(clip)
                if not trial.left:
                    self._close(trial)
                    changes += self._blame(trial, now)
        return changes

    def forget(self, stage: int, clip: str) -> None:
        """A clip has left the stage undone: what was to be seen by it never will be. `tick` tells what follows."""
        for trial in self._trials.pop((stage, clip), []):
            self._later += self._drop(trial)

    def tick(self, now: float) -> list[Change]:
        """Time has passed."""
        changes, self._later = self._later, []
        for card in self.cards.values():
            over = [scope for scope, hold in card.holds.items() if hold.until is not None and hold.until <= now]
            for scope in over:
                changes += self._retry(card, scope)
        for node in [node for node, until in self.nodes_out.items() if until <= now]:
            del self.nodes_out[node]
        return changes

    def relieve(self, stages: Iterable[int]) -> list[Change]:
        """No stage is to be left without a card: where all are held, the one that is nearest to its end is released."""
        changes: list[Change] = []
        for stage in stages:
            here = [card for card in self.cards.values() if card.present and stage not in card.cannot]
            if not here or any(card.may_run(stage) for card in here):
                continue
            held = [(card, scope) for card in here for scope in (None, stage) if scope in card.holds]
            card, scope = min(held, key=lambda one: one[0].holds[one[1]].until or 0.0)
            if card.holds[scope].until is None:
                changes += self._release(card, scope)
            else:
                changes += self._retry(card, scope)
        return changes

    # Judging.

    def _try(self, trial: Trial) -> None:
        self._open.setdefault(trial.card, []).append(trial)
        for clip in trial.left:
            self._trials.setdefault((trial.stage, clip), []).append(trial)

    def _close(self, trial: Trial) -> None:
        trial.is_open = False
        self._open[trial.card].remove(trial)
        for clip in trial.left:
            trials = self._trials.get((trial.stage, clip), [])
            if trial in trials:
                trials.remove(trial)

    def _witness(self, name: str, stage: int, clips: frozenset[str]) -> list[Change]:
        """Clips fail on a sound card: other cards on which they failed before are not to blame."""
        changes = []
        for clip in clips:
            for trial in [one for one in self._trials.get((stage, clip), []) if one.card != name]:
                # Of a larger batch: the clip at fault is among these, and that is all that is known.
                changes += self._drop(trial)
        return changes

    def _drop(self, trial: Trial) -> list[Change]:
        if not trial.is_open:
            return []
        self._close(trial)
        card = self.cards[trial.card]
        if any(one.stage == trial.stage for one in self._open[trial.card]):
            return []
        card.track(trial.stage).streak = 0
        card.streak = max((track.streak for track in card.tracks.values()), default=0)
        waiting = [scope for scope in (None, trial.stage) if scope in card.holds and card.holds[scope].until is None]
        if None in waiting and self._open[trial.card]:
            waiting.remove(None)
        return [change for scope in waiting for change in self._release(card, scope)]

    def _blame(self, trial: Trial, now: float) -> list[Change]:
        card = self.cards[trial.card]
        track = card.track(trial.stage)
        track.blames += 1.0
        for scope in (None, trial.stage):
            if scope in card.holds:
                return self._strike(card, scope, trial.reason, now) if card.holds[scope].until is None else []
        if track.blames < BLAMES or not self.candidates(trial.stage, but=(card.name,)):
            return []
        return self._strike(card, self._scope(card, trial.stage), trial.reason, now)

    def _strike(self, card: Card, scope: int | None, reason: str, now: float) -> list[Change]:
        card.strikes += 1
        card.good = 0
        for trial in [one for one in self._open.get(card.name, []) if scope is None or one.stage == scope]:
            self._close(trial)
        for track in card.tracks.values():
            track.blames = 0.0
        was_fresh = card.on_probation or (scope is not None and card.track(scope).on_probation)
        self._on_probation(card, scope)
        if card.strikes == 1 and not was_fresh:
            card.holds.pop(scope, None)
            return [Change("recycle", card.name, scope, reason)]
        seconds = min(self.longest_pause, self.pause * 2.0 ** max(0, card.strikes - 2))
        card.holds[scope] = Hold(now + seconds, reason)
        changes = [Change("shut out", card.name, scope, reason, seconds)]
        return changes + (self._judge_node(card.node, reason, now, seconds) if scope is None else [])

    def _judge_node(self, node: str, reason: str, now: float, seconds: float) -> list[Change]:
        """If all cards of a node are shut out, two at least, so are those that it has besides."""
        here = [card for card in self.cards.values() if card.node == node]
        present = [card for card in here if card.present]
        elsewhere = any(card.node != node and card.present and not card.is_shut_out for card in self.cards.values())
        if elsewhere and sum(card.is_shut_out for card in here) >= 2 and all(card.is_shut_out for card in present):
            self.nodes_out[node] = now + seconds
        return []

    def _scope(self, card: Card, stage: int) -> int | None:
        """The stage alone, if the card does well in another one; None: all stages."""
        others = [track for index, track in card.tracks.items() if index != stage]
        fails_elsewhere = any(track.streak or track.on_probation for track in others)
        does_well = any(track.done and not track.streak for track in others)
        return stage if does_well and not fails_elsewhere else None

    def _on_probation(self, card: Card, scope: int | None) -> None:
        if scope is None:
            card.on_probation = True
        else:
            card.track(scope).on_probation = True

    def _release(self, card: Card, scope: int | None) -> list[Change]:
        del card.holds[scope]
        card.streak = 0
        for stage, track in card.tracks.items():
            if scope is None or stage == scope:
                track.streak = 0
        return [Change("release", card.name, scope)]

    def _retry(self, card: Card, scope: int | None) -> list[Change]:
        reason = card.holds[scope].reason
        self._release(card, scope)
        self._on_probation(card, scope)
        return [Change("retry", card.name, scope, reason)]


@dataclass
class FailureRate:
    """Clips given up, lately and before: whether something has broken that no clip is to blame for.

    `window` clips are looked at; `share` of them given up is too many, and `times` what was usual before.
    """

    window: int = 40
    share: float = 0.5
    times: float = 5.0
    lately: list[bool] = field(default_factory=list)
    before: int = 0
    failed_before: int = 0

    def count(self, failed: bool) -> None:
        """A clip has left the line, done or given up."""
        self.lately.append(failed)
        if len(self.lately) > self.window:
            self.before += 1
            self.failed_before += self.lately.pop(0)

    def alarm(self) -> str:
        """Why the job should stop; "" if it should not."""
        failed, usual = sum(self.lately), (self.failed_before + 1) / (self.before + 2)
        is_known = self.before >= self.window
        if len(self.lately) < self.window or not is_known or failed < self.share * self.window:
            return ""
        if failed / self.window < self.times * usual:
            return ""
        lately = f"{failed} of the last {self.window} clips failed"
        return f"{lately}, {self.failed_before} of the {self.before} before them"


@dataclass
class Starts:
    """Stations that died before they did anything, by node ("": nobody knows which)."""

    pause: float = 1.0
    longest_pause: float = 300.0
    memory: float = 3600.0
    """Seconds after which one is forgotten."""
    died: dict[str, list[float]] = field(default_factory=dict)

    def count(self, node: str, now: float) -> float:
        """One has died: how many seconds to wait before the next one is asked for there."""
        kept = [at for at in self.died.get(node, []) if now - at < self.memory]
        self.died[node] = [*kept, now]
        return min(self.longest_pause, self.pause * 2.0 ** (len(self.died[node]) - 1))
