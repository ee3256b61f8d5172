# SPDX-License-Identifier: Apache-2.0
"""Hooks of the trainer: figures into the run's events.jsonl, checkpoints to Ray Train, and a stop when loss runs away.

Every worker has one; only the first writes events. qlora.py hands it to the trainer.
"""

import math
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from ray import train
from ray.train import Checkpoint, CheckpointUploadMode
from ray.train.collective import broadcast_from_rank_zero
from ray.util.metrics import Gauge
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from kaito_ray.tuning_event import Event, Started, Step
from tune_jobs.home import read_events
from tune_jobs.loss_judge import LossJudge

# After so many steps of an attempt its pace is known.
_PACE_STEPS = 5

# Ray puts `ray_` in front and shows them on the metrics port of the pod, for Prometheus.
_GAUGES = {
    "step": "Steps done",
    "total_steps": "Steps to do",
    "epoch": "Epochs done",
    "loss": "Training loss of the last steps",
    "eval_loss": "Loss on held-out rows",
    "reward_accuracy": "Share of pairs whose chosen side has gained more than the rejected one",
    "reward_margin": "How much more it has gained, times beta",
    "learning_rate": "Learning rate",
    "tokens_per_second": "Tokens a second over all workers",
    "eta_seconds": "Seconds left, as estimated",
    "gpu_memory_gib": "Most memory that the first worker's GPU held",
}


class Progress(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Reports one training; `stopped` is the reason and the sentence when it was ended as hopeless."""

    def __init__(self, events: Path, *, checkpoint_s: float, labels: dict[str, str], pairs: bool) -> None:
        self.stopped: tuple[str, str] | None = None
        self.loss: float | None = None
        self._events = events
        self._checkpoint_s = checkpoint_s
        self._checkpoint_steps = 0
        """Steps between checkpoints; 0 until it is known."""
        self._first = train.get_context().get_world_rank() == 0
        self._gauges = {name: _gauge(name, text, labels) for name, text in _GAUGES.items()} if self._first else {}
        self._pairs = pairs
        self._judge = LossJudge(pairs)
        self._before = (0.0, 0, 0)
        """Time, step and tokens of this session at the last report."""
        self._began = (0.0, 0)
        self._tokens_before = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Say that workers train, and from where."""
        known = read_events(self._events)
        attempt = 1 + sum(isinstance(event, Started) for event in known)
        steps = [event for event in known if isinstance(event, Step) and event.step <= state.global_step]
        self._tokens_before = max((event.tokens or 0 for event in steps), default=0)
        self._judge = LossJudge(self._pairs, [event.loss for event in steps if event.loss is not None])
        self._began = (time.monotonic(), state.global_step)
        self._before = (time.monotonic(), state.global_step, 0)
        self._write(Started(attempt, args.world_size, state.max_steps, state.global_step))

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        """Ask for a checkpoint when one is due: after equally many steps on all workers, since all must write it."""
        done = state.global_step - self._began[1]
        if done == _PACE_STEPS:
            steps = max(1, round(self._checkpoint_s * done / (time.monotonic() - self._began[0])))
            self._checkpoint_steps = broadcast_from_rank_zero(steps)
        if self._checkpoint_steps and done % self._checkpoint_steps == 0:
            control.should_save = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Report the figures, and end the training when they say that it is lost."""
        logs = logs or {}
        if "loss" not in logs and "eval_loss" not in logs:
            return
        now, tokens = time.monotonic(), int(logs.get("num_tokens", self._before[2]))
        then, step_then, tokens_then = self._before
        # A report that is only an evaluation counts no tokens; the next one covers the steps up to it.
        learned = "loss" in logs and state.global_step > step_then
        if learned:
            self._before = (now, state.global_step, tokens)
        pace = (now - self._began[0]) / max(state.global_step - self._began[1], 1)
        self.loss = logs.get("loss", self.loss)
        self._write(
            Step(
                step=state.global_step,
                total_steps=state.max_steps,
                epoch=round(state.epoch or 0.0, 3),
                time=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                loss=_finite(logs.get("loss")),
                learning_rate=_finite(logs.get("learning_rate")),
                grad_norm=_finite(logs.get("grad_norm")),
                eval_loss=_finite(logs.get("eval_loss")),
                tokens=self._tokens_before + tokens if tokens else None,
                tokens_per_second=round((tokens - tokens_then) / (now - then), 1) if learned and now > then else None,
                eta_seconds=round(pace * (state.max_steps - state.global_step)),
                gpu_memory_gib=round(torch.cuda.max_memory_allocated() / 2**30, 2) if not args.use_cpu else None,
                reward_accuracy=_finite(logs.get("rewards/accuracies")),
                reward_margin=_finite(logs.get("rewards/margins")),
            )
        )
        # The loss is the mean over all workers, so that all of them stop at the same step.
        if "loss" in logs:
            hopeless = self._judge.judge(
                float(logs["loss"]),
                state.global_step,
                gradient=logs.get("grad_norm"),
                token_accuracy=logs.get("mean_token_accuracy"),
            )
            if hopeless is not None:
                self.stopped, control.should_training_stop = hopeless, True

    def on_save(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Hand the checkpoint to Ray Train as it lies on the shared storage: no copy is made of it.

        Every worker calls this after it wrote its own part, and `report` waits for all of them, so that a checkpoint
        counts only when it is whole.
        """
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        train.report(
            {"step": state.global_step, "loss": self.loss},
            checkpoint=Checkpoint.from_directory(str(folder)),
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
        )

    def _write(self, event: Event) -> None:
        if self._first:
            with self._events.open("a") as file:
                file.write(event.line() + "\n")
        for name, gauge in self._gauges.items():
            if (value := getattr(event, name, None)) is not None:
                gauge.set(float(value))


def _gauge(name: str, text: str, labels: dict[str, str]) -> Gauge:
    gauge = Gauge(f"kaito_ray_tuning_{name}", description=text, tag_keys=tuple(labels))
    gauge.set_default_tags(labels)
    return gauge


def _finite(value: Any) -> float | None:
    """A number that JSON has."""
    return float(value) if value is not None and math.isfinite(value) else None
