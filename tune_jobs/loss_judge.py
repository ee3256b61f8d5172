# SPDX-License-Identifier: Apache-2.0
"""The losses of a training as they are reported in, why it is hopeless, if it is, out. Called by progress.py."""

import math
from dataclasses import dataclass, field

# A loss is judged by the mean of so many reports, since single batches differ.
_WINDOW = 3
# It has run away when it is half as much again above where it began, and half a nat: 1.6 times the perplexity.
_FACTOR, _MARGIN = 1.5, 0.5


@dataclass(slots=True)
class LossJudge:
    """Judges one training; `losses` are those of its first reports, also when an earlier attempt made them.

    The loss on `pairs` begins where a model stands that prefers nothing, at ln 2 for DPO's own; harder pairs may bring
    it back there, which is no failure.
    """

    pairs: bool
    losses: list[float] = field(default_factory=list)
    _still: int = 0

    def __post_init__(self) -> None:
        self.losses = self.losses[:_WINDOW]

    def judge(self, loss: float, gradient: float | None, step: int) -> tuple[str, str] | None:
        """Reason and sentence when the report of this step shows that going on is in vain."""
        if not math.isfinite(loss):
            return "LossNotFinite", f"the loss is {loss} at step {step}; lower the learning rate"
        # Outputs that no longer depend on the input give a gradient of exactly nothing, and a loss that stands still.
        # So do pairs that are all told apart, whose loss has fallen.
        told_apart = self.pairs and bool(self.losses) and loss < self.losses[0]
        self._still = self._still + 1 if gradient == 0 and not told_apart else 0
        if self._still >= _WINDOW:
            message = f"the loss stands still at {loss:.2f} with no gradient at step {step}; lower the learning rate"
            return "LossDiverged", message
        self.losses.append(loss)
        if len(self.losses) <= _WINDOW:
            return None
        begin = self.losses[:_WINDOW]
        first, last = max(begin) if self.pairs else sum(begin) / _WINDOW, sum(self.losses[-_WINDOW:]) / _WINDOW
        if last > _FACTOR * first + _MARGIN:
            message = f"the loss rose from {first:.2f} to {last:.2f} by step {step}; lower the learning rate"
            return "LossDiverged", message
        return None
