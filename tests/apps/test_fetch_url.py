# SPDX-License-Identifier: Apache-2.0
"""Downloads from servers that misbehave: what arrives, what is refused and in which words."""

import asyncio
import contextlib
import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from kaito_ray.artifacts.cache import Cache
from kaito_ray.artifacts.limits import Limits
from kaito_ray.artifacts.reason import Reason
from kaito_ray.artifacts.transport import Transport
from kaito_ray.artifacts.url import fetch_url
from kaito_ray.errors import ArtifactRefused, ArtifactUnavailable
from web import Handler, Names, serving

LIMITS = Limits(bytes=32 * 1024 * 1024, entries=100, seconds=20, attempts=3, idle_s=1)
LOCAL = ("127.0.0.1",)
BODY = os.urandom(6_000_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


class Fetcher:
    """Fetches into one cache and keeps count of nothing else."""

    def __init__(self, root: Path) -> None:
        self.cache = Cache(root)

    async def __call__(
        self, url: str, *, limits: Limits = LIMITS, allowed: tuple[str, ...] = LOCAL, names: Names | None = None
    ) -> tuple[str, str]:
        """Name and sha256 of the file."""
        async with Transport(limits, allowed, resolver=names) as transport:
            fetched = await fetch_url(transport, url, self.cache)
            with fetched.entry as entry:
                assert hashlib.sha256(entry.path.read_bytes()).hexdigest() == fetched.sha256
            return fetched.name, fetched.sha256

    async def refused(self, url: str, **options: object) -> tuple[str, str]:
        """Reason and sentence."""
        with pytest.raises((ArtifactRefused, ArtifactUnavailable)) as caught:
            await self(url, **options)  # type: ignore[arg-type]
        return caught.value.reason, str(caught.value)


@pytest.fixture
def fetch(tmp_path: Path) -> Fetcher:
    return Fetcher(tmp_path / "cache")


def answering(status: int, **headers: str) -> Handler:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=status, headers=headers)

    return handler


class Ranges:
    """Serves BODY with ranges and an ETag, but breaks off after `piece` bytes; remembers what was asked for."""

    def __init__(self, piece: int | None = None, etag: str = '"one"') -> None:
        self.piece = piece
        self.etag = etag
        self.body = BODY
        self.ranges: list[str | None] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.ranges.append(request.headers.get("Range"))
        start = 0
        status, headers = 200, {"ETag": self.etag}
        if request.headers.get("If-None-Match") == self.etag:
            return web.Response(status=304)
        if "Range" in request.headers and request.headers.get("If-Range") == self.etag:
            start = int(request.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(self.body) - 1}/{len(self.body)}"
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = len(self.body) - start
        await response.prepare(request)
        end = len(self.body) if self.piece is None else start + self.piece
        await response.write(self.body[start:end])
        if end < len(self.body) and request.transport:
            request.transport.close()
        return response


async def test_a_file_and_its_name(fetch: Fetcher) -> None:
    async with serving(Ranges()) as url:
        assert await fetch(f"{url}/train.parquet?download=true") == ("train.parquet", SHA256)


async def test_a_broken_download_is_continued(fetch: Fetcher) -> None:
    server = Ranges(piece=2_500_000)
    async with serving(server) as url:
        assert await fetch(f"{url}/x.bin") == ("x.bin", SHA256)
    # A little that was still on its way when the connection broke may have to come again.
    starts = [int(asked.removeprefix("bytes=").removesuffix("-")) for asked in server.ranges if asked]
    assert server.ranges[0] is None
    assert starts == sorted(set(starts))
    assert 0 < starts[0] <= 2_500_000


async def test_a_download_is_continued_by_another_process(fetch: Fetcher, tmp_path: Path) -> None:
    server = Ranges(piece=2_500_000)
    async with serving(server) as url:
        with pytest.raises(ArtifactUnavailable):
            await fetch(f"{url}/x.bin", limits=replace(LIMITS, attempts=1))
        assert await Fetcher(tmp_path / "cache")(f"{url}/x.bin") == ("x.bin", SHA256)
    assert server.ranges[1] is not None


async def test_a_file_that_changes_midway_starts_over(fetch: Fetcher) -> None:
    server = Ranges(piece=2_500_000)
    other = os.urandom(3_000_000)
    async with serving(server) as url:
        with pytest.raises(ArtifactUnavailable):
            await fetch(f"{url}/x.bin", limits=replace(LIMITS, attempts=1))
        server.etag, server.body, server.piece = '"two"', other, None
        assert await fetch(f"{url}/x.bin") == ("x.bin", hashlib.sha256(other).hexdigest())


async def test_a_weak_tag_is_not_good_enough_to_continue(fetch: Fetcher) -> None:
    server = Ranges(piece=2_500_000, etag='W/"one"')
    async with serving(server) as url:
        reason, _ = await fetch.refused(f"{url}/x.bin")
    assert (reason, server.ranges) == (Reason.TRUNCATED, [None, None, None])


