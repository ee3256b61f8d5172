# SPDX-License-Identifier: Apache-2.0
"""The cache of one node: whole entries under the name of their content, made by one process at a time.

    root/entries/<key>   a file or folder, complete from the moment it has this name
    root/work/<key>/     what is being fetched; kept when a try breaks off, so that the next one continues
    root/locks/<key>     held exclusively by the one process that makes the entry
    root/notes/<key>     what is known about a source, such as the ETag its content came with
    root/marks/<key>     there while the entry may not have reached the disk (durable.py)
    root/uses/<key>      held shared by whoever uses the entry; its time is the time of last use

Several pods of a node may share the folder. All locks are flock(2): the kernel drops them with their owner, so a
killed process leaves neither a stale lock nor an entry in use. Called by source.py and adapter.py.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from kaito_ray.artifacts.durable import Marks
from kaito_ray.artifacts.limits import human_bytes
from kaito_ray.artifacts.reason import Reason
from kaito_ray.errors import ArtifactRefused, ArtifactUnavailable

_KEY = re.compile(r"[a-z0-9][a-z0-9._-]{0,200}")
_POLL_MAX_S = 0.25
# Room that is never given away: a node whose disk is full evicts pods.
_SPARE_BYTES = 64 * 1024 * 1024
# After these the bytes that are here are still good; whoever finds one that is not has thrown it away.
_NOT_OF_CONTENT = {
    Reason.UNAUTHORIZED, Reason.FORBIDDEN, Reason.GATED, Reason.NOT_FOUND, Reason.DIGEST_MISMATCH,
    Reason.CERTIFICATE_REFUSED, Reason.TLS_FAILED,
}  # fmt: skip
Produce = Callable[[Path], Awaitable[Path]]
"""Gets the entry's work folder, which may hold the remains of an earlier try; returns the path to publish in it."""


