# SPDX-License-Identifier: Apache-2.0
"""Options of a training and the size of its data in; how many steps that is, how long and how dear, out. Pure.

tune_jobs/qlora.py follows the steps; the time and the price are an estimate for people who have not bought nodes yet.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kaito_ray.plan import TunePlan
from kaito_ray.preset import Preset
from kaito_ray.sku import Sku

_EPOCHS = 3.0  # the default of transformers, and so KAITO's
# Dense 16-bit TFLOPS of one GPU by its maker's data sheet, by the beginning of its name.
_TFLOPS = {
    "AMD MI300X": 1307, "NVIDIA A100": 312, "NVIDIA A10": 125, "NVIDIA GB": 2500,
    "NVIDIA H100 NVL": 835, "NVIDIA H100 SXM": 989, "NVIDIA H200": 989, "NVIDIA RTX PRO 6000": 500, "NVIDIA T4": 65,
    "NVIDIA V100": 112,
}  # fmt: skip
# The share of that which training with transformers reaches, and with weights that are unpacked for every use.
_UTILIZATION, _UTILIZATION_QUANTISED = 0.35, 0.25


@dataclass(frozen=True, slots=True)
class Schedule:
    """How often the data is gone through, in how many steps."""

    epochs: float
    steps_per_epoch: int
    steps: int
    logging_steps: int | float


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds on the GPUs of a plan, and what they cost at list price where there is one."""

    seconds: float
    usd: float | None

    def __str__(self) -> str:
        minutes = self.seconds / 60
        time = f"about {minutes / 60:.1f} h" if minutes >= 90 else f"about {minutes:.0f} min"
        price = "" if self.usd is None else f" and ${self.usd:.2f}" if self.usd >= 0.01 else " and less than a cent"
        return f"{time if minutes >= 2 else 'less than 2 min'}{price} of training"


def schedule(training: Mapping[str, Any], *, rows: int, workers: int, min_steps: int | None) -> Schedule:
    """The steps that transformers' Trainer will take over `rows` rows.

    A small data set is gone through as often as it takes to make `min_steps` steps: three epochs of ten rows are three
    steps, and teach nothing.
    """
    batches = max(1, -(-rows // (training["per_device_train_batch_size"] * workers)))
    per_epoch = max(1, -(-batches // training["gradient_accumulation_steps"]))
    epochs = float(training.get("num_train_epochs", _EPOCHS))
    if min_steps is not None:
        epochs = float(max(epochs, -(-min_steps // per_epoch)))
    steps = training.get("max_steps", -1)
    if steps > 0:
        epochs = steps / per_epoch
    else:
        steps = math.ceil(epochs * per_epoch)
    return Schedule(epochs, per_epoch, steps, training.get("logging_steps", min(10, max(1, steps // 20))))


def seconds_per_token(
    preset: Preset, sku: Sku, *, workers: int, quantised: bool, checkpointing: bool, pairs: bool
) -> float | None:
    """About how long all workers together train on a token; None for hardware whose speed is not known.

    A token costs 2 operations per weight forwards and 2 backwards, since only the gradient of the activations passes
    through frozen weights, 2 more where gradient checkpointing repeats the forward pass, and 2 more with pairs, whose
    tokens go through the reference as well.
    """
    tflops = float(next((value for name, value in _TFLOPS.items() if sku.gpu.startswith(name)), 0))
    if not tflops or not sku.gpus:
        return None
    if sku.fraction and "/" in sku.fraction:
        part, whole = sku.fraction.split("/")
        tflops *= int(part) / int(whole)
    operations = 4 + 2 * checkpointing + 2 * pairs
    weights = preset.weights_gib * 2**30 / 2
    share = _UTILIZATION_QUANTISED if quantised else _UTILIZATION
    return operations * weights / (workers * tflops * 1e12 * share)


def estimate(plan: TunePlan, tokens: int, epochs: float) -> Estimate | None:
    """Time and price of `tokens` tokens an epoch; None where the plan cannot tell."""
    if plan.seconds_per_token is None:
        return None
    seconds = tokens * epochs * plan.seconds_per_token
    usd = None if plan.hourly_usd is None else plan.hourly_usd * seconds / 3600
    return Estimate(seconds, usd)


def outlook(plan: TunePlan, rows: int, tokens: int) -> str:
    """What training on so many rows, of so many tokens an epoch, will take, in a sentence."""
    made = schedule(
        plan.arguments["training"],
        rows=round(rows * plan.arguments["data"]["train_share"]),
        workers=plan.workers,
        min_steps=plan.arguments["epochs_min_steps"],
    )
    costs = estimate(plan, tokens, made.epochs)
    return f"{made.steps:,} steps, {made.epochs:g} epochs" + (f", {costs} on {plan.instance_type}" if costs else "")
