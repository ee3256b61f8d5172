# SPDX-License-Identifier: Apache-2.0
"""Adapters pulled from the real registry, through a proxy that misbehaves."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import ClientSession, web

from adapter_files import BASE_NAME, a_base, adapter_tensors, an_adapter
from docker_registry import DockerRegistry, a_docker_registry
from kaito_ray.artifacts.base import read_base
from kaito_ray.artifacts.cache import Cache
from kaito_ray.artifacts.limits import ADAPTER
from kaito_ray.artifacts.prepare import Prepared, adapter_stager, prepare_adapter
from kaito_ray.artifacts.push import pack_adapter, push_image
from kaito_ray.artifacts.reason import Reason
from kaito_ray.artifacts.reference import Reference
from kaito_ray.artifacts.registry import Registry
from kaito_ray.errors import ArtifactRefused, ArtifactUnavailable
from web import serving

pytestmark = pytest.mark.e2e

LIMITS = replace(ADAPTER, seconds=30, attempts=3, idle_s=2)


class Proxy:
    """Passes requests on; `spoil` may answer in its own way, by the request and what the registry said."""

    def __init__(self, registry: DockerRegistry) -> None:
        self._registry = registry
        self.spoil: Callable[[web.Request, web.Response], AsyncIterator[bytes] | web.Response] = lambda _, answer: (
            answer
        )
        self.ranges: list[str] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Any request."""
        headers = {name: value for name, value in request.headers.items() if name != "Host"}
        self.ranges += [headers["Range"]] if "Range" in headers else []
        target = f"http://{self._registry.host}{request.rel_url}"
        async with (
            ClientSession(auto_decompress=False) as session,
            session.request(request.method, target, headers=headers, allow_redirects=False) as answer,
        ):
            kept = ("Content-Type", "Docker-Content-Digest", "Content-Range", "ETag")
            sent = {name: answer.headers[name] for name in kept if name in answer.headers}
            honest = web.Response(status=answer.status, headers=sent, body=await answer.read())
        spoiled = self.spoil(request, honest)
        if isinstance(spoiled, web.Response):
            return spoiled
        stream = web.StreamResponse(status=honest.status, headers=sent)
        stream.content_length = len(honest.body)  # type: ignore[arg-type]
        await stream.prepare(request)
        async for piece in spoiled:
            await stream.write(piece)
        if request.transport is not None:
            request.transport.close()
        return stream


class Rig:
    """A registry with an adapter, the proxy in front of it, and a node's cache."""

    def __init__(self, folder: Path, registry: DockerRegistry, proxy: Proxy, url: str) -> None:
        self.folder = folder
        self.proxy = proxy
        self._registry = registry
        self._image = f"{url.removeprefix('http://')}/team/adapter:1"

    async def push(self, name: str) -> str:
        """Push another adapter under the same tag, past the proxy."""
        adapter = an_adapter(self.folder / name, tensors=adapter_tensors(seed=len(name)))
        work = self.folder / f"{name}-work"
        work.mkdir()
        config, layer = pack_adapter(adapter, work)
        async with Registry(Reference.parse(self._registry.image("team/adapter:1")), LIMITS) as client:
            return await push_image(client, config, [layer], {})

    async def pull(self) -> Prepared:
        """As a replica does it."""
        stager = adapter_stager(Cache(self.folder / "cache"), limits=LIMITS)
        base = read_base(a_base(self.folder / "base"), [BASE_NAME])
        return await prepare_adapter(stager, {"image": self._image}, base=base, max_rank=64)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with a_docker_registry(tmp_path / "registry") as registry:
        proxy = Proxy(registry)
        async with serving(proxy.handle) as url:
            yield Rig(tmp_path, registry, proxy, url)


def is_layer(request: web.Request, answer: web.Response) -> bool:
    return "/blobs/" in request.path and len(answer.body) > 2000  # type: ignore[arg-type]


async def test_layers_that_break_off_are_continued(rig: Rig) -> None:
    digest = await rig.push("one")
    broken = 0

    def spoil(request: web.Request, answer: web.Response) -> AsyncIterator[bytes] | web.Response:
        nonlocal broken
        if not is_layer(request, answer) or broken == 2:
            return answer
        broken += 1

        async def half() -> AsyncIterator[bytes]:
            yield bytes(answer.body[: len(answer.body) // 2])  # type: ignore[arg-type,index]
            await asyncio.sleep(0.2)  # what a client has not read yet is lost with the connection

        return half()

    rig.proxy.spoil = spoil
    assert (await rig.pull()).digest == digest
    assert len(rig.proxy.ranges) == 2


async def test_a_slow_registry_is_waited_for(rig: Rig) -> None:
    digest = await rig.push("one")

    def spoil(request: web.Request, answer: web.Response) -> AsyncIterator[bytes] | web.Response:
        async def drips() -> AsyncIterator[bytes]:
            body = bytes(answer.body)  # type: ignore[arg-type]
            for start in range(0, len(body), len(body) // 5):
                await asyncio.sleep(0.1)
                yield body[start : start + len(body) // 5]

        return drips() if is_layer(request, answer) else answer

    rig.proxy.spoil = spoil
    assert (await rig.pull()).digest == digest


@pytest.mark.parametrize("part", ["manifests", "blobs"])
@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (401, Reason.UNAUTHORIZED),
        (404, Reason.NOT_FOUND),
        (429, Reason.RATE_LIMITED),
        (500, Reason.SERVER_ERROR),
    ],
)
async def test_answers_that_are_none(rig: Rig, part: str, status: int, reason: Reason) -> None:
    digest = await rig.push("one")
    rig.proxy.spoil = lambda request, answer: web.Response(status=status) if f"/{part}/" in request.path else answer
    with pytest.raises((ArtifactRefused, ArtifactUnavailable), match=str(status)) as caught:
        await rig.pull()
    assert caught.value.reason == reason
    rig.proxy.spoil = lambda _, answer: answer
    assert (await rig.pull()).digest == digest


async def test_bytes_that_are_not_those_of_the_digest(rig: Rig) -> None:
    digest = await rig.push("one")

    def spoil(request: web.Request, answer: web.Response) -> web.Response:
        if not is_layer(request, answer):
            return answer
        return web.Response(body=bytes(reversed(answer.body)))  # type: ignore[arg-type]

    rig.proxy.spoil = spoil
    with pytest.raises((ArtifactRefused, ArtifactUnavailable)) as caught:
        await rig.pull()
    assert caught.value.reason == Reason.DIGEST_MISMATCH
    rig.proxy.spoil = lambda _, answer: answer
    assert (await rig.pull()).digest == digest


async def test_a_tag_that_moves_in_the_middle_gives_one_image_whole(rig: Rig) -> None:
    first = await rig.push("one")
    moved = asyncio.Event()
    second = ""

    async def move(body: bytes) -> AsyncIterator[bytes]:
        nonlocal second
        if not moved.is_set():
            moved.set()
            second = await rig.push("another")
        yield body

    rig.proxy.spoil = lambda request, answer: (
        move(bytes(answer.body)) if is_layer(request, answer) else answer  # type: ignore[arg-type]
    )
    prepared = await rig.pull()
    assert prepared.digest == first
    assert (await rig.pull()).digest == second != first
