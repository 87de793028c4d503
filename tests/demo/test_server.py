"""`show1-ray demo` as a command: where it listens, who may use it, and how it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="the extra [demo] is not installed")

from show1_ray.demo import server
from show1_ray.errors import UserError
from tests.demo.command import begun, command, end_of, said_until


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
    why = "cannot listen there: Address already in use; --host and --port name another place"
    assert ended.stderr == f"show1-ray: 127.0.0.1:{port}: {why}\n"


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
        with begun(command("--pipeline", str(tiny), "--port", "0")) as process:
            said_until(process, "stations are loading their stages")
            process.send_signal(signal.SIGINT)
            code, said, left = end_of(process)
    assert (code, said, left) == (0, "", [])


CTRL_C_IN_A_FORK = """
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where what runs the tests ignores it
left = [signal.SIGINT]
os.register_at_fork(before=lambda: left and os.kill(os.getpid(), left.pop()))
from show1_ray.cli import main
main()
"""
"""`show1-ray`, interrupted when Ray forks for the first time: where Python loses a KeyboardInterrupt."""


def test_ctrl_c_while_ray_starts_ends_it_and_all_that_it_started(tiny: Path) -> None:
    line = [sys.executable, "-c", CTRL_C_IN_A_FORK, "demo", "--pipeline", str(tiny), "--port", "0"]
    with begun(line) as process:
        assert end_of(process) == (130, "", [])


def test_the_password_may_stand_in_a_file_which_no_process_list_shows(tmp_path) -> None:
    file = tmp_path / "account"
    file.write_text("ada:secret:word\n")
    assert server.checked_auth(f"@{file}") == ("ada", "secret:word")
    with pytest.raises(UserError, match=r"^--auth: the file cannot be read: "):
        server.checked_auth(f"@{tmp_path / 'nothing'}")


def test_a_password_over_plain_http_is_warned_of_beyond_loopback(capsys) -> None:
    server.warn_if_open("127.0.0.1", ("ada", "secret"))
    assert capsys.readouterr().err == ""
    server.warn_if_open("0.0.0.0", ("ada", "secret"))
    said = capsys.readouterr().err
    assert "plain HTTP" in said
    assert "secret" not in said
