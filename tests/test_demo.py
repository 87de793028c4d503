"""The web demo: in a real Chromium against a process of its own, and what is behind the page with many visitors."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imageio.v3 as iio
import numpy as np
import psutil
import pytest

pytest.importorskip("gradio", reason="the extra [demo] is not installed")

from show1_ray import Pipeline, UserError
from show1_ray.costs import costs_of_job
from show1_ray.dataset import Lander
from show1_ray.dataset.storage import Storage
from show1_ray.demo import page, server, studio
from show1_ray.demo.studio import MAX_PROMPT, Studio, Take, Visitor
from show1_ray.line.events import ClipDone
from show1_ray.line.service import Began, Service
from show1_ray.line.spec import LineSettings
from show1_ray.pipeline import STAGES
from show1_ray.render import origin
from show1_ray.work import stage_specs
from tests.line.sleepers import references
from tests.own_ray import own_ray

CHANGES = ("super_resolution.steps=12", "latent_super_resolution.steps=12")
"""Make the late stages slow enough for something to happen meanwhile."""
WAIT = 120_000
RECORD = """
window.seen = [];
window.notes = [];
new MutationObserver(() => {
  for (const what of ['.s1-keyframes img', '.s1-interpolation img', '.s1-super_resolution img', '.s1-result video'])
    if (document.querySelector(what) && !window.seen.includes(what)) window.seen.push(what);
  for (const note of document.querySelectorAll('.s1-note')) window.notes.push(note.innerText);
}).observe(document, {childList: true, subtree: true});
"""


@pytest.fixture(scope="module")
def demo(tiny: Path) -> Iterator[SimpleNamespace]:
    """`show1-ray demo` in a process of its own: `url`, `pid`."""
    options = [option for change in CHANGES for option in ("--set", change)]
    command = [sys.executable, "-m", "show1_ray", "demo", "--pipeline", str(tiny), "--port", "0", *options]
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        environment = {**os.environ, "RAY_TMPDIR": folder}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if "http://" in line:
                break
        assert said, "it ended without a word"
        assert "http://" in said[-1], "".join(said)
        yield SimpleNamespace(url=said[-1].split()[-1], pid=process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.fixture
def visit(browser: Any, demo: SimpleNamespace) -> Iterator[Callable[[], Any]]:
    """Opens the page as somebody new; nothing that it asks for may be elsewhere, and it may not complain."""
    contexts, requests, complaints = [], [], []

    def visit() -> Any:
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(WAIT)
        tab.add_init_script(RECORD)
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.goto(demo.url)
        tab.get_by_label("Prompt", exact=True).wait_for()
        return tab

    yield visit
    for context in contexts:
        context.close()
    assert not [url for url in requests if not url.startswith((demo.url, "data:", "blob:"))]
    assert not complaints


def ask(tab: Any, prompt: str, seed: int) -> None:
    tab.get_by_label("Prompt", exact=True).fill(prompt)
    tab.get_by_label("Seed", exact=True).fill(str(seed))
    tab.get_by_role("button", name="Make").click()


def until_done(tab: Any) -> str:
    """Wait for the clip; where its file is."""
    tab.locator(".s1-state[data-state=done]").wait_for()
    return tab.locator(".s1-result video").get_attribute("src")


def stations(pid: int, title: str = "ray::Station") -> list[psutil.Process]:
    """The stations of the line that a process runs; Ray's title says what each does."""
    children = psutil.Process(pid).children(recursive=True)
    return [child for child in children if title in " ".join(child.cmdline())]


def frames(path: Path) -> np.ndarray:
    return iio.imread(path, plugin="pyav")


def downloaded(tab: Any) -> Path:
    with tab.expect_download() as download:
        tab.get_by_role("link", name="Download").click()
    return Path(download.value.path())


def shown_python(tab: Any) -> str:
    tab.get_by_text("The same clip in Python").click()
    return tab.locator(".s1-call").inner_text()