@dataclass(slots=True)
class Entry:
    """A complete entry, safe from eviction until it is released (or this process ends)."""

    path: Path
    _use: int = field(repr=False)

    def release(self) -> None:
        """Let the entry be evicted again."""
        if self._use >= 0:
            os.close(self._use)
            self._use = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Cache:
    """Entries below `root`, together at most `limit_bytes` beside those in use (None: as the disk permits).

    `spare_share` of the disk stays free: a kubelet evicts pods once less than a tenth of its own disk is.
    """

    def __init__(self, root: Path, limit_bytes: int | None = None, *, spare_share: float = 0.0) -> None:
        self.root = root
        self.limit_bytes = limit_bytes
        self.spare_share = spare_share
        for name in ("entries", "work", "locks", "notes", "uses", "trash"):
            (root / name).mkdir(parents=True, exist_ok=True)
        self._marks = Marks(root / "marks")

    async def get(self, key: str, produce: Produce) -> Entry:
        """The entry of that key, made by `produce` when nobody has made it yet.

        A refusal of the content clears the work folder; anything else, such as a kill or a login that ran out, leaves
        it to be continued.
        """
        made = (self.root / "entries" / _checked(key)).exists
        while True:
            if entry := await self.find(key):
                return entry
            # Whoever waited for another's work needs no turn of its own.
            lock = await self._lock(key, unless=made)
            if lock is None:
                continue
            with self._work(key, lock) as work:
                if entry := await self.find(key):
                    return entry
                try:
                    return await self.publish(key, await produce(work), work)
                except ArtifactRefused as error:
                    if error.reason not in _NOT_OF_CONTENT:
                        await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)
                    raise

    async def find(self, key: str) -> Entry | None:
        """The entry if it is there."""
        return await asyncio.to_thread(self._find, _checked(key))

    @contextlib.asynccontextmanager
    async def locked(self, key: str) -> AsyncIterator[Path]:
        """Hold the key's lock and get its work folder; waits while another process holds it."""
        lock = await self._lock(key, unless=lambda: False)
        assert lock is not None  # noqa: S101
        with self._work(key, lock) as work:
            yield work

    async def _lock(self, key: str, unless: Callable[[], bool]) -> int | None:
        """Take the key's lock; None when `unless` came true meanwhile.

        The wait polls: a blocking flock in a thread could not be cancelled, and a handful of waiters would take
        every thread that the holder needs to go on.
        """
        lock = os.open(self.root / "locks" / _checked(key), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            pause = 0.01
            while not _try_lock(lock, fcntl.LOCK_EX):
                if unless():
                    os.close(lock)
                    return None
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, _POLL_MAX_S)
        except BaseException:
            os.close(lock)
            raise
        return lock

    @contextlib.contextmanager
    def _work(self, key: str, lock: int) -> Iterator[Path]:
        """The work folder of a lock that is held; gives the lock back in the end."""
        work = self.root / "work" / key
        try:
            work.mkdir(exist_ok=True)
            yield work
        finally:
            with contextlib.suppress(OSError):
                work.rmdir()  # if nothing is left in it
            os.close(lock)

    async def publish(self, key: str, made: Path, work: Path) -> Entry:
        """Give `made` its final name, in one step, and drop the rest of the work folder. The lock is held."""
        return await asyncio.to_thread(self._publish, _checked(key), made, work)

    def note(self, key: str) -> dict[str, str]:
        """What was noted for a source; empty when nothing was."""
        try:
            return {str(name): str(value) for name, value in json.loads(self._note(key).read_text()).items()}
        except (OSError, ValueError):
            return {}

    def write_note(self, key: str, note: Mapping[str, str]) -> None:
        """Replace the note, in one step."""
        fresh = self.root / "notes" / f".{uuid.uuid4().hex}"
        fresh.write_text(json.dumps(dict(note)))
        fresh.rename(self._note(key))

    def _note(self, key: str) -> Path:
        return self.root / "notes" / f"{_checked(key)}.json"

    async def make_room(self, size: int, here: int = 0) -> None:
        """Evict what was used longest ago until an entry of `size` bytes fits; refuse when it cannot fit at all.

        `here` of the bytes are on the disk already, left by an earlier try.
        """
        await asyncio.to_thread(self._make_room, size, here)

    def _find(self, key: str) -> Entry | None:
        path = self.root / "entries" / key
        use = os.open(self.root / "uses" / key, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        # Shared locks wait for an eviction only, which is a rename.
        fcntl.flock(use, fcntl.LOCK_SH)
        if not path.exists():
            os.close(use)
            return None
        if self._marks.is_lost(key):
            os.close(use)
            self._evict(key)
            return None
        self._marks.settle(key, path)
        os.utime(use, ns=(now := time.time_ns(), now))  # finer than the kernel's own stamp
        return Entry(path, use)

    def _publish(self, key: str, made: Path, work: Path) -> Entry:
        target = self.root / "entries" / key
        self._marks.put(key, made)
        size = tree_size(made)
        (self.root / "uses" / key).write_text(str(size))
        try:
            made.rename(target)
        except OSError:
            # Keys that name content may be published from under several locks; the first one counts.
            if not target.exists():
                raise
        shutil.rmtree(work, ignore_errors=True)
        if entry := self._find(key):
            return entry
        raise ArtifactUnavailable(f"{key} was evicted as soon as it came", reason=Reason.DISK_TOO_SMALL)

    def _make_room(self, size: int, here: int) -> None:
        for gone in (self.root / "trash").iterdir():
            _remove(gone)
        uses = sorted((self.root / "uses").iterdir(), key=lambda path: path.stat().st_mtime)
        sizes = {use.name: int(use.read_text() or 0) for use in uses if (self.root / "entries" / use.name).exists()}

        def missing() -> int:
            disk = shutil.disk_usage(self.root)
            short = size - here + max(_SPARE_BYTES, int(self.spare_share * disk.total)) - disk.free
            if self.limit_bytes is not None:
                short = max(short, sum(sizes.values()) + size - self.limit_bytes)
            return short

        for key in [use.name for use in uses if use.name in sizes]:
            if missing() <= 0:
                return
            if self._evict(key):
                del sizes[key]
        if missing() > 0 and self._drop_abandoned_work() and missing() <= 0:
            return
        if (short := missing()) > 0:
            limit = f", limit of the cache {human_bytes(self.limit_bytes)}" if self.limit_bytes is not None else ""
            limit += f", {self.spare_share:.0%} of the disk stay free for the node" if self.spare_share else ""
            free = shutil.disk_usage(self.root).free
            raise ArtifactRefused(
                f"needs {human_bytes(size)} in {self.root}, {human_bytes(short)} more than there is room for"
                f" (free {human_bytes(free)}{limit}, in use {human_bytes(sum(sizes.values()))})",
                reason=Reason.DISK_TOO_SMALL,
            )

    def _evict(self, key: str) -> bool:
        """Remove an entry unless somebody uses it."""
        use = os.open(self.root / "uses" / key, os.O_RDWR | os.O_CLOEXEC)
        try:
            if not _try_lock(use, fcntl.LOCK_EX):
                return False
            gone = self.root / "trash" / uuid.uuid4().hex
            with contextlib.suppress(FileNotFoundError):
                (self.root / "entries" / key).rename(gone)
                self._marks.remove(key)
        finally:
            os.close(use)
        _remove(gone)
        return True

    def _drop_abandoned_work(self) -> bool:
        """Remove work folders that no process is busy with; whether there were any."""
        dropped = False
        for work in (self.root / "work").iterdir():
            lock = os.open(self.root / "locks" / work.name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                if _try_lock(lock, fcntl.LOCK_EX):
                    shutil.rmtree(work, ignore_errors=True)
                    dropped = True
            finally:
                os.close(lock)
        return dropped


def hold(path: Path) -> None:
    """Keep the entry that `path` leads into from eviction for as long as this process lives.

    Nothing happens for a path outside of a cache. Reading is enough: pods that use a model may not write to the cache.
    """
    real = path.resolve()
    for folder in (real, *real.parents):
        use = folder.parent.parent / "uses" / folder.name
        if folder.parent.name == "entries" and use.is_file():
            fcntl.flock(os.open(use, os.O_RDONLY | os.O_CLOEXEC), fcntl.LOCK_SH)
            return


def tree_size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if path.is_dir():
        return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())
    return path.stat().st_size


def _checked(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ValueError(f"not a cache key: {key!r}")
    return key


def _try_lock(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
