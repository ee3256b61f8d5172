# SPDX-License-Identifier: Apache-2.0
"""Failures on demand: errors, delays, pauses and broken connections for the requests a test picks.

The simulators (their user agents start with `simulator/`) are spared unless a fault names them.
"""

import asyncio
import threading
from dataclasses import dataclass

from cluster.failure import Failure
from cluster.request_log import Record

SIMULATOR = "simulator/"
_REASONS = {
    400: "BadRequest", 401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 409: "Conflict", 410: "Expired",
    429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable", 504: "Timeout",
}  # fmt: skip
_MESSAGES = {
    429: "The server is currently unable to handle the request: too many requests, please try again later",
    500: "Internal error occurred: injected by the test",
    503: "the server is currently unable to handle the request",
    504: "Timeout: request did not complete within the allotted timeout",
}


class Dropped(Exception):
    """The connection is to be broken without an answer."""


@dataclass(eq=False)
class Fault:
    """What happens to requests that fit; `hits` counts them, `times` bounds them, `clear` ends it.

    With `code` the request is refused, with `drop` its connection is broken, with only `delay_s` it is late.
    """

    code: int = 0
    times: int | None = None
    verb: str | None = None
    resource: str | None = None
    name: str | None = None
    namespace: str | None = None
    subresource: str | None = None
    user_agent: str | None = None
    retry_after_s: int | None = None
    delay_s: float = 0.0
    drop: bool = False
    message: str = ""
    reason: str = ""
    hits: int = 0

    def fits(self, record: Record) -> bool:
        """Whether the fault is for this request."""
        if self.times is not None and self.hits >= self.times:
            return False
        if self.user_agent is None and record.user_agent.startswith(SIMULATOR):
            return False
        return (
            (self.verb in (None, record.verb) or (self.verb == "patch" and record.verb == "apply"))
            and self.resource in (None, record.resource, record.resource.partition(".")[0])
            and self.name in (None, record.name)
            and self.namespace in (None, record.namespace)
            and self.subresource in (None, record.subresource)
            and (self.user_agent is None or record.user_agent.startswith(self.user_agent))
        )

    def clear(self) -> None:
        """Let requests pass again."""
        self.times = 0

    def failure(self) -> Failure:
        """The refusal."""
        details = {"retryAfterSeconds": self.retry_after_s} if self.retry_after_s is not None else None
        message = self.message or _MESSAGES.get(self.code, "injected by the test")
        return Failure(self.reason or _REASONS.get(self.code, ""), message, code=self.code, details=details)


class Faults:
    """The faults in force. Set from any thread; consulted by the server for every request."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        # An asyncio.Event would belong to one loop; tests set this from theirs.
        self.paused = False

    def add(self, fault: Fault) -> Fault:
        """Put a fault in force."""
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """End all faults and the pause."""
        with self._lock:
            self._faults.clear()
        self.paused = False

    async def meet(self, record: Record) -> None:
        """Let a request meet its fate. Raises Failure or Dropped."""
        while self.paused and not record.user_agent.startswith(SIMULATOR):  # noqa: ASYNC110 - see __init__
            await asyncio.sleep(0.02)
        if not self._faults:
            return
        with self._lock:
            fault = next((one for one in self._faults if one.fits(record)), None)
            if fault is not None:
                fault.hits += 1
        if fault is None:
            return
        if fault.delay_s:
            await asyncio.sleep(fault.delay_s)
        if fault.drop:
            raise Dropped
        if fault.code:
            raise fault.failure()
