# SPDX-License-Identifier: Apache-2.0
"""A light load client: one asyncio process, a fixed number of requests in flight, times of every answer.

Used by tests/bench/serving.py. It counts events and looks at no content, so that it takes as little as possible of
the cores it shares with the server.
"""

import asyncio
import time
from dataclasses import dataclass, field

import aiohttp

_EVENT = b"data:"


@dataclass(slots=True)
class Round:
    """What one round of requests took. Times in seconds."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    first_events: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    """Between two events of one stream, averaged over the stream."""

    @property
    def requests(self) -> int:
        """How many were answered."""
        return len(self.latencies)

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


async def run_round(url: str, body: bytes, *, concurrency: int, seconds: float) -> Round:
    """POST `body` for `seconds`, `concurrency` at a time; raises when one is not answered with 200.

    Requests that have begun are waited for and counted.
    """
    result = Round()
    connector = aiohttp.TCPConnector(limit=concurrency)
    headers = {"content-type": "application/json"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        started = time.perf_counter()

        async def worker() -> None:
            while time.perf_counter() - started < seconds:
                await _one(session, url, body, result)

        await asyncio.gather(*(worker() for _ in range(concurrency)))
        result.seconds = time.perf_counter() - started
    return result


async def _one(session: aiohttp.ClientSession, url: str, body: bytes, result: Round) -> None:
    started = time.perf_counter()
    first = last = 0.0
    events = 0
    async with session.post(url, data=body) as answer:
        if answer.status != 200:
            raise RuntimeError(f"{url} answered {answer.status}: {await answer.text()}")
        async for chunk in answer.content.iter_any():
            if count := chunk.count(_EVENT):
                last = time.perf_counter()
                first = first or last
                events += count
    result.latencies.append(time.perf_counter() - started)
    if events > 1:
        result.first_events.append(first - started)
        result.gaps.append((last - first) / (events - 1))
