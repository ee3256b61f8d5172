# SPDX-License-Identifier: Apache-2.0
"""Where an artefact comes from, as a plan says it; a folder in the cache of this node out.

    {"image": "registry.example/team/adapter:1.0", "imagePullSecrets": ["registry"], "digest": "sha256:..."}
    {"urls": ["https://host/adapter.tar.gz"]}         files, or one archive
    {"path": "/mnt/adapters/legal"}                   a mounted volume, or a folder of this machine
    {"hub": "org/adapter", "revision": "main"}        where a model hub can be reached

The name of a tuning Workspace stands there until it has made one of these. Called by prepare.py for adapters; data and
models take the same way with other limits.
"""

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from aiohttp.abc import AbstractResolver
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from kaito_ray.artifacts.archive import Wanted, archive_kind, below, everything, unpack
from kaito_ray.artifacts.cache import Cache, Entry
from kaito_ray.artifacts.credential import Login, logins_for, read_logins
from kaito_ray.artifacts.hub import Choose
from kaito_ray.artifacts.hub_stage import HubStage
from kaito_ray.artifacts.layer import Unpacked
from kaito_ray.artifacts.limits import Limits
from kaito_ray.artifacts.oci import Image, pull_image, resolve_image
from kaito_ray.artifacts.progress import Progress
from kaito_ray.artifacts.reason import Reason
from kaito_ray.artifacts.reference import Reference
from kaito_ray.artifacts.registry import Registry
from kaito_ray.artifacts.staged import REVISION, SKIPPED, SKIPPED_SHOWN, Staged, sha256_of, tree_digest
from kaito_ray.artifacts.transport import Transport
from kaito_ray.artifacts.url import Fetched, fetch_url
from kaito_ray.artifacts.volume import copy_volume
from kaito_ray.errors import ArtifactRefused, ArtifactUnavailable

_MOVED_TRIES = 3


