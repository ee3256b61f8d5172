# SPDX-License-Identifier: Apache-2.0
"""A layer that is a plain tar of one file becomes that file while it arrives, without ever being on the disk as a tar.

Model images have a layer per shard (pack.py). To store a shard's tar and unpack it afterwards would write every byte
twice and need twice the room. A layer that turns out to be anything else is kept as it is, for archive.py. Called by
oci.py, which hands it to download.py; blocking, as all of Part is.
"""

import io
import posixpath
import tarfile
from pathlib import Path

from kaito_ray.artifacts.download import Part
from kaito_ray.artifacts.layer import WHITEOUT, safe_name
from kaito_ray.errors import ArtifactRefused

# Headers of a single file take one to three blocks; whoever needs more goes the long way.
_HEAD = 64 * 1024
# A tar ends with two blocks of zeros, and some writers fill a record with more.
_TAIL = tarfile.RECORDSIZE
MIN_SIZE = 1024 * 1024
"""Smaller layers are not worth it; larger ones have a head to judge by."""


class MemberPart(Part):
    """Writes the file inside to `path` and what stands before it to `<path>.head`; the hash is that of the tar.

    What follows the file is a few kilobytes, held in memory and fetched again by another process.
    """

    def __init__(self, path: Path, layer_size: int) -> None:
        super().__init__(path)
        self._layer_size = layer_size
        self._head_path = path.with_name(f"{path.name}.head")
        self._forget()

    def _forget(self) -> None:
        self._name: str | None = None
        self._is_layer = False
        self._head = self._tail = b""
        self._start = self._room = 0

    @property
    def name(self) -> str | None:
        """The name of the one file, once everything is here; None when this is some other layer."""
        return None if self._is_layer or self._tail.strip(b"\0") else self._name

    def open(self) -> None:
        """Take up what an earlier process left."""
        if self._head_path.is_file():
            self._head = self._head_path.read_bytes()
            self._decide()
            self._hash.update(self._head)
            self.size = len(self._head)
        elif self.path.is_file() and self.path.stat().st_size:
            self._is_layer = True
        super().open()
        self._room -= self.size - len(self._head)

    def restart(self, validator: str) -> None:
        """Forget the bytes so far, and what they were."""
        super().restart(validator)
        self._head_path.unlink(missing_ok=True)
        self._forget()

    def discard(self) -> None:
        """Throw the bytes away."""
        super().discard()
        self._head_path.unlink(missing_ok=True)

    def as_layer(self) -> Path:
        """The whole layer as one file; puts the pieces together where that turned out to be needed after all."""
        if self._is_layer:
            return self.path
        whole = self.path.with_name(f"{self.path.name}.tar")
        with whole.open("wb") as target, self.path.open("rb") as file:
            target.write(self._head)
            while chunk := file.read(MIN_SIZE):
                target.write(chunk)
            target.write(self._tail)
        return whole

    def _store(self, chunk: bytes) -> None:
        if self._is_layer:
            super()._store(chunk)
            return
        if self._name is None:
            self._head += chunk
            if not self._decide():
                return
            if self._is_layer:
                chunk, self._head = self._head, b""
                super()._store(chunk)
                return
            chunk, self._head = self._head[self._start :], self._head[: self._start]
            self._head_path.write_bytes(self._head)
        content = chunk[: self._room]
        super()._store(content)
        self._room -= len(content)
        self._tail += chunk[len(content) :]

    def _decide(self) -> bool:
        """Find out what this is from the bytes in `_head`; whether they were enough."""
        try:
            with tarfile.open(fileobj=io.BytesIO(self._head), mode="r:") as tar:
                member = tar.firstmember  # type: ignore[attr-defined]
            name = safe_name(member.name)
        except (tarfile.TarError, ValueError):
            self._is_layer = len(self._head) >= _HEAD
            return self._is_layer
        except ArtifactRefused:
            self._is_layer = True  # archive.py says what is wrong with it
            return True
        after = self._layer_size - member.offset_data - member.size
        if (
            member.isreg()
            and not member.issparse()
            and name
            and not posixpath.basename(name).startswith(WHITEOUT)
            and 0 <= after < _TAIL + tarfile.BLOCKSIZE
        ):
            self._name, self._start, self._room = name, member.offset_data, member.size
        else:
            self._is_layer = True
        return True
