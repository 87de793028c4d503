"""A proxy before an S3 server that misbehaves on demand, and delays what it passes on."""

from __future__ import annotations

import random
import socket
import socketserver
import struct
import threading
import time
from contextlib import suppress
from typing import Literal

Mode = Literal["good", "busy", "cut", "reset", "hang"]
BUSY = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class FaultyS3:
    """Passes TCP connections on to a server at `port` of this machine.

    `mode` says what happens to new connections: "good"; "busy": answered with 503; "cut": closed in the middle of the
    answer; "reset": reset; "hang": neither answered nor closed until the mode changes. `delay` is added before each
    answer, in seconds.
    """

    def __init__(self, port: int, delay: float = 0.0) -> None:
        self.target, self.delay = port, delay
        self.mode: Mode = "good"
        self.requests = 0
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                proxy._serve(self.request)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address, daemon_threads, request_queue_size = True, True, 256

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Ends it; connections are reset."""
        self.mode = "reset"
        self.server.shutdown()
        self.server.server_close()

    def _serve(self, client: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", self.target)) as server:
            there = threading.Thread(target=self._pass, args=(client, server, False), daemon=True)
            there.start()
            self._pass(server, client, True)
            there.join(1)

    def _pass(self, source: socket.socket, sink: socket.socket, is_answer: bool) -> None:
        try:
            while data := source.recv(65536):
                if not is_answer:
                    self.requests += data.count(b" HTTP/1.1\r\n")
                elif self.delay:
                    time.sleep(self.delay)
                if not self._lets_through(data, sink, is_answer):
                    break
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, sink):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def _lets_through(self, data: bytes, sink: socket.socket, is_answer: bool) -> bool:
        match self.mode:
            case "busy" if is_answer:
                sink.sendall(BUSY)
                return False
            case "cut" if is_answer:
                sink.sendall(data[: random.randrange(1, len(data) + 1) // 2])
                return False
            case "reset":
                sink.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sink.close()
                return False
            case "hang":
                while self.mode == "hang":
                    time.sleep(0.1)
        return True
