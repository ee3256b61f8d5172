# SPDX-License-Identifier: Apache-2.0
"""How much one artefact may take: bytes, files, seconds. Read by every module that fetches, unpacks or pushes."""

from dataclasses import dataclass

GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps for one artefact; what lies beyond them is refused, never cut short."""

    bytes: int
    """Most bytes to download, and most bytes to unpack."""
    entries: int
    """Most members of its archives, counted while unpacking, wanted or not."""
    seconds: float
    """Longest time for the whole of it, retries and waits included."""
    ratio: int = 200
    """Most bytes unpacked per byte of archive. Text packs 20:1 at best and weights hardly at all; a bomb, 1000:1."""
    attempts: int = 5
    """Tries in a row that bring no new byte before giving up."""
    idle_s: float = 30.0
    """Longest silence of a server in the middle of an answer."""
    redirects: int = 5
    parallel: int = 4
    """Layers of one image that are fetched at the same time."""


ADAPTER = Limits(bytes=8 * GIB, entries=20_000, seconds=1800)
DATA = Limits(bytes=200 * GIB, entries=200_000, seconds=6 * 3600)
# Images may hold a whole system beside the model.
MODEL = Limits(bytes=2048 * GIB, entries=500_000, seconds=24 * 3600)


def human_bytes(count: int) -> str:
    """Bytes as people write them: 0 B, 512 B, 1.5 KiB, 95.4 MiB."""
    if count < 1024:
        return f"{count} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1024:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} TiB"
