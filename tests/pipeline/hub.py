"""A server on loopback that answers as the model hub does, for one folder of repositories."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What is served: `folder/owner/name/files…`, each repository at one commit, with a branch `main`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gated: set[str] = set()
        self.downloads: Counter[str] = Counter()
        self.url = ""

    def files(self, repo: str) -> dict[str, Path]:
        root = self.folder / repo
        return {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}


@contextmanager
def serve(folder: Path) -> Iterator[Hub]:
    hub = Hub(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def log_message(self, *_: object) -> None:
            """Keep the tests' output clean."""

        def answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            if info := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(?:/revision/([\w.-]+))?", path):
                repo, revision = info[1], info[2] or "main"
                if not self.refused(repo, revision):
                    files = [{"rfilename": name} for name in sorted(hub.files(repo))]
                    gated = "manual" if repo in hub.gated else False
                    card = {"license": "cc-by-nc-4.0"}
                    self.send({"id": repo, "sha": COMMIT, "siblings": files, "gated": gated, "cardData": card}, body)
            elif tree := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/tree/([\w.-]+).*", path):
                if not self.refused(tree[1], tree[2]):
                    listing = [
                        {"type": "file", "path": name, "oid": oid(file), "size": file.stat().st_size}
                        for name, file in sorted(hub.files(tree[1]).items())
                    ]
                    self.send(listing, body)
            elif file := re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([\w.-]+)/(.+)", path):
                self.send_file(file[1], file[2], file[3], body)
            else:
                self.fail(404, "EntryNotFound")

        def refused(self, repo: str, revision: str) -> bool:
            if not (hub.folder / repo).is_dir():
                self.fail(401, "RepoNotFound")
            elif revision not in ("main", COMMIT):
                self.fail(404, "RevisionNotFound")
            else:
                return False
            return True

        def send_file(self, repo: str, revision: str, name: str, body: bool) -> None:
            if self.refused(repo, revision):
                return
            if repo in hub.gated:
                return self.fail(403, "GatedRepo")
            path = hub.files(repo).get(name)
            if path is None:
                return self.fail(404, "EntryNotFound")
            if body:
                hub.downloads[f"{repo}/{name}"] += 1
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{oid(path)}"')
            self.send_header("Content-Length", str(path.stat().st_size))
            self.end_headers()
            if body:
                self.wfile.write(path.read_bytes())

        def send(self, answer: object, body: bool) -> None:
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def fail(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def oid(path: Path) -> str:
        return hashlib.sha1(path.read_bytes()).hexdigest()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
