"""The line as a service: clips come one by one, share batches, and each is followed and cancelled by itself."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

import ray

from show1_ray.clip import Clip
from show1_ray.errors import UserError
from show1_ray.line import events
from show1_ray.line.events import ClipCancelled, ClipDone, ClipFailed, ClipRejected
from show1_ray.line.inbox import Inbox
from show1_ray.line.line import Line
from show1_ray.line.spec import LineSettings, Order, StageSpec
from show1_ray.line.station import FETCH_SECONDS

AHEAD = 64
"""Clips ready to enter the line, so that it never waits for one."""
LEFT_SECONDS = 5.0
"""Seconds for the thread of an ended line to notice."""
ROOM_SECONDS = 0.02
"""How often `room` looks; at most AHEAD clips for each."""


class FullError(UserError):
    """Too many clips are already waiting."""


class StoppedError(UserError):
    """The line has stopped, and all its clips with it."""


@dataclass(frozen=True)
class Queued:
    """The clip waits for its first stage; place 1 is next. Sent again when the place changes."""

    place: int


@dataclass(frozen=True)
class Began:
    """A stage began a batch of `clips` clips. `seconds` is how long it is expected to take, including loading."""

    stage: str
    seconds: float
    clips: int


@dataclass(frozen=True)
class Repeated:
    """A stage did not finish (its station died, …) and will run again."""

    stage: str
    reason: str


@dataclass(frozen=True)
class Ended:
    """A stage is done. `tensors` are those that were requested, except any that were lost with their node."""

    stage: str
    seconds: float
    clips: int
    tensors: dict[str, Any] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    """Plain values from the stage."""


ClipEvent = Queued | Began | Repeated | Ended | ClipDone | ClipFailed | ClipRejected
"""Events of one clip. The last one is `ClipDone`, `ClipFailed` or `ClipRejected`."""


@dataclass
class Follower:
    """The follower of a clip: an asyncio queue and its loop. An exception in the queue ends it."""

    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[ClipEvent | Exception] = field(default_factory=asyncio.Queue)

    def tell(self, event: ClipEvent | Exception) -> None:
        """From any thread."""
        with suppress(RuntimeError):  # the loop has ended: nobody is left to tell
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)


class Service:
    """A line that stays open, in its own thread.

        with Service(stages, settings) as line:
            async for event in line.render(Clip("a", "a red circle"), outputs=("keyframes",)):
                match event:
                    case Ended("keyframes", seconds, tensors=tensors):
                        show(tensors["keyframes"])
                    case ClipDone():
                        save(event.result["video"])
                    case ClipFailed():
                        print(event.error)
                    case ClipRejected():
                        print(event.reason)

    Clips of all callers are in flight together and share batches. Await `room` before each clip when you submit many.
    `show1_ray.open_line` makes one for a pipeline. Its thread runs the loop of `Line`; `Running` runs it over a whole
    manifest.

    Ray has to be initialized. Raises UserError as `Line` does.

    Args:
        stages: the stages of the line, in order.
        settings: of the line.
        max_waiting: how many clips may wait for their first stage; `math.inf`: any number, without telling places.
        observe: called with each event of the line, in its thread, before the clips' callers get theirs. An exception
            stops the line.
        total: how many clips will be submitted before `close`. The line then waits for full batches, and splits the
            rest over its stations at the end. None: not known, so incomplete batches run at once.
        results: values that come with `ClipDone`.
        order: makes the line's order for a clip.
    """

    def __init__(
        self,
        stages: Sequence[StageSpec],
        settings: LineSettings | None = None,
        max_waiting: float = 64,
        observe: Callable[[events.Event], None] | None = None,
        total: int | None = None,
        results: Sequence[str] = (),
        order: Callable[[Clip], Order] = Order,
    ) -> None:
        self.line = Line(stages, settings, results)
        self.max_waiting = max_waiting
        self._order = order
        self._observe = observe or (lambda event: None)
        self.ended = threading.Event()
        """Set when the line has stopped, by itself or at the end of the `with` block."""
        self.warm = threading.Event()
        """Set when all stations are up and, with `LineSettings.warm`, have loaded what fits."""
        self.error: BaseException | None = None
        """What stopped the line."""
        self._inbox = Inbox(total)
        self._lock = threading.Lock()
        self._in_line: dict[str, Follower | None] = {}  # None: cancelled, but some of it is still there
        self._waiting: dict[str, None] = {}
        self._thread = threading.Thread(target=self._run, name="line", daemon=True)

    def __enter__(self) -> Service:
        self.line.__enter__()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.line.stop(now=True)
        self._inbox.close()
        while self._thread.is_alive() and not self.ended.wait(1.0):
            pass
        self._thread.join(LEFT_SECONDS)  # it may wait for a cluster that does not answer any more: see `end`
        if not self._thread.is_alive():
            self.line.__exit__(kind, error, trace)

    def render(self, clip: Clip | Order, outputs: Collection[str] = ()) -> AsyncGenerator[ClipEvent]:
        """Submits a clip and follows it to its end: `async for event in line.render(clip)`.

        Leaving the loop early cancels the clip, and so does cancelling the task. A waiting clip is removed from the
        line; a clip that runs in a batch with others finishes, and its result is dropped. To leave with `break`, hold
        the iterator with `contextlib.aclosing`.

        Args:
            clip: what to render, or an order for it. Its id can be used again once nothing of it is left in the line.
            outputs: names of intermediate tensors, whose values come with `Ended`.

        Raises:
            FullError: `max_waiting` clips are already waiting.
            StoppedError: the line has stopped; also raised while awaiting events.
            ValueError: a clip with this id is already in the line.
        """
        order = clip if isinstance(clip, Order) else replace(self._order(clip), outputs=frozenset(outputs))
        return self._follow(order.clip, self._submit(order))

    async def _follow(self, clip: Clip, follower: Follower) -> AsyncGenerator[ClipEvent]:
        is_over = False
        try:
            while not is_over:
                event = await follower.events.get()
                if isinstance(event, Exception):
                    raise event
                is_over = isinstance(event, ClipDone | ClipFailed | ClipRejected)
                if isinstance(event, Ended):
                    event = replace(event, tensors=await _values(event.tensors))
                yield event
        finally:
            if not is_over:
                self.cancel(clip.id)

    def cancel(self, clip_id: str) -> None:
        """Removes a clip from the line, if it is there. May be called from any thread. See `render`."""
        with self._lock:
            if self._in_line.get(clip_id) is None:
                return
            self._in_line[clip_id] = None
            self._begin_or_leave([clip_id])
            if self._inbox.cancel(clip_id):
                del self._in_line[clip_id]

    async def room(self) -> None:
        """Waits until the line has accepted most of what was submitted. Called before each clip, it keeps memory flat.

        Raises StoppedError if the line has stopped.
        """
        while len(self._inbox) >= AHEAD and not self.ended.is_set():
            await asyncio.sleep(ROOM_SECONDS)
        self._raise_if_ended()

    def close(self) -> None:
        """Tells the line that no more clips will be submitted, so that it ends after the last one."""
        self._inbox.close()

    def stop(self, now: bool = False) -> None:
        """Accepts no more clips. Running batches finish and land, unless `now`. May be called from any thread."""
        self.line.stop(now)

    def end(self, error: Exception) -> None:
        """Ends the line with an error, which all clips' followers get; may be called from any thread."""
        self.line.stop(now=True)
        self._end(error)

    @property
    def stations(self) -> int:
        """How many stations the line has, including starting ones."""
        return self.line.fleet.size

    @property
    def waiting(self) -> int:
        """Clips that wait for their first stage."""
        return len(self._waiting)

    @property
    def in_line(self) -> int:
        """Clips anywhere in the line, including cancelled ones that still run."""
        return len(self._in_line)

    def _submit(self, order: Order) -> Follower:
        follower, clip_id = Follower(asyncio.get_running_loop()), order.clip.id
        with self._lock:
            self._raise_if_ended()
            if clip_id in self._in_line:
                raise ValueError(f"clip {clip_id!r} is in the line already")
            if len(self._waiting) >= self.max_waiting:
                raise FullError(f"{self.max_waiting} clips are waiting already; try again in a while")
            self._in_line[clip_id] = follower
            self._waiting[clip_id] = None
            follower.tell(Queued(len(self._waiting)))
            self._inbox.put(order)
        return follower

    def _raise_if_ended(self) -> None:
        if self.ended.is_set():
            raise StoppedError(f"the line has stopped: {self.error or 'it was closed'}")

    # In the line's thread.

    def _run(self) -> None:
        try:
            for event in self.line.run(self._inbox):
                self._observe(event)
                with self._lock:
                    self._hear(event)
        except BaseException as error:  # it is raised where clips are awaited: every follower gets it
            self._end(error)
        else:
            self._end(None)

    def _end(self, error: BaseException | None) -> None:
        """The first cause counts."""
        with self._lock:
            if self.ended.is_set():
                return
            self.error = error
            self.ended.set()
            self.warm.set()  # who waits for it must look at `ended`
            reason = " ".join(str(error or "it was closed").split())
            for follower in self._in_line.values():
                if follower is not None:
                    follower.tell(StoppedError(f"the line has stopped: {reason}"))
            self._in_line.clear()
            self._waiting.clear()

    def _hear(self, event: events.Event) -> None:
        match event:
            case events.StageBegan():
                self._begin_or_leave(event.clips)
                self._tell(event.clips, Began(event.stage, event.seconds + event.load_seconds, len(event.clips)))
            case events.StageRepeated():
                self._tell(event.clips, Repeated(event.stage, event.reason))
            case events.StageDone():
                share = event.seconds / len(event.clips)
                for clip_id in event.clips:
                    refs = dict(event.outputs.get(clip_id, {}))
                    values = event.values.get(clip_id, {})
                    self._tell([clip_id], Ended(event.stage, share, len(event.clips), refs, values))
            case ClipDone() | ClipFailed() | ClipRejected():
                self._begin_or_leave([event.clip.id])
                follower = self._in_line.pop(event.clip.id, None)
                if follower is not None:
                    follower.tell(event)
            case ClipCancelled():
                self._in_line.pop(event.clip.id, None)
            case events.Snapshot() if not self.warm.is_set() and self.line.is_warm:
                self.warm.set()

    def _tell(self, clip_ids: Collection[str], event: ClipEvent) -> None:
        for clip_id in clip_ids:
            follower = self._in_line.get(clip_id)
            if follower is not None:
                follower.tell(event)

    def _begin_or_leave(self, clip_ids: Collection[str]) -> None:
        """These clips no longer wait for their first stage, so the others move up."""
        places = list(self._waiting) if self.max_waiting < math.inf else []
        for clip_id in clip_ids:
            self._waiting.pop(clip_id, None)
        if not places:
            return
        for place, clip_id in enumerate(self._waiting, start=1):
            if places[place - 1] != clip_id:
                self._tell([clip_id], Queued(place))


async def _values(refs: dict[str, Any]) -> dict[str, Any]:
    """The values of references, without lost ones."""
    values = {}
    for name, ref in refs.items():
        with suppress(ray.exceptions.RayError, TimeoutError):
            values[name] = await asyncio.wait_for(asyncio.wrap_future(ref.future()), FETCH_SECONDS)
    return values
