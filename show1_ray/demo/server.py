"""`show1-ray demo`: a warm line, and the page that people use."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from show1_ray.cluster.connection import checked_address
from show1_ray.dataset import Lander
from show1_ray.dataset.storage import Storage
from show1_ray.demo.studio import Studio
from show1_ray.errors import UserError, keep_secret, one_line
from show1_ray.job import origin
from show1_ray.live import open_line
from show1_ray.output import say
from show1_ray.pipeline import Pipeline

MOST_CONNECTIONS = 1024
"""More are answered with 503."""
QUEUE = 64
"""Clips that may wait for their first stage."""


def serve(
    pipeline: str = "nano",
    *,
    overrides: Sequence[str] = (),
    code: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    address: str | None = None,
    auth: str | None = None,
) -> None:
    """Serves the demo until SIGINT or SIGTERM.

    Args:
        pipeline: its name, or a pipeline file.
        overrides: `stage.key=value` changes to it; see `Pipeline.load`.
        code: a Python file, a folder or a module, whose stages the pipeline may use.
        host: where to listen; another one than loopback without `auth` is warned of.
        port: where to listen; 0: any that is free.
        address: a Ray cluster, as for `render`.
        auth: `user:password` that the page asks for, or `@FILE` that holds it.

    Raises:
        UserError: bad input, a port that is taken, Gradio is not there, or the line stopped.
    """
    account = checked_auth(auth)
    address = checked_address(address)
    loaded = Pipeline.load(pipeline, overrides, code).resolved()
    try:
        from show1_ray.demo import page  # Gradio, which takes seconds
    except ModuleNotFoundError as error:
        raise UserError(f"demo: {error.name} is not installed: pip install 'show1-ray[demo]'") from error
    with ExitStack() as stack:
        listening = stack.enter_context(listen(host, port))
        warn_if_open(host, account)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="show1-ray-demo-"))).resolve()
        # What visitors choose as inputs goes with the demo.
        os.environ["GRADIO_TEMP_DIR"] = stack.enter_context(tempfile.TemporaryDirectory(prefix="show1-ray-uploads-"))
        line = stack.enter_context(open_line(loaded, address=address, max_waiting=QUEUE))
        asked_to_stop = stack.enter_context(stop_signals())  # after Ray, which sets handlers of its own
        say(f"show1-ray: {loaded.name}: {line.stations} stations are loading their stages", sys.stderr)
        while not line.warm.wait(0.2) and not asked_to_stop.is_set():
            continue
        lander = Lander(Storage.at(str(folder)), origin(loaded))
        studio = Studio(line, loaded, lander, folder, name=pipeline, overrides=tuple(overrides))
        if not asked_to_stop.is_set() and not line.ended.is_set():
            stack.enter_context(serving(page.app(studio, account), listening))
            say(f"show1-ray: {page_url(host, listening)}", sys.stderr)
        while not asked_to_stop.is_set():
            if line.ended.wait(0.2):
                raise UserError(f"the line has stopped: {line.error}")


def checked_auth(auth: str | None) -> tuple[str, str] | None:
    """User and password, of `user:password` or of a file. Raises UserError, which does not repeat them."""
    if auth is None:
        return None
    if auth.startswith("@"):
        try:
            auth = Path(auth[1:]).expanduser().read_text().strip()
        except (OSError, ValueError) as error:
            raise UserError(f"--auth: the file cannot be read: {one_line(error)}") from None
    user, colon, password = auth.partition(":")
    if not (user and colon and password):
        raise UserError("--auth: give user:password, neither of them empty")
    keep_secret(password)
    return user, password


def warn_if_open(host: str, account: tuple[str, str] | None) -> None:
    """Says so where other machines may use the demo without a password, or could read it on its way."""
    if account is None and not is_loopback(host):
        say(
            f"show1-ray: warning: listening on {host} without a password: whoever reaches this machine can use it; "
            "give --auth @FILE, a file with user:password",
            sys.stderr,
        )
    if account is not None and not is_loopback(host):
        say(
            f"show1-ray: warning: listening on {host}: the password travels over plain HTTP, where others can read it; "
            "put a proxy with TLS in front",
            sys.stderr,
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens. Raises UserError if it cannot."""
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.create_server(place[:2], family=family)
    except OSError as error:
        is_name = isinstance(error, socket.gaierror)
        reason = error.strerror if is_name else os.strerror(error.errno or 0)  # without what Python adds
        raise UserError(f"{host}:{port}: cannot listen there: {reason}; --host and --port name another place") from None
    with listening:
        yield listening


def page_url(host: str, listening: socket.socket) -> str:
    """What to open in a browser."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listening.getsockname()[1]}/"


@contextmanager
def serving(app: Any, listening: socket.socket) -> Iterator[None]:
    """Serves an ASGI application in a thread; pages that are open do not hold up the end."""
    import uvicorn

    # Connections: each browser keeps up to six, most of them idle.
    config = uvicorn.Config(
        app, log_config=None, log_level="warning", timeout_graceful_shutdown=1, limit_concurrency=MOST_CONNECTIONS
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],), name="page")
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set."""
    asked = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: asked.set()) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
