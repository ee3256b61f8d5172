# SPDX-License-Identifier: Apache-2.0
"""Archives for tests, honest and hostile: `a_tar(("data/a", b"x"), a_link("data/b", "a"))`."""

import gzip
import io
import stat
import tarfile
import zipfile
from pathlib import Path

Member = tuple[str, bytes] | tarfile.TarInfo


def a_tar(*members: Member, format: int = tarfile.PAX_FORMAT) -> bytes:  # noqa: A002
    """A tar with files given as name and content, or with whatever a TarInfo says."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            name, content = member
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def a_member(name: str, kind: bytes, target: str = "", *, mode: int = 0o644, size: int = 0) -> tarfile.TarInfo:
    """A member of any kind: tarfile.SYMTYPE, LNKTYPE, CHRTYPE, FIFOTYPE, DIRTYPE."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.mode, entry.size = kind, target, mode, size
    return entry


def a_link(name: str, target: str) -> tarfile.TarInfo:
    """A symbolic link."""
    return a_member(name, tarfile.SYMTYPE, target)


def a_hard_link(name: str, target: str) -> tarfile.TarInfo:
    """A hard link."""
    return a_member(name, tarfile.LNKTYPE, target)


def a_zip(*members: tuple[str, bytes], links: tuple[tuple[str, str], ...] = ()) -> bytes:
    """A zip of files, and of symbolic links as Info-ZIP stores them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in members:
            zipped.writestr(name, content)
        for name, target in links:
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            zipped.writestr(info, target)
    return buffer.getvalue()


def a_gzip_of_zeros(path: Path, size: int) -> None:
    """A tar.gz with one file of `size` zeros, written without holding them."""
    with gzip.open(path, "wb", compresslevel=1) as packed:
        packed.write(a_member("data/zeros", tarfile.REGTYPE, size=size).tobuf())
        block = bytes(1024 * 1024)
        for _ in range(size // len(block)):
            packed.write(block)