def test_a_prompt_becomes_a_clip_that_plays_and_is_the_one_that_render_makes(
    visit: Callable[[], Any], local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tab = visit()
    ask(tab, "a red circle", 7)
    tab.locator(".s1-keyframes img").wait_for()
    until_done(tab)
    assert tab.evaluate("window.seen") == [
        ".s1-keyframes img",
        ".s1-interpolation img",
        ".s1-super_resolution img",
        ".s1-result video",
    ]
    times = tab.locator(".s1-time").all_inner_texts()
    assert len(times) == 5
    assert all(re.fullmatch(r"\d+\.\d+ s", text) for text in times)
    playing = "video => video.currentTime > 0.2 && !video.paused && video.videoWidth == 36"
    tab.wait_for_function(f"({playing})(document.querySelector('.s1-result video'))", timeout=WAIT)
    tab.locator(".s1-gallery figure").wait_for()
    clip = frames(downloaded(tab))
    monkeypatch.chdir(tmp_path)
    exec(shown_python(tab))
    (rendered,) = tmp_path.glob("out/clips/*/*.mp4")
    assert np.array_equal(clip, frames(rendered))


def test_two_people_at_once_get_their_own_clips(visit: Callable[[], Any]) -> None:
    tabs = [visit(), visit()]
    for number, tab in enumerate(tabs):
        ask(tab, f"a square, number {number}", number)
    urls = [until_done(tab) for tab in tabs]
    assert len(set(urls)) == 2
    for number, tab in enumerate(tabs):
        assert tab.locator(".s1-prompt").all_inner_texts() == [f"a square, number {number}"]
        assert tab.locator(".s1-seed").all_inner_texts() == [f"seed {number}"]


def test_a_reload_in_the_middle_breaks_nothing(visit: Callable[[], Any]) -> None:
    tab = visit()
    tab.get_by_label("Prompt", exact=True).fill("a blue triangle")
    tab.get_by_label("Prompt", exact=True).press("Enter")
    tab.locator(".s1-keyframes img").wait_for()
    tab.reload()
    assert "file=" in until_done(tab)
    assert tab.locator(".s1-prompt").inner_text() == "a blue triangle"
    tab.reload()
    assert "file=" in until_done(tab)


def test_a_prompt_that_is_too_long_and_one_that_is_empty_are_told_so(visit: Callable[[], Any]) -> None:
    tab = visit()
    ask(tab, "x" * (MAX_PROMPT + 1), 0)
    alert = tab.get_by_role("alert").filter(has_text="The prompt has 501 characters; 500 are the most.")
    alert.wait_for()
    ask(tab, " ", 0)
    tab.get_by_role("alert").filter(has_text="Write a prompt first.").wait_for()
    ask(tab, "a circle", 1)
    until_done(tab)
    assert tab.get_by_role("alert").count() == 0


def test_the_clip_arrives_though_its_station_is_killed(visit: Callable[[], Any], demo: SimpleNamespace) -> None:
    tab = visit()
    told: list[str] = []
    while not told:  # on a slow machine the page may show a stage that is over: then nobody works, or on the next one
        tab.evaluate("window.notes = []")
        ask(tab, "a green square", 5)
        tab.locator(".s1-super_resolution[data-state=running]").wait_for()
        for station in stations(demo.pid, "ray::Station.run")[:1]:  # the other one idles
            station.kill()
        assert "file=" in until_done(tab)
        told = tab.evaluate("window.notes")
    assert all(
        re.fullmatch(r"The station that worked on it died: .*super resolution is done again\.", note) for note in told
    )


def test_what_people_write_is_shown_as_they_wrote_it(visit: Callable[[], Any]) -> None:
    tab = visit()
    prompt = "<img src=x onerror=alert(1)> ${1+1} {{value}} {% raw %} <b>ünï</b> 日本語 🎬 \\n"
    ask(tab, prompt, 1)
    until_done(tab)
    assert tab.locator(".s1-prompt").inner_text() == prompt
    assert json.loads(tab.locator(".s1-line").text_content())["prompt"] == prompt
    assert tab.locator(".s1-take b, .s1-gallery b, img[src=x]").all_inner_texts() == ["1"]  # the seed's


def test_steps_and_guidance_are_there_for_those_who_look(visit: Callable[[], Any]) -> None:
    tab = visit()
    tab.get_by_text("Negative prompt, steps and guidance").click()
    tab.get_by_label("Negative prompt", exact=True).wait_for()
    rows = [row.split("\t") for row in tab.locator(".s1-settings tr").all_inner_texts()]
    assert rows[0] == ["stage", "steps", "guidance"]
    assert ["super resolution", "12"] in [row[:2] for row in rows]
    tab.locator("#s1-dice").click()
    tab.wait_for_function("/^[0-9]+$/.test(document.querySelector('#s1-options input').value)")


def test_stop_cancels_what_is_in_the_making(visit: Callable[[], Any]) -> None:
    tab = visit()
    ask(tab, "a white circle", 5)
    tab.locator(".s1-keyframes img").wait_for()
    tab.get_by_role("button", name="Stop").click()
    tab.locator(".s1-state[data-state=cancelled]").wait_for()
    ask(tab, "a white circle", 5)
    until_done(tab)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    with own_ray(1):
        yield


@pytest.fixture(scope="module")
def line(local_ray: None, tiny: Path) -> Iterator[Service]:
    pipeline = Pipeline.load(tiny, [f"{stage}.batch_size=4" for stage in STAGES])
    with Service(stage_specs(pipeline, costs_of_job(pipeline, "cpu")), LineSettings(stations=1, warm=True)) as line:
        assert line.warm.wait(60)
        yield line


@pytest.fixture
def open_studio(line: Service, tiny: Path, tmp_path: Path) -> Callable[..., Studio]:
    pipeline = Pipeline.load(tiny).resolved()
    lander = Lander(Storage.at(str(tmp_path)), origin(pipeline))
    return lambda kind=Studio, **settings: kind(line, pipeline, lander, tmp_path, **settings)


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """As asyncio.run, in a thread: Playwright's loop runs in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


async def until_over(visitors: list[Visitor]) -> None:
    while any(visitor.is_busy for visitor in visitors):
        for visitor in visitors:
            visitor.seen = time.monotonic()
        await asyncio.sleep(0.05)


def test_sixteen_people_at_once_have_their_turn_in_order_are_all_served_and_leave_nothing_behind(
    open_studio: Callable[..., Studio], line: Service
) -> None:
    begun: list[str] = []
    served: list[str] = []

    class Watched(Studio):
        async def _hear(self, take: Take, event: Any) -> None:
            if isinstance(event, Began) and event.stage == "text":
                begun.append(take.clip.prompt)
            if isinstance(event, ClipDone):
                served.append(take.clip.prompt)
            await super()._hear(take, event)

    async def crowd(people: int) -> Studio:
        here = open_studio(Watched)
        visitors = [here.visitor(None) for _ in range(people)]
        for number, visitor in enumerate(visitors):
            here.start(visitor, f"prompt {number:02}", "", str(number), 1)
        await until_over(visitors)
        assert [visitor.takes[0].state for visitor in visitors] == ["done"] * people
        return here

    run(crowd(1))
    before = references()
    begun.clear()
    served.clear()
    here = run(crowd(16))
    assert begun == [f"prompt {number:02}" for number in range(16)]
    assert sorted(served) == begun
    assert len(here.gallery) == studio.GALLERY
    assert max(step.clips for take in here.gallery for step in take.steps) > 1
    assert (line.in_line, line.waiting) == (0, 0)
    del here
    assert references() <= before + 3


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


def test_closing_the_page_is_noticed(open_studio: Callable[..., Studio], line: Service, browser: Any) -> None:
    here = open_studio(absence_seconds=3 * page.BEAT_SECONDS)
    with server.listen("127.0.0.1", 0) as listening, server.serving(page.app(here, None), listening):
        tab = browser.new_page()
        tab.goto(server.page_url("127.0.0.1", listening))
        (handle,) = line.line.fleet.stations.values()
        assert handle.info is not None
        station = psutil.Process(handle.info.pid)
        station.suspend()
        try:
            ask(tab, "a prompt", 1)
            tab.locator(".s1-state").wait_for()
            (visitor,) = here.visitors.values()
            tab.wait_for_timeout(4000 * page.BEAT_SECONDS)
            assert visitor.is_busy, "the page is open"
            tab.close()
            while visitor.is_busy:
                time.sleep(0.05)
        finally:
            station.resume()
    assert visitor.takes[0].note == "The page was closed."


def test_a_queue_that_is_full_says_so(
    open_studio: Callable[..., Studio], line: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def crowd() -> None:
        here = open_studio()
        monkeypatch.setattr(line, "max_waiting", 2)
        visitor = here.visitor(None)
        with pytest.raises(UserError, match="0 clips are waiting already, and 2 are the most"):
            here.start(visitor, "a prompt", "", "", 4)

    run(crowd())


def test_files_and_previews_of_old_clips_are_deleted(
    open_studio: Callable[..., Studio], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studio, "KEPT_CLIPS", 2)

    async def several() -> Studio:
        here = open_studio()
        visitor = here.visitor(None)
        here.start(visitor, "a prompt", "", "1", 3)
        await until_over([visitor])
        return here

    newest, second, oldest = run(several()).gallery
    assert set(tmp_path.glob("clips/*/*.mp4")) == {newest.path, second.path}
    assert oldest.path is None
    assert "not kept any more" in oldest.note
    assert not any(step.picture for step in oldest.steps)


def test_with_a_password_nothing_is_served_without_it(open_studio: Callable[..., Studio]) -> None:
    from starlette.testclient import TestClient

    with TestClient(page.app(open_studio(), ("ada", "secret"))) as client:
        assert client.get("/config").status_code == 401
        assert client.post("/login", data={"username": "ada", "password": "wrong"}).status_code == 400
        assert client.post("/login", data={"username": "ada", "password": "secret"}).status_code == 200
        assert client.get("/config").status_code == 200


@pytest.mark.parametrize("auth", ["ada", "ada:", ":secret", ""])
def test_a_user_without_a_password_is_refused_in_one_line(auth: str) -> None:
    with pytest.raises(UserError) as refused:
        server.serve(auth=auth)
    assert str(refused.value) == "--auth: give user:password, neither of them empty"


def test_a_port_that_is_taken_is_refused_before_anything_starts() -> None:
    with server.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--host 127.0.0.1 --port {port}: cannot listen there"):
            server.serve(port=port)


@pytest.mark.parametrize(
    ("host", "account", "warned"),
    [
        ("127.0.0.1", None, False),
        ("::1", None, False),
        ("localhost", None, False),
        ("0.0.0.0", ("ada", "secret"), False),
        ("0.0.0.0", None, True),
        ("192.0.2.1", None, True),
    ],
)
def test_other_machines_without_a_password_are_warned_of(
    host: str, account: tuple[str, str] | None, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    server.warn_if_open(host, account)
    assert ("without a password" in capsys.readouterr().err) == warned
