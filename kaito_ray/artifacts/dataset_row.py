# SPDX-License-Identifier: Apache-2.0
"""A file with training data becomes rows with their place: the line, or the number of the row in binary files.

parquet, arrow (files and streams) and, through dataset_text.py, JSON, JSON Lines, CSV and plain text, packed with gzip,
zstd, bzip2 or xz or not. What cannot be read becomes a Finding and never an exception, so that one pass tells
everything. Called by dataset.py; blocking, and a few rows at a time, so that size does not matter.
"""

import bz2
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from kaito_ray.artifacts.dataset_file import BINARY, PACKED, DataFile, Row, Unreadable
from kaito_ray.artifacts.dataset_text import text_rows
from kaito_ray.artifacts.limits import Limits, human_bytes
from kaito_ray.manifest import Finding

# Before this much came out, a high ratio of output to input says nothing.
_RATIO_FROM = 64 * 1024 * 1024
_BATCH = 512
_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError)


def read_rows(file: DataFile, limits: Limits) -> Iterator[Row | Finding]:
    """Every row of a file, and a Finding for each that cannot be read."""
    try:
        with file.path.open("rb") as raw, _opened(raw, file, limits) as stream:
            head = stream.peek(8)[:8]
            if not head:
                yield Finding(file.name, 1, "", "is empty")
                return
            kind = next((kind for magic, kind in BINARY.items() if head.startswith(magic)), None)
            if kind:
                yield from _table_rows(file, kind, packed=not isinstance(stream.raw, io.FileIO))
            else:
                yield from text_rows(stream, file)
    except (Unreadable, *_DAMAGE) as error:
        line = error.line if isinstance(error, Unreadable) else 1
        text = str(error) if isinstance(error, Unreadable) else f"is damaged: {error}"
        yield Finding(file.name, line, "", text)


@contextlib.contextmanager
def _opened(raw: IO[bytes], file: DataFile, limits: Limits) -> Iterator[io.BufferedReader]:
    """The file's content without its packing."""
    head = raw.read(8)
    raw.seek(0)
    packing = next((name for magic, name in PACKED.items() if head.startswith(magic)), None)
    if packing is None:
        yield cast("io.BufferedReader", raw)
        return
    source: Any
    if packing == "gzip":
        source = gzip.GzipFile(fileobj=raw)
    elif packing == "bzip2":
        source = bz2.BZ2File(raw)
    elif packing == "xz":
        source = lzma.LZMAFile(raw)  # noqa: SIM115 it closes with `raw`
    else:
        from backports.zstd import ZstdFile

        source = ZstdFile(raw)
    yield io.BufferedReader(cast("io.RawIOBase", _Capped(source, limits, file.path.stat().st_size)), 1024 * 1024)


class _Capped(io.RawIOBase):
    """What comes out of a packer, counted: a bomb ends at its cap."""

    def __init__(self, source: IO[bytes], limits: Limits, packed: int) -> None:
        self._source = source
        self._limits = limits
        self._packed = packed
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._source.read(len(buffer))
        self._count += len(data)
        if self._count > self._limits.bytes:
            raise Unreadable(1, f"unpacks to more than {human_bytes(self._limits.bytes)}")
        if self._count > max(_RATIO_FROM, self._packed * self._limits.ratio):
            raise Unreadable(1, f"unpacks to more than {self._limits.ratio} times its size; it looks like a bomb")
        buffer[: len(data)] = data
        return len(data)


def _table_rows(file: DataFile, kind: str, *, packed: bool) -> Iterator[Row | Finding]:
    import pyarrow
    from pyarrow import ipc, parquet

    if packed:
        raise Unreadable(1, f"is {kind} inside of another packing; unpack it, it is compressed by itself")
    if kind == "feather":
        raise Unreadable(1, "is Feather version 1; save it as parquet")
    number = 0
    try:
        for batch in _batches(file.path, kind, ipc, parquet):
            for values in batch.to_pylist():
                number += 1
                yield Row(file.name, number, values)
    except (pyarrow.ArrowException, OSError) as error:
        raise Unreadable(number + 1, f"is no readable {kind} file: {str(error).splitlines()[0]}") from None


def _batches(path: Path, kind: str, ipc: Any, parquet: Any) -> Iterator[Any]:
    if kind == "parquet":
        with parquet.ParquetFile(path) as table:
            yield from table.iter_batches(batch_size=_BATCH)
        return
    with path.open("rb") as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        if not is_file:
            yield from ipc.open_stream(source)
            return
        reader = ipc.open_file(source)
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)
