"""What the line waits for, and for how long."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.experimental.internal_kv import _internal_kv_list

from show1_ray.clip import Clip
from show1_ray.line import arrivals, gcs, nodes
from show1_ray.line.batch import patience
from show1_ray.line.fleet import Slot, StationHandle
from show1_ray.line.line import Line
from show1_ray.line.load import Assignment, load_of
from show1_ray.line.spec import LineSettings, Values
from tests.line.sleepers import Adds, Fails, Outcome, clips, land, once, render, settings, spec


def test_the_first_batch_of_a_size_may_take_as_long_as_compiling_does() -> None:
    load = load_of(spec(0, seconds=1.0))
    load.measure("", 1.0)
    handle = StationHandle(0, Slot(None, 0), None, ray.ObjectRef.nil())
    four, three = Assignment(0, 0, 4), Assignment(0, 0, 3)

    def seconds(assignment: Assignment) -> float:
        return patience(LineSettings(), load, assignment, None, not handle.has_run(assignment, None))

    assert seconds(four) == 60 + 1800
    handle.worked(four, None)
    assert seconds(four) == 60
    assert seconds(three) == 60 + 1800
    handle.worked(Assignment(0, 0, 3, price=1.0), None)
    assert seconds(four) == 60 + 1800, "it was loaded again"


class Compiles(Adds):
    """Takes long for the first batch of each size in its process."""

    def __init__(self, number: int) -> None:
        super().__init__(number, 0.01, 10)
        self.sizes: set[int] = set()

    def __call__(self, clips: list[Clip], tensors: list[Values]) -> list[Values]:
        if len(clips) not in self.sizes:
            self.sizes.add(len(clips))
            time.sleep(2.5)
        return super().__call__(clips, tensors)


@pytest.mark.usefixtures("local_ray")
def test_a_batch_that_has_to_be_compiled_is_not_taken_for_one_that_hangs() -> None:
    batch = clips(17)  # 4, 4, 4, 4 and 1
    stages = [spec(0), spec(1, lambda device: Compiles(1)), spec(2), land()]
    outcome = render(stages, batch, stations=1, deadline_floor=1.0, first_deadline=60.0)
    outcome.assert_done(batch)
    assert not outcome.lost


@pytest.mark.usefixtures("local_ray")
def test_landings_and_stations_are_exported_once() -> None:
    def exported() -> int:
        return sum(len(_internal_kv_list(kind, namespace="fun")) for kind in ("RemoteFunction", "ActorClass"))

    stages = [spec(0), spec(1), spec(2), land()]
    render(stages, clips(4), stations=1)
    before = exported()
    render(stages, clips(60), stations=2)
    assert exported() == before


@pytest.fixture
def silent_node(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Where all nodes are said to be: connections are neither taken nor refused, until somebody accepts them."""
    monkeypatch.setattr(nodes, "PROBE_SECONDS", 100.0)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, ExitStack() as clients:
        while True:
            client = clients.enter_context(socket.socket())
            client.settimeout(0.2)
            try:
                client.connect(server.getsockname())
            except TimeoutError:
                break
        address, port = server.getsockname()
        there, look = {"NodeManagerAddress": address, "NodeManagerPort": port}, gcs.nodes
        monkeypatch.setattr(gcs, "nodes", lambda timeout=5.0: [{**node, **there} for node in look(timeout)])
        yield server


def accept(server: socket.socket) -> None:
    with suppress(OSError):
        while True:
            server.accept()


@pytest.mark.usefixtures("local_ray")
def test_while_a_node_does_not_answer_the_line_goes_on(silent_node: socket.socket, tmp_path: Path) -> None:
    def dies(clip: Clip, size: int) -> None:
        if once(tmp_path, clip):
            time.sleep(0.3)  # or nobody hears that the batch has begun
            os.kill(os.getpid(), signal.SIGKILL)

    outcome, taken, before = Outcome(), clips(20_000), list[int]()

    def until_it_is_known() -> Iterator[Clip]:
        for clip in taken:
            if outcome.lost:
                return
            yield clip

    stages = [spec(0), spec(1, lambda device: Fails(1, {50}, dies)), spec(2), land()]
    with Line(stages, settings(store_bytes=40 * 8000)) as line:
        for event in line.run(until_it_is_known()):
            outcome.add(event)
            if not before and list(tmp_path.iterdir()):
                before.append(len(outcome.done))
            if len(before) == 1 and len(outcome.done) >= before[0] + 60:
                before.append(len(outcome.done))
                assert not outcome.lost, "whether its node is there is not known yet"
                threading.Thread(target=accept, args=(silent_node,), daemon=True).start()
    outcome.assert_done(taken[: len(outcome.done)])
    assert len(before) == 2
    assert [lost.reason.split(":")[0] for lost in outcome.lost] == ["death"]


class Large(Adds):
    """A result that has to be fetched from the store."""

    def render(self, clip: Clip, given: Values) -> Values:
        return {"x0": np.full(200_000, clip.seed)}


@pytest.mark.usefixtures("local_ray")
def test_a_result_that_does_not_come_is_made_again_and_the_line_goes_on_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The futures of the first results never come; the others are read while they are waited for."""
    monkeypatch.setattr(arrivals, "RESULT_SECONDS", 3.0)
    expect = arrivals.Arrivals.expect
    held: list[str] = []

    def hold(self: arrivals.Arrivals, flight: object, refs: list[ray.ObjectRef], now: float) -> None:
        expect(self, flight, refs, now)  # type: ignore[arg-type]
        clip_id = flight.clip.id  # type: ignore[attr-defined]
        if clip_id in ("clip-000", "clip-001") and clip_id not in held:
            held.append(clip_id)
            never: arrivals.Future[object] = arrivals.Future()
            self.results[clip_id] = arrivals.Result(flight, [never], now + arrivals.RESULT_SECONDS)  # type: ignore[arg-type]

    monkeypatch.setattr(arrivals.Arrivals, "expect", hold)
    outcome, batch = Outcome(), clips(40)
    with Line([spec(0, lambda device: Large(0, 0.05, 1))], settings(stations=1)) as line:
        for event in line.run(batch):
            outcome.add(event)
    assert set(outcome.done) == {clip.id for clip in batch}
    assert [*outcome.done][-1] in held, "the others came first"
    assert all((done.result["x0"] == done.clip.seed).all() for done in outcome.done.values())
