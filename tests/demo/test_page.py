"""The page in a real Chromium, with `show1-ray demo` in a process of its own, behind a password."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest

pytest.importorskip("gradio", reason="the extra [demo] is not installed")

from show1_ray.demo.page import EXAMPLES
from show1_ray.demo.studio import MAX_PROMPT
from tests.broken import break_word
from tests.demo.browsing import ask, downloaded, shown_python, until_done, until_it_plays
from tests.demo.command import serving, stations

ACCOUNT = {"username": "ada", "password": "secret"}
CHANGES = ("super_resolution.steps=12", "latent_super_resolution.steps=12")
"""Make the late stages slow enough for something to happen meanwhile."""
PROMPTS = [f"a {colour} {shape}" for colour in ("red", "green", "blue", "white") for shape in ("circle", "square")]
WILD_PROMPT = "<img src=x onerror=alert(1)> ${1+1} {{value}} {% raw %} <b>ünï</b> 日本語 🎬 \\n"


@pytest.fixture(scope="module")
def demo(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """`show1-ray demo` of a cascade that cannot make snow: `url`, `pid`."""
    folder = tmp_path_factory.mktemp("broken") / "cascade"
    pipeline = break_word(tiny, "snow", [*PROMPTS, WILD_PROMPT, EXAMPLES[0]], folder)
    options = [option for change in CHANGES for option in ("--set", change)]
    with serving("--pipeline", str(pipeline), "--auth", "ada:secret", *options) as (url, pid):
        yield SimpleNamespace(url=url, pid=pid)


@pytest.fixture
def enter(visit: Callable[..., Any], demo: SimpleNamespace) -> Callable[[], Any]:
    """Opens the demo's page as somebody new."""
    return partial(visit, demo.url, ACCOUNT)


def frames(path: Path) -> np.ndarray:
    return iio.imread(path, plugin="pyav")


