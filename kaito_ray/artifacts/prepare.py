# SPDX-License-Identifier: Apache-2.0
"""The source of an adapter in; a checked folder for the engine and what is known of it out.

Called by serve_apps for every adapter that user_config names. The folder's name follows from content and strength
alone, so replicas of a node share it and the engine's caches can tell versions apart by it.
"""

import asyncio
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp.abc import AbstractResolver

from kaito_ray.artifacts.adapter import WEIGHTS, AdapterFacts, check_adapter, find_adapter, write_adapter
from kaito_ray.artifacts.adapter_config import CONFIG
from kaito_ray.artifacts.base import Base
from kaito_ray.artifacts.cache import Cache, Entry
from kaito_ray.artifacts.limits import ADAPTER, Limits
from kaito_ray.artifacts.source import Source, Stager


@dataclass(slots=True)
class Prepared:
    """An adapter ready to load; stays in the cache until `release` is called."""

    path: Path
    digest: str
    facts: AdapterFacts
    entry: Entry

    def release(self) -> None:
        """Let the cache evict it, once the engine has dropped it."""
        self.entry.release()


def adapter_stager(
    cache: Cache,
    *,
    limits: Limits = ADAPTER,
    allowed: Collection[str] = (),
    auth_dir: Path | None = None,
    hub_token: str | None = None,
    resolver: AbstractResolver | None = None,
) -> Stager:
    """A Stager that takes from each kind of source what an adapter consists of."""
    return Stager(
        cache,
        limits,
        allowed=allowed,
        auth_dir=auth_dir,
        folder="data",
        files={CONFIG, WEIGHTS},
        hub_token=hub_token,
        resolver=resolver,
    )


async def prepare_adapter(
    stager: Stager, source: Mapping[str, Any], *, base: Base, max_rank: int, strength: float = 1.0
) -> Prepared:
    """Fetch, check and lay out.

    Raises ArtifactRefused (AdapterRefused for the adapter itself) or ArtifactUnavailable.
    """
    wanted = Source.parse(source)
    if wanted.path:
        # A volume may hold more than the adapter: names are looked at, then its two files are copied.
        home = await asyncio.to_thread(find_adapter, Path(wanted.path))
        wanted = wanted.model_copy(update={"path": str(home)})
    with await stager.stage(wanted) as staged:
        home = await asyncio.to_thread(find_adapter, staged.path)
        facts = await asyncio.to_thread(check_adapter, home, base, max_rank=max_rank)

        async def produce(work: Path) -> Path:
            return await asyncio.to_thread(_lay_out, home, work / "adapter", strength)

        entry = await stager.cache.get(f"adapter-{staged.digest.partition(':')[2]}-{strength:g}", produce)
    return Prepared(entry.path, staged.digest, facts, entry)


def _lay_out(home: Path, target: Path, strength: float) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    write_adapter(home, target, strength=strength)
    return target
