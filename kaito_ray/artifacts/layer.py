# SPDX-License-Identifier: Apache-2.0
"""The members of an archive or image layer become files of a folder; archive.py reads them, this writes them.

What comes out are plain files and folders with our own modes: no owners, no setuid, no devices, and no link of any
kind, because a link that stays inside becomes another name of the file it points to. Since no link is ever on the
disk, no member can be written through one.
"""

import os
import posixpath
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from kaito_ray.artifacts.limits import Limits, human_bytes
from kaito_ray.artifacts.reason import Reason
from kaito_ray.errors import ArtifactRefused

WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
_MAX_LINKS = 40
_MAX_DEPTH = 32


@dataclass(slots=True)
class Unpacked:
    """What is in the folder and what it cost, shared by the layers of one image."""

    limits: Limits
    entries: int = 0
    bytes: int = 0
    """Bytes that came out of archives, written or skipped."""
    files: set[str] = field(default_factory=set)

    def count_entry(self) -> None:
        """One more member, wanted or not."""
        self.entries += 1
        if self.entries > self.limits.entries:
            raise ArtifactRefused(
                f"the archive has more than {self.limits.entries:,} members", reason=Reason.TOO_MANY_FILES
            )

    def count_bytes(self, count: int) -> None:
        """More bytes out of the archive, wanted or not."""
        self.bytes += count
        if self.bytes > self.limits.bytes:
            raise ArtifactRefused(
                f"the archive unpacks to more than {human_bytes(self.limits.bytes)}", reason=Reason.TOO_LARGE
            )


class Layer:
    """Writes the members of one layer; remembers them, since whiteouts act on the layers below only."""

    def __init__(self, target: Path, unpacked: Unpacked) -> None:
        self._target = target
        self._unpacked = unpacked
        self._written: set[str] = set()
        self._whited: set[str] = set()
        self._links: dict[str, str] = {}

    def folder(self, name: str) -> None:
        """Make a folder; a file in its way goes."""
        self._make_folder(name)
        self._written.add(name)

    def file(self, name: str, chunks: Iterable[bytes]) -> None:
        """Write a file; whatever has its name goes."""
        path = self._place(name)
        # A fresh inode every time: the old one may have another name through a hard link.
        with path.open("xb") as file:
            for chunk in chunks:
                file.write(chunk)
        self._unpacked.files.add(name)

    def adopt(self, name: str, path: Path) -> None:
        """Give a file that is there already its name; whatever has that name goes."""
        self._place(name).hardlink_to(path)
        self._unpacked.files.add(name)

    def link(self, name: str, target: str) -> None:
        """Remember the link; it becomes a second name of its file once every file is there."""
        self._place(name)
        self._links[name] = target

    def whiteout(self, name: str) -> None:
        """Remove what the marker `.wh.<name>` or `.wh..wh..opq` hides of the layers below."""
        folder, base = posixpath.split(name)
        victim = folder if base == OPAQUE else posixpath.join(folder, base.removeprefix(WHITEOUT))
        if victim in self._whited:
            return
        self._whited.add(victim)
        for file in self._files_at(victim):
            if file not in self._written:
                self._remove(file)

    def finish(self) -> None:
        """Turn the links into names of the files they lead to; refuse those that lead to none."""
        for name in list(self._links):
            target = name
            for _ in range(_MAX_LINKS):
                if target not in self._links:
                    break
                target = self._links[target]
            self._place(name)
            if target not in self._unpacked.files:
                raise unsafe(f"the link {shown(name)} leads to {shown(target)}, which is no file of the archive")
            os.link(self._target / target, self._target / name)
            self._unpacked.files.add(name)

    def _place(self, name: str) -> Path:
        """Make the way to `name` and clear what stands there."""
        self._make_folder(posixpath.dirname(name))
        self._remove(name)
        self._written.add(name)
        return self._target / name

    def _make_folder(self, name: str) -> None:
        path = self._target / name
        if path.is_dir():
            return
        for parent in (*reversed(PurePosixPath(name).parents), PurePosixPath(name)):
            if str(parent) in self._links or (self._target / parent).is_file():
                self._remove(str(parent))
        path.mkdir(parents=True)

    def _remove(self, name: str) -> None:
        path = self._target / name
        self._links.pop(name, None)
        self._unpacked.files.difference_update(self._files_at(name))
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def _files_at(self, name: str) -> list[str]:
        """The file of that name, or all files below the folder of that name, as they are on the disk."""
        path = self._target / name
        if path.is_dir():
            return [str(file.relative_to(self._target)) for file in path.rglob("*") if file.is_file()]
        return [name] if path.is_file() else []


def safe_name(name: str) -> str:
    """A member's name without `./` and doubled slashes; refuses one that leaves the folder it is unpacked in."""
    if name.startswith("/") or "\\" in name or "\0" in name:
        raise unsafe(f"the member {shown(name)} has an absolute or foreign path")
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise unsafe(f"the member {shown(name)} leads out with ..")
    if len(parts) > _MAX_DEPTH or any(len(part.encode(errors="surrogateescape")) > 255 for part in parts):
        raise unsafe(f"the member {shown(name)} has a longer path than {_MAX_DEPTH} names of 255 bytes")
    return "/".join(parts)


def shown(name: str) -> str:
    """A member's name as messages may carry it."""
    return ascii(name if len(name) <= 80 else f"{name[:77]}...")


def unsafe(sentence: str) -> ArtifactRefused:
    """The error for a member that must not be unpacked."""
    return ArtifactRefused(sentence, reason=Reason.UNSAFE_ARCHIVE)
