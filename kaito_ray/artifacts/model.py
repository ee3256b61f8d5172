# SPDX-License-Identifier: Apache-2.0
"""The source of a model in; a checked folder that an engine can load out.

    {"image": "registry/model:tag"}    an image of `kaito-ray pack`, one of KAITO's, or any with the files in it
    {"hub": "org/model", "revision": "<commit>"}
    {"path": "/mnt/models/phi-3"}      a volume: used where it lies, since no copy of it is needed

Called by serve_apps before the engine starts, by tune_jobs before training and by the local run. Images and the hub go
through source.py into the node's cache, under the same caps and checks as adapters.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from aiohttp.abc import AbstractResolver

from kaito_ray.artifacts.cache import Cache, Entry
from kaito_ray.artifacts.credential import Login
from kaito_ray.artifacts.hub import Choose
from kaito_ray.artifacts.limits import MODEL, Limits
from kaito_ray.artifacts.model_files import check_model, choose_files, find_model, is_wanted_of_image
from kaito_ray.artifacts.progress import Progress
from kaito_ray.artifacts.reference import Reference
from kaito_ray.artifacts.source import Source, Stager
from kaito_ray.errors import ArtifactRefused


@dataclass(slots=True)
class FetchedModel:
    """A model ready to load; stays in the cache until `release` is called or the process ends."""

    path: Path
    """Holds config.json, the tokenizer and the safetensors."""
    digest: str
    """`sha256:...` of the image's manifest or of the hub's files; empty for a volume."""
    revision: str
    """The commit on the hub that the files are of, as far as the source says; else empty."""
    _entry: Entry | None = field(default=None, repr=False)

    def release(self) -> None:
        """Let the cache evict it."""
        if self._entry is not None:
            self._entry.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def model_stager(
    cache: Cache,
    *,
    limits: Limits = MODEL,
    allowed: Collection[str] = (),
    auth_dir: Path | None = None,
    more_logins: Callable[[Reference], Sequence[Login]] | None = None,
    hub_token: str | None = None,
    hub_endpoint: str | None = None,
    resolver: AbstractResolver | None = None,
    progress: Progress | None = None,
    choose: Choose = choose_files,
) -> Stager:
    """A Stager that takes from each kind of source what a model consists of, and tells `progress` how far it is.

    `choose` picks from the files of a hub repository; an image is taken as its maker packed it.
    """
    return Stager(
        cache,
        limits,
        allowed=allowed,
        auth_dir=auth_dir,
        more_logins=more_logins,
        wanted=is_wanted_of_image,
        choose=choose,
        hub_token=hub_token,
        hub_endpoint=hub_endpoint,
        resolver=resolver,
        progress=progress,
    )


async def fetch_model(
    stager: Stager, source: Source, *, names: Collection[str] = (), architecture: str = ""
) -> FetchedModel:
    """Fetch unless it is here, check, and return where it is.

    `names` (hub id, preset, aliases) and `architecture` are what the Workspace asked for; another model in the image
    is refused. Raises ArtifactRefused or ArtifactUnavailable, each with its own reason; nothing half is left visible.
    """
    shown = source.image or source.hub or source.path
    if source.path:
        home = await asyncio.to_thread(_judged, Path(source.path), shown, (), names, architecture, {})
        return FetchedModel(home, "", "")
    staged = await stager.stage(source)
    try:
        home = await asyncio.to_thread(
            _judged, staged.path, shown, staged.skipped, names, architecture, staged.annotations
        )
    except BaseException:
        staged.release()
        raise
    return FetchedModel(home, staged.digest, staged.revision, staged.entry)


def _judged(
    folder: Path,
    shown: str,
    skipped: Sequence[str],
    names: Collection[str],
    architecture: str,
    annotations: Mapping[str, str],
) -> Path:
    """The folder of a model that can be loaded; a refusal says where it came from."""
    try:
        home = find_model(folder, skipped=skipped)
        check_model(home, names=names, architecture=architecture, annotations=annotations)
    except ArtifactRefused as error:
        raise ArtifactRefused(f"{shown}: {error}", reason=error.reason) from None
    return home
