# SPDX-License-Identifier: Apache-2.0
"""The files of one model as a hub serves them, from a folder of this machine, by sendfile."""

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

COMMIT = "c" * 40


class HubFiles(ThreadingHTTPServer):
    """A hub with the model `org/model`: what huggingface_hub asks for to list and download its files."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.hashes = {path.name: _sha256(path) for path in folder.iterdir()}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def sibling(self, path: Path) -> dict[str, Any]:
        size = path.stat().st_size
        lfs = {"sha256": self.hashes[path.name], "size": size, "pointerSize": 134}
        return {"rfilename": path.name, "size": size, "blobId": "0" * 40, "lfs": lfs}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubFiles

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        """Nothing: the output is its caller's."""

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        files = sorted(self.server.folder.iterdir())
        if "/tree/" in path:
            tree = [{"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0" * 40} for file in files]
            self._json(tree)
        elif path.startswith("/api/models/org/model"):
            siblings = [self.server.sibling(file) for file in files]
            self._json({"_id": "1", "id": "org/model", "sha": COMMIT, "siblings": siblings, "tags": []})
        else:
            self._file(self.server.folder / path.rpartition("/")[2])

    do_HEAD = do_GET  # noqa: N815 - the name is the base class's

    def _json(self, content: Any) -> None:
        raw = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def _file(self, file: Path) -> None:
        size = file.stat().st_size
        start = 0
        if asked := self.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{self.server.hashes[file.name]}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command != "HEAD":
            with file.open("rb") as source:
                self.connection.sendfile(source, offset=start)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
