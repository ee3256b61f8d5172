# SPDX-License-Identifier: Apache-2.0
"""A finished adapter to where the user wants it: onto the volume, or as an image into a registry.

Called by qlora.py once training is done, and again by each retry until it succeeds: what is there already is not sent
again, and the adapter stays on the job's storage whatever a registry does.
"""

import asyncio
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Collection
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kaito_ray.artifacts.adapter import WEIGHTS, check_adapter
from kaito_ray.artifacts.adapter_config import CONFIG
from kaito_ray.artifacts.base import Base
from kaito_ray.artifacts.credential import logins_for, read_logins
from kaito_ray.artifacts.limits import ADAPTER
from kaito_ray.artifacts.push import pack_adapter, push_image
from kaito_ray.artifacts.reference import Reference
from kaito_ray.artifacts.registry import Registry
from kaito_ray.artifacts.staged import tree_digest
from kaito_ray.artifacts.transport import exact_url
from kaito_ray.errors import ArtifactUnavailable, UserError
from kaito_ray.source_rules import placeholders
from kaito_ray.tuning_event import Event, Finished, Started, Step, Waiting
from tune_jobs.arguments import Arguments
from tune_jobs.data import Prepared
from tune_jobs.home import Run, read_events
from tune_jobs.loss_curve import draw_loss

_MAX_RANK = 512
METRICS, CURVE, RECORD = "metrics.jsonl", "loss.png", "tuning.json"


def check_image(arguments: Arguments) -> None:
    """Raise UserError for an image that still has the words of an example in its name."""
    if waiting := placeholders(arguments.output.image):
        message = f"tuning.output.image: replace {' and '.join(waiting)} with your own"
        raise UserError(message, reason="PlaceholdersLeft")


def check_push(arguments: Arguments, allowed: Collection[str], say: Callable[[Event], None]) -> None:
    """Ask the registry for an upload and give it back, so that a wrong secret is found before hours of training.

    Raises ArtifactRefused when it says no; one that is down is only spoken of, since it may be back by then.
    """
    if arguments.output.image:
        try:
            asyncio.run(_try_upload(arguments, allowed))
        except ArtifactUnavailable as error:
            say(Waiting(error.reason, f"{error}; the adapter is pushed once it is trained and the registry answers"))


async def _try_upload(arguments: Arguments, allowed: Collection[str]) -> None:
    async with _registry(arguments, allowed) as registry:
        await registry.find_scheme()
        url = registry.url("blobs/uploads/")
        async with registry.request("POST", url, headers={"Content-Length": "0"}) as response:
            if response.status != 202:
                raise registry.error(response, str(registry.reference))
            location = response.headers.get("Location")
            begun = str(response.url.join(exact_url(location))) if location else ""
        if begun:
            async with registry.request("DELETE", begun):
                pass  # not every registry can; it forgets unfinished uploads by itself


def _registry(arguments: Arguments, allowed: Collection[str]) -> Registry:
    reference = Reference.parse(arguments.output.image)
    configs = read_logins(arguments.folders.push_auth) if arguments.folders.push_auth else []
    logins = logins_for(reference.host, reference.repository, configs)
    return Registry(reference, ADAPTER, logins=logins, allowed=allowed)


