# SPDX-License-Identifier: Apache-2.0
"""What clients asked for: tests count API calls with it."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

WRITES = ("create", "update", "patch", "apply", "delete", "deletecollection")


@dataclass(slots=True)
class Record:
    """One request. `verb` is the API's, with `apply` for a server-side apply; `code` is 0 until it is answered."""

    verb: str
    resource: str
    subresource: str
    namespace: str
    name: str
    user_agent: str
    manager: str
    dry_run: bool = False
    path: str = ""
    code: int = 0
    at: float = field(default_factory=time.time)
    duration_s: float = 0.0


class RequestLog:
    """The requests so far, oldest first; `resource` in the methods is `plural` or `plural.group`."""

    def __init__(self) -> None:
        self._records: list[Record] = []

    def __iter__(self) -> Iterator[Record]:
        return iter(list(self._records))

    def __len__(self) -> int:
        return len(self._records)

    def add(self, record: Record) -> None:
        """Append a request."""
        self._records.append(record)

    def clear(self) -> None:
        """Start again."""
        self._records.clear()

    def select(
        self,
        verb: str | None = None,
        resource: str | None = None,
        name: str | None = None,
        user_agent: str | None = None,
        subresource: str | None = None,
        code: int | None = None,
    ) -> list[Record]:
        """The requests that fit all that is given; a user agent fits by its beginning."""
        return [
            one
            for one in self
            if (verb is None or one.verb == verb)
            and (resource is None or resource in (one.resource, one.resource.partition(".")[0]))
            and (name is None or one.name == name)
            and (user_agent is None or one.user_agent.startswith(user_agent))
            and (subresource is None or one.subresource == subresource)
            and (code is None or one.code == code)
        ]

    def writes(self, user_agent: str | None = None) -> list[Record]:
        """The requests that change something."""
        return [one for one in self.select(user_agent=user_agent) if one.verb in WRITES and not one.dry_run]

    def counts(self, user_agent: str | None = None) -> Counter[tuple[str, str]]:
        """How many requests by verb and resource (`pods/status` for a subresource)."""
        return Counter(
            (one.verb, f"{one.resource}/{one.subresource}" if one.subresource else one.resource)
            for one in self.select(user_agent=user_agent)
        )
