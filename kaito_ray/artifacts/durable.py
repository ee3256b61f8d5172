# SPDX-License-Identifier: Apache-2.0
"""Whether the bytes of an entry have reached the disk, so that a node which loses power keeps no entry of zeros.

To wait for the disk before an entry is visible would cost an engine its start by minutes. So an entry is used at once,
with a mark that names the boot of the machine; the mark goes when the disk has everything, which another thread sees
to. An entry whose mark is of an earlier boot may be anything, and is thrown away. Called by cache.py; blocking.
"""

import os
import threading
import time
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")
# By then the kernel has written on its own what it had, and asking for it costs nothing.
_SETTLED_S = 60.0


class Marks:
    """One mark per entry that may not be on the disk yet, as files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, key: str, path: Path) -> None:
        """Mark an entry that is about to become visible; without a boot to name, wait for the disk instead."""
        if boot := _boot():
            (self._folder / key).write_text(boot)
        else:
            sync(path)

    def is_lost(self, key: str) -> bool:
        """Whether the entry was not on the disk when the machine stopped."""
        try:
            return (self._folder / key).read_text() != _boot()
        except FileNotFoundError:
            return False

    def settle(self, key: str, path: Path) -> None:
        """See to it that the entry reaches the disk and the mark goes; returns at once."""
        try:
            age = time.time() - (self._folder / key).stat().st_mtime
        except FileNotFoundError:
            return
        if age > _SETTLED_S:
            self._settle(key, path)
        else:
            # A daemon: nobody waits for it, and whoever uses the entry next does what it left.
            threading.Thread(target=self._settle, args=(key, path), daemon=True).start()

    def remove(self, key: str) -> None:
        """Forget the mark."""
        (self._folder / key).unlink(missing_ok=True)

    def _settle(self, key: str, path: Path) -> None:
        try:
            sync(path)
        except OSError:
            return  # evicted meanwhile
        self.remove(key)


def sync(path: Path) -> None:
    """Wait until a file, or all files below a folder, are on the disk."""
    for file in path.rglob("*") if path.is_dir() else (path,):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fdatasync(handle)
            finally:
                os.close(handle)


def _boot() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""
