"""What is behind the page: many visitors at once, and what is kept of their clips."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

pytest.importorskip("gradio", reason="the extra [demo] is not installed")

from show1_ray.clip import Clip
from show1_ray.demo import page, server
from show1_ray.demo.bounds import MOST_BYTES
from show1_ray.demo.studio import GALLERY, Studio, Take, Visitor
from show1_ray.errors import UserError
from show1_ray.line import Service
from show1_ray.line.events import Event, StageBegan
from show1_ray.show1.stages import STAGES
from tests.demo.browsing import ask, until_done
from tests.line.sleepers import references

PEOPLE = 16
FEW = 6


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """As asyncio.run, in a thread: Playwright's loop runs in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


async def until_over(visitors: list[Visitor]) -> None:
    while any(visitor.is_busy for visitor in visitors):
        for visitor in visitors:
            visitor.seen = time.monotonic()
        await asyncio.sleep(0.05)


async def crowd(here: Studio, people: int) -> list[Visitor]:
    """That many people ask for a clip at once, and wait for it."""
    visitors = [here.visitor(None) for _ in range(people)]
    for number, visitor in enumerate(visitors):
        here.start(visitor, f"prompt {number}", "", str(number), 1)
    await until_over(visitors)
    return visitors


def test_sixteen_people_at_once_are_all_served_in_the_order_in_which_they_came(
    open_studio: Callable[..., Studio], line: Service, told: list[Event]
) -> None:
    told.clear()
    visitors = run(crowd(open_studio(), PEOPLE))
    takes = [visitor.takes[0] for visitor in visitors]
    assert [take.state for take in takes] == ["done"] * PEOPLE
    came = {take.clip.id: number for number, take in enumerate(takes)}
    batches = [event for event in told if isinstance(event, StageBegan) and event.clips]
    for stage in STAGES:
        assert sorted(clip for event in batches if event.stage == stage for clip in event.clips) == sorted(came)
    first = [came[clip] for event in batches if event.stage == next(iter(STAGES)) for clip in event.clips]
    assert first == list(range(PEOPLE))
    numbers = [[came[clip] for clip in event.clips] for event in batches]
    assert numbers == [sorted(batch) for batch in numbers]
    assert max(map(len, numbers)) == 4
    assert (line.in_line, line.waiting) == (0, 0)


def test_what_is_kept_does_not_grow_with_the_number_of_clips(
    open_studio: Callable[..., Studio], told: list[Event], tmp_path: Path
) -> None:
    here = open_studio(kept_clips=FEW)
    kept = []
    for _ in range(4):
        run(crowd(here, FEW))
        told.clear()  # which holds the frames
        pictures = [step.picture for visitor in here.visitors.values() for take in visitor.takes for step in take.steps]
        files = list(tmp_path.glob("clips/*/*.mp4"))
        kept.append((len(list(filter(None, pictures))), len(files), len(here.gallery), references()))
    pictured = len(STAGES) - 1
    assert [counts[:3] for counts in kept[1:]] == [(FEW * pictured, FEW, GALLERY)] * 3
    assert kept[3][3] <= kept[1][3] + 3


def test_the_clips_of_a_page_that_was_closed_are_cancelled(open_studio: Callable[..., Studio], line: Service) -> None:
    async def leave() -> Visitor:
        here = open_studio(absence_seconds=0.0)
        visitor = here.visitor(None)
        here.start(visitor, "a prompt", "", "", 4)
        await asyncio.gather(*visitor.tasks, return_exceptions=True)
        while line.in_line:
            await asyncio.sleep(0.01)
        return visitor

    visitor = run(leave())
    assert {take.state for take in visitor.takes} == {"cancelled"}
    assert {take.note for take in visitor.takes} == {"The page was closed."}


@contextmanager
def suspended(line: Service) -> Iterator[None]:
    """The line's one station stands still."""
    (handle,) = line.line.fleet.stations.values()
    assert handle.info is not None
    station = psutil.Process(handle.info.pid)
    station.suspend()
    try:
        yield
    finally:
        station.resume()


@contextmanager
def open_page(here: Studio) -> Iterator[str]:
    with server.listen("127.0.0.1", 0) as listening, server.serving(page.app(here, None), listening):
        yield server.page_url("127.0.0.1", listening)


def test_each_page_shows_its_place_in_the_queue(
    open_studio: Callable[..., Studio], line: Service, visit: Callable[[str], Any]
) -> None:
    with open_page(open_studio()) as url:
        tabs = [visit(url) for _ in range(3)]
        with suspended(line):
            for tab in tabs:
                ask(tab, "a prompt", 1)
                tab.locator(".s1-state").wait_for()
            for tab, place in zip(tabs, ("in the making", "next in the queue", "number 2 in the queue"), strict=True):
                tab.get_by_text(place, exact=True).wait_for()
        for tab in tabs:
            until_done(tab)


