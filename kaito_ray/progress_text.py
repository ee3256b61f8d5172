# SPDX-License-Identifier: Apache-2.0
"""How far a transfer is, for people: a bar for terminals, a line for logs. Pure but for the clock of Progress.

Called by the container that fetches a model (model_fetch.py) and by the local run.
"""

from kaito_ray.artifacts.limits import human_bytes
from kaito_ray.artifacts.progress import Progress

_WIDTH = 24


def progress_line(progress: Progress) -> str:
    """Such as `1.2 GiB of 2.9 GiB, 41 %, 312.4 MiB/s, 6 s left`; says what is known so far."""
    if not progress.total:
        return "asking how large it is"
    parts = [f"{human_bytes(progress.done)} of {human_bytes(progress.total)}", f"{_share(progress):.0%}"]
    if progress.bytes_per_second:
        parts.append(f"{human_bytes(round(progress.bytes_per_second))}/s")
    if progress.remaining_s is not None:
        parts.append(f"{progress.remaining_s:.0f} s left")
    if progress.resumed:
        parts.append(f"{human_bytes(progress.resumed)} were here already")
    return ", ".join(parts)


def progress_bar(progress: Progress) -> str:
    """The same behind a bar."""
    filled = round(_WIDTH * _share(progress))
    return f"{'━' * filled}{'╌' * (_WIDTH - filled)} {progress_line(progress)}"


def _share(progress: Progress) -> float:
    return min(1.0, progress.done / progress.total) if progress.total else 0.0
