# SPDX-License-Identifier: Apache-2.0
"""Many wake-ups, few calls: what the queue promises to reconciles."""

import asyncio
from collections import Counter

import pytest

from kaito_ray.errors import NotReadyYet
from kaito_ray.workqueue import WorkQueue


class Work:
    """Counts calls per key, and holds each until it may end."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.at_once: Counter[str] = Counter()
        self.most_at_once = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.started = asyncio.Event()
        self.ended = asyncio.Condition()

    async def __call__(self, key: str) -> float | None:
        self.calls[key] += 1
        self.at_once[key] += 1
        self.most_at_once = max(self.most_at_once, self.at_once[key])
        self.started.set()
        await self.gate.wait()
        async with self.ended:
            self.at_once[key] -= 1
            self.ended.notify_all()
        return None

    async def until(self, key: str, calls: int) -> None:
        async with asyncio.timeout(2), self.ended:
            await self.ended.wait_for(lambda: self.calls[key] >= calls and not self.at_once[key])


async def running(queue: WorkQueue[str]) -> asyncio.Task[None]:
    return asyncio.create_task(queue.run())


async def test_many_wake_ups_before_the_turn_are_one_call() -> None:
    work = Work()
    queue = WorkQueue(work, workers=4)
    for _ in range(100):
        queue.wake("a")
    queue.wake("b")
    task = await running(queue)
    await work.until("a", 1)
    await work.until("b", 1)
    task.cancel()
    assert work.calls == {"a": 1, "b": 1}


async def test_a_wake_up_during_a_call_is_one_more_call_after_it() -> None:
    work = Work()
    work.gate.clear()
    queue = WorkQueue(work, workers=4)
    task = await running(queue)
    queue.wake("a")
    await work.started.wait()
    for _ in range(10):
        queue.wake("a")
    work.gate.set()
    await work.until("a", 2)
    task.cancel()
    assert work.calls["a"] == 2
    assert work.most_at_once == 1


async def test_what_is_slow_does_not_hold_up_the_rest() -> None:
    done = asyncio.Event()

    async def work(key: str) -> float | None:
        if key == "slow":
            await asyncio.Event().wait()
        done.set()
        return None

    queue = WorkQueue(work, workers=2)
    task = await running(queue)
    queue.wake("slow")
    queue.wake("quick")
    async with asyncio.timeout(2):
        await done.wait()
    task.cancel()


async def test_a_later_wake_up_does_not_put_off_a_sooner_one() -> None:
    work = Work()
    queue = WorkQueue(work, workers=1)
    task = await running(queue)
    queue.wake("a", 0.01)
    queue.wake("a", 3600)
    await work.until("a", 1)
    task.cancel()


@pytest.mark.parametrize("error", [NotReadyYet("soon", delay_s=0), ValueError("a bug")])
async def test_what_fails_is_tried_again(error: Exception) -> None:
    calls = 0
    done = asyncio.Event()

    async def work(_: str) -> float | None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise error
        done.set()
        return None

    queue = WorkQueue(work, workers=1)
    task = await running(queue)
    queue.wake("a")
    async with asyncio.timeout(5):
        await done.wait()
    task.cancel()
