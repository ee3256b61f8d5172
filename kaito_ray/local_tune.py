# SPDX-License-Identifier: Apache-2.0
"""Tunes a model on this machine: the job of a RayJob as a process of the local Ray, its progress shown as it comes.

Called by local.py before it serves. `volumeSource.hostPath` is a folder of this machine; where the result becomes an
image, checkpoints and the adapter are kept in the user's cache, so that a second run continues, or only serves.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from kaito_ray.errors import CannotRun
from kaito_ray.local_model import local_model_folder
from kaito_ray.plan import TunePlan
from kaito_ray.render.rayjob import ray_job_name
from kaito_ray.source_rules import placeholders
from kaito_ray.stages import Stages
from kaito_ray.tiny_model import cache_folder
from kaito_ray.tune_arguments import TuneFolders, tune_arguments_text
from kaito_ray.tuning_event import Data, Event, Failed, Finished, Started, Step, Waiting, parse_event

if TYPE_CHECKING:
    from kaito_ray.local_ray import LocalRay


def tuning_packages() -> tuple[str, ...]:
    """Packages of the extra `tune` that the job imports."""
    return ("accelerate", "bitsandbytes", "datasets", "matplotlib", "peft", "pyarrow", "transformers", "trl")


def tune(plan: TunePlan, logins: str, ray: "LocalRay", stages: Stages) -> Finished:
    """Run the job to its end; raises CannotRun with its reason when it fails.

    `logins` is the folder with the Docker configurations of the manifest's Secrets.
    """
    folders = _folders(plan, logins)
    arguments = ray.folder / "tuning.json"
    arguments.write_text(tune_arguments_text(plan, ray_job_name(plan), folders, forgive=True))
    log = ray.folder / "tuning.log"
    finished: Finished | None = None
    with (
        stages.stage("tune", f"{plan.method} of {plan.model} on {_workers(plan.workers)}") as stage,
        log.open("w") as err,
    ):
        # A session of its own: Ctrl-C reaches this process alone, which then ends all of them.
        process = subprocess.Popen(
            [sys.executable, "-m", "tune_jobs.qlora", str(arguments)],
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
            env={**os.environ, "RAY_ADDRESS": ray.address},
            start_new_session=True,
        )
        shown = _Shown(stages)
        try:
            for event in _events(process):
                shown.take(event)
                if isinstance(event, Failed):
                    raise CannotRun(f"tuning failed ({event.reason}): {event.message}")
                if isinstance(event, Finished):
                    finished = event
        except KeyboardInterrupt:
            shown.close()
            stages.say("train", "the same command goes on from its last checkpoint (one about every 3 minutes)")
            raise
        finally:
            shown.close()
        if process.wait() or finished is None:
            raise CannotRun(f"tuning ended without a result: {_last_line(log)}")
        stage.note(f"the adapter is {finished.image or 'in ' + finished.path}, {finished.digest[:19]}")
    return finished


def _events(process: "subprocess.Popen[str]") -> Iterator[Event]:
    assert process.stdout is not None  # noqa: S101
    for line in process.stdout:
        if event := parse_event(line):
            yield event


def _folders(plan: TunePlan, logins: str) -> TuneFolders:
    """Where the manifest's volumes are on this machine."""
    waiting = placeholders(str(plan.output.get("image", "")))
    if waiting:
        raise CannotRun(f"tuning.output.image: replace {' and '.join(waiting)} with your own")
    cache = cache_folder().parent
    data = _host_path(plan.input, "tuning.input")
    if data and not Path(data).is_dir():
        raise CannotRun(f"tuning.input.volumeSource.hostPath.path: there is no folder {data} on this machine")
    output = _host_path(plan.output, "tuning.output") or str(cache / "tuned" / f"{plan.namespace}-{plan.name}")
    try:
        Path(output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotRun(f"the folder {output} for the adapter cannot be made: {error.strerror}") from None
    model = local_model_folder(plan.source) or ""
    return TuneFolders(data=data, output=output, cache=str(cache), pull_auth=logins, push_auth=logins, model=model)


def _host_path(place: Mapping[str, Any], field: str) -> str:
    """The folder of a hostPath volume; empty when the place is no volume."""
    volume = place.get("volumeSource")
    if not volume:
        return ""
    if "hostPath" not in volume:
        raise CannotRun(
            f"{field}.volumeSource: {next(iter(volume))} belongs to a cluster; on this machine hostPath names a folder"
        )
    return str(volume["hostPath"]["path"])


class _Shown:
    """Events as lines, or as a bar on a terminal."""

    def __init__(self, stages: Stages) -> None:
        self._stages = stages
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def take(self, event: Event) -> None:
        match event:
            case Data():
                for line in (*event.summary, *event.warnings):
                    self._stages.say("data", line)
                for sample in event.samples:
                    self._stages.say("sample", sample)
            case Started():
                since = f", from the checkpoint of step {event.resumed_from}" if event.resumed_from else ""
                again = f"attempt {event.attempt}, " if event.attempt > 1 else ""
                self._stages.say("train", f"{again}{event.total_steps} steps on {_workers(event.workers)}{since}")
                self._open_bar(event)
            case Step():
                if self._bar is None or self._task is None:
                    self._stages.say("train", event.shown())
                else:
                    text = event.shown().partition(" ")[2]
                    self._bar.update(self._task, completed=event.step, description=text)
            case Waiting():
                self._stages.say("wait", event.message)
            case Finished() | Failed():
                self.close()
            case _:
                assert_never(event)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _open_bar(self, event: Started) -> None:
        self.close()
        if self._stages.console.is_terminal:
            columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), TextColumn("so far"))
            self._bar = Progress(*columns, console=self._stages.console)
            self._task = self._bar.add_task("", total=event.total_steps, completed=event.resumed_from)
            self._bar.start()


def _workers(count: int) -> str:
    return f"{count} worker" if count == 1 else f"{count} workers"


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
