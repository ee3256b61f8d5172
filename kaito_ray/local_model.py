# SPDX-License-Identifier: Apache-2.0
"""A model that comes as an image, brought to this machine with a bar; the folder it then has. Called by the local run.

The engine never speaks to the registry: the logins, those of the manifest's Secrets and those that docker, podman or
skopeo left here, are used by this process alone.
"""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from kaito_ray.artifacts.docker_config import machine_logins
from kaito_ray.artifacts.limits import human_bytes
from kaito_ray.artifacts.progress import Progress
from kaito_ray.artifacts.source import Source
from kaito_ray.model_fetch import Wish, fetch_into
from kaito_ray.plan import ModelSource
from kaito_ray.progress_text import progress_bar, progress_line
from kaito_ray.stages import Stages
from kaito_ray.tiny_model import cache_folder

_BAR_EVERY_S = 0.2
_LINE_EVERY_S = 10.0


def local_model_folder(source: ModelSource) -> str | None:
    """Where the model of an image is once it was fetched; None for every other source."""
    if source.kind != "image":
        return None
    return str(_root() / source.link)


def fetch_image(
    source: ModelSource,
    secrets: Mapping[str, str],
    stages: Stages,
    note: Callable[[str], None],
    allowed: Collection[str],
) -> str:
    """Fetch unless it is here; what came, in words.

    `secrets` are Docker configurations by the name of their Secret. Raises ArtifactRefused and ArtifactUnavailable.
    """
    with tempfile.TemporaryDirectory(prefix="kaito-ray-") as folder:
        for name, text in secrets.items():
            (Path(folder) / f"{name}.json").write_text(text)
        wish = Wish(
            source=Source(image=source.reference, image_pull_secrets=source.pull_secrets),
            link=source.link,
            names=source.names,
            architecture=source.architecture,
            root=_root(),
            auth_dir=Path(folder),
        )
        return asyncio.run(_fetch(wish, stages, note, allowed))


async def _fetch(wish: Wish, stages: Stages, note: Callable[[str], None], allowed: Collection[str]) -> str:
    progress = Progress()
    showing = asyncio.create_task(_show(progress, stages, note))
    try:
        model = await fetch_into(
            wish, progress, allowed=allowed, more_logins=lambda reference: machine_logins(reference, os.environ)
        )
    finally:
        showing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await showing
    came = f"{human_bytes(progress.done - progress.resumed)} fetched" if progress.done else "is here already"
    return f"{wish.source.image}, {came}, {model.digest}"


async def _show(progress: Progress, stages: Stages, note: Callable[[str], None]) -> None:
    """A bar on a terminal, a line now and then elsewhere."""
    terminal = stages.console.is_terminal
    while True:
        await asyncio.sleep(_BAR_EVERY_S if terminal else _LINE_EVERY_S)
        if terminal:
            note(progress_bar(progress))
        else:
            stages.say("model", progress_line(progress))


def _root() -> Path:
    return cache_folder().parent / "images"
