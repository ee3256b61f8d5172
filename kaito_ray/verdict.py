# SPDX-License-Identifier: Apache-2.0
"""A judgement about a Workspace. conditions.py and adapter_status.py make them, status.py makes conditions of them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a condition holds, why in one word, and why in a sentence."""

    holds: bool
    reason: str
    message: str
