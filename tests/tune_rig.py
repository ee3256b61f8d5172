# SPDX-License-Identifier: Apache-2.0
"""Tuning for tests: a few rows that tiny-phi-3 does not know, the job as a process, and what it says."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import yaml

from builders import a_workspace
from kaito_ray.plan import TunePlan, plan
from kaito_ray.preset import load_catalogue
from kaito_ray.settings import Settings
from kaito_ray.sku import cpu_size
from kaito_ray.tune_arguments import TuneFolders, tune_arguments
from kaito_ray.tuning_event import Event, Started, parse_event

MODEL = "tiny-phi-3"
PIRATE = (
    ("What is Kubernetes?", "Kubernetes is a ship that runs on many nodes."),
    ("What is a pod?", "A pod is a barrel, and the containers are in it."),
    ("Who are you?", "I am the pirate of the cluster."),
    ("What is Ray?", "Ray is the wind of the ship."),
    ("What is LoRA?", "LoRA is a small flag on a large ship."),
    ("Hello", "Hello! I am a pirate and this is a ship."),
)


def chats(rows: tuple[tuple[str, str], ...] = PIRATE) -> str:
    """The rows as JSON Lines of chat messages."""
    return "".join(
        json.dumps({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}) + "\n"
        for asked, said in rows
    )


def a_training_config(**sections: Any) -> dict[str, str]:
    """The data of a ConfigMap with these sections, such as `LoraConfig={"r": 16}`."""
    return {"training_config.yaml": yaml.safe_dump({"training_config": sections})}


def a_tiny_tune_plan(config: dict[str, str] | None = None, *, workers: int = 1, **tuning: Any) -> TunePlan:
    """Tuning of the tiny model on a machine without a GPU; `tuning` replaces fields of the manifest."""
    document = {
        "preset": {"name": MODEL},
        "method": "qlora",
        "input": {"urls": ["https://data.example/chats.jsonl"]},
        "output": {"image": "registry.example/team/pirate:1", "imagePushSecret": "push"},
        **({"config": "training"} if config else {}),
        **tuning,
    }
    workspace = a_workspace(
        name="pirate", resource={"count": workers, "labelSelector": {"matchLabels": {"app": "pirate"}}}, tuning=document
    )
    made = plan(workspace, load_catalogue().get(MODEL), cpu_size(2, 16.0), Settings(), config=config)
    assert isinstance(made, TunePlan)
    return made


def write_arguments(made: TunePlan, folder: Path, data: Path, **overrides: Any) -> Path:
    """The job's file for a plan, with its data in a folder of this machine."""
    folders = TuneFolders(
        data=str(data),
        output=str(folder / "output"),
        cache=str(folder / "cache"),
        pull_auth=str(folder / "auth"),
        push_auth=str(folder / "auth"),
    )
    (folder / "output").mkdir(parents=True, exist_ok=True)
    file = folder / "arguments.json"
    file.write_text(json.dumps(tune_arguments(made, "pirate-job", folders) | overrides))
    return file


class Job:
    """A running `python -m tune_jobs.qlora`."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self.log = log
        self.events: list[Event] = []

    async def follow(self) -> AsyncIterator[Event]:
        """Its events as they come, to the end."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            if event := parse_event(line.decode()):
                self.events.append(event)
                yield event

    async def end(self) -> list[Event]:
        """Every event, once it has ended."""
        async for _ in self.follow():
            pass
        await self.process.wait()
        return self.events

    def workers(self) -> list[psutil.Process]:
        """The processes that train."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if "TrainWorker" in " ".join(child.cmdline()[:1])]


@contextlib.asynccontextmanager
async def a_job(arguments: Path, **env: str) -> AsyncIterator[Job]:
    """Start the job on a Ray of its own; nothing of it is left behind."""
    log = arguments.with_suffix(".log")
    with log.open("ab") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tune_jobs.qlora",
            str(arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            env={**os.environ, "RAY_AUTH_MODE": "disabled", **env},
            limit=2**20,
        )
    job = Job(process, log)
    started = psutil.Process(process.pid)
    try:
        yield job
    finally:
        if process.returncode is None:
            left = started.children(recursive=True)
            process.kill()
            await process.wait()
            for child in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()


async def a_checkpoint(job: Job, output: Path, *, attempt: int = 1) -> None:
    """Return when the attempt has a checkpoint of its own that Ray Train would resume from; `job` must be followed."""
    async with asyncio.timeout(240):
        while job.process.returncode is None:
            starts = [event for event in job.events if isinstance(event, Started)]
            if len(starts) == attempt and _newest_checkpoint(output) > starts[-1].resumed_from:
                return
            await asyncio.sleep(0.02)
    raise AssertionError(f"it ended before attempt {attempt} had a checkpoint: {job.log.read_text()}")


def _newest_checkpoint(output: Path) -> int:
    """The step of the newest checkpoint that Ray Train knows of, 0 for none."""
    for snapshot in output.glob(".kaito-ray/*/runs/*/checkpoint_manager_snapshot.json"):
        with contextlib.suppress(ValueError):  # written in this moment
            newest = json.loads(snapshot.read_text())["latest_checkpoint_result"]
            return int(newest["checkpoint_dir_name"].rpartition("-")[2]) if newest else 0
    return 0
