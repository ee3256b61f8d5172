# SPDX-License-Identifier: Apache-2.0
"""The steps of a training in, a picture of its loss out. Called by publish.py."""

from collections.abc import Sequence
from pathlib import Path

from kaito_ray.tuning_event import Step


def draw_loss(steps: Sequence[Step], target: Path, *, title: str) -> None:
    """Draw the loss on the training data, on held-out data where there is any, and the learning rate."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, label in (("loss", "training"), ("eval_loss", "held out")):
        points = [(step.step, value) for step in steps if (value := getattr(step, name)) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), label=f"loss, {label}", marker="." if len(points) < 40 else "")
    rates = [(step.step, step.learning_rate) for step in steps if step.learning_rate is not None]
    # Losses on pairs may fall below nothing.
    lowest = min((step.loss for step in steps if step.loss is not None), default=0.0)
    axes.set(title=title, xlabel="step", ylabel="loss", ylim=(0 if lowest >= 0 else None, None))
    axes.grid(alpha=0.3)
    if rates:
        right = axes.twinx()
        right.plot(*zip(*rates, strict=True), color="grey", linestyle=":", label="learning rate")
        right.set(ylabel="learning rate", ylim=(0, None))
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(target, dpi=120)
