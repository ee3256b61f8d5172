# SPDX-License-Identifier: Apache-2.0
"""Shows on stderr what a local run is doing and how long each stage took.

On a terminal the current stage is a live line with a spinner; elsewhere each stage is one plain line when it ends,
so that logs of pipelines stay readable. stdout is left to answers.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.status import Status


class Stage:
    """One stage under way; `note` replaces what is said about it."""

    def __init__(self, name: str, status: Status | None) -> None:
        self.name = name
        self.said = ""
        self._status = status

    def note(self, text: str) -> None:
        """Say what the stage is doing now, and what it did once it has ended."""
        self.said = text
        if self._status is not None:
            self._status.update(f"[bold]{self.name}[/bold]  {text}")


class Stages:
    """Prints stages in order with their times; one instance per run."""

    def __init__(self, console: Console | None = None) -> None:
        # Wrapping at a guessed width would break lines that programs read.
        self.console = console or Console(stderr=True, soft_wrap=True, highlight=False)
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.console.file.flush()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._started

    @contextmanager
    def stage(self, name: str, text: str = "") -> Iterator[Stage]:
        """Show `name` while the block runs, and its time when it ended without an error."""
        began = time.monotonic()
        status = self.console.status(f"[bold]{name}[/bold]  {text}") if self.console.is_terminal else None
        stage = Stage(name, status)
        stage.said = text
        if status is not None:
            status.start()
        try:
            yield stage
        finally:
            if status is not None:
                status.stop()
        self.say(name, f"{stage.said} ({time.monotonic() - began:.1f} s)")

    def say(self, name: str, text: str) -> None:
        """One line: the seconds since the start, the stage, and what there is to say."""
        self.console.print(f"{self.elapsed_s:6.1f}s  {name:<9} {text}", markup=False)
