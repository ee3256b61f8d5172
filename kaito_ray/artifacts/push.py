# SPDX-License-Identifier: Apache-2.0
"""Files become an image in a registry: blobs that are missing there, then the manifest, then a look whether it is.

Called by tune_jobs for adapters (through `pack_adapter`, in KAITO's layout) and by pack.py for models. What has arrived
is asked for first, so that pushing again continues with the blob that is missing; how one blob goes is upload.py's.
"""

import asyncio
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self, cast

from kaito_ray.artifacts import manifest
from kaito_ray.artifacts.adapter import WEIGHTS
from kaito_ray.artifacts.adapter_config import CONFIG
from kaito_ray.artifacts.blob import Blob
from kaito_ray.artifacts.cache import Cache
from kaito_ray.artifacts.progress import Progress
from kaito_ray.artifacts.reason import Reason
from kaito_ray.artifacts.registry import Registry
from kaito_ray.artifacts.transport import persist
from kaito_ray.artifacts.upload import Upload
from kaito_ray.errors import ArtifactRefused, ArtifactUnavailable

Waiting = Callable[[ArtifactUnavailable], None]


async def push_image(
    registry: Registry,
    config: Blob,
    layers: Sequence[Blob],
    annotations: Mapping[str, str],
    *,
    waiting: Waiting = lambda _: None,
) -> str:
    """Push under the tag of the registry's reference; the digest of the manifest.

    A registry that is down is waited for as long as its limits say; `waiting` hears why. Raises ArtifactRefused when
    it says no and ArtifactUnavailable when patience ends; the files stay where they are.
    """
    unique = {blob.digest: blob for blob in (*layers, config)}
    async with Pushing(registry, waiting=waiting) as pushing:
        for blob in unique.values():
            pushing.start(blob)
    return await push_manifest(registry, manifest_of(config, layers, annotations), waiting=waiting)


class Pushing:
    """Blobs on their way, a few at a time; leaving the block waits for all of them, or for the first that fails."""

    def __init__(
        self,
        registry: Registry,
        *,
        waiting: Waiting = lambda _: None,
        progress: Progress | None = None,
        notes: Cache | None = None,
    ) -> None:
        self._registry = registry
        self._waiting = waiting
        self._progress = progress or Progress()
        self._notes = notes
        self._turn = asyncio.Semaphore(registry.limits.parallel)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                await asyncio.gather(*self._tasks)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def start(self, blob: Blob) -> None:
        """Begin to push a blob; raises what another one failed with."""
        for task in self._tasks:
            if task.done():
                task.result()
        self._tasks.append(asyncio.create_task(self._push(blob)))

    async def _push(self, blob: Blob) -> None:
        upload = Upload(self._registry, blob, self._progress, self._notes)
        async with self._turn:
            await persist(
                upload,
                self._registry.limits,
                what=upload.what,
                progress=lambda: upload.sent,
                waiting=self._waiting,
            )


def manifest_of(config: Blob, layers: Sequence[Blob], annotations: Mapping[str, str], **fields: str) -> Blob:
    """The manifest as a blob: the same bytes for the same parts."""
    body = {
        "schemaVersion": 2,
        "mediaType": manifest.OCI_MANIFEST,
        **fields,
        "config": config.descriptor(),
        "layers": [layer.descriptor() for layer in layers],
        "annotations": dict(sorted(annotations.items())),
    }
    return Blob.of_bytes(json.dumps(body, indent=1).encode(), manifest.OCI_MANIFEST)


async def push_manifest(registry: Registry, body: Blob, *, waiting: Waiting = lambda _: None) -> str:
    """Push the manifest under its tag, look whether it is there, and return its digest."""
    what = str(registry.reference)
    await persist(lambda: _push_manifest(registry, body, what), registry.limits, what=what, waiting=waiting)
    return body.digest


async def _push_manifest(registry: Registry, body: Blob, what: str) -> None:
    url = registry.url(f"manifests/{registry.reference.tag}")
    headers = {"Content-Type": body.media_type, "Content-Length": str(body.size)}
    async with registry.request("PUT", url, headers=headers, data=lambda: body.content) as response:
        if response.status not in {200, 201}:
            raise registry.error(response, what)
    stored = await registry.get_manifest(registry.reference.tag)
    if stored.digest != body.digest:
        raise ArtifactRefused(
            f"{what}: has the digest {stored.digest} right after {body.digest} was pushed; somebody else pushes there",
            reason=Reason.DIGEST_MISMATCH,
        )


def pack_adapter(folder: Path, work: Path) -> tuple[Blob, Blob]:
    """Config and layer of an adapter's image: one gzip layer with `data/` in it, as KAITO makes and reads them.

    The same adapter gives the same digest: no times, owners or machine in it. Blocking.
    """
    path = work / "layer.tar.gz"
    inner = hashlib.sha256()
    with path.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as packed:
        stream = _Hashing(cast("IO[bytes]", packed), inner)
        with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="w|", format=tarfile.PAX_FORMAT) as tar:
            entry = tarfile.TarInfo("data")
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
            for name in (CONFIG, WEIGHTS):
                entry = tarfile.TarInfo(f"data/{name}")
                entry.size, entry.mode = (folder / name).stat().st_size, 0o644
                with (folder / name).open("rb") as file:
                    tar.addfile(entry, file)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    layer = Blob(path, manifest.OCI_LAYER_GZIP, f"sha256:{digest}", path.stat().st_size)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{inner.hexdigest()}"]},
    }
    return Blob.of_bytes(json.dumps(config).encode(), manifest.OCI_CONFIG), layer


class _Hashing(io.RawIOBase):
    """Passes what is written on, and hashes it."""

    def __init__(self, file: IO[bytes], digest: Any) -> None:
        self._file = file
        self._digest = digest

    def write(self, data: Any) -> int:
        self._digest.update(data)
        return self._file.write(data)