async def test_an_unchanged_file_is_not_fetched_again(fetch: Fetcher) -> None:
    server = Ranges()
    async with serving(server) as url:
        first = await fetch(f"{url}/x.bin")
        server.piece = 0  # a body would break off now
        assert await fetch(f"{url}/x.bin") == first


async def test_a_server_that_is_gone_does_not_matter_for_what_is_here(fetch: Fetcher) -> None:
    async with serving(Ranges()) as url:
        first = await fetch(f"{url}/x.bin")
    assert await fetch(f"{url}/x.bin", limits=replace(LIMITS, attempts=1)) == first


@pytest.mark.parametrize(
    ("status", "reason", "tries"),
    [
        (401, Reason.UNAUTHORIZED, 1),
        (403, Reason.FORBIDDEN, 1),
        (404, Reason.NOT_FOUND, 1),
        (410, Reason.NOT_FOUND, 1),
        (418, Reason.UNEXPECTED_ANSWER, 1),
        (429, Reason.RATE_LIMITED, 2),
        (500, Reason.SERVER_ERROR, 2),
        (503, Reason.SERVER_ERROR, 2),
    ],
)
async def test_statuses(fetch: Fetcher, status: int, reason: Reason, tries: int) -> None:
    seen = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.path)
        return web.Response(status=status)

    async with serving(handler) as url:
        found, sentence = await fetch.refused(f"{url}/x?token=s3cret", limits=replace(LIMITS, attempts=2))
    assert (found, len(seen)) == (reason, tries)
    assert str(status) in sentence
    assert "s3cret" not in sentence


async def test_retry_after_is_honoured_and_bounded(fetch: Fetcher) -> None:
    asked: list[float] = []

    async def handler(_: web.Request) -> web.Response:
        asked.append(asyncio.get_running_loop().time())
        if len(asked) == 1:
            return web.Response(status=429, headers={"Retry-After": "1"})
        return web.Response(status=503, headers={"Retry-After": "3600"})

    async with serving(handler) as url:
        reason, _ = await fetch.refused(f"{url}/x")
    assert (reason, len(asked)) == (Reason.SERVER_ERROR, 2)
    assert 1.0 <= asked[1] - asked[0] < 3


async def test_a_server_that_falls_silent(fetch: Fetcher) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"x")
        with contextlib.suppress(ConnectionError):
            await asyncio.sleep(30)
        return response

    async with serving(handler) as url:
        limits = replace(LIMITS, idle_s=0.2, attempts=1)
        assert (await fetch.refused(f"{url}/x", limits=limits))[0] == Reason.TIMEOUT


async def test_a_server_that_drips_is_cut_off_by_the_clock(fetch: Fetcher) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                await response.write(b"x")
                await asyncio.sleep(0.05)
        return response

    async with serving(handler) as url:
        reason, sentence = await fetch.refused(f"{url}/x", limits=replace(LIMITS, seconds=0.5))
    assert (reason, "not finished after 0.5 s" in sentence) == (Reason.TIMEOUT, True)


@pytest.mark.parametrize("announced", [True, False])
async def test_too_large_is_refused_announced_or_not(fetch: Fetcher, announced: bool, tmp_path: Path) -> None:
    sent = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        if announced:
            response.content_length = 100_000_000
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while sent < 100_000_000:
                await response.write(bytes(1_000_000))
                sent += 1_000_000
        return response

    async with serving(handler) as url:
        reason, sentence = await fetch.refused(f"{url}/x", limits=replace(LIMITS, bytes=10_000_000))
    assert (reason, "at most 9.5 MiB are allowed" in sentence) == (Reason.TOO_LARGE, True)
    assert sent < 40_000_000
    assert not any((tmp_path / "cache/work").iterdir())


def redirecting(*targets: str) -> Handler:
    """Each path `/n` redirects to the nth target; any other path is a file."""

    async def handler(request: web.Request) -> web.Response:
        if request.path.removeprefix("/").isdigit():
            return web.Response(status=302, headers={"Location": targets[int(request.path[1:])]})
        return web.Response(body=b"file")

    return handler


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.2:1/x",
        "http://localhost:1/x",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::ffff:169.254.169.254]/",
        "http://2130706434/",
        "http://0x7f.0.0.2/",
        "http://10.0.0.1/",
        "http://metadata.google.internal/",
        "http://user:pw@127.0.0.1/",
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "gopher://127.0.0.1:6379/_FLUSHALL",
        "http://127.0.0.1\\@127.0.0.2/",
        "//127.0.0.2/x",
    ],
)
async def test_redirects_are_judged_like_urls(fetch: Fetcher, target: str) -> None:
    async with serving(redirecting(target)) as url:
        reason, sentence = await fetch.refused(f"{url}/0", names=Names())
    assert reason == Reason.URL_REFUSED, sentence
    assert "pw" not in sentence


