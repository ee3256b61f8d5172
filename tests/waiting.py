# SPDX-License-Identifier: Apache-2.0
"""Awaiting conditions in tests that drive real processes."""

import socket
import time
from collections.abc import Callable


def until(condition: Callable[[], bool], timeout_s: float, why: Callable[[], str] = str) -> None:
    """Return once `condition()` holds; fail with what `why()` says after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {why()}"
        time.sleep(0.1)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
