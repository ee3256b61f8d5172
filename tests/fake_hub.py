# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face hub on this machine, with as many models as a test puts into it."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"
GIB = 1024**3
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "vocab_size": 128256,
    "torch_dtype": "bfloat16",
}
WEIGHTS = {"model-00001-of-00002.safetensors": 10 * GIB, "model-00002-of-00002.safetensors": 5 * GIB}


class FakeHub(ThreadingHTTPServer):
    """One hub with as many models as were put into it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models: dict[str, dict[str, Any]] = {}
        self.answers: dict[str, tuple[int, dict[str, str]]] = {}
        self.asked: list[str] = []
        self.tokens: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def put(self, name: str, config: Any = LLAMA, files: dict[str, int] | None = None, **info: Any) -> None:
        """A model with its config.json (None for none) and its files."""
        present = dict(WEIGHTS if files is None else files)
        if config is not None:
            present["config.json"] = 1000
        self.models[name] = {"config": config, "files": present, "info": info}


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        """Nothing: the tests' output is theirs."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.tokens.append(self.headers.get("Authorization", ""))
        parts = urlsplit(self.path).path.strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if is_api else parts[:2])
        if name in self.server.answers:
            status, headers = self.server.answers[name]
            self._send(status, b"{}", headers)
        elif name not in self.server.models:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif is_api:
            self._send(200, json.dumps(self._info(name)).encode())
        else:
            text = self.server.models[name]["config"]
            body = text if isinstance(text, bytes) else json.dumps(text).encode()
            self._send(200, body, {"ETag": f'"{len(body)}"', "X-Repo-Commit": SHA})

    do_HEAD = do_GET  # noqa: N815 - the name is the base class's

    def _info(self, name: str) -> dict[str, Any]:
        model = self.server.models[name]
        siblings = [{"rfilename": file, "size": size} for file, size in model["files"].items()]
        facts = {"_id": "1", "id": name, "modelId": name, "sha": SHA, "private": False, "gated": False, "tags": []}
        info: dict[str, Any] = model["info"]
        return facts | {"siblings": siblings} | info

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