async def test_good_redirects_are_followed_and_endless_ones_not(fetch: Fetcher) -> None:
    async with serving(redirecting("/1", "file.json")) as url:
        assert (await fetch(f"{url}/0"))[0] == "0"
    async with serving(redirecting("/0")) as url:
        assert (await fetch.refused(f"{url}/0"))[0] == Reason.TOO_MANY_REDIRECTS


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://169.254.169.254/",
        "http://2852039166/",
        "http://0/",
        "file:///etc/passwd",
        "http://good.example@127.0.0.1/",
    ],
)
async def test_private_urls_are_refused_without_a_connection(fetch: Fetcher, url: str) -> None:
    assert (await fetch.refused(url, allowed=(), names=Names()))[0] == Reason.URL_REFUSED


async def test_the_address_connected_to_decides(fetch: Fetcher) -> None:
    for address in ("127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "fd00::1", "0.0.0.0", "168.63.129.16"):
        names = Names(evil_example=[[address]])
        reason, sentence = await fetch.refused("http://evil.example/x", allowed=(), names=names)
        assert (reason, address in sentence) == (Reason.URL_REFUSED, True)


async def test_one_bad_address_among_good_ones_is_enough(fetch: Fetcher) -> None:
    names = Names(evil_example=[["93.184.215.14", "127.0.0.1"]])
    assert (await fetch.refused("http://evil.example/x", allowed=(), names=names))[0] == Reason.URL_REFUSED


async def test_a_name_may_not_borrow_the_address_of_an_allowed_one(fetch: Fetcher) -> None:
    async with serving(redirecting()) as victim:
        port = victim.rpartition(":")[2]
        async with serving(redirecting(f"http://other.example:{port}/secret")) as url:
            names = Names(allowed_example=[["127.0.0.1"]], other_example=[["127.0.0.1"]])
            start = f"http://allowed.example:{url.rpartition(':')[2]}/0"
            reason, sentence = await fetch.refused(start, allowed=("allowed.example",), names=names)
    assert names.asked == ["allowed.example", "other.example"]
    assert (reason, "127.0.0.1" in sentence) == (Reason.URL_REFUSED, True)


async def test_dns_rebinding(fetch: Fetcher) -> None:
    """A name that was public when it was judged and is private when it is connected to."""
    names = Names(rebind_example=[["93.184.215.14"], ["127.0.0.1"]])
    judged = await names.resolve("rebind.example")
    assert judged[0]["host"] == "93.184.215.14"
    assert (await fetch.refused("http://rebind.example/", allowed=(), names=names))[0] == Reason.URL_REFUSED


async def test_an_allowed_name_does_not_open_the_metadata_address(fetch: Fetcher) -> None:
    names = Names(allowed_example=[["169.254.169.254"]])
    reason, _ = await fetch.refused("http://allowed.example/x", allowed=("allowed.example",), names=names)
    assert reason == Reason.URL_REFUSED


async def test_allowed_networks_and_names(fetch: Fetcher) -> None:
    async with serving(answering(200)) as url:
        port = url.rpartition(":")[2]
        names = Names(data_corp=[["127.0.0.1"]])
        assert (await fetch(url + "/a", allowed=("127.0.0.0/8",)))[0] == "a"
        assert (await fetch(f"http://data.corp:{port}/b", allowed=(".corp",), names=names))[0] == "b"
        assert (await fetch(f"http://data.corp:{port}/c", allowed=("127.0.0.0/8",), names=names))[0] == "c"


async def test_an_unknown_host_and_a_closed_port(fetch: Fetcher) -> None:
    limits = replace(LIMITS, attempts=1)
    assert (await fetch.refused("http://nowhere.example/", names=Names(), limits=limits))[0] == Reason.HOST_NOT_FOUND
    assert (await fetch.refused("http://127.0.0.1:1/", limits=limits))[0] == Reason.CONNECTION_FAILED
    async with serving(answering(200)) as url:
        reason, _ = await fetch.refused(url.replace("http:", "https:"), limits=limits)
    assert reason in {Reason.TLS_FAILED, Reason.CONNECTION_FAILED}


async def test_compressed_answers_stay_as_they_travel(fetch: Fetcher) -> None:
    packed = b"\x1f\x8b not to be touched"

    async def handler(request: web.Request) -> web.Response:
        assert request.headers["Accept-Encoding"] == "identity"
        return web.Response(body=packed, headers={"Content-Encoding": "gzip"})

    async with serving(handler) as url:
        assert (await fetch(f"{url}/data.json.gz"))[1] == hashlib.sha256(packed).hexdigest()


async def test_one_download_however_many_ask(fetch: Fetcher) -> None:
    server = Ranges()
    async with serving(server) as url:
        assert len(set(await asyncio.gather(*(fetch(f"{url}/x.bin") for _ in range(10))))) == 1
    assert len(server.ranges) == 10  # nine of them were told that nothing changed
