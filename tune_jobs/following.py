# SPDX-License-Identifier: Apache-2.0
"""The events that the first worker writes into the run's folder in, lines on the driver's stdout out.

Workers say nothing themselves: a file on the job's storage outlives them and reaches a driver on another node. Called
by qlora.py.
"""

import threading
from pathlib import Path

from kaito_ray.tuning_event import Event, parse_event

_POLL_S = 0.5


def say(event: Event) -> None:
    """One line on stdout."""
    print(event.line(), flush=True)


class Following:
    """Prints the events that the first worker writes, until the block is left."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._over = threading.Event()
        self._read = file.stat().st_size if file.is_file() else 0
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._over.wait(_POLL_S):
            self._print_new()
        self._print_new()

    def _print_new(self) -> None:
        if not self._file.is_file():
            return
        with self._file.open() as file:
            file.seek(self._read)
            for line in iter(file.readline, ""):
                if not line.endswith("\n"):
                    break  # written in this moment
                self._read += len(line.encode())
                if event := parse_event(line):
                    say(event)