def test_nobody_asks_for_clips_before_the_page_knows_whose_they_are(
    open_studio: Callable[..., Studio], browser: Any
) -> None:
    with open_page(open_studio()) as url:
        tab, held = browser.new_page(), list[Any]()
        tab.route("**/queue/join*", lambda route: held.append(route))
        tab.goto(url)
        while not held:
            tab.wait_for_timeout(50)
        make = tab.get_by_role("button", name="Make")
        assert make.is_disabled()
        held.pop().continue_()
        make.click(trial=True)  # waits until it can be clicked
        tab.close()


def test_closing_the_page_is_noticed(
    open_studio: Callable[..., Studio], line: Service, browser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "BEAT_SECONDS", 0.5)
    here = open_studio(absence_seconds=3.0)
    with open_page(here) as url:
        tab = browser.new_page()
        tab.goto(url)
        with suspended(line):
            ask(tab, "a prompt", 1)
            tab.locator(".s1-state").wait_for()
            (visitor,) = here.visitors.values()
            tab.wait_for_timeout(4000)
            assert visitor.is_busy, "the page is open"
            tab.close()
            while visitor.is_busy:
                time.sleep(0.05)
    assert visitor.takes[0].note == "The page was closed."


def test_the_page_shows_the_end_of_a_clip_though_it_comes_while_an_update_is_on_its_way(
    open_studio: Callable[..., Studio],
) -> None:
    async def slow_page() -> list[Any]:
        here = open_studio()
        visitor = here.visitor(None)
        here.start(visitor, "a prompt", "", "1", 1)
        updates = page.follow(here, visitor, "")
        await anext(updates)
        await until_over([visitor])
        return [update async for update in updates]

    *_, last = run(slow_page())
    assert any("s1-result" in str(piece) for piece in last)


def test_a_queue_that_is_full_says_so(
    open_studio: Callable[..., Studio], line: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def many() -> None:
        here = open_studio()
        monkeypatch.setattr(line, "max_waiting", 2)
        visitor = here.visitor(None)
        with pytest.raises(UserError, match="0 clips are waiting already, and 2 are the most"):
            here.start(visitor, "a prompt", "", "", 4)

    run(many())


def test_files_and_previews_of_old_clips_are_deleted(open_studio: Callable[..., Studio], tmp_path: Path) -> None:
    async def several() -> Studio:
        here = open_studio(kept_clips=2)
        visitor = here.visitor(None)
        here.start(visitor, "a prompt", "", "1", 3)
        await until_over([visitor])
        return here

    newest, second, oldest = run(several()).gallery
    assert set(tmp_path.glob("clips/*/*.mp4")) == {newest.path, second.path}
    assert oldest.path is None
    assert "not kept any more" in oldest.note
    assert not any(step.picture for step in oldest.steps)


def test_visitors_are_bounded_and_the_one_seen_least_lately_is_forgotten(open_studio: Callable[..., Studio]) -> None:
    async def visit() -> None:
        here = open_studio(most_visitors=2)
        busy, idle = here.visitor(None), here.visitor(None)
        here.start(busy, "a red circle", "", "1", 1)
        other = here.visitor(None)
        assert set(here.visitors) == {busy.id, other.id}, "not the one with a clip in the making"
        assert here.visitor(busy.id) is busy
        here.start(other, "a red square", "", "2", 1)
        assert here.is_full
        with pytest.raises(UserError, match="2 visitors have clips in the making, which are the most; try again"):
            here.visitor(idle.id)
        assert here.visitor(busy.id) is busy
        for visitor in (busy, other):
            here.stop(visitor)
        await until_over([busy, other])
        assert here.visitor(None).id in here.visitors
        assert len(here.visitors) == 2

    run(visit())


def test_requests_above_the_bounds_get_a_status_and_a_reason(open_studio: Callable[..., Studio]) -> None:
    here = open_studio(most_visitors=1)
    with server.listen("127.0.0.1", 0) as listening, server.serving(page.app(here, None, most_requests=2), listening):
        client = httpx.Client(base_url=server.page_url("127.0.0.1", listening), timeout=60)
        assert client.get("/").status_code == 200
        large = client.post("/gradio_api/queue/join", content=b"x" * (MOST_BYTES + 1))
        assert (large.status_code, large.text) == (
            413,
            f"A request may bring {MOST_BYTES} bytes, and says how many there are.\n",
        )
        assert client.post("/gradio_api/queue/join", content=iter([b"{}"])).status_code == 413, "of no known size"
        with client.stream("GET", "/gradio_api/heartbeat/a"), client.stream("GET", "/gradio_api/heartbeat/b"):
            many = client.get("/")
        assert (many.status_code, many.text) == (503, "The demo answers 2 requests at a time; try again in a while.\n")
        assert many.headers["retry-after"] == "30"
        while client.get("/").status_code != 200:  # until the server has noticed that both are closed
            time.sleep(0.05)
        here.visitor(None).takes = [Take(Clip("a", "a"), [])]
        full = client.get("/")
        assert (full.status_code, full.text) == (503, here.full_note + "\n")
        assert client.get("/config").status_code == 200, "pages that are open go on"
