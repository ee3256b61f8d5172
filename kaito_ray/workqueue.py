# SPDX-License-Identifier: Apache-2.0
"""Keys in, one call of `work` at a time per key out, in the order in which they became due.

Many wake-ups of one key before its turn are one call, and a wake-up during its call is one more call after it; so
`work` sees every change, but not every event. kopf calls handlers per event and keeps retries on the object, which
would cost writes; this keeps both in memory, and a restart simply wakes every key.
"""

import asyncio
import contextlib
import heapq
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from kaito_ray.errors import KaitoRayError, NotReadyYet
from kaito_ray.metrics import QUEUE_LENGTH, RECONCILE_ERRORS, RECONCILES

K = TypeVar("K")

logger = logging.getLogger(__name__)

_BACKOFF_MIN_S, _BACKOFF_MAX_S = 0.5, 60.0


class WorkQueue(Generic[K]):
    """Runs `work(key)` for keys that were woken; it answers after how many seconds it wants to be called again, if so.

    An exception is logged and the key tried again, sooner at first and then more slowly.
    """

    def __init__(self, work: Callable[[K], Awaitable[float | None]], *, workers: int) -> None:
        self._work = work
        self._workers = workers
        self._due: dict[K, float] = {}
        # Entries of keys that were woken again or forgotten stay in the heap and are passed over.
        self._heap: list[tuple[float, int, K]] = []
        self._order = 0
        self._busy: set[K] = set()
        self._failures: dict[K, int] = {}
        self._news = asyncio.Event()

    def wake(self, key: K, after_s: float = 0.0) -> None:
        """Call `work(key)` in `after_s` seconds, or sooner when it was to be called sooner."""
        due = time.monotonic() + after_s
        if key in self._due and self._due[key] <= due:
            return
        self._due[key] = due
        QUEUE_LENGTH.set(len(self._due))
        if key not in self._busy:
            self._push(key)

    async def run(self) -> None:
        """Work for ever; cancelled, it stops the calls under way."""
        slots = asyncio.Semaphore(self._workers)
        async with asyncio.TaskGroup() as group:
            while True:
                await slots.acquire()
                group.create_task(self._turn(await self._next(), slots))

    def _push(self, key: K) -> None:
        self._order += 1
        heapq.heappush(self._heap, (self._due[key], self._order, key))
        self._news.set()

    async def _next(self) -> K:
        """The next key, once it is due; it counts as busy from here on."""
        while True:
            while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
                heapq.heappop(self._heap)
            wait_s = self._heap[0][0] - time.monotonic() if self._heap else None
            if wait_s is not None and wait_s <= 0:
                key = heapq.heappop(self._heap)[2]
                del self._due[key]
                self._busy.add(key)
                return key
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._news.wait()

    async def _turn(self, key: K, slots: asyncio.Semaphore) -> None:
        try:
            await self._call(key)
        finally:
            self._busy.discard(key)
            if key in self._due:
                self._push(key)
            slots.release()

    async def _call(self, key: K) -> None:
        try:
            with RECONCILES.time():
                after_s = await self._work(key)
        except NotReadyYet as error:
            RECONCILE_ERRORS.labels(error.reason).inc()
            logger.info("not ready yet: %s", error)
            self.wake(key, max(error.delay_s, self._backoff_s(key)))
        except KaitoRayError as error:
            RECONCILE_ERRORS.labels(error.reason).inc()
            logger.warning("%s: %s", error.reason, error)
            self.wake(key, self._backoff_s(key))
        except Exception:
            RECONCILE_ERRORS.labels("Bug").inc()
            logger.exception("this is a bug")
            self.wake(key, self._backoff_s(key))
        else:
            self._failures.pop(key, None)
            if after_s is not None:
                self.wake(key, after_s)

    def _backoff_s(self, key: K) -> float:
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        return float(min(_BACKOFF_MIN_S * 2**failures, _BACKOFF_MAX_S))
