# SPDX-License-Identifier: Apache-2.0
"""A TunePlan and the folders of the machine it runs on in, the file of `python -m tune_jobs.qlora` out. Pure.

render/configmap.py calls it for the pods, local_tune.py for this machine; tune_jobs/arguments.py reads it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kaito_ray import names
from kaito_ray.plan import TunePlan

_ANNOTATIONS = {"io.kaito-ray.workspace": "{namespace}/{name}"}


@dataclass(frozen=True, slots=True)
class TuneFolders:
    """Where things lie; the defaults are those of the pods (render/volumes.py)."""

    data: str = names.TUNE_DATA_DIR
    output: str = names.TUNE_OUTPUT_DIR
    cache: str = names.CACHE_DIR
    pull_auth: str = names.REGISTRY_AUTH_DIR
    push_auth: str = names.PUSH_AUTH_DIR
    model: str = ""
    """The model's folder when it is not the one that the render mounts."""


def tune_arguments(
    plan: TunePlan, job: str, folders: TuneFolders | None = None, *, forgive: bool = False
) -> dict[str, Any]:
    """The arguments of the job called `job`; with `forgive` it tries again what it once found hopeless."""
    folders = folders or TuneFolders()
    arguments = dict(plan.arguments)
    source = plan.source
    folder = folders.model or source.folder
    return {
        "name": job,
        "workspace": plan.name,
        "namespace": plan.namespace,
        "method": plan.method,
        "workers": plan.workers,
        "forgive": forgive,
        **arguments,
        "model": {
            "name": plan.model,
            "kind": "path" if folder else source.kind,
            "reference": folder or source.reference,
            "revision": None if folder else source.revision,
            **arguments["model"],
        },
        "data": {"source": _source(plan.input, folders), **arguments["data"]},
        "output": {
            "folder": folders.output,
            "image": plan.output.get("image", ""),
            "annotations": {
                key: value.format(namespace=plan.namespace, name=plan.name) for key, value in _ANNOTATIONS.items()
            },
        },
        "folders": {"cache": folders.cache, "pull_auth": folders.pull_auth, "push_auth": folders.push_auth},
    }


def tune_arguments_text(plan: TunePlan, job: str, folders: TuneFolders | None = None, *, forgive: bool = False) -> str:
    """The arguments as the file holds them."""
    document = tune_arguments(plan, job, folders, forgive=forgive)
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _source(given: Mapping[str, Any], folders: TuneFolders) -> dict[str, Any]:
    """The data as kaito_ray/artifacts/source.py reads it; a volume is a folder where it is mounted."""
    if given.get("volumeSource"):
        return {"path": folders.data}
    return {key: given[key] for key in ("image", "imagePullSecrets", "urls") if given.get(key)}
