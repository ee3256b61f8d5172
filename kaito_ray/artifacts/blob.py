# SPDX-License-Identifier: Apache-2.0
"""What is pushed to a registry: bytes from memory and files, one after the other, under the digest of the whole.

Made by push.py for adapters and by pack.py for models, sent by upload.py. A blob of any size passes through a few
megabytes of memory, because a part that is a file stays one until its bytes are sent.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kaito_ray.artifacts.reason import Reason
from kaito_ray.errors import ArtifactRefused

CHUNK = 4 * 1024 * 1024
Parts = Sequence[bytes | Path]


@dataclass(frozen=True, slots=True)
class Blob:
    """One blob to push."""

    content: Path | bytes | Parts
    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_bytes(cls, content: bytes, media_type: str) -> "Blob":
        """A small blob."""
        return cls(content, media_type, f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))

    def descriptor(self) -> dict[str, Any]:
        """How a manifest names it."""
        named: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        return named | ({"annotations": dict(self.annotations)} if self.annotations else {})

    @property
    def parts(self) -> Parts:
        """The content as a sequence."""
        return [self.content] if isinstance(self.content, bytes | Path) else self.content

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes from `start` up to `stop`, in pieces; blocking."""
        here = 0
        for part in self.parts:
            size = part_size(part)
            first, last = max(start - here, 0), min(stop - here, size)
            here += size
            if first >= last:
                continue
            if isinstance(part, bytes):
                yield part[first:last]
                continue
            with part.open("rb") as file:
                file.seek(first)
                left = last - first
                while left > 0:
                    chunk = file.read(min(CHUNK, left))
                    if not chunk:
                        raise ArtifactRefused(f"{part.name} became shorter while it was read", reason=Reason.CHANGED)
                    left -= len(chunk)
                    yield chunk


def part_size(part: bytes | Path) -> int:
    """Bytes of one part."""
    return len(part) if isinstance(part, bytes) else part.stat().st_size


def measure(parts: Parts) -> tuple[str, str]:
    """The digest of the parts together and that of the files among them alone, both as `sha256:...`.

    The files are read once; the two hashes are computed side by side, since hashing is what takes the time.
    """
    whole, files = hashlib.sha256(), hashlib.sha256()
    buffers = [bytearray(CHUNK), bytearray(CHUNK)]
    with ThreadPoolExecutor(1) as beside:
        running: Future[None] | None = None
        for part in parts:
            if isinstance(part, bytes):
                if running:
                    running.result()
                whole.update(part)
                continue
            with part.open("rb", buffering=0) as file:
                turn = 0
                # The buffer that is filled is never the one that is still being hashed.
                while count := file.readinto(buffers[turn]):
                    piece = memoryview(buffers[turn])[:count]
                    if running:
                        running.result()
                    running = beside.submit(whole.update, piece)
                    files.update(piece)
                    turn = 1 - turn
        if running:
            running.result()
    return f"sha256:{whole.hexdigest()}", f"sha256:{files.hexdigest()}"
