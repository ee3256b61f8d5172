# SPDX-License-Identifier: Apache-2.0
"""One blob into a registry: not at all when it is there, in one request when it is small, else piece by piece.

Called by push.py. A large upload that broke off goes on where the registry says it stands, also from another process:
its address is noted. A registry that lost it, as distribution does when a piece breaks in the middle, gets it anew.
"""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp
from yarl import URL

from kaito_ray.artifacts.blob import Blob
from kaito_ray.artifacts.cache import Cache
from kaito_ray.artifacts.progress import Progress
from kaito_ray.artifacts.reason import Reason
from kaito_ray.artifacts.registry import Registry
from kaito_ray.artifacts.transport import exact_url
from kaito_ray.errors import ArtifactUnavailable

# What is lost when a connection breaks. Blobs up to this size go in one request, as oras and containerd send theirs.
PIECE = 64 * 1024 * 1024


@dataclass(slots=True)
class Upload:
    """One blob on its way; kept over the tries of one process."""

    registry: Registry
    blob: Blob
    progress: Progress
    notes: Cache | None = None
    """Where the address of an upload that is under way is remembered."""
    sent: int = 0
    """Bytes that the registry has."""
    whole: bool = False
    """Whether the registry does not take pieces."""

    @property
    def what(self) -> str:
        """What messages call it."""
        return f"{self.registry.reference}: {self.blob.digest[:19]}"

    async def __call__(self) -> None:
        """Try once; raises ArtifactRefused or ArtifactUnavailable."""
        await self.registry.find_scheme()
        async with self.registry.request("HEAD", self.registry.url(f"blobs/{self.blob.digest}")) as response:
            if response.status == 200:
                self.progress.resume(self.blob.size - self.sent)
                self.sent = self.blob.size
                return
            if response.status != 404:
                raise self.registry.error(response, self.what)
        if self.whole or self.blob.size <= PIECE:
            await self._finish(await self._begin(), 0)
            return
        place = await self._resume() or await self._begin()
        while self.sent < self.blob.size and not self.whole:
            place = await self._send_piece(place)
        if self.whole:
            await self._finish(await self._begin(), 0)
        else:
            await self._finish(place, self.blob.size)
        self._note("")

    async def _begin(self) -> URL:
        """Open an upload; where it goes on."""
        self._stands_at(0)
        url = self.registry.url("blobs/uploads/")
        async with self.registry.request("POST", url, headers={"Content-Length": "0"}) as response:
            if response.status != 202 or "Location" not in response.headers:
                raise self.registry.error(response, self.what)
            return _location(response)

    async def _resume(self) -> URL | None:
        """Where an earlier upload of this blob goes on; None when the registry knows nothing of it."""
        noted = self.notes.note(self._key).get("location", "") if self.notes else ""
        if not noted:
            return None
        async with self.registry.request("GET", noted) as response:
            if response.status not in {202, 204}:
                self._note("")
                return None
            self._stands_at(_received(response, 0))
            return _location(response) if "Location" in response.headers else URL(noted, encoded=True)

    async def _send_piece(self, place: URL) -> URL:
        start, stop = self.sent, min(self.sent + PIECE, self.blob.size)
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(stop - start),
            "Content-Range": f"{start}-{stop - 1}",
        }
        async with self.registry.request(
            "PATCH", str(place), headers=headers, data=lambda: self._body(start, stop)
        ) as response:
            if response.status in {400, 405, 501} and start == 0:
                self.whole = True
                return place
            if response.status in {404, 416}:
                self._note("")
                raise ArtifactUnavailable(f"{self.what}: the upload is gone", reason=Reason.UNEXPECTED_ANSWER)
            if response.status not in {201, 202, 204}:
                raise self.registry.error(response, self.what)
            place = _location(response) if "Location" in response.headers else place
            self._stands_at(_received(response, stop))
        self._note(str(place))
        return place

    async def _finish(self, place: URL, start: int) -> None:
        """Name the digest, and send what is left from `start` on."""
        target = (
            place.update_query({"digest": self.blob.digest})
            if not place.query_string
            else _with_digest(place, self.blob)
        )
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(self.blob.size - start)}
        async with self.registry.request(
            "PUT", str(target), headers=headers, data=lambda: self._body(start, self.blob.size)
        ) as response:
            if response.status == 404:
                # The upload was forgotten, by a restart of the registry for example; the next try begins a new one.
                raise ArtifactUnavailable(f"{self.what}: the upload is gone", reason=Reason.UNEXPECTED_ANSWER)
            if response.status != 201:
                raise self.registry.error(response, self.what)
        self._stands_at(self.blob.size)

    async def _body(self, start: int, stop: int) -> AsyncIterator[bytes]:
        pieces = self.blob.read(start, stop)
        while chunk := await asyncio.to_thread(next, pieces, b""):
            yield chunk

    def _stands_at(self, count: int) -> None:
        self.progress.count(count - self.sent)
        self.sent = count

    @property
    def _key(self) -> str:
        reference = self.registry.reference
        name = f"{reference.host}/{reference.repository}@{self.blob.digest}"
        return f"upload-{hashlib.sha256(name.encode()).hexdigest()}"

    def _note(self, location: str) -> None:
        if self.notes:
            self.notes.write_note(self._key, {"location": location} if location else {})


def _location(response: aiohttp.ClientResponse) -> URL:
    return response.url.join(exact_url(response.headers["Location"]))


def _received(response: aiohttp.ClientResponse, otherwise: int) -> int:
    """Bytes that the registry says it has; `0-0` is how it says none."""
    span = re.fullmatch(r"(?:bytes=)?0-(\d+)", response.headers.get("Range", ""))
    if span is None:
        return otherwise
    return int(span[1]) + 1 if int(span[1]) else 0


def _with_digest(upload: URL, blob: Blob) -> URL:
    """The upload's URL with the digest appended; its own query is a state that must come back byte for byte."""
    return URL(f"{upload}&digest={blob.digest}", encoded=True)
