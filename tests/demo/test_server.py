"""`show1-ray demo` as a command: where it listens, who may use it, and how it ends."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the extra [demo] is not installed")

from show1_ray.demo import server
from show1_ray.errors import UserError
from tests.demo.browsing import ask, until_done, until_it_plays
from tests.demo.command import begun, command, end_of, said_until, serving


def test_with_a_password_the_page_asks_for_it_and_then_all_of_it_works(tiny: Path, visit: Callable[[str], Any]) -> None:
    with serving("--pipeline", str(tiny), "--auth", "ada:secret") as (url, _):
        tab = visit(url)
        for path in ("config", "gradio_api/info", "gradio_api/file=x"):
            assert tab.request.get(url + path).status == 401
        log_in(tab, "wrong")
        tab.get_by_text("Incorrect Credentials").wait_for()
        log_in(tab, "secret")
        ask(tab, "a red circle", 1)
        tab.locator(".s1-keyframes img").wait_for()
        file = until_done(tab)
        until_it_plays(tab)
        stranger = visit(url)
        assert stranger.request.get(url + file).status == 401
        assert tab.request.get(url + file).status == 200


def log_in(tab: Any, password: str) -> None:
    tab.get_by_label("username").fill("ada")
    tab.get_by_label("password").fill(password)
    tab.get_by_role("button", name="Login").click()


@pytest.mark.parametrize("auth", ["ada", "ada:", ":secret", ""])
def test_a_user_without_a_password_is_refused_in_one_line(auth: str) -> None:
    with pytest.raises(UserError) as refused:
        server.serve(auth=auth)
    assert str(refused.value) == "--auth: give user:password, neither of them empty"


def test_a_port_that_is_taken_is_refused_in_one_line_before_anything_starts(tiny: Path) -> None:
    with server.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        line = command("--pipeline", str(tiny), "--port", str(port))
        ended = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert ended.stdout == ""
    place = f"--host 127.0.0.1 --port {port}"
    assert ended.stderr == f"show1-ray: {place}: cannot listen there: Address already in use\n"


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


def test_ctrl_c_while_stations_load_ends_it_and_all_that_it_started(tiny: Path) -> None:
    said = "http://"
    while "http://" in said:  # the stations were quicker than the signal
        with begun("--pipeline", str(tiny), "--port", "0") as (process, _):
            said_until(process, "stations load their stages")
            process.send_signal(signal.SIGINT)
            code, said, left = end_of(process)
    assert (code, said, left) == (0, "", [])


def test_ctrl_c_while_ray_starts_ends_it_and_all_that_it_started(tiny: Path) -> None:
    with begun("--pipeline", str(tiny), "--port", "0") as (process, folder):
        while not any(folder.iterdir()):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert end_of(process) == (130, "", [])
