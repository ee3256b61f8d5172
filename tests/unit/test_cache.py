# SPDX-License-Identifier: Apache-2.0
"""The cache of a node: one maker per entry, nothing half made in sight, the least used goes first."""

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from kaito_ray.artifacts.cache import Cache, Produce
from kaito_ray.artifacts.reason import Reason
from kaito_ray.errors import ArtifactRefused, ArtifactUnavailable


def a_file(size: int, made: list[str] | None = None, name: str = "") -> Produce:
    """Makes a file of `size` bytes and counts itself."""

    async def produce(work: Path) -> Path:
        if made is not None:
            made.append(name)
        (work / "file").write_bytes(b"x" * size)
        return work / "file"

    return produce


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_an_entry_is_made_once(tmp_path: Path) -> None:
    made: list[str] = []
    caches = [Cache(tmp_path), Cache(tmp_path)]
    entries = await asyncio.gather(*(caches[index % 2].get("key", a_file(3, made)) for index in range(20)))
    assert made == [""]
    assert {entry.path.read_bytes() for entry in entries} == {b"xxx"}
    assert not any((tmp_path / "work").iterdir())


async def test_nothing_is_in_sight_before_it_is_whole(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    began, go_on = asyncio.Event(), asyncio.Event()

    async def produce(work: Path) -> Path:
        (work / "folder").mkdir()
        (work / "folder" / "half").touch()
        began.set()
        await go_on.wait()
        (work / "folder" / "whole").touch()
        return work / "folder"

    making = asyncio.create_task(cache.get("key", produce))
    await began.wait()
    assert await cache.find("key") is None
    go_on.set()
    with await making as entry:
        assert {path.name for path in entry.path.iterdir()} == {"half", "whole"}


async def test_a_try_that_broke_off_is_continued_and_a_refusal_is_not(tmp_path: Path) -> None:
    cache, seen = Cache(tmp_path), []

    def failing(error: Exception) -> Produce:
        async def produce(work: Path) -> Path:
            seen.append(names(work))
            (work / "part").touch()
            raise error

        return produce

    for error in (ArtifactUnavailable("down"), ArtifactRefused("wrong"), ArtifactUnavailable("down")):
        with pytest.raises(type(error)):
            await cache.get("key", failing(error))
    assert seen == [[], ["part"], []]


def _hold(root: str, ready: Callable[[], None]) -> None:
    async def work() -> None:
        async with Cache(Path(root)).locked("key") as folder:
            (folder / "part").write_text("from the dead")
            ready()
            await asyncio.sleep(60)

    asyncio.run(work())


async def test_a_killed_maker_leaves_its_part_and_no_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    owner = context.Process(target=_hold, args=(str(tmp_path), ready.set))
    owner.start()
    assert await asyncio.to_thread(ready.wait, 10)
    cache = Cache(tmp_path)

    async def produce(work: Path) -> Path:
        return work / "part"

    waiting = asyncio.create_task(cache.get("key", produce))
    done, _ = await asyncio.wait([waiting], timeout=0.2)
    assert not done
    assert owner.pid
    os.kill(owner.pid, signal.SIGKILL)
    owner.join()
    assert (await waiting).path.read_text() == "from the dead"


async def test_a_waiter_can_be_cancelled(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    async with cache.locked("key"):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await cache.get("key", a_file(1))


async def test_the_least_used_goes_first_and_what_is_used_stays(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit_bytes=1000)
    for name in "abc":
        (await cache.get(name, a_file(300))).release()
    in_use = await cache.find("a")
    assert in_use
    if entry := await cache.find("b"):
        entry.release()
    await cache.make_room(300)
    assert {path.name for path in (tmp_path / "entries").iterdir()} == {"a", "b"}
    await cache.make_room(700)
    assert {path.name for path in (tmp_path / "entries").iterdir()} == {"a"}
    in_use.release()
    await cache.make_room(1000)
    assert not any((tmp_path / "entries").iterdir())


async def test_too_little_room_is_said_before_anything_is_fetched(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit_bytes=1000)
    with await cache.get("a", a_file(600)), pytest.raises(ArtifactRefused) as caught:
        await cache.make_room(500)
    assert caught.value.reason == Reason.DISK_TOO_SMALL
    assert "needs 500 B" in str(caught.value)
    assert "100 B more than there is room for" in str(caught.value)
    with pytest.raises(ArtifactRefused, match="free "):
        await Cache(tmp_path / "other").make_room(1 << 60)


async def test_abandoned_parts_make_room(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit_bytes=100)
    with pytest.raises(ArtifactUnavailable):
        await cache.get("gone", _break_off)
    async with cache.locked("busy"):
        with pytest.raises(ArtifactRefused):
            await cache.make_room(101)
        assert {path.name for path in (tmp_path / "work").iterdir()} == {"busy"}


async def _break_off(work: Path) -> Path:
    (work / "part").write_bytes(b"x" * 50)
    raise ArtifactUnavailable("down")


async def test_an_entry_used_by_another_process_stays(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    (await cache.get("key", a_file(10))).release()
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    user = context.Process(target=_use, args=(str(tmp_path), ready.set))
    user.start()
    assert await asyncio.to_thread(ready.wait, 10)
    with pytest.raises(ArtifactRefused):
        await cache.make_room(1 << 60)
    assert (tmp_path / "entries/key").exists()
    user.kill()
    user.join()
    with pytest.raises(ArtifactRefused):
        await cache.make_room(1 << 60)
    assert not (tmp_path / "entries/key").exists()


def _use(root: str, ready: Callable[[], None]) -> None:
    async def work() -> None:
        entry = await Cache(Path(root)).find("key")
        assert entry
        ready()
        await asyncio.sleep(60)

    asyncio.run(work())


@pytest.mark.parametrize("key", ["", "../up", "a/b", "A", "x" * 300])
async def test_keys_are_names(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="not a cache key"):
        await Cache(tmp_path).find(key)


async def test_notes(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert cache.note("url-1") == {}
    cache.write_note("url-1", {"etag": '"1"'})
    cache.write_note("url-1", {"etag": '"2"'})
    assert Cache(tmp_path).note("url-1") == {"etag": '"2"'}


async def test_an_entry_that_had_not_reached_the_disk_when_the_machine_stopped(tmp_path: Path) -> None:
    cache, made = Cache(tmp_path), list[str]()
    (await cache.get("key", a_file(3, made))).release()
    (tmp_path / "marks/key").write_text("the boot before this one")
    assert await cache.find("key") is None
    (await cache.get("key", a_file(3, made))).release()
    assert len(made) == 2
    assert await cache.find("key") is not None
