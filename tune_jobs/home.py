# SPDX-License-Identifier: Apache-2.0
"""Where a job keeps what must outlive its pods: below `.kaito-ray/<job>` of the output, which every worker sees.

    data/rows.parquet, data/report.json     the data set as it was judged
    runs/<fingerprint>/checkpoint-<step>/   written by Ray Train and the trainer; events.jsonl is the progress
    runs/<fingerprint>/adapter/             the finished adapter
    runs/<fingerprint>/verdict.json         why this training cannot succeed, so that a retry does not try again

The fingerprint stands for everything that decides what comes out. An attempt that finds its own continues there; any
other starts anew, beside it. Called by qlora.py.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from kaito_ray.errors import UserError
from kaito_ray.tuning_event import Event, Started, Step, parse_events
from tune_jobs.arguments import Arguments

HIDDEN = ".kaito-ray"
_SNAPSHOT = "checkpoint_manager_snapshot.json"  # ray.train.v2._internal.constants


@dataclass(frozen=True, slots=True)
class Home:
    """The folder of one job."""

    root: Path

    @classmethod
    def of(cls, arguments: Arguments) -> "Home":
        """The job's folder, made if it is not there; raises UserError where it cannot be."""
        root = arguments.output.folder.absolute() / HIDDEN / arguments.name
        try:
            (root / "data").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = f"{error.strerror or error}, as user {os.getuid()} of group {os.getgid()}"
            raise UserError(f"tuning.output cannot be written: {why}", reason="OutputNotWritable") from None
        return cls(root)

    @property
    def data(self) -> Path:
        """The folder of the judged data set."""
        return self.root / "data"

    def run(self, fingerprint: str) -> "Run":
        """The folder of the training with this fingerprint, without what an attempt left unreadable."""
        run = Run(self.root / "runs", fingerprint)
        run.folder.mkdir(parents=True, exist_ok=True)
        run.forget_broken_snapshot()
        return run


@dataclass(frozen=True, slots=True)
class Run:
    """The folder of one training: `storage` and `name` are Ray Train's storage_path and run name."""

    storage: Path
    name: str

    @property
    def folder(self) -> Path:
        """Where everything of the training is."""
        return self.storage / self.name

    @property
    def adapter(self) -> Path:
        """The finished adapter; the folder is complete as soon as it is there."""
        return self.folder / "adapter"

    @property
    def events(self) -> Path:
        """The progress, one event a line, over all attempts."""
        return self.folder / "events.jsonl"

    @property
    def error(self) -> Path:
        """What a worker died of when it would only die of it again: reason and sentence, a line each."""
        return self.folder / "error.txt"

    def raise_verdict(self, *, forgive: bool) -> None:
        """Raise what an earlier attempt found to be hopeless, or forget it."""
        file = self.folder / "verdict.json"
        if forgive:
            file.unlink(missing_ok=True)
        if file.is_file():
            verdict = json.loads(file.read_text())
            raise UserError(verdict["message"], reason=verdict["reason"])

    def write_verdict(self, reason: str, message: str) -> None:
        """Remember that this training cannot succeed."""
        partial = self.folder / "verdict.partial"
        partial.write_text(json.dumps({"reason": reason, "message": message}))
        partial.replace(self.folder / "verdict.json")

    def forget_broken_snapshot(self) -> None:
        """Ray refuses a run folder whose list of checkpoints was cut by a kill or names one that is gone.

        Starting over is then all there is to do.
        """
        snapshot = self.folder / _SNAPSHOT
        try:
            known = [one["checkpoint_dir_name"] for one in json.loads(snapshot.read_text())["checkpoint_results"]]
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError):
            snapshot.unlink()
            return
        if not all((self.folder / name).is_dir() for name in known):
            snapshot.unlink()

    def drop_checkpoints(self) -> None:
        """Free the room of what only a resume needs."""
        for checkpoint in self.folder.glob("checkpoint*"):
            if checkpoint.is_dir():
                shutil.rmtree(checkpoint, ignore_errors=True)
            else:
                checkpoint.unlink(missing_ok=True)


def read_events(file: Path) -> list[Event]:
    """The events of a run so far, without the steps that an attempt did again after it was resumed."""
    kept: list[Event] = []
    for event in parse_events(file.read_text()) if file.is_file() else ():
        if isinstance(event, Started):
            kept = [one for one in kept if not (isinstance(one, Step) and one.step > event.resumed_from)]
        kept.append(event)
    return kept


def fingerprint(arguments: Arguments, data_digest: str, versions: tuple[str, ...]) -> str:
    """16 characters that stand for what comes out of a training; checkpoints of other versions cannot be read."""
    document = arguments.model_dump(
        mode="json", include={"method", "workers", "model", "quantization", "lora", "training", "epochs_min_steps"}
    )
    split = arguments.data.model_dump(mode="json", include={"train_share", "seed"})
    text = json.dumps([document, split, data_digest, versions], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
