# SPDX-License-Identifier: Apache-2.0
"""Files become an image in a registry: blobs that are missing there, then the manifest, then a look whether it is.

Called by tune_jobs for adapters (through `pack_adapter`, in KAITO's layout) and for model images. Blobs go in one
request each, as oras and containerd send them, since registries differ in the chunks they take; what has arrived is
asked for first, so that pushing again continues with the blob that is missing.
"""

import asyncio
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from yarl import URL

from kaito_ray.artifacts import manifest
from kaito_ray.artifacts.adapter import WEIGHTS
from kaito_ray.artifacts.adapter_config import CONFIG
from kaito_ray.artifacts.reason import Reason
from kaito_ray.artifacts.registry import Registry
from kaito_ray.artifacts.transport import exact_url, persist
from kaito_ray.errors import ArtifactRefused, ArtifactUnavailable

_CHUNK = 1024 * 1024
Waiting = Callable[[ArtifactUnavailable], None]


@dataclass(frozen=True, slots=True)
class Blob:
    """One blob to push, from a file or from memory."""

    content: Path | bytes
    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_bytes(cls, content: bytes, media_type: str) -> "Blob":
        """A small blob."""
        return cls(content, media_type, f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))

    def descriptor(self) -> dict[str, Any]:
        """How a manifest names it."""
        named: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        return named | ({"annotations": dict(self.annotations)} if self.annotations else {})


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
    turn = asyncio.Semaphore(registry.limits.parallel)

    async def push(blob: Blob) -> None:
        async with turn:
            what = f"{registry.reference}: {blob.digest[:19]}"
            await persist(lambda: _push_blob(registry, blob, what), registry.limits, what=what, waiting=waiting)

    unique = {blob.digest: blob for blob in (*layers, config)}
    tasks = [asyncio.create_task(push(blob)) for blob in unique.values()]
    try:
        for task in tasks:
            await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    body = {
        "schemaVersion": 2,
        "mediaType": manifest.OCI_MANIFEST,
        "config": config.descriptor(),
        "layers": [layer.descriptor() for layer in layers],
        "annotations": dict(sorted(annotations.items())),
    }
    final = Blob.of_bytes(json.dumps(body, indent=1).encode(), manifest.OCI_MANIFEST)
    what = str(registry.reference)
    await persist(lambda: _push_manifest(registry, final, what), registry.limits, what=what, waiting=waiting)
    return final.digest


async def _push_blob(registry: Registry, blob: Blob, what: str) -> None:
    await registry.find_scheme()
    async with registry.request("HEAD", registry.url(f"blobs/{blob.digest}")) as response:
        if response.status == 200:
            return
        if response.status != 404:
            raise registry.error(response, what)
    async with registry.request("POST", registry.url("blobs/uploads/"), headers={"Content-Length": "0"}) as response:
        location = response.headers.get("Location", "")
        if response.status != 202 or not location:
            raise registry.error(response, what)
        upload = response.url.join(exact_url(location))
    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(blob.size)}
    target = str(
        upload.update_query({"digest": blob.digest}) if not upload.query_string else _with_digest(upload, blob)
    )
    async with registry.request("PUT", target, headers=headers, data=lambda: _body(blob)) as response:
        if response.status == 404:
            # The upload was forgotten, by a restart of the registry for example; the next try begins a new one.
            raise ArtifactUnavailable(f"{what}: the upload is gone", reason=Reason.UNEXPECTED_ANSWER)
        if response.status != 201:
            raise registry.error(response, what)


def _with_digest(upload: URL, blob: Blob) -> URL:
    """The upload's URL with the digest appended; its own query is a state that must come back byte for byte."""
    return URL(f"{upload}&digest={blob.digest}", encoded=True)


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


async def _body(blob: Blob) -> AsyncIterator[bytes]:
    if isinstance(blob.content, bytes):
        yield blob.content
        return
    with blob.content.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, _CHUNK):
            yield chunk


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