def publish(
    arguments: Arguments, data: Prepared, run: Run, allowed: Collection[str], say: Callable[[Event], None]
) -> Finished:
    """Put the adapter, its figures and its curve where they belong.

    Raises AdapterRefused for one that has learned nothing or is no number, and what artifacts.push raises when a
    registry refuses or stays away for too long.
    """
    check_adapter(run.adapter, Base(frozenset({arguments.model.name})), max_rank=_MAX_RANK)
    events = read_events(run.events)
    steps = [event for event in events if isinstance(event, Step)]
    (run.adapter / METRICS).write_text("".join(f"{_metrics(step)}\n" for step in steps))
    draw_loss(steps, run.adapter / CURVE, title=f"{arguments.model.name}: {arguments.workspace}")
    record = _record(arguments, data, run, steps)
    (run.adapter / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    if arguments.output.image:
        digest = asyncio.run(_push(arguments, run, record, allowed, say))
        place = {"image": arguments.output.image}
    else:
        digest = _copy(run.adapter, arguments.output.folder)
        place = {"path": str(arguments.output.folder)}
    run.drop_checkpoints()
    return Finished(
        digest=digest,
        loss=record["finalLoss"],
        steps=record["steps"],
        seconds=_seconds(events),
        time=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        **place,
    )


def _metrics(step: Step) -> str:
    return json.dumps({key: value for key, value in asdict(step).items() if value is not None})


def _record(arguments: Arguments, data: Prepared, run: Run, steps: list[Step]) -> dict[str, Any]:
    """What the adapter came from, for people and programs that find it later."""
    losses = [step.loss for step in steps if step.loss is not None]
    return {
        "workspace": arguments.workspace,
        "namespace": arguments.namespace,
        "baseModel": arguments.model.name,
        "baseRevision": arguments.model.revision,
        "method": arguments.method,
        "dataDigest": data.digest,
        "rows": data.rows,
        "tokens": data.tokens,
        "lora": arguments.lora,
        "quantization": arguments.quantization,
        "training": arguments.training,
        "workers": arguments.workers,
        "steps": steps[-1].step if steps else 0,
        "epochs": steps[-1].epoch if steps else 0.0,
        "finalLoss": losses[-1] if losses else None,
        "fingerprint": run.name,
    }


def _copy(adapter: Path, folder: Path) -> str:
    """Onto the volume, each file in one piece and the configuration last: who finds it finds a whole adapter."""
    hashes = {}
    for name in (WEIGHTS, METRICS, CURVE, RECORD, CONFIG):
        partial = folder / f".{name}.partial"
        shutil.copyfile(adapter / name, partial)
        partial.replace(folder / name)
        if name in {WEIGHTS, CONFIG}:
            with (folder / name).open("rb") as file:
                hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return tree_digest(hashes)


async def _push(
    arguments: Arguments, run: Run, record: dict[str, Any], allowed: Collection[str], say: Callable[[Event], None]
) -> str:
    def waiting(error: ArtifactUnavailable) -> None:
        say(Waiting(error.reason, f"{error}; the adapter is kept and pushed when the registry answers"))

    with tempfile.TemporaryDirectory(dir=run.folder, prefix="image-") as work:
        config, layer = await asyncio.to_thread(pack_adapter, run.adapter, Path(work))
        async with _registry(arguments, allowed) as registry:
            return await push_image(
                registry, config, [layer], {**arguments.output.annotations, **_annotations(record)}, waiting=waiting
            )


def _annotations(record: dict[str, Any]) -> dict[str, str]:
    """KAITO's annotation, by which its users find the base, and ours."""
    hyper = {name: record[name] for name in ("method", "lora", "quantization", "training", "workers")}
    return {
        "sh.kaito.model.name": str(record["baseModel"]).rpartition("/")[2].lower(),
        "org.opencontainers.image.title": f"{record['workspace']} ({record['method']} of {record['baseModel']})",
        "io.kaito-ray.base-model": str(record["baseModel"]),
        "io.kaito-ray.base-revision": str(record["baseRevision"] or ""),
        "io.kaito-ray.data-digest": str(record["dataDigest"]),
        "io.kaito-ray.hyper-parameters": json.dumps(hyper, sort_keys=True, separators=(",", ":")),
        "io.kaito-ray.steps": str(record["steps"]),
        "io.kaito-ray.final-loss": "" if record["finalLoss"] is None else f"{record['finalLoss']:.6g}",
    }


def _seconds(events: list[Event]) -> float:
    """From the first report to the last, pauses between attempts included."""
    times = [datetime.fromisoformat(event.time) for event in events if isinstance(event, Step)]
    return (times[-1] - times[0]).total_seconds() if times and any(isinstance(e, Started) for e in events) else 0.0
