# SPDX-License-Identifier: Apache-2.0
"""The container that fetches a model, as the kubelet runs it: a process with an argument, metrics and a last word."""

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from aiohttp import ClientSession, web

from archives import a_tar
from fake_registry import OCI, FakeRegistry
from kaito_ray.artifacts.source import Source
from kaito_ray.model_fetch import Wish
from model_folder import ARCHITECTURE, a_model
from waiting import free_port
from web import serving

LINK = "links/0123456789abcdef"
SHARD_BYTES = 8 * 2**20


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


class SlowRegistry(FakeRegistry):
    """Sends the first half of every large blob, and the rest when `gate` is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.halfway = asyncio.Event()
        self.sent = 0

    async def _blob(self, request: web.Request, digest: str) -> web.StreamResponse:
        content = self.blobs.get(digest, b"")
        if len(content) < SHARD_BYTES or "Range" in request.headers:
            self.sent += len(content)
            return await super()._blob(request, digest)
        response = web.StreamResponse()
        response.content_length = len(content)
        await response.prepare(request)
        half = len(content) // 2
        await response.write(content[:half])
        self.sent += half
        self.halfway.set()
        await self.gate.wait()
        await response.write(content[half:])
        self.sent += len(content) - half
        return response


class Container:
    """One run of the fetching container."""

    made: ClassVar[list["Container"]] = []

    def __init__(self, folder: Path, root: Path, image: str, **changes: Any) -> None:
        self.log = folder / f"termination-{free_port()}"
        self.port = free_port()
        wish = Wish(
            source=Source(image=image),
            link=LINK,
            names=("tiny",),
            architecture=ARCHITECTURE,
            root=root,
            metrics_port=self.port,
            termination_log=self.log,
        )
        self.argument = json.dumps(wish.model_dump(mode="json", by_alias=True) | changes)
        self.process: asyncio.subprocess.Process | None = None
        self.made.append(self)

    async def start(self) -> asyncio.subprocess.Process:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "kaito_ray.model_fetch",
            self.argument,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        return self.process

    async def finish(self) -> tuple[int, str]:
        """Exit code and termination message."""
        process = self.process or await self.start()
        said, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, self.log.read_text() if self.log.exists() else said.decode()

    async def gauges(self) -> dict[str, float]:
        async with ClientSession() as session:
            while True:
                with contextlib.suppress(OSError):
                    async with session.get(f"http://127.0.0.1:{self.port}/metrics") as answer:
                        text = await answer.text()
                    return {
                        name: float(value)
                        for name, value in (line.split() for line in text.splitlines() if not line.startswith("#"))
                    }
                await asyncio.sleep(0.02)

    async def has_got(self, count: int) -> dict[str, float]:
        """The gauges once so many bytes have come."""
        while (gauges := await self.gauges())["kaito_model_download_bytes"] < count:  # noqa: ASYNC110 asking is the only way to know
            await asyncio.sleep(0.02)
        return gauges


@pytest.fixture(autouse=True)
async def nothing_is_left_running() -> AsyncIterator[None]:
    yield
    for container in Container.made:
        if container.process is not None and container.process.returncode is None:
            container.process.kill()
            await container.process.communicate()
    Container.made.clear()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return a_model(tmp_path / "source", shards=3, shard_bytes=SHARD_BYTES)


@pytest.fixture
async def registry(model: Path) -> AsyncIterator[tuple[SlowRegistry, str]]:
    registry = SlowRegistry()
    layers = [a_tar((f"workspace/weights/{name}", content)) for name, content in contents(model).items()]
    registry.add_image("1.0", *layers, media_type=f"{OCI}.layer.v1.tar")
    async with serving(registry.handle) as url:
        yield registry, f"{url.removeprefix('http://')}/team/model:1.0"


async def test_progress_then_the_model_then_nothing_to_do(
    tmp_path: Path, model: Path, registry: tuple[SlowRegistry, str]
) -> None:
    server, image = registry
    container = Container(tmp_path, tmp_path / "cache", image)
    await container.start()
    early = await container.gauges()
    assert early["kaito_model_download_remaining_seconds"] == -1 or early["kaito_model_download_total_bytes"] > 0
    await server.halfway.wait()
    gauges = await container.has_got(1)
    assert 0 < gauges["kaito_model_download_bytes"] < gauges["kaito_model_download_total_bytes"]
    assert gauges["kaito_model_download_total_bytes"] > 3 * SHARD_BYTES
    assert gauges["kaito_model_download_speed_bytes_per_second"] > 0
    assert gauges["kaito_model_download_remaining_seconds"] > 0
    assert not (tmp_path / "cache" / LINK).exists()  # nothing half-made can be seen
    server.gate.set()
    code, message = await container.finish()
    assert code == 0, message
    assert message.startswith("24.1 MiB in ")
    assert "sha256:" in message
    assert contents(tmp_path / "cache" / LINK) == contents(model)
    # The next pod on this node.
    sent = server.sent
    code, message = await Container(tmp_path, tmp_path / "cache", image).finish()
    assert (code, server.sent) == (0, sent)
    assert message.startswith("was on this node already")


async def test_a_killed_fetch_goes_on_where_it_was(tmp_path: Path, registry: tuple[SlowRegistry, str]) -> None:
    server, image = registry
    container = Container(tmp_path, tmp_path / "cache", image)
    process = await container.start()
    await server.halfway.wait()
    await container.has_got(3 * SHARD_BYTES // 2)
    process.send_signal(signal.SIGKILL)
    assert (await container.finish())[0] == -signal.SIGKILL
    assert not (tmp_path / "cache" / LINK).exists()
    server.gate.set()
    code, message = await Container(tmp_path, tmp_path / "cache", image).finish()
    assert code == 0, message
    assert len(server.ranges) == 3  # each shard was continued
    assert all(int(one.removeprefix("bytes=").removesuffix("-")) > 0 for one in server.ranges)


async def test_many_pods_of_a_node_fetch_once(tmp_path: Path, registry: tuple[SlowRegistry, str]) -> None:
    server, image = registry
    pods = [Container(tmp_path, tmp_path / "cache", image) for _ in range(4)]
    for pod in pods:
        await pod.start()
    await server.halfway.wait()
    server.gate.set()
    ends = [await pod.finish() for pod in pods]
    assert [code for code, _ in ends] == [0] * 4
    assert sum(message.startswith("24.1 MiB") for _, message in ends) == 1
    assert sum("already" in message for _, message in ends) == 3


async def test_the_owner_of_the_lock_dies_and_another_takes_over(
    tmp_path: Path, registry: tuple[SlowRegistry, str]
) -> None:
    server, image = registry
    first = Container(tmp_path, tmp_path / "cache", image)
    process = await first.start()
    await server.halfway.wait()
    second = Container(tmp_path, tmp_path / "cache", image)
    await second.start()
    await second.gauges()  # it runs, and waits
    process.kill()
    await first.finish()
    server.gate.set()
    code, message = await second.finish()
    assert code == 0, message
    assert (tmp_path / "cache" / LINK / "config.json").is_file()


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"source": {"image": "HOST/team/model:2.0"}}, 1, "NotFound: "),
        ({"architecture": "LlamaForCausalLM"}, 1, "WrongModel: "),
        ({"source": {"image": "127.0.0.1:1/team/model:1.0"}}, 75, "ConnectionFailed: "),
    ],
)
async def test_the_last_word_has_the_reason(
    tmp_path: Path, registry: tuple[SlowRegistry, str], change: dict[str, Any], code: int, message: str
) -> None:
    server, image = registry
    server.gate.set()
    host = image.partition("/")[0]
    change = json.loads(json.dumps(change).replace("HOST", host))
    ended, said = await Container(tmp_path, tmp_path / "cache", image, **change).finish()
    assert (ended, said[: len(message)]) == (code, message)
    assert not (tmp_path / "cache" / LINK).exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [({"limit_gib": 0}, "limit of the cache 0 B"), ({"spare_share": 1.0}, "100% of the disk stay free for the node")],
)
async def test_a_disk_that_is_too_small_is_said_before_a_byte_of_a_layer_came(
    tmp_path: Path, registry: tuple[SlowRegistry, str], change: dict[str, Any], words: str
) -> None:
    server, image = registry
    code, message = await Container(tmp_path, tmp_path / "cache", image, **change).finish()
    assert code == 1
    assert message.startswith("DiskTooSmall: needs ")
    assert words in message
    assert server.sent == 0
