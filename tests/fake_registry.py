# SPDX-License-Identifier: Apache-2.0
"""A registry in memory with every fault on demand; the honest one is Debian's (docker_registry.py).

`Registry.handle` is a handler for web.serving. Logins are by bearer token, from a token endpoint of its own.
"""

import asyncio
import base64
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

OCI = "application/vnd.oci.image"
Fault = Callable[[web.Request], "web.StreamResponse | None"]


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass
class FakeRegistry:
    """Blobs by digest, manifests by tag and digest."""

    users: Mapping[str, str] = field(default_factory=dict)
    """Who may log in; empty lets everybody in without a login."""
    anonymous: bool = False
    """Whether the token endpoint gives tokens (that open nothing) without a login, as public registries do."""
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    fault: Fault = field(default=lambda _: None)
    blob_host: str = ""
    """Blobs are redirected there."""
    break_after: int = 0
    """Blobs break off after so many bytes."""
    tokens: set[str] = field(default_factory=set)
    seen: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and Authorization of every request."""
    ranges: list[str] = field(default_factory=list)

    def add_blob(self, content: bytes) -> dict[str, Any]:
        self.blobs[sha256(content)] = content
        return {"digest": sha256(content), "size": len(content)}

    def add_image(self, tag: str, *layers: bytes, media_type: str = f"{OCI}.layer.v1.tar+gzip", **changes: Any) -> str:
        """An image of these layers; `changes` replace fields of the manifest."""
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.manifest.v1+json",
            "config": {"mediaType": f"{OCI}.config.v1+json", **self.add_blob(b"{}")},
            "layers": [{"mediaType": media_type, **self.add_blob(layer)} for layer in layers],
        } | changes
        return self.add_manifest(tag, manifest)

    def add_manifest(self, tag: str, manifest: Mapping[str, Any]) -> str:
        raw = json.dumps(manifest).encode()
        self.manifests[tag] = self.manifests[sha256(raw)] = (str(manifest.get("mediaType", "")), raw)
        return sha256(raw)

    def asked(self) -> Counter[str]:
        """How often each path was asked for."""
        return Counter(path for _, path, _ in self.seen)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        authorization = request.headers.get("Authorization", "")
        self.seen.append((request.method, request.path, authorization))
        if request.path == "/token":
            return self._token(request, authorization)
        if (answer := self.fault(request)) is not None:
            return answer
        if request.path == "/v2/":
            return web.Response()
        if self.users and authorization.removeprefix("Bearer ") not in self.tokens:
            realm = f"http://{request.host}/token"
            challenge = f'Bearer realm="{realm}",service="fake",scope="repository:team/adapter:pull"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        kind, _, name = request.path.rpartition("/")
        if kind.endswith("/manifests"):
            media_type, raw = self.manifests.get(name, ("", b""))
            return web.Response(body=raw, content_type=media_type) if raw else web.Response(status=404)
        if kind.endswith("/blobs"):
            if self.blob_host:
                return web.Response(status=307, headers={"Location": f"{self.blob_host}/store/blobs/{name}?sig=a%2Fb"})
            return await self._blob(request, name)
        return web.Response(status=405)

    def _token(self, request: web.Request, authorization: str) -> web.Response:
        assert request.query["service"] == "fake"
        user, _, password = base64.b64decode(authorization.removeprefix("Basic ")).decode().partition(":")
        if authorization and self.users.get(user) != password:
            return web.Response(status=401)
        if not authorization and not self.anonymous:
            return web.Response(status=401)
        token = f"token-{len(self.seen)}"
        if authorization:
            self.tokens.add(token)
        return web.json_response({"token": token})

    async def _blob(self, request: web.Request, digest: str) -> web.StreamResponse:
        content = self.blobs.get(digest)
        if content is None:
            return web.Response(status=404)
        start = 0
        headers = {}
        if asked := request.headers.get("Range", ""):
            self.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        response = web.StreamResponse(status=206 if asked else 200, headers=headers)
        response.content_length = len(content) - start
        await response.prepare(request)
        end = start + self.break_after if self.break_after else len(content)
        await response.write(content[start:end])
        if end < len(content) and request.transport:
            await asyncio.sleep(0)
            request.transport.close()
        return response
