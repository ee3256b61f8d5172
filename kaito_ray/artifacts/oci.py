# SPDX-License-Identifier: Apache-2.0
"""An OCI image becomes a folder: manifest pinned by digest, layers side by side, every byte checked, then unpacked.

Called by source.py. registry.py speaks to the registry, archive.py unpacks.
"""

import asyncio
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from kaito_ray.artifacts.archive import Wanted, everything, unpack
from kaito_ray.artifacts.cache import tree_size
from kaito_ray.artifacts.download import Part, Reserve, download, no_reserve
from kaito_ray.artifacts.layer import Layer, Unpacked, safe_name, shown, unsafe
from kaito_ray.artifacts.limits import human_bytes
from kaito_ray.artifacts.manifest import Descriptor, Index, Manifest
from kaito_ray.artifacts.member import MIN_SIZE, MemberPart
from kaito_ray.artifacts.progress import Progress
from kaito_ray.artifacts.reason import Reason
from kaito_ray.artifacts.registry import Registry
from kaito_ray.errors import ArtifactRefused, ArtifactUnavailable


@dataclass(frozen=True, slots=True)
class Image:
    """An image whose tag was looked up once; from here on only digests are asked for."""

    digest: str
    """Of what the reference names, an index where it is one."""
    manifest: Manifest

    @property
    def annotations(self) -> Mapping[str, str]:
        """What its maker wrote on it, such as `sh.kaito.model.name`."""
        return self.manifest.annotations


async def resolve_image(registry: Registry) -> Image:
    """Find the image of the registry's reference, for linux/amd64 where there are several."""
    body = await registry.get_manifest(registry.reference.wanted)
    digest = body.digest
    for _ in range(3):  # an index may hold an index
        if not isinstance(body.content, Index):
            return Image(digest, body.content)
        chosen = body.content.choose()
        if chosen is None:
            break
        body = await registry.get_manifest(chosen.digest)
    raise ArtifactRefused(f"{registry.reference}: has no image for linux/amd64", reason=Reason.UNSUPPORTED_FORMAT)


async def pull_image(
    registry: Registry,
    image: Image,
    work: Path,
    *,
    wanted: Wanted = everything,
    titled: Wanted = everything,
    progress: Progress | None = None,
    reserve: Reserve = no_reserve,
) -> Path:
    """Put the wanted files of the image into a folder below `work` and return that folder.

    Blobs stay in `work` until then, so that a later call continues. A layer is either an archive, unpacked with
    `wanted` deciding, or one plain file under its title, as oras pushes them; `titled` decides on those.
    """
    limits = registry.limits
    layers = [layer for layer in image.manifest.layers if not layer.only_file or titled(layer.only_file)]
    for layer in layers:
        if not (layer.is_archive or layer.file_name):
            raise ArtifactRefused(
                f"{registry.reference}: has a layer of the unsupported type {layer.media_type[:100]}",
                reason=Reason.UNSUPPORTED_FORMAT,
            )
    size = sum({layer.digest: layer.size for layer in layers}.values())
    if size > limits.bytes:
        raise ArtifactRefused(
            f"{registry.reference}: has {human_bytes(size)}, at most {human_bytes(limits.bytes)} are allowed",
            reason=Reason.TOO_LARGE,
        )
    if progress:
        progress.expect(size)
    blobs, tree = work / "blobs", work / "tree"
    here = await asyncio.to_thread(_fresh, blobs, tree)
    # An archive of several files is on the disk twice for a moment, packed and unpacked.
    await reserve(sum(layer.size * (1 if layer.only_file else 2) for layer in layers), here)
    unpacked = Unpacked(limits)
    turn = asyncio.Semaphore(limits.parallel)

    async def fetch(layer: Descriptor) -> Part:
        async with turn:
            return await _fetch_blob(registry, layer, blobs, progress)

    distinct = {layer.digest: layer for layer in layers}
    fetches = {digest: asyncio.create_task(fetch(layer)) for digest, layer in distinct.items()}
    try:
        for layer in layers:
            part = await fetches[layer.digest]
            await asyncio.to_thread(_place, layer, part, tree, unpacked, wanted)
    except ArtifactRefused as error:
        raise await _explained(error, registry, image) from None
    finally:
        for task in fetches.values():
            task.cancel()
        await asyncio.gather(*fetches.values(), return_exceptions=True)
    return tree


async def _fetch_blob(registry: Registry, layer: Descriptor, blobs: Path, progress: Progress | None) -> Part:
    what = f"{registry.reference}: layer {layer.digest[:19]}"
    target = blobs / layer.digest.partition(":")[2]
    plain = layer.is_archive and not layer.is_compressed and layer.size >= MIN_SIZE
    part = MemberPart(target, layer.size) if plain else Part(target)
    got = await download(
        registry.blob(layer.digest),
        part,
        replace(registry.limits, bytes=layer.size),
        what=what,
        size=layer.size,
        immutable=True,
        progress=progress,
    )
    if f"sha256:{got.sha256}" != layer.digest:
        await asyncio.to_thread(part.discard)
        raise ArtifactRefused(
            f"{what}: its {got.size} bytes have the digest sha256:{got.sha256[:12]}..., not what was pushed",
            reason=Reason.DIGEST_MISMATCH,
        )
    return part


async def _explained(error: ArtifactRefused, registry: Registry, image: Image) -> ArtifactRefused | ArtifactUnavailable:
    """A layer that is missing because somebody pushed another image under the tag meanwhile is worth another try."""
    reference = registry.reference
    if error.reason == Reason.NOT_FOUND and not reference.digest:
        now = await resolve_image(registry)
        if now.digest != image.digest:
            return ArtifactUnavailable(
                f"{reference}: the tag moved to {now.digest} while {image.digest} was fetched", reason=Reason.CHANGED
            )
    return error


def _place(layer: Descriptor, part: Part, tree: Path, unpacked: Unpacked, wanted: Wanted) -> None:
    if isinstance(part, MemberPart) and part.name is not None:
        unpacked.count_entry()
        unpacked.count_bytes(layer.size)
        if wanted(part.name):
            Layer(tree, unpacked).adopt(part.name, part.path)
        return
    if layer.is_archive:
        blob = part.as_layer() if isinstance(part, MemberPart) else part.path
        unpack(blob, tree, unpacked, wanted=wanted)
        return
    unpacked.count_entry()
    unpacked.count_bytes(layer.size)
    name = safe_name(layer.file_name)
    target = tree / name
    if not name or target.exists():
        raise unsafe(f"two layers have the title {shown(name)}")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.hardlink_to(part.path)


def _fresh(blobs: Path, tree: Path) -> int:
    """Make the folders; the bytes that an earlier try left."""
    shutil.rmtree(tree, ignore_errors=True)
    blobs.mkdir(exist_ok=True)
    tree.mkdir()
    return tree_size(blobs)
