# SPDX-License-Identifier: Apache-2.0
"""Unpacking tar (plain, gzip, zstd) and zip from strangers into an empty folder. Blocking; called in a thread.

Names, links and devices are judged before anything is written, and every byte and member is counted, wanted or not,
so that a bomb stops at its cap. The `data` filter of tarfile checks names and links too, but neither counts nor
limits what headers make the parser read into memory. Called by url.py and oci.py; layer.py does the writing.
"""

import contextlib
import errno
import gzip
import posixpath
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from kaito_ray.artifacts.layer import OPAQUE, WHITEOUT, Layer, Unpacked, safe_name, shown, unsafe
from kaito_ray.artifacts.limits import Limits, human_bytes
from kaito_ray.artifacts.reason import Reason
from kaito_ray.errors import ArtifactRefused

_CHUNK = 1024 * 1024
# Before this much came out, a high ratio of output to input says nothing.
_RATIO_FROM = 64 * 1024 * 1024
# Long names and extended headers of one member; tarfile reads them into memory whole.
_HEADER_BYTES = 1024 * 1024
_DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, ValueError, RecursionError,
    NotImplementedError,
)  # fmt: skip
Wanted = Callable[[str], bool]
"""Whether a member of that normalised name (`data/adapter_config.json`) is to be unpacked."""


def below(folder: str) -> Wanted:
    """Everything in `folder`, such as `data`."""
    return lambda name: name == folder or name.startswith(f"{folder}/")


def everything(_: str) -> bool:
    """Every member."""
    return True


def archive_kind(path: Path) -> str | None:
    """`tar`, `tar+gzip`, `tar+zstd` or `zip` by the first bytes; None when it is no archive we unpack.

    A gzip or zstd file counts when a tar is inside: data.jsonl.gz is no archive.
    """
    with path.open("rb") as file:
        head = file.read(512)
    if head[:4] in {b"PK\x03\x04", b"PK\x05\x06"}:
        return "zip"
    if _is_tar(head):
        return "tar"
    kind = _compression(head)
    if kind is None:
        return None
    try:
        with _opened(path, kind) as file:
            return f"tar+{kind}" if _is_tar(file.read(512)) else None
    except _DAMAGE:
        return None


def unpack(archive: Path, target: Path, unpacked: Unpacked, *, wanted: Wanted = everything) -> None:
    """Unpack one archive or image layer over what is in `target`, whiteouts of upper layers included.

    Raises ArtifactRefused, leaving `target` to be thrown away.
    """
    with archive.open("rb") as file:
        head = file.read(512)
    try:
        if head[:2] == b"PK":
            _unpack_zip(archive, target, unpacked, wanted)
        else:
            _unpack_tar(archive, _compression(head), target, unpacked, wanted)
    except _DAMAGE as error:
        raise ArtifactRefused(f"the archive is damaged: {error}", reason=Reason.BROKEN_ARCHIVE) from None
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise ArtifactRefused(
            f"the disk is full after unpacking {human_bytes(unpacked.bytes)} to {target}", reason=Reason.DISK_TOO_SMALL
        ) from None


def _unpack_tar(archive: Path, compression: str | None, target: Path, unpacked: Unpacked, wanted: Wanted) -> None:
    layer = Layer(target, unpacked)
    with _opened(archive, compression) as file:
        stream = _Counted(file, unpacked, archive.stat().st_size)
        with tarfile.TarFile(fileobj=cast("IO[bytes]", stream), mode="r") as tar:
            while True:
                stream.headers(_HEADER_BYTES)
                member = tar.next()
                if member is None:
                    break
                cast("Any", tar).members.clear()  # or it keeps them all
                unpacked.count_entry()
                name = safe_name(member.name)
                if not (member.isfile() or member.isdir() or member.issym() or member.islnk()):
                    raise unsafe(f"{shown(name)} is a device, a pipe or something else that is no file")
                if member.size < 0:
                    raise tarfile.ReadError("a member has a negative size")
                if member.issparse():
                    raise unsafe(f"{shown(name)} is sparse: its holes would unpack to any size")
                if member.issym():
                    # An absolute link starts at the root of the image, so it cannot lead out of it; it is nothing
                    # that a wanted file could be.
                    link = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
                    leads_out = link == ".." or link.startswith("../")
                    if leads_out or (wanted(name) and member.linkname.startswith("/")):
                        raise unsafe(f"the link {shown(name)} leads out, to {shown(member.linkname)}")
                elif member.islnk():
                    link = safe_name(member.linkname)
                if not wanted(name) or not name:
                    continue
                base = posixpath.basename(name)
                if base == OPAQUE or base.startswith(WHITEOUT):
                    layer.whiteout(name)
                elif member.isdir():
                    layer.folder(name)
                elif member.isfile():
                    stream.headers(None)
                    source = tar.extractfile(member)
                    assert source is not None  # noqa: S101
                    layer.file(name, _chunks(source))
                else:
                    layer.link(name, link)
    layer.finish()


