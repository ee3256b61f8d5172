# SPDX-License-Identifier: Apache-2.0
"""Text that holds training data becomes rows with their lines: JSON, JSON Lines, CSV, TSV and plain lines.

Called by dataset_row.py with what came out of a packer, if there was one. A `.json` file may be an array of rows, one
row per line, or an object around the list of rows; all three are common.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

from kaito_ray.artifacts.dataset_file import SUFFIXES, DataFile, Row, Unreadable, suffixes
from kaito_ray.artifacts.limits import human_bytes
from kaito_ray.manifest import Finding

_LINE_BYTES = 64 * 1024 * 1024
_JSON_BYTES = 2 * 1024**3


def text_rows(stream: io.BufferedReader, file: DataFile) -> Iterator[Row | Finding]:
    """The rows of a text; raises Unreadable where the rest of it cannot be read."""
    head = stream.peek(4)[:4]
    if head[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        raise Unreadable(1, "is UTF-16; save it as UTF-8")
    if b"\x00" in stream.peek(1024)[:1024]:
        raise Unreadable(1, "is neither text nor a kind of file that kaito-ray reads (parquet, arrow, JSON, CSV)")
    if head[:3] == b"\xef\xbb\xbf":  # the byte order mark that spreadsheets put in front
        stream.read(3)
        yield Finding(file.name, 1, "", "begins with a byte order mark, which is passed over", "note")
    suffix = SUFFIXES.get(suffixes(file.name)[0], "")
    first = stream.peek(4096).lstrip()[:1]
    if suffix == "jsonl":
        yield from _json_lines(stream, file)
    elif suffix == "json" or (not suffix and first in {b"{", b"["}):
        yield from _json(stream, file, first)
    elif suffix == "csv":
        yield from _csv_rows(stream, file)
    else:
        for number, line in _lines(stream):
            if line.strip():
                yield Row(file.name, number, {"text": line.rstrip("\r\n")})


def _lines(stream: io.BufferedReader) -> Iterator[tuple[int, str]]:
    number = 0
    while raw := stream.readline(_LINE_BYTES + 1):
        number += 1
        if len(raw) > _LINE_BYTES:
            raise Unreadable(number, f"is longer than {human_bytes(_LINE_BYTES)}")
        try:
            yield number, raw.decode()
        except UnicodeDecodeError as error:
            raise Unreadable(number, f"column {error.start + 1}: byte 0x{raw[error.start]:02x} is not UTF-8") from None


def _json_lines(stream: io.BufferedReader, file: DataFile) -> Iterator[Row | Finding]:
    for number, line in _lines(stream):
        if not line.strip():
            continue
        try:
            values = json.loads(line.rstrip())
        except (ValueError, RecursionError) as error:
            yield Finding(file.name, number, "", _json_trouble(error))
            continue
        yield _row(file, number, values)


def _json(stream: io.BufferedReader, file: DataFile, first: bytes) -> Iterator[Row | Finding]:
    """A `.json` file: one document, an array of rows, or one row per line."""
    if first == b"{" and _first_line_is_whole(stream):
        yield from _json_lines_or_wrapper(stream, file)
        return
    raw = stream.read(_JSON_BYTES + 1)
    if len(raw) > _JSON_BYTES:
        raise Unreadable(
            1, f"is one JSON document of more than {human_bytes(_JSON_BYTES)}; write one row per line instead"
        )
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise Unreadable(line, f"byte 0x{raw[error.start]:02x} is not UTF-8") from None
    yield from _document_rows(text, file)


def _first_line_is_whole(stream: io.BufferedReader) -> bool:
    line = stream.peek(_LINE_BYTES).lstrip().split(b"\n", 1)[0]
    # Of a line longer than what can be looked at only the beginning is known; JSON Lines have such lines, a document
    # that is written for people has none.
    if len(line) >= io.DEFAULT_BUFFER_SIZE - 64:
        return True
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _json_lines_or_wrapper(stream: io.BufferedReader, file: DataFile) -> Iterator[Row | Finding]:
    rows = _json_lines(stream, file)
    one = next(rows, None)
    two = next(rows, None)
    if isinstance(one, Row) and two is None and (inner := _wrapped(one.values)):
        for number, values in enumerate(inner, 1):
            yield _row(file, number, values)
        return
    for row in (one, two):
        if row is not None:
            yield row
    yield from rows


def _document_rows(text: str, file: DataFile) -> Iterator[Row | Finding]:
    decoder = json.JSONDecoder()
    position, line, inside = _skip(text, 0), 1, False
    counted = 0
    if text[position : position + 1] == "[":
        inside, position = True, _skip(text, position + 1)
    while position < len(text) and not (inside and text[position] == "]"):
        line += text.count("\n", counted, position)
        counted = position
        try:
            values, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            where = error.lineno if isinstance(error, json.JSONDecodeError) else line
            raise Unreadable(where, _json_trouble(error)) from None
        wrapped = None if inside or not isinstance(values, dict) else _wrapped(values)
        if wrapped is None:
            yield _row(file, line, values)
        else:
            for number, item in enumerate(wrapped, 1):
                yield _row(file, number, item)
        position = _skip(text, position)
        if inside and position < len(text) and text[position] == ",":
            position = _skip(text, position + 1)
        elif inside and text[position : position + 1] != "]":
            line += text.count("\n", counted, position)
            raise Unreadable(line, "must have a comma or ] here: the list of rows does not end")


def _skip(text: str, position: int) -> int:
    """The place of the next character that is no white space."""
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def _wrapped(values: Mapping[str, Any]) -> list[Any] | None:
    """The rows of `{"data": [{...}, ...]}`; None when the object is itself a row."""
    lists = [value for value in values.values() if isinstance(value, list)]
    if len(lists) != 1 or not lists[0] or not all(isinstance(item, dict) for item in lists[0]):
        return None
    turns = {"role", "from", "content", "value"}
    return None if turns & set(lists[0][0]) else lists[0]


def _row(file: DataFile, number: int, values: Any) -> Row | Finding:
    if isinstance(values, dict):
        return Row(file.name, number, values)
    return Finding(file.name, number, "", f"must be an object with named columns, got {type(values).__name__}")


def _json_trouble(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"column {error.colno}: is no JSON: {error.msg}"
    return "is no JSON: it is nested too deeply" if isinstance(error, RecursionError) else f"is no JSON: {error}"


def _csv_rows(stream: io.BufferedReader, file: DataFile) -> Iterator[Row | Finding]:
    csv.field_size_limit(_LINE_BYTES)
    lines = _lines(stream)
    _, head = next(lines)
    delimiter = max(",;\t|", key=head.count)
    reader = csv.reader((line for _, line in _again(head, lines)), delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        begins = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise Unreadable(reader.line_num, f"is no CSV: {error}") from None
        if cells is None:
            return
        if not header:
            header = [name.strip() for name in cells]
            twice = sorted({name for name in header if header.count(name) > 1})
            if twice:
                raise Unreadable(1, f"has two columns called {', '.join(map(repr, twice))}")
            continue
        if not cells:
            continue
        if len(cells) != len(header):
            message = f"has {len(cells)} cells, the header names {len(header)} columns; quote cells that hold a comma"
            yield Finding(file.name, begins, "", message)
            continue
        yield Row(file.name, begins, dict(zip(header, cells, strict=True)))


def _again(head: str, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    yield 1, head
    yield from lines
