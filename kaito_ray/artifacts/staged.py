# SPDX-License-Identifier: Apache-2.0
"""What staging gives: a folder of the cache with a digest. Made by source.py and hub_stage.py."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from kaito_ray.artifacts.cache import Entry

REVISION = "org.opencontainers.image.revision"
"""The annotation of an image with the commit that its files are of."""
SKIPPED = "kaito-ray.io/skipped"
"""In the cache's note beside an entry: what was left out, a name per line."""
SKIPPED_SHOWN = 20


@dataclass(slots=True)
class Staged:
    """A folder in the cache, in use until `release` is called."""

    path: Path
    digest: str
    """`sha256:...`: of the manifest of an image, of names and contents of anything else."""
    entry: Entry
    annotations: Mapping[str, str]
    """Of an image; empty for anything else."""
    skipped: tuple[str, ...] = ()
    """Names of files that were there and not wanted, the first few."""
    revision: str = ""
    """The commit that the files are of, as far as their source says."""

    def release(self) -> None:
        """Let the cache evict it."""
        self.entry.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def tree_digest(hashes: Mapping[str, str]) -> str:
    """One digest for files by their names and sha256, whatever their order."""
    return f"sha256:{sha256_of(''.join(f'{sha256}  {name}' + chr(10) for name, sha256 in sorted(hashes.items())))}"


def sha256_of(text: str) -> str:
    """In hexadecimal, for keys."""
    return hashlib.sha256(text.encode()).hexdigest()
