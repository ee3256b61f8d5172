# SPDX-License-Identifier: Apache-2.0
"""Bytes that arrive in; how far a fetch or a push is out: bytes, speed, seconds left.

One `Progress` per artefact, written by source.py and push.py while they work, read by whoever shows a bar or a gauge.
"""

import time
from collections import deque
from dataclasses import dataclass, field

_WINDOW_S = 10.0


@dataclass(slots=True)
class Progress:
    """How far one transfer is; safe to read from another thread at any time."""

    total: int = 0
    """Bytes of the whole; 0 until the source has said."""
    done: int = 0
    """Bytes that are here, those of an earlier try included."""
    resumed: int = 0
    """Bytes of `done` that an earlier try had brought."""
    finished: bool = False
    _samples: deque[tuple[float, int]] = field(default_factory=deque, repr=False)

    def expect(self, total: int) -> None:
        """The source has said how many bytes it has."""
        self.total = total
        self._samples.append((time.monotonic(), self.done))

    def resume(self, count: int) -> None:
        """Bytes that were here already; they say nothing about the speed."""
        self.done += count
        self.resumed += count
        self._samples.clear()
        self._samples.append((time.monotonic(), self.done))

    def count(self, count: int) -> None:
        """More bytes have come; negative when some have to come again."""
        self.done += count
        now = time.monotonic()
        if not self._samples or now - self._samples[-1][0] >= 0.2:
            self._samples.append((now, self.done))
            while now - self._samples[0][0] > _WINDOW_S and len(self._samples) > 2:
                self._samples.popleft()

    def finish(self) -> None:
        """Everything is here and checked."""
        self.done = self.total = max(self.total, self.done)
        self.finished = True

    @property
    def bytes_per_second(self) -> float:
        """The speed of the last ten seconds; 0 before anything came."""
        if not self._samples:
            return 0.0
        then, before = self._samples[0]
        elapsed = time.monotonic() - then
        return max(0.0, (self.done - before) / elapsed) if elapsed > 0 else 0.0

    @property
    def remaining_s(self) -> float | None:
        """Seconds left at this speed; None while nobody can say."""
        speed = self.bytes_per_second
        return (self.total - self.done) / speed if self.total and speed else None
