# SPDX-License-Identifier: Apache-2.0
"""A repository of the hub into the node's cache, once per commit. Called by source.py; hub.py speaks to the hub."""

import asyncio
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp.abc import AbstractResolver

from kaito_ray.artifacts.cache import Cache
from kaito_ray.artifacts.hub import Choose, fetch_files, find_files
from kaito_ray.artifacts.limits import Limits
from kaito_ray.artifacts.progress import Progress
from kaito_ray.artifacts.reason import Reason
from kaito_ray.artifacts.staged import REVISION, SKIPPED, SKIPPED_SHOWN, Staged, sha256_of, tree_digest
from kaito_ray.errors import ArtifactUnavailable


@dataclass(frozen=True, slots=True)
class HubStage:
    """`choose` takes what is wanted of a repository's names; `scope` tells one such choice from another."""

    cache: Cache
    limits: Limits
    choose: Choose
    scope: str
    token: str | None = field(repr=False)
    endpoint: str | None
    allowed: Collection[str]
    resolver: AbstractResolver | None
    progress: Progress | None

    async def stage(self, repository: str, revision: str | None) -> Staged:
        """Fetch unless it is here; raises ArtifactRefused or ArtifactUnavailable.

        A commit never changes, so what is here of it needs no question; a branch is asked for, if anybody answers.
        """
        note_key = f"hub-{sha256_of(' '.join((repository, revision or '', self.scope)))}"
        if re.fullmatch("[0-9a-f]{40}", revision or "") and (staged := await self._known(note_key)):
            return staged
        try:
            files = await find_files(
                repository, revision, self.choose, self.limits, token=self.token, endpoint=self.endpoint
            )
        except ArtifactUnavailable:
            if staged := await self._known(note_key):
                return staged
            raise
        key = f"hub-{sha256_of(' '.join((files.repository, files.commit, *files.names)))}"

        async def produce(work: Path) -> Path:
            tree, hashes = await fetch_files(
                files,
                work,
                self.cache,
                self.limits,
                allowed=self.allowed,
                resolver=self.resolver,
                progress=self.progress,
            )
            skipped = "\n".join(files.skipped[:SKIPPED_SHOWN])
            note = {"digest": tree_digest(hashes), REVISION: files.commit, SKIPPED: skipped}
            await asyncio.to_thread(self.cache.write_note, key, note)
            return tree

        with await self.cache.get(key, produce):
            await asyncio.to_thread(self.cache.write_note, note_key, {"key": key})
            if staged := await self._known(note_key):
                return staged
        raise ArtifactUnavailable(f"{repository} was evicted as soon as it came", reason=Reason.DISK_TOO_SMALL)

    async def _known(self, note_key: str) -> Staged | None:
        """What an earlier fetch left, if it is still here."""
        key = self.cache.note(note_key).get("key", "")
        note = self.cache.note(key) if key else {}
        if "digest" not in note or not (entry := await self.cache.find(key)):
            return None
        return Staged(entry.path, note["digest"], entry, {}, tuple(note[SKIPPED].splitlines()), note[REVISION])
