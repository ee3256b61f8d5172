# SPDX-License-Identifier: Apache-2.0
"""Where the weights are in; what vLLM's `--model` takes, a hub id or a folder of this machine, out.

Called by serve_apps/replica.py before the engine starts. A folder was fetched before, by those who have the logins for
it (kaito_ray/model_fetch.py), or is a volume; either is looked at once more, since vLLM's own words for a missing shard
are a traceback.
"""

import asyncio
from pathlib import Path

from kaito_ray.artifacts.cache import hold
from kaito_ray.artifacts.model_files import check_model, find_model
from serve_apps.arguments import Model


async def model_location(model: Model) -> str:
    """Make or check the model where that is needed; raises CannotRun or ArtifactRefused."""
    if model.kind == "builtin":
        from kaito_ray.tiny_model import model_path

        return str(await asyncio.to_thread(model_path))
    if model.kind == "path":
        return str(await asyncio.to_thread(_checked, Path(model.reference), model))
    return model.reference


def _checked(folder: Path, model: Model) -> Path:
    """The folder that has the model, safe from eviction for as long as this process lives."""
    hold(folder)
    home = find_model(folder)
    check_model(home, names=model.names, architecture=model.architecture)
    return home