class Source(BaseModel):
    """Exactly one of image, urls, path and hub, or the tuning Workspace that is still to make one of them."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)

    image: str = ""
    image_pull_secrets: tuple[str, ...] = ()
    digest: str = ""
    urls: Annotated[tuple[str, ...], Field(max_length=256)] = ()
    path: str = ""
    hub: str = ""
    revision: str | None = None
    workspace: str = ""

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in ("image", "urls", "path", "hub", "workspace") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"must have exactly one of image, urls, path and hub, got {' and '.join(given) or 'none'}")
        return self

    @classmethod
    def parse(cls, source: Mapping[str, Any]) -> Self:
        """Raises ArtifactRefused for what is no source."""
        try:
            return cls.model_validate(source)
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, one['loc']))} {one['msg']}".strip() for one in error.errors()]
            raise ArtifactRefused(f"the source {'; '.join(problems)}", reason=Reason.INVALID_SOURCE) from None


class Stager:
    """Fetches into one cache, under one set of limits and exceptions.

    `folder` is the folder of images that is wanted (`data`; empty takes everything), `files` the names that are
    wanted from volumes and the hub. `wanted` and `choose` say the same by judgement of names: every file of an image,
    and the whole list of a repository. `auth_dir` holds Docker configurations, `<name of the Secret>.json` each;
    `more_logins` knows others, which are tried after those.
    """

    def __init__(
        self,
        cache: Cache,
        limits: Limits,
        *,
        allowed: Collection[str] = (),
        auth_dir: Path | None = None,
        more_logins: Callable[[Reference], Sequence[Login]] | None = None,
        folder: str = "",
        files: Collection[str] = (),
        hub_token: str | None = None,
        hub_endpoint: str | None = None,
        resolver: AbstractResolver | None = None,
        wanted: Wanted | None = None,
        choose: Choose | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.cache = cache
        self.limits = limits
        self._allowed = tuple(allowed)
        self._auth_dir = auth_dir
        self._more_logins = more_logins
        self._files = frozenset(files)
        self._hub_token = hub_token
        self._hub_endpoint = hub_endpoint
        self._resolver = resolver
        self._wanted = wanted or (below(folder) if folder else everything)
        self._titled = wanted or everything
        self._choose = choose or self._files.intersection
        self._scope = folder or (wanted.__name__ if wanted else "")
        self._progress = progress

    async def stage(self, source: Source) -> Staged:
        """Fetch what the source names unless it is here; raises ArtifactRefused or ArtifactUnavailable."""
        if source.workspace:
            raise ArtifactUnavailable(
                f"the tuning Workspace {source.workspace} has no adapter yet", reason=Reason.NOT_TUNED
            )
        try:
            async with asyncio.timeout(self.limits.seconds):
                staged = await self._stage(source)
        except TimeoutError:
            raise ArtifactUnavailable(f"not fetched within {self.limits.seconds:g} s", reason=Reason.TIMEOUT) from None
        if self._progress:
            self._progress.finish()
        return staged

    async def _stage(self, source: Source) -> Staged:
        if source.image:
            return await self._image(source)
        if source.urls:
            return await self._urls(source)
        if source.path:
            return await self._path(source)
        return await self._hub(source)

    async def resolve(self, source: Source) -> str:
        """The digest that an image's tag means now; the operator pins it for all replicas."""
        async with self._registry(source) as registry:
            return (await resolve_image(registry)).digest

    def _registry(self, source: Source) -> Registry:
        reference = Reference.parse(source.image)
        if source.digest:
            reference = reference.at(source.digest)
        configs = read_logins(self._auth_dir, source.image_pull_secrets or None) if self._auth_dir else []
        logins = logins_for(reference.host, reference.repository, configs)
        if self._more_logins is not None:
            logins += self._more_logins(reference)
        return Registry(reference, self.limits, logins=logins, allowed=self._allowed, resolver=self._resolver)

    async def _image(self, source: Source) -> Staged:
        registry = self._registry(source)
        reference = registry.reference
        note_key = f"image-{sha256_of(str(reference))}"
        if reference.digest and (entry := await self.cache.find(self._image_key(reference.digest))):
            return self._staged_image(entry, reference.digest)
        async with registry:
            for attempt in range(_MOVED_TRIES):
                try:
                    image = await resolve_image(registry)
                except ArtifactUnavailable:
                    known = self.cache.note(note_key).get("digest", "")
                    if known and (entry := await self.cache.find(self._image_key(known))):
                        return self._staged_image(entry, known)
                    raise
                try:
                    return await self._pull(registry, image, note_key)
                except ArtifactUnavailable as error:
                    if error.reason != Reason.CHANGED or attempt == _MOVED_TRIES - 1:
                        raise
        raise AssertionError("the loop returns or raises")

    async def _pull(self, registry: Registry, image: Image, note_key: str) -> Staged:
        key = self._image_key(image.digest)
        skipped: list[str] = []

        def noting(judge: Wanted) -> Wanted:
            def judged(name: str) -> bool:
                if judge(name):
                    return True
                if len(skipped) < SKIPPED_SHOWN:
                    skipped.append(name)
                return False

            return judged

        async def produce(work: Path) -> Path:
            tree = await pull_image(
                registry,
                image,
                work,
                wanted=noting(self._wanted),
                titled=noting(self._titled),
                progress=self._progress,
                reserve=self.cache.make_room,
            )
            note = {**image.annotations, SKIPPED: "\n".join(skipped)}
            await asyncio.to_thread(self.cache.write_note, key, note)
            return tree

        entry = await self.cache.get(key, produce)
        await asyncio.to_thread(self.cache.write_note, note_key, {"digest": image.digest})
        return self._staged_image(entry, image.digest)

    def _staged_image(self, entry: Entry, digest: str) -> Staged:
        note = self.cache.note(self._image_key(digest))
        skipped = tuple(note.pop(SKIPPED, "").splitlines())
        return Staged(entry.path, digest, entry, note, skipped, note.get(REVISION, ""))

    def _image_key(self, digest: str) -> str:
        return f"image-{digest.partition(':')[2]}-{sha256_of(self._scope)[:8]}"

    async def _urls(self, source: Source) -> Staged:
        with contextlib.ExitStack() as inputs:
            fetched = []
            async with Transport(self.limits, self._allowed, resolver=self._resolver) as transport:
                for url in source.urls:
                    one = await fetch_url(transport, url, self.cache, progress=self._progress)
                    inputs.enter_context(one.entry)
                    fetched.append(one)
            hashes: dict[str, str] = {}
            for one in fetched:
                if one.name in hashes:
                    raise ArtifactRefused(
                        f"two of the urls have the file name {one.name}", reason=Reason.INVALID_SOURCE
                    )
                hashes[one.name] = one.sha256
            digest = tree_digest(hashes)
            self._check_pin(source, digest)

            async def produce(work: Path) -> Path:
                return await asyncio.to_thread(self._lay_out, fetched, work / "tree")

            entry = await self.cache.get(f"files-{digest.partition(':')[2]}", produce)
        return Staged(entry.path, digest, entry, {})

    def _lay_out(self, fetched: list[Fetched], tree: Path) -> Path:
        """Unpack the one archive, or give the files of the cache their names."""
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir()
        if len(fetched) == 1 and archive_kind(fetched[0].entry.path):
            unpack(fetched[0].entry.path, tree, Unpacked(self.limits))
            return tree
        for one in fetched:
            (tree / one.name).hardlink_to(one.entry.path)
        return tree

    async def _path(self, source: Source) -> Staged:
        folder = Path(source.path)
        async with self.cache.locked(f"path-{sha256_of(source.path)}") as work:
            await asyncio.to_thread(shutil.rmtree, work / "tree", ignore_errors=True)
            hashes = await asyncio.to_thread(copy_volume, folder, work / "tree", self.limits, names=self._files)
            digest = tree_digest(hashes)
            self._check_pin(source, digest)
            entry = await self.cache.publish(f"files-{digest.partition(':')[2]}", work / "tree", work)
        return Staged(entry.path, digest, entry, {})

    async def _hub(self, source: Source) -> Staged:
        hub = HubStage(
            self.cache,
            self.limits,
            choose=self._choose,
            scope=self._scope,
            token=self._hub_token,
            endpoint=self._hub_endpoint,
            allowed=self._allowed,
            resolver=self._resolver,
            progress=self._progress,
        )
        staged = await hub.stage(source.hub, source.revision)
        try:
            self._check_pin(source, staged.digest)
        except ArtifactRefused:
            staged.release()
            raise
        return staged

    def _check_pin(self, source: Source, digest: str) -> None:
        if source.digest and source.digest != digest:
            raise ArtifactRefused(
                f"its content has the digest {digest}, {source.digest} was asked for", reason=Reason.DIGEST_MISMATCH
            )
