# SPDX-License-Identifier: Apache-2.0
"""A message of Ray Serve in, one sentence for a person out. Called by conditions.py and local_ray.py.

When a replica's constructor fails, Serve's message is the whole traceback, a hundred lines with colours in them, and
once more for each exception that led to another. What went wrong stands in the last line that names an exception.
"""

import re

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_EXCEPTION = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception|Refused)\b.*?: ")
_WRAPPER = "RuntimeError: "


def sentence(message: str) -> str:
    """The last exception that a message names, else the message itself, on one line; empty for an empty one."""
    lines = [line.strip() for line in _COLOUR.sub("", message).splitlines()]
    named = [line for line in lines if _EXCEPTION.match(line)]
    return named[-1].removeprefix(_WRAPPER) if named else " ".join(filter(None, lines))
