# SPDX-License-Identifier: Apache-2.0
"""`kaito-ray pack`: a model by name or folder in, an image of it in a registry out.

Called by cli.py. What may be packed is licence.py's to say, how the image looks pack.py's; here a name becomes a
folder, and people see how far it is.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from kaito_ray.artifacts.cache import Cache
from kaito_ray.artifacts.docker_config import machine_logins
from kaito_ray.artifacts.hub import find_files
from kaito_ray.artifacts.licence import check_licence, licence_of_card
from kaito_ray.artifacts.limits import MODEL, human_bytes
from kaito_ray.artifacts.model import fetch_model, model_stager
from kaito_ray.artifacts.model_files import choose_files
from kaito_ray.artifacts.pack import Facts, Form, LayerSize, Packing, push_model, sizes_of
from kaito_ray.artifacts.progress import Progress
from kaito_ray.artifacts.reason import Reason
from kaito_ray.artifacts.reference import Reference
from kaito_ray.artifacts.registry import Registry
from kaito_ray.artifacts.source import Source
from kaito_ray.errors import ArtifactRefused
from kaito_ray.hub import TOKEN_KEY, cache_folder, find_preset
from kaito_ray.preset import load_catalogue
from kaito_ray.progress_text import progress_bar, progress_line
from kaito_ray.settings import Settings
from kaito_ray.stages import Stages

_SHOW_EVERY_S = 0.2
_LINE_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class PackWish:
    """What is asked for on the command line."""

    model: str
    """A folder, or a model by hub id or alias."""
    to: str
    revision: str | None = None
    name: str = ""
    license: str = ""
    accepted: bool = False
    form: Form = Form.IMAGE


@dataclass(frozen=True, slots=True)
class Subject:
    """The model that is meant: its facts, and its folder unless it is still on the hub."""

    facts: Facts
    folder: Path | None


@dataclass(frozen=True, slots=True)
class Packed:
    """What came of it."""

    image: str
    digest: str
    """Empty when nothing was pushed."""
    layers: tuple[LayerSize, ...]
    annotations: dict[str, str]

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "bytes": sum(layer.size for layer in self.layers)}

    def table(self) -> Table:
        """As people read it."""
        table = Table(title=f"{self.image}  {human_bytes(sum(layer.size for layer in self.layers))}")
        table.add_column("layer")
        table.add_column("size", justify="right")
        table.add_column("files")
        for layer in self.layers:
            several = len(layer.files) > 1
            table.add_row(layer.title, human_bytes(layer.size), "\n".join(layer.files) if several else "")
        for key, value in self.annotations.items():
            table.add_row(key, "", value, style="dim")
        return table


def pack(wish: PackWish, settings: Settings, stages: Stages, *, dry_run: bool) -> Packed:
    """Pack and push, or with `dry_run` only say what would be; raises KaitoRayError."""
    return asyncio.run(_pack(wish, settings, stages, dry_run=dry_run))


async def _pack(wish: PackWish, settings: Settings, stages: Stages, *, dry_run: bool) -> Packed:
    reference = Reference.parse(wish.to)
    if reference.digest:
        raise ArtifactRefused(f"{wish.to}: a push goes to a tag, its digest follows", reason=Reason.INVALID_SOURCE)
    subject = await asyncio.to_thread(_subject, wish, settings)
    check_licence(subject.facts.name or wish.model, subject.facts.license, accepted=wish.accepted)
    if subject.folder is None and dry_run:
        files = await find_files(
            subject.facts.name, subject.facts.revision or None, choose_files, MODEL, token=_token()
        )
        layers = sizes_of({file.name: file.size for file in files.files}, wish.form)
        return Packed(str(reference), "", tuple(layers), subject.facts.annotations(0))
    async with _model_folder(subject, settings, stages) as (folder, facts):
        packing = await asyncio.to_thread(Packing.plan, folder, facts, wish.form)
        digest = "" if dry_run else await _push(reference, packing, settings, stages)
    return Packed(str(reference), digest, tuple(packing.sizes), dict(packing.annotations))


def _subject(wish: PackWish, settings: Settings) -> Subject:
    """What the argument names; a folder wins over a model of the same name."""
    folder = Path(wish.model).expanduser()
    if folder.is_dir():
        licence = wish.license or licence_of_card(folder)
        return Subject(Facts(wish.name, wish.revision or "", licence), folder)
    preset = find_preset(wish.model, load_catalogue(settings.presets_dir))
    name, licence = wish.name or preset.name, wish.license or preset.license
    if preset.source == "builtin":
        from kaito_ray.tiny_model import model_path

        return Subject(Facts(name, "", licence), model_path())
    revision = wish.revision or preset.revision or ""
    return Subject(Facts(name, revision, licence, f"https://huggingface.co/{preset.name}"), None)


@contextlib.asynccontextmanager
async def _model_folder(subject: Subject, settings: Settings, stages: Stages) -> AsyncIterator[tuple[Path, Facts]]:
    """The folder, fetched from the hub when it is not here, and the facts with the commit it then has."""
    facts = subject.facts
    if subject.folder is not None:
        yield subject.folder, facts
        return
    progress = Progress()
    stager = model_stager(
        Cache(cache_folder().parent / "images"),
        allowed=settings.allow_private_urls,
        hub_token=_token(),
        progress=progress,
    )
    repository = facts.source.removeprefix("https://huggingface.co/")
    async with _shown(stages, "fetch", progress):
        model = await fetch_model(stager, Source(hub=repository, revision=facts.revision or None))
    with model:
        yield model.path, Facts(facts.name, model.revision, facts.license, facts.source)


async def _push(reference: Reference, packing: Packing, settings: Settings, stages: Stages) -> str:
    logins = await asyncio.to_thread(machine_logins, reference, os.environ)
    progress = Progress()
    notes = Cache(cache_folder().parent / "images")
    async with (
        Registry(reference, MODEL, logins=logins, allowed=settings.allow_private_urls) as registry,
        _shown(stages, "push", progress),
    ):
        return await push_model(
            registry,
            packing,
            progress=progress,
            notes=notes,
            waiting=lambda error: stages.say("push", f"waits: {error}"),
        )


@contextlib.asynccontextmanager
async def _shown(stages: Stages, name: str, progress: Progress) -> AsyncIterator[None]:
    """Show `progress` while the block runs."""
    with stages.stage(name) as stage:

        async def show() -> None:
            if stages.console.is_terminal:
                while True:
                    stage.note(progress_bar(progress))
                    await asyncio.sleep(_SHOW_EVERY_S)
            while True:
                await asyncio.sleep(_LINE_EVERY_S)
                stages.say(name, progress_line(progress))

        showing = asyncio.create_task(show())
        try:
            yield
            stage.note(progress_line(progress))
        finally:
            showing.cancel()


def _token() -> str | None:
    return os.environ.get(TOKEN_KEY) or None
