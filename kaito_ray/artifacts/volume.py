# SPDX-License-Identifier: Apache-2.0
"""Files of a mounted volume into the cache: copied, because what lies there may change while it is in use.

Blocking; called in a thread by source.py. A link may lead to other files of the volume, as those of mounted
ConfigMaps do, but not out of it.
"""

import hashlib
import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from kaito_ray.artifacts.limits import Limits, human_bytes
from kaito_ray.artifacts.reason import Reason
from kaito_ray.errors import ArtifactRefused

_CHUNK = 4 * 1024 * 1024
_MAX_DEPTH = 8


def copy_volume(folder: Path, target: Path, limits: Limits, *, names: Collection[str]) -> dict[str, str]:
    """Copy the files of those `names` below `folder` into `target`; their paths and the sha256 of what was copied.

    Raises ArtifactRefused when there is no such folder, or when it leads out of itself or beyond the limits.
    """
    root = folder.resolve()
    if not root.is_dir():
        raise ArtifactRefused(f"{folder}: there is no such folder on the volume", reason=Reason.PATH_NOT_FOUND)
    hashes: dict[str, str] = {}
    left = limits.bytes
    for name in _names(root, limits):
        if PurePosixPath(name).name not in names:
            continue
        with _opened(root, name) as source:
            size = os.fstat(source.fileno()).st_size
            left -= size
            if left < 0:
                raise ArtifactRefused(
                    f"{folder}: has more than {human_bytes(limits.bytes)} of files", reason=Reason.TOO_LARGE
                )
            hashes[name] = _copy(source, target / name, size)
    return hashes


def _names(root: Path, limits: Limits) -> Iterator[str]:
    """Names of files relative to `root`, sorted, without following links to folders."""
    seen = 0
    for folder, folders, files in os.walk(root):
        inside = Path(folder).relative_to(root)
        folders[:] = (
            sorted(name for name in folders if not name.startswith(".")) if len(inside.parts) < _MAX_DEPTH else []
        )
        for name in sorted(files):
            seen += 1
            if seen > limits.entries:
                raise ArtifactRefused(f"{root}: has more than {limits.entries:,} files", reason=Reason.TOO_MANY_FILES)
            yield str(inside / name)


def _opened(root: Path, name: str) -> IO[bytes]:
    """The file, opened first and judged after, so that nobody swaps it in between; a pipe does not block."""
    try:
        handle = os.open(root / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ArtifactRefused(
            f"{root / name}: cannot be read: {error.strerror}", reason=Reason.PATH_NOT_FOUND
        ) from None
    file = os.fdopen(handle, "rb", buffering=0)
    real = Path(f"/proc/self/fd/{handle}").readlink()
    if not real.is_relative_to(root) or not stat.S_ISREG(os.fstat(handle).st_mode):
        file.close()
        raise ArtifactRefused(f"{root / name}: is no file of this volume", reason=Reason.UNSAFE_PATH)
    return file


def _copy(source: IO[bytes], target: Path, size: int) -> str:
    """Copy at most `size` bytes, what the file had when it was counted; the sha256 of them."""
    digest = hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as copy:
        while size > 0 and (chunk := source.read(min(_CHUNK, size))):
            copy.write(chunk)
            digest.update(chunk)
            size -= len(chunk)
    return digest.hexdigest()
