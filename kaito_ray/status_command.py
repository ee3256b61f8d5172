# SPDX-License-Identifier: Apache-2.0
"""A Workspace in a cluster in, how it is doing out, for people or as JSON: what `kaito-ray status` does.

Called by cli.py. `-o json` is the Workspace's own status with its name, what it waits for, and its pods.
"""

import asyncio
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kubernetes.aio.config import ConfigException
from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from kaito_ray import names
from kaito_ray.after_tuning import RELEASED
from kaito_ray.cluster import Cluster, KubeObject, NotFound, connect
from kaito_ray.errors import CannotRun
from kaito_ray.kinds import POD, WORKSPACE
from kaito_ray.kuberay import RayClusterApi, RayjobApi, RayServiceApi
from kaito_ray.pod import Pod, parse_pod
from kaito_ray.tuning_event import Step


@dataclass(frozen=True, slots=True)
class Overview:
    """A Workspace, what KubeRay made for it (kind and name) and its pods."""

    workspace: KubeObject
    made: tuple[tuple[str, str], ...]
    pods: tuple[Pod, ...]

    @property
    def status(self) -> Mapping[str, Any]:
        """What the operator wrote."""
        return self.workspace.get("status") or {}

    @property
    def waits_for(self) -> str:
        """The first thing that keeps it from being ready, in a sentence; empty when nothing does."""
        conditions = self.status.get("conditions") or ()
        if not conditions:
            return "the operator has not looked at it yet; does one run?"
        if any(one["type"] == "WorkspaceReady" and one["status"] == "True" for one in conditions):
            return ""
        waiting = next((one for one in conditions if one["status"] != "True" and one["reason"] != RELEASED), None)
        return f"{waiting['reason']}: {waiting.get('message', '')}" if waiting else ""


def overview(name: str, namespace: str) -> Overview:
    """Everything about a Workspace; raises CannotRun when there is no such cluster or Workspace."""
    return asyncio.run(_overview(name, namespace))


def as_record(seen: Overview) -> dict[str, Any]:
    """As `-o json` prints it."""
    metadata = seen.workspace["metadata"]
    return {
        "name": metadata["name"],
        "namespace": metadata["namespace"],
        "waitsFor": seen.waits_for,
        **seen.status,
        "objects": [{"kind": kind, "name": name} for kind, name in seen.made],
        "pods": [
            {key: value for key, value in asdict(pod).items() if key in {"name", "node", "phase", "ready", "restarts"}}
            | {"problem": pod.trouble.message if pod.trouble else ""}
            for pod in seen.pods
        ],
    }


def as_text(seen: Overview) -> RenderableType:
    """As people read it: what it waits for first, then conditions, the way so far, nodes and pods."""
    return Group(*_parts(seen))


async def _overview(name: str, namespace: str) -> Overview:
    try:
        cluster = Cluster(await connect(os.environ))
    except (ConfigException, OSError) as error:
        raise CannotRun(f"there is no cluster to ask: {error}; set KUBECONFIG") from None
    try:
        workspace = await cluster.get(WORKSPACE, namespace, name)
        labels = f"{names.LABEL_WORKSPACE}={name}"
        pods, _ = await cluster.list(POD, namespace, labels=labels)
        made = []
        for kind, api in (("RayService", RayServiceApi), ("RayJob", RayjobApi), ("RayCluster", RayClusterApi)):
            try:
                found = await api(cluster).list(namespace, labels=labels)
            except NotFound:  # KubeRay is not installed
                continue
            made += [(kind, one["metadata"]["name"]) for one in found]
    except NotFound as error:
        raise CannotRun(f"there is no Workspace {name} in namespace {namespace}: {error}") from None
    finally:
        await cluster.close()
    return Overview(workspace, tuple(made), tuple(parse_pod(pod) for pod in pods))


def _parts(seen: Overview) -> Iterator[RenderableType]:
    status, metadata = seen.status, seen.workspace["metadata"]
    state = status.get("state") or "unknown"
    yield Text(f"Workspace {metadata['namespace']}/{metadata['name']}: {state}", style="bold")
    if seen.waits_for:
        yield Text(f"waits for  {seen.waits_for}", style="yellow")
    if status.get("endpoint"):
        yield Text(f"endpoint   {status['endpoint']}")
    if pool := status.get("nodePool"):
        yield Text(
            "nodes      " + ", ".join(f"{key} {value}" for key, value in pool.items() if not isinstance(value, list))
        )
    elif status.get("workerNodes"):
        yield Text(f"nodes      {', '.join(status['workerNodes'])}")
    if tuning := status.get("tuning"):
        yield Text(f"tuning     {_tuning(tuning)}")
    if output := status.get("output"):
        yield Text("made       " + " ".join(output[key] for key in ("image", "path", "digest") if output.get(key)))
    if seen.made:
        yield Text("objects    " + ", ".join(f"{kind} {name}" for kind, name in seen.made))
    yield _table("Conditions", ("type", "status", "reason", "message"), status.get("conditions") or ())
    yield _table("Timeline", ("stage", "time", "seconds"), status.get("timeline") or ())
    yield _table(
        "Adapters",
        ("name", "state", "on", "strength", "rank", "size", "digest", "source", "error"),
        [_adapter(one) for one in status.get("adapters") or ()],
    )
    yield _table(
        "Pods",
        ("name", "phase", "ready", "restarts", "node", "problem"),
        [{**asdict(pod), "problem": pod.trouble.message if pod.trouble else ""} for pod in seen.pods],
    )


def _tuning(tuning: Mapping[str, Any]) -> str:
    """How far tuning is: `Training: step 20/300 loss 3.21 epoch 0.20 512 tokens/s eta 14:00; attempt 2`."""
    parts = [str(tuning.get("state", ""))]
    if "step" in tuning:
        step = Step(
            step=tuning["step"],
            total_steps=tuning.get("totalSteps", 0),
            epoch=tuning.get("epoch", 0.0),
            time="",
            loss=tuning.get("loss"),
            learning_rate=tuning.get("learningRate"),
            eval_loss=tuning.get("evalLoss"),
            tokens_per_second=tuning.get("tokensPerSecond"),
            eta_seconds=tuning.get("etaSeconds"),
            gpu_memory_gib=tuning.get("gpuMemoryGib"),
        )
        parts.append(step.shown())
    notes = [f"attempt {tuning['attempt']}"] if tuning.get("attempt", 1) > 1 else []
    notes += [f"from step {tuning['resumedFrom']}"] if tuning.get("resumedFrom") else []
    notes += [tuning["message"]] if tuning.get("message") else []
    return "; ".join([": ".join(parts), *notes])


def _adapter(adapter: Mapping[str, Any]) -> dict[str, Any]:
    """With the replicas that have it of those there are, and what would fill the line cut short."""
    size = adapter.get("sizeBytes")
    return {
        **adapter,
        "on": f"{adapter['loaded']}/{adapter['replicas']}" if adapter.get("replicas") else "",
        "size": decimal(size) if size else "",
        "digest": adapter.get("digest", "").removeprefix("sha256:")[:12],
    }


def _table(title: str, columns: tuple[str, ...], rows: Any) -> RenderableType:
    if not rows:
        return Text("")
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column.upper(), overflow="fold")
    for row in rows:
        table.add_row(*("" if row.get(column) is None else str(row[column]) for column in columns))
    return table