def _unpack_zip(archive: Path, target: Path, unpacked: Unpacked, wanted: Wanted) -> None:
    layer = Layer(target, unpacked)
    _check_directory(archive, unpacked.limits)
    size = archive.stat().st_size
    with zipfile.ZipFile(archive) as zipped:
        for member in zipped.infolist():
            unpacked.count_entry()
            name = safe_name(member.filename)
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
                raise unsafe(f"{shown(name)} is a link, a device or something else that is no file")
            if not wanted(name) or not name:
                continue
            if member.is_dir():
                layer.folder(name)
                continue
            if member.flag_bits & 1:
                raise ArtifactRefused(f"{shown(name)} is encrypted", reason=Reason.UNSUPPORTED_FORMAT)
            if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                raise ArtifactRefused(
                    f"{shown(name)} is compressed with method {member.compress_type}; deflate and none are unpacked",
                    reason=Reason.UNSUPPORTED_FORMAT,
                )
            with zipped.open(member) as source:
                layer.file(name, _counted(_chunks(source), unpacked, size))
    layer.finish()


class _Counted:
    """The reading end of a decompressor as tarfile wants it: read, forward seek, tell; every byte is counted."""

    def __init__(self, file: IO[bytes], unpacked: Unpacked, packed: int) -> None:
        self._file = file
        self._unpacked = unpacked
        self._packed = packed
        self._position = 0
        self._headers: int | None = _HEADER_BYTES

    def headers(self, budget: int | None) -> None:
        """From now on at most `budget` bytes are read as headers; None: what is read are contents."""
        self._headers = budget

    def read(self, size: int = -1) -> bytes:
        if self._headers is not None:
            self._headers -= size
            if size < 0 or self._headers < 0:
                raise ArtifactRefused(
                    f"the archive has a header of more than {human_bytes(_HEADER_BYTES)}", reason=Reason.TOO_LARGE
                )
        data = self._file.read(size)
        self._position += len(data)
        self._unpacked.count_bytes(len(data))
        _check_ratio(self._position, self._packed, self._unpacked.limits)
        return data

    def seek(self, position: int, _: int = 0) -> int:
        if position < self._position:
            raise tarfile.ReadError("it leads backwards")
        budget, self._headers = self._headers, None
        while self._position < position:
            if not self.read(min(_CHUNK, position - self._position)):
                break
        self._headers = budget
        return self._position

    def tell(self) -> int:
        return self._position


def _chunks(source: IO[bytes]) -> Iterator[bytes]:
    while chunk := source.read(_CHUNK):
        yield chunk


def _counted(chunks: Iterator[bytes], unpacked: Unpacked, packed: int) -> Iterator[bytes]:
    before = unpacked.bytes
    for chunk in chunks:
        unpacked.count_bytes(len(chunk))
        _check_ratio(unpacked.bytes - before, packed, unpacked.limits)
        yield chunk


def _check_ratio(out: int, packed: int, limits: Limits) -> None:
    if out > _RATIO_FROM and out > packed * limits.ratio:
        raise ArtifactRefused(
            f"{human_bytes(packed)} of archive unpack to more than {limits.ratio} times as much, like a bomb",
            reason=Reason.TOO_LARGE,
        )


def _check_directory(archive: Path, limits: Limits) -> None:
    """Refuse a zip whose directory is too large before zipfile reads all of it into memory."""
    size = archive.stat().st_size
    with archive.open("rb") as file:
        file.seek(max(0, size - 66_000))
        tail = file.read()
    # As zipfile looks for it: at the very end when there is no comment, else the last one.
    bare = tail[-22:-18] == b"PK\x05\x06" and tail[-2:] == b"\0\0"
    end = len(tail) - 22 if bare else tail.rfind(b"PK\x05\x06")
    entries = int.from_bytes(tail[end + 10 : end + 12], "little")
    directory = int.from_bytes(tail[end + 12 : end + 16], "little")
    zip64 = tail.rfind(b"PK\x06\x06", 0, max(end, 0))
    if zip64 >= 0:
        entries = int.from_bytes(tail[zip64 + 32 : zip64 + 40], "little")
        directory = int.from_bytes(tail[zip64 + 40 : zip64 + 48], "little")
    # An entry takes 46 bytes and its name; the size is what the parser goes by, whatever the count says.
    if end >= 0 and (entries > limits.entries or directory > limits.entries * 1024):
        raise ArtifactRefused(f"the archive has more than {limits.entries:,} members", reason=Reason.TOO_MANY_FILES)


def _is_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar" or (len(head) == 512 and _checksum_matches(head))


def _checksum_matches(head: bytes) -> bool:
    """Whether this is a header of the tar format before POSIX, which has no magic."""
    try:
        written = tarfile.nti(head[148:156])  # type: ignore[attr-defined]
    except tarfile.TarError:
        return False
    return any(head) and written == sum(head[:148]) + 256 + sum(head[156:])


def _compression(head: bytes) -> str | None:
    return {b"\x1f\x8b": "gzip", b"\x28\xb5": "zstd"}.get(head[:2])


@contextlib.contextmanager
def _opened(path: Path, compression: str | None) -> Iterator[IO[bytes]]:
    if compression == "gzip":
        with gzip.open(path, "rb") as file:
            yield cast("IO[bytes]", file)
    elif compression == "zstd":
        from backports import zstd

        try:
            with zstd.open(path, "rb") as file:
                yield cast("IO[bytes]", file)
        except zstd.ZstdError as error:
            raise ValueError(error) from None
    else:
        with path.open("rb") as file:
            yield file
