"""Limits of a demo: requests beyond them get an HTTP status and one line of text."""

from __future__ import annotations

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from show1_ray.demo.studio import Studio

MOST_REQUESTS = 256
"""Answered at a time. A page that is open has one all the time, one with clips in the making two."""
MOST_BYTES = 64 * 2**10
"""Of what a request brings: a page sends a prompt of 500 characters and what it knows of itself; more only where the
pipeline takes images or videos, which are uploaded."""
UPLOAD = "/gradio_api/upload"
RETRY_SECONDS = 30


class Bounded:
    """An ASGI application within bounds: 413 for a request that brings too much, 503 where there are too many of them,
    or where all the visitors that the studio remembers have clips in the making and somebody opens the page.
    """

    def __init__(self, app: ASGIApp, studio: Studio, most: int = MOST_REQUESTS) -> None:
        self.app, self.studio, self.most = app, studio, most
        self.open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        self.open += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.open -= 1

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        if scope["type"] == "websocket":  # the page has none
            return _refused(403, "There is nothing to connect to here.")
        headers = dict(scope["headers"])
        size = headers.get(b"content-length", b"0").decode("latin-1")
        most = MOST_BYTES + (self.studio.most_file_bytes if scope["path"] == UPLOAD else 0)
        if b"transfer-encoding" in headers or not size.isdecimal() or int(size) > most:
            return _refused(413, f"A request may bring {most} bytes, and says how many there are.")
        if self.open >= self.most:
            return _refused(503, f"The demo answers {self.most} requests at a time; try again in a while.")
        if scope["path"] == "/" and self.studio.is_full:
            return _refused(503, self.studio.full_note)
        return None


def _refused(status: int, text: str) -> PlainTextResponse:
    headers = {"Retry-After": str(RETRY_SECONDS)} if status == 503 else None
    return PlainTextResponse(text + "\n", status, headers)
