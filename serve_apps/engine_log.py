# SPDX-License-Identifier: Apache-2.0
"""Why vLLM did not start, in its own words.

The engine runs in processes of its own. When one of them fails, all that reaches the replica is that it did; the
reason stands in what they wrote, which Ray keeps in the replica's log files. serve_apps/engine.py puts it into the
exception, from where it reaches the status of the application and so the Workspace.
"""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_EXCEPTION = re.compile(r"(?:^|\] )((?:\w+\.)*\w*(?:Error|Exception|Refused|Interrupt): .+)$", re.MULTILINE)
# What processes say of each other.
_HEARSAY = ("root cause", "stack trace", "initialization failed", "EngineDeadError", "KeyboardInterrupt")
_MEMORY = "lower max-model-len, max-num-seqs or the rank of adapters, or take a larger size"


class EngineLog:
    """What this process and its children write from now on, when it goes to files."""

    def __init__(self) -> None:
        self._begins = {path: path.stat().st_size for path in map(_file, (1, 2)) if path}

    def text(self) -> str:
        """All of it, standard output first."""
        parts = []
        for path, begin in self._begins.items():
            with path.open("rb") as file:
                file.seek(begin)
                parts.append(file.read().decode(errors="replace"))
        return "\n".join(parts)


def why(failure: str, log: str) -> str:
    """One sentence out of the replica's exception and the engine's log."""
    told = [line for line in _EXCEPTION.findall(log) if not any(word in line for word in _HEARSAY)]
    cause = told[-1].strip() if told else failure
    if not told and "-9" in failure:
        cause += "; signal 9 is how the system ends a process when memory runs out"
    if "memory" in cause.lower():
        cause = f"{cause.rstrip('.')}: {_MEMORY}"
    return cause


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn what is raised inside into a RuntimeError that says `what` failed, and why in the engine's own words."""
    log = EngineLog()
    try:
        yield
    except Exception as error:
        raise RuntimeError(f"{what}: {why(str(error), log.text())}") from error


def _file(descriptor: int) -> Path | None:
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        return Path(f"/proc/self/fd/{descriptor}").resolve(strict=True)
    except OSError:
        return None