def test_a_prompt_becomes_a_clip_that_plays_and_is_the_one_that_render_makes(
    enter: Callable[[], Any], local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tab = enter()
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
    assert all(re.fullmatch(r"(< )?\d+\.\d+ s", text) for text in times)
    until_it_plays(tab)
    tab.locator(".s1-gallery figure").wait_for()
    clip = frames(downloaded(tab))
    monkeypatch.chdir(tmp_path)
    exec(shown_python(tab))
    (rendered,) = tmp_path.glob("out/clips/*/*.mp4")
    assert np.array_equal(clip, frames(rendered))


def test_the_page_asks_for_the_password_before_it_shows_anything(
    visit: Callable[..., Any], browser: Any, demo: SimpleNamespace
) -> None:
    tab = visit(demo.url)
    for path in ("config", "gradio_api/info", "gradio_api/file=x"):
        assert tab.request.get(demo.url + path).status == 401
    log_in(tab, "wrong")
    tab.get_by_text("Incorrect Credentials").wait_for()
    log_in(tab, ACCOUNT["password"])
    ask(tab, "a red circle", 1)
    file = until_done(tab)
    assert tab.request.get(demo.url + file).status == 200
    assert browser.new_context().request.get(demo.url + file).status == 401


def log_in(tab: Any, password: str) -> None:
    tab.get_by_label("username").fill(ACCOUNT["username"])
    tab.get_by_label("password").fill(password)
    tab.get_by_role("button", name="Login").click()


def test_two_people_at_once_get_their_own_clips(enter: Callable[[], Any]) -> None:
    tabs = [enter(), enter()]
    for number, tab in enumerate(tabs):
        ask(tab, PROMPTS[number], number)
    urls = [until_done(tab) for tab in tabs]
    assert len(set(urls)) == 2
    for number, tab in enumerate(tabs):
        assert tab.locator(".s1-prompt").all_inner_texts() == [PROMPTS[number]]
        assert tab.locator(".s1-seed").all_inner_texts() == [f"seed {number}"]


def test_a_clip_that_fails_is_told_to_its_author_in_plain_words_and_harms_nobody_else(
    enter: Callable[[], Any],
) -> None:
    author, other = enter(), enter()
    ask(author, "a snow", 1)
    ask(other, "a red square", 2)
    author.locator(".s1-state[data-state=failed]").wait_for()
    note = "Text failed: its values are not numbers any more. Another prompt or seed may do better."
    assert author.locator(".s1-note").inner_text() == note
    until_done(other)
    assert other.locator(".s1-prompt").all_inner_texts() == ["a red square"]
    assert not other.evaluate("window.notes")
    ask(author, "a blue circle", 3)
    until_done(author)
    assert author.locator(".s1-note").count() == 0
    assert "a snow" not in author.locator(".s1-gallery").inner_text()


def test_a_reload_in_the_middle_breaks_nothing(enter: Callable[[], Any]) -> None:
    tab = enter()
    tab.get_by_label("Prompt", exact=True).fill("a blue square")
    tab.get_by_label("Prompt", exact=True).press("Enter")
    tab.locator(".s1-keyframes img").wait_for()
    tab.reload()
    assert "file=" in until_done(tab)
    assert tab.locator(".s1-prompt").inner_text() == "a blue square"
    tab.reload()
    assert "file=" in until_done(tab)


def test_a_prompt_that_is_too_long_and_one_that_is_empty_are_told_so(enter: Callable[[], Any]) -> None:
    tab = enter()
    ask(tab, "x" * (MAX_PROMPT + 1), 0)
    alert = tab.get_by_role("alert").filter(has_text="The prompt has 501 characters; 500 are the most.")
    alert.wait_for()
    ask(tab, " ", 0)
    tab.get_by_role("alert").filter(has_text="Write a prompt first.").wait_for()
    ask(tab, "a red circle", 1)
    until_done(tab)
    assert tab.get_by_role("alert").count() == 0


def test_the_clip_arrives_though_its_station_is_killed(enter: Callable[[], Any], demo: SimpleNamespace) -> None:
    tab = enter()
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


def test_what_people_write_is_shown_as_they_wrote_it(enter: Callable[[], Any]) -> None:
    tab = enter()
    ask(tab, WILD_PROMPT, 1)
    until_done(tab)
    assert tab.locator(".s1-prompt").inner_text() == WILD_PROMPT
    assert json.loads(tab.locator(".s1-line").text_content())["prompt"] == WILD_PROMPT
    assert tab.locator(".s1-take b, .s1-gallery b, img[src=x]").all_inner_texts() == ["1"]  # the seed's


def test_steps_and_guidance_are_there_for_those_who_look(enter: Callable[[], Any]) -> None:
    tab = enter()
    tab.get_by_text("Negative prompt, steps and guidance").click()
    tab.get_by_label("Negative prompt", exact=True).wait_for()
    rows = [row.split("\t") for row in tab.locator(".s1-settings tr").all_inner_texts()]
    assert rows[0] == ["stage", "steps", "guidance"]
    assert ["super resolution", "12"] in [row[:2] for row in rows]
    tab.locator("#s1-dice").click()
    tab.wait_for_function("/^[0-9]+$/.test(document.querySelector('#s1-options input').value)")


def test_stop_cancels_what_is_in_the_making(enter: Callable[[], Any]) -> None:
    tab = enter()
    ask(tab, "a white circle", 5)
    tab.locator(".s1-keyframes img").wait_for()
    tab.get_by_role("button", name="Stop").click()
    tab.locator(".s1-state[data-state=cancelled]").wait_for()
    ask(tab, "a white circle", 5)
    until_done(tab)


def test_several_clips_of_an_example_fit_a_phone(enter: Callable[[], Any]) -> None:
    tab = enter()
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.get_by_role("button", name=EXAMPLES[0]).click()
    tab.get_by_label("2", exact=True).check()
    tab.get_by_label("Seed", exact=True).fill("6")
    tab.get_by_role("button", name="Make").click()
    tab.locator(".s1-state[data-state=done]").nth(1).wait_for()
    assert tab.locator(".s1-prompt").all_inner_texts() == [EXAMPLES[0]] * 2
    assert tab.locator(".s1-seed").all_inner_texts() == ["seed 6", "seed 7"]
    for take in tab.locator(".s1-take:visible").all():
        assert take.bounding_box()["width"] >= 360
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
