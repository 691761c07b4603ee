"""A hub of one's own: as much of its protocol as a download needs, from a local folder."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serve(repositories: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serve folders as repositories; gives the address and the files asked for."""
    fetched: list[str] = []

    class Handler(_Handler):
        pass

    Handler.repositories, Handler.fetched = repositories, fetched
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", fetched
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    repositories: dict[str, Path]
    fetched: list[str]

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        parts = urlsplit(self.path).path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._describe("/".join(parts[2:4]), parts[4:], body)
            return
        folder = self.repositories.get("/".join(parts[:2]))
        path = folder / "/".join(parts[4:]) if folder and parts[2:3] == ["resolve"] else None
        if path is None or not path.is_file():
            self._refuse("EntryNotFound")
            return
        data = path.read_bytes()
        if body:
            self.fetched.append("/".join(parts[4:]))
        self._send(data, body, {"ETag": f'"{sha1(data).hexdigest()}"', "X-Repo-Commit": SHA})

    def _describe(self, name: str, rest: list[str], body: bool) -> None:
        folder = self.repositories.get(name)
        if folder is None:
            self._refuse("RepoNotFound")
            return
        if rest[:1] == ["revision"] and rest[1] not in ("main", SHA):
            self._refuse("RevisionNotFound")
            return
        files = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
        answer: object = {"id": name, "sha": SHA, "siblings": [{"rfilename": f} for f in files]}
        if rest[:1] == ["tree"]:
            answer = [
                {"type": "file", "path": f, "size": p.stat().st_size, "oid": SHA}
                for f, p in files.items()
            ]
        self._send(json.dumps(answer).encode(), body, {"Content-Type": "application/json"})

    def _refuse(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, data: bytes, body: bool, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)
