# SPDX-License-Identifier: Apache-2.0
"""One HTTP body into one file: streamed, hashed on the way, capped, and continued where the last try broke off.

Called by url.py for files of the web and by registry.py for blobs. Writing and hashing happen in a thread while the
next bytes arrive, so the event loop only moves buffers.
"""

import asyncio
import contextlib
import errno
import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import aiohttp

from kaito_ray.artifacts.limits import Limits, human_bytes
from kaito_ray.artifacts.progress import Progress
from kaito_ray.artifacts.reason import Reason
from kaito_ray.artifacts.transport import persist, status_error, translated
from kaito_ray.errors import ArtifactRefused, ArtifactUnavailable

_FLUSH_BYTES = 4 * 1024 * 1024
_HOLD_BYTES = 4 * _FLUSH_BYTES
Reserve = Callable[[int, int], Awaitable[None]]
"""Told the bytes of the whole and how many of them are here, before more come."""
Ask = Callable[[Mapping[str, str]], AbstractAsyncContextManager[aiohttp.ClientResponse]]
"""Sends the request with extra headers; called once per try."""


async def no_reserve(size: int, here: int) -> None:
    """For callers that know there is room."""


@dataclass(frozen=True, slots=True)
class Downloaded:
    """What came: `sha256` of the whole file in hexadecimal, and the headers of its last answer."""

    sha256: str
    size: int
    headers: Mapping[str, str]
    status: int
    """200 or 206; 304 when the caller's If-None-Match still holds and nothing was written."""


