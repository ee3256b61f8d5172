# SPDX-License-Identifier: Apache-2.0
"""What a tuning job says about itself, one line of text per event, and how the rest of kaito-ray reads it.

    kaito-ray-tuning {"event":"step","step":20,"total_steps":300,"loss":3.21,"tokens_per_second":512.0,...}

tune_jobs writes these lines to the stdout of the job's driver and nothing else goes there, so they are the job's log.
Whoever has that log has the progress: the operator asks Ray's dashboard for its last lines
(`GET /api/jobs/<RayJob's jobId>/logs`) and, once the job has failed, finds them in the RayJob's own message, to which
Ray appends the end of the log; `kaito-ray run` reads them from a pipe. Pods need no rights in the cluster for it, and
a line that is cut or foreign is passed over.

Pure. Times are seconds, `time` an RFC 3339 moment, memory GiB.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, assert_never

PREFIX = "kaito-ray-tuning "


@dataclass(frozen=True, slots=True)
class _Event:
    """One line; `event` tells which."""

    event: ClassVar[str]

    def line(self) -> str:
        """The event as it stands in a log."""
        given = {key: value for key, value in asdict(self).items() if value is not None}
        return PREFIX + json.dumps({"event": self.event, **given}, separators=(",", ":"), ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Data(_Event):
    """The data set was read and judged."""

    event: ClassVar[str] = "data"
    rows: int
    format: str
    tokens: int
    summary: tuple[str, ...] = ()
    """Sentences for people: lengths, duplicates, what is cut off, an estimate."""
    warnings: tuple[str, ...] = ()
    samples: tuple[str, ...] = ()
    """The first few rows, as they are understood."""


@dataclass(frozen=True, slots=True)
class Started(_Event):
    """Workers train; `resumed_from` is the step of the checkpoint they continue from, 0 for none.

    A second one in the same log says that workers were lost and replaced.
    """

    event: ClassVar[str] = "started"
    attempt: int
    workers: int
    total_steps: int
    resumed_from: int = 0


@dataclass(frozen=True, slots=True)
class Step(_Event):
    """Figures of the steps since the last such event; one line of metrics.jsonl."""

    event: ClassVar[str] = "step"
    step: int
    total_steps: int
    epoch: float
    time: str
    loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    eval_loss: float | None = None
    tokens: int | None = None
    """Tokens seen since training began, over all workers, padding left out."""
    tokens_per_second: float | None = None
    eta_seconds: int | None = None
    gpu_memory_gib: float | None = None
    """Most memory that one GPU held so far."""
    reward_accuracy: float | None = None
    """With pairs: the share of them whose chosen side has gained more than the rejected one."""
    reward_margin: float | None = None
    """How much more, times beta, in nats."""

    def shown(self) -> str:
        """As people read it: `step 20/300 loss 3.21 lr 1.8e-04 512 tokens/s eta 0:42`."""
        parts = [f"step {self.step}/{self.total_steps}"]
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4g}")
        if self.eval_loss is not None:
            parts.append(f"eval loss {self.eval_loss:.4g}")
        if self.reward_accuracy is not None and self.reward_margin is not None:
            parts.append(f"prefers {self.reward_accuracy:.0%} margin {self.reward_margin:.3g}")
        parts.append(f"epoch {self.epoch:.2f}")
        if self.learning_rate is not None:
            parts.append(f"lr {self.learning_rate:.1e}")
        if self.tokens_per_second is not None:
            parts.append(f"{self.tokens_per_second:.0f} tokens/s")
        if self.gpu_memory_gib is not None:
            parts.append(f"{self.gpu_memory_gib:.1f} GiB")
        if self.eta_seconds is not None:
            parts.append(f"eta {_duration(self.eta_seconds)}")
        return " ".join(parts)


@dataclass(frozen=True, slots=True)
class Waiting(_Event):
    """Something outside is down and is tried again."""

    event: ClassVar[str] = "waiting"
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Finished(_Event):
    """The adapter is where it should be; `digest` is of the image's manifest, or of the files on a volume."""

    event: ClassVar[str] = "finished"
    digest: str
    image: str = ""
    path: str = ""
    loss: float | None = None
    steps: int = 0
    seconds: float = 0.0
    time: str = ""


@dataclass(frozen=True, slots=True)
class Failed(_Event):
    """The job ends without a result; `reason` is a CamelCase word for a condition.

    `final` says that trying again changes nothing until somebody edits something.
    """

    event: ClassVar[str] = "failed"
    reason: str
    message: str
    final: bool = False


Event = Data | Started | Step | Waiting | Finished | Failed
_KINDS: dict[str, type[Event]] = {kind.event: kind for kind in (Data, Started, Step, Waiting, Finished, Failed)}


@dataclass(frozen=True, slots=True)
class Progress:
    """The newest event of each kind that is still true."""

    data: Data | None = None
    started: Started | None = None
    step: Step | None = None
    waiting: Waiting | None = None
    finished: Finished | None = None
    failed: Failed | None = None

    def after(self, event: Event) -> "Progress":
        """What is true once `event` happened."""
        match event:
            case Data():
                return replace(self, data=event)
            case Started():
                return replace(self, started=event, waiting=None, failed=None)
            case Step():
                return replace(self, step=event, waiting=None)
            case Waiting():
                return replace(self, waiting=event)
            case Finished():
                return replace(self, finished=event, waiting=None, failed=None)
            case Failed():
                return replace(self, failed=event, waiting=None)
            case _:
                assert_never(event)


def parse_event(line: str) -> Event | None:
    """The event in a line of a log, whatever stands before it; None for any other line."""
    _, found, text = line.partition(PREFIX)
    if not found:
        return None
    try:
        document = json.loads(text)
        kind = _KINDS[document.pop("event")]
        known = {field.name for field in fields(kind)}
        return kind(**{key: _frozen(value) for key, value in document.items() if key in known})
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def parse_events(log: str) -> Iterator[Event]:
    """Every event of a log, or of any piece of one."""
    return (event for event in map(parse_event, log.splitlines()) if event is not None)


def progress_of(events: Iterable[Event]) -> Progress:
    """The state that a sequence of events leads to."""
    progress = Progress()
    for event in events:
        progress = progress.after(event)
    return progress


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _duration(seconds: int) -> str:
    minutes, rest = divmod(max(seconds, 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
