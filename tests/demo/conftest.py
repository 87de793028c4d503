"""Pages in a browser; and what is behind them, in this process: a line of the tiny cascade, and studios on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from show1_ray import Pipeline, open_line
from show1_ray.dataset import Lander
from show1_ray.dataset.storage import Storage
from show1_ray.demo.studio import Studio
from show1_ray.job import origin
from show1_ray.line import LineSettings, Service
from show1_ray.line.events import Event
from show1_ray.show1.stages import STAGES
from tests.demo.browsing import RECORD, WAIT
from tests.own_ray import own_ray


@pytest.fixture(scope="package")
def local_ray() -> Iterator[None]:
    with own_ray(1):
        yield


@pytest.fixture(scope="module")
def told() -> list[Event]:
    """Everything that happened in the line."""
    return []


@pytest.fixture(scope="module")
def line(local_ray: None, tiny: Path, told: list[Event]) -> Iterator[Service]:
    pipeline = Pipeline.load(tiny, [f"{stage}.batch_size=4" for stage in STAGES])
    settings = LineSettings(stations=1, gpus=False, warm=True)
    with open_line(pipeline, settings=settings, observe=told.append) as line:
        assert line.warm.wait(60)
        yield line


@pytest.fixture
def open_studio(line: Service, tiny: Path, tmp_path: Path) -> Callable[..., Studio]:
    pipeline = Pipeline.load(tiny).resolved()
    lander = Lander(Storage.at(str(tmp_path)), origin(pipeline))
    return lambda **settings: Studio(line, pipeline, lander, tmp_path, **settings)


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page as somebody new, logged in with an account if there is one.

    Nothing that the page asks for may be elsewhere, and it may not complain.
    """
    contexts, urls, requests, complaints = [], [], [], []

    def visit(url: str, account: dict[str, str] | None = None) -> Any:
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        contexts.append(context)
        urls.append(url)
        if account is not None:
            assert context.request.post(url + "login", form=account).ok
        tab = context.new_page()
        tab.set_default_timeout(WAIT)
        tab.add_init_script(RECORD)
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.goto(url)
        return tab

    yield visit
    for context in contexts:
        context.close()
    assert not [url for url in requests if not url.startswith((*urls, "data:", "blob:"))]
    assert not complaints
