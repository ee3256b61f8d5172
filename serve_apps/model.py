# SPDX-License-Identifier: Apache-2.0
"""Where the weights come from in; what vLLM's `--model` takes, a hub id or a folder of this machine, out.

Called by serve_apps/replica.py before the engine starts. What is made or fetched here is shared by the replicas of a
machine.
"""

import asyncio
from pathlib import Path

from kaito_ray.artifacts.source import Source, Stager
from kaito_ray.errors import CannotRun
from serve_apps.arguments import Model


async def model_location(model: Model, stager: Stager) -> str:
    """Make or fetch the model where that is needed; `stager` fetches images.

    Raises CannotRun, ArtifactRefused or ArtifactUnavailable.
    """
    if model.kind == "builtin":
        from kaito_ray.tiny_model import model_path

        return str(await asyncio.to_thread(model_path))
    if model.kind == "image":
        # Never released: the engine reads the files when it pleases, for as long as the process lives.
        staged = await stager.stage(Source(image=model.reference))
        return str(await asyncio.to_thread(_model_folder, staged.path, model.reference))
    return model.reference


def _model_folder(root: Path, image: str) -> Path:
    """The folder with the model in the files of an image, wherever its maker put it."""
    configs = sorted(root.rglob("config.json"), key=lambda path: len(path.parts))
    for config in configs:
        if any(config.parent.glob("*.safetensors")):
            return config.parent
    raise CannotRun(f"the image {image} holds no model: no folder in it has a config.json and *.safetensors")
