# SPDX-License-Identifier: Apache-2.0
"""Requests and responses apart from any transport."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from cluster.store import dump


@dataclass(slots=True)
class Request:
    """An HTTP request; header names are lower case, of repeated query parameters the last one counts."""

    method: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(slots=True)
class Response:
    """An HTTP response: a body, or a stream of chunks for a watch."""

    code: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: list[tuple[str, str]] = field(default_factory=list)
    stream: AsyncIterator[bytes] | None = None

    @classmethod
    def json(cls, value: object, code: int = 200) -> "Response":
        """An object as the answer."""
        return cls(code, dump(value))

    @classmethod
    def text(cls, text: str, code: int = 200) -> "Response":
        """Plain text as the answer."""
        return cls(code, text.encode(), "text/plain; charset=utf-8")