class Part:
    """A file that grows, its running hash, and the validator that says which version of the source it is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.validator = ""
        self._note = path.with_name(f"{path.name}.json")
        self._hash = hashlib.sha256()
        self._file: IO[bytes] | None = None

    def open(self) -> None:
        """Take up what an earlier process left; blocking, as is all of this class."""
        self._file = self.path.open("r+b" if self.path.exists() else "w+b")
        with contextlib.suppress(OSError, ValueError):
            self.validator = str(json.loads(self._note.read_text()))
        while chunk := self._file.read(_FLUSH_BYTES):
            self._hash.update(chunk)
            self.size += len(chunk)

    def restart(self, validator: str) -> None:
        """Forget the bytes so far."""
        assert self._file is not None  # noqa: S101
        self._file.seek(0)
        self._file.truncate()
        self._hash = hashlib.sha256()
        self.size = 0
        self.validator = validator
        self._note.write_text(json.dumps(validator))

    def write(self, chunks: list[bytes]) -> None:
        """Append, and say plainly when the disk is full."""
        try:
            for chunk in chunks:
                self._store(chunk)
                self._hash.update(chunk)
                self.size += len(chunk)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise ArtifactRefused(
                    f"the disk is full after {human_bytes(self.size)}; the download needs more room in"
                    f" {self.path.parent}",
                    reason=Reason.DISK_TOO_SMALL,
                ) from None
            raise

    def _store(self, chunk: bytes) -> None:
        assert self._file is not None  # noqa: S101
        self._file.write(chunk)

    def close(self) -> None:
        """Close the file, keep it and its validator."""
        if self._file is not None:
            self._file.close()

    def discard(self) -> None:
        """Throw the bytes away."""
        self.path.unlink(missing_ok=True)

    @property
    def sha256(self) -> str:
        """Hash of what is written so far."""
        return self._hash.hexdigest()


async def download(
    ask: Ask,
    target: Path | Part,
    limits: Limits,
    *,
    what: str,
    size: int | None = None,
    immutable: bool = False,
    progress: Progress | None = None,
    reserve: Reserve = no_reserve,
) -> Downloaded:
    """Fetch the whole body into `target`, a file or what makes one of it, over as many tries as `limits` permits.

    `size` is the size announced elsewhere, such as in a manifest. An `immutable` source may be continued without
    asking whether it changed. `progress` counts the bytes, `reserve` makes room for them.
    """
    part = Part(target) if isinstance(target, Path) else target
    progress = progress or Progress()
    opening = asyncio.create_task(asyncio.to_thread(part.open))
    try:
        await _undisturbed(opening)
        progress.resume(part.size)
        return await persist(
            lambda: _attempt(ask, part, limits, what, size, immutable, progress, reserve),
            limits,
            what=what,
            progress=lambda: part.size,
        )
    finally:
        await _undisturbed(opening)  # a thread cannot be cancelled, and what it opens must be closed
        await _undisturbed(asyncio.create_task(asyncio.to_thread(part.close)))


async def _attempt(
    ask: Ask,
    part: Part,
    limits: Limits,
    what: str,
    size: int | None,
    immutable: bool,
    progress: Progress,
    reserve: Reserve,
) -> Downloaded:
    headers: dict[str, str] = {}
    if part.size and part.size == size:
        return Downloaded(part.sha256, part.size, {}, 206)
    if part.size and (immutable or part.validator):
        headers["Range"] = f"bytes={part.size}-"
        if not immutable:
            headers["If-Range"] = part.validator
    async with ask(headers) as response:
        if response.status == 304:
            return Downloaded("", 0, response.headers, 304)
        before = part.size
        try:
            total = await asyncio.to_thread(_begin, response, part, what, immutable)
        finally:
            progress.count(part.size - before)  # less when it starts again
        if size is not None and total is not None and total != size:
            raise ArtifactRefused(
                f"{what}: has {total} bytes where {size} were announced", reason=Reason.DIGEST_MISMATCH
            )
        if (total or 0) > limits.bytes:
            raise _too_large(what, total or 0, limits)
        await reserve(total or 0, part.size)
        await _stream(response, part, limits, what, progress)
        if total is not None and part.size != total:
            raise ArtifactUnavailable(f"{what}: broke off after {part.size} of {total} bytes", reason=Reason.TRUNCATED)
        return Downloaded(part.sha256, part.size, response.headers, response.status)


def _begin(response: aiohttp.ClientResponse, part: Part, what: str, immutable: bool) -> int | None:
    """Bring `part` to where this answer starts; the size of the whole, None when the server does not tell."""
    if response.status == 206:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if span and int(span[1]) == part.size:
            return None if span[2] == "*" else int(span[2])
        part.restart("")
        raise ArtifactUnavailable(f"{what}: another range came than was asked for", reason=Reason.UNEXPECTED_ANSWER)
    if response.status == 416 and part.size:
        part.restart("")
        raise ArtifactUnavailable(f"{what}: shrank while it was fetched", reason=Reason.CHANGED)
    if response.status != 200:
        raise status_error(response, what)
    tag = response.headers.get("ETag", "")
    # A weak tag promises equal meaning, not equal bytes.
    part.restart("" if immutable or tag.startswith("W/") else tag or response.headers.get("Last-Modified", ""))
    return response.content_length


async def _stream(response: aiohttp.ClientResponse, part: Part, limits: Limits, what: str, progress: Progress) -> None:
    """Append the body to `part`.

    Bytes are taken off the connection while earlier ones are being written, up to a bound.
    """
    waiting: list[bytes] = []
    held = 0
    arrived = part.size
    writing: asyncio.Task[None] | None = None
    try:
        with translated(response.url):
            async for chunk in response.content.iter_any():
                waiting.append(chunk)
                held += len(chunk)
                arrived += len(chunk)
                progress.count(len(chunk))
                if arrived > limits.bytes:
                    raise _too_large(what, arrived, limits)
                if writing and (writing.done() or held >= _HOLD_BYTES):
                    await _undisturbed(writing)
                    writing = None
                if held >= _FLUSH_BYTES and writing is None:
                    writing = asyncio.create_task(asyncio.to_thread(part.write, waiting))
                    waiting, held = [], 0
    finally:
        # What arrived before a failure is kept: the next try continues from there.
        if writing:
            await _undisturbed(writing)
        await _undisturbed(asyncio.create_task(asyncio.to_thread(part.write, waiting)))


async def _undisturbed(task: asyncio.Task[None]) -> None:
    """Wait for a thread's work to its end, also while the caller is being cancelled; then be cancelled."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled:
        raise cancelled
    task.result()


def _too_large(what: str, seen: int, limits: Limits) -> ArtifactRefused:
    return ArtifactRefused(
        f"{what}: has {human_bytes(seen)} or more, at most {human_bytes(limits.bytes)} are allowed",
        reason=Reason.TOO_LARGE,
    )
