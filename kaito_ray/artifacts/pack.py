# SPDX-License-Identifier: Apache-2.0
"""A folder with a model becomes an image: `Packing` says what it will consist of, `push_model` sends it.

Two forms, since no single one suits every reader:

    image       layers are plain tars below MODEL_IMAGE_DIR, one per shard, the small files together in the first: what
                container runtimes unpack, Kubernetes mounts as an image volume, and skopeo and docker copy
    modelpack   layers are the files themselves under their names, as the CNCF's model specification has them and
                KAITO's packer makes them: `oras pull` gives the model's folder

The same files give the same digest: no times, owners or machine are in it. Nothing is written to disk and a few
megabytes of memory are enough for any size, since a tar of one file is that file with a header in front.
"""

import asyncio
import json
import posixpath
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any

from kaito_ray.artifacts import manifest
from kaito_ray.artifacts.blob import Blob, Parts, measure, part_size
from kaito_ray.artifacts.cache import Cache
from kaito_ray.artifacts.model_files import MODEL_NAME, SHARD, check_shards, choose_files, find_model
from kaito_ray.artifacts.progress import Progress
from kaito_ray.artifacts.push import Pushing, Waiting, manifest_of, push_manifest
from kaito_ray.artifacts.registry import Registry
from kaito_ray.names import MODEL_IMAGE_DIR

_TITLE = "org.opencontainers.image.title"
_SMALL = "model-files.tar"
PARAMETERS = "kaito-ray.io/parameters"
FILE_DIGEST = "kaito-ray.io/file-digest"
_END = bytes(2 * tarfile.BLOCKSIZE)


class Form(StrEnum):
    """How the files lie in the image."""

    IMAGE = "image"
    MODELPACK = "modelpack"


@dataclass(frozen=True, slots=True)
class Facts:
    """What the annotations say about a model; empty where it is not known."""

    name: str = ""
    """Its id, such as `microsoft/phi-4`."""
    revision: str = ""
    license: str = ""
    source: str = ""
    """A URL where it came from."""

    def annotations(self, parameters: int) -> dict[str, str]:
        """As an image carries them."""
        known = {
            MODEL_NAME: self.name,
            "org.opencontainers.image.title": self.name,
            "org.opencontainers.image.revision": self.revision,
            "org.opencontainers.image.licenses": self.license,
            "org.opencontainers.image.source": self.source,
            PARAMETERS: str(parameters),
        }
        return {key: value for key, value in known.items() if value}


@dataclass(frozen=True, slots=True)
class LayerSize:
    """One layer as people are shown it; `size` in bytes."""

    title: str
    files: tuple[str, ...]
    size: int


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One layer before its bytes were read."""

    title: str
    files: tuple[str, ...]
    media_type: str
    parts: Parts = field(repr=False)
    size: int


@dataclass(frozen=True, slots=True)
class Packing:
    """What an image of a folder consists of. `plan` reads names, sizes and headers only."""

    form: Form
    layers: tuple[LayerPlan, ...]
    annotations: Mapping[str, str]

    @property
    def size(self) -> int:
        """Bytes of all layers."""
        return sum(layer.size for layer in self.layers)

    @property
    def sizes(self) -> list[LayerSize]:
        """The layers without what they are made of."""
        return [LayerSize(layer.title, layer.files, layer.size) for layer in self.layers]

    @classmethod
    def plan(cls, folder: Path, facts: Facts, form: Form = Form.IMAGE) -> "Packing":
        """Judge the model in `folder` and lay its image out; raises ArtifactRefused for one that no engine loads."""
        home = find_model(folder)
        names = choose_files(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())
        parameters = check_shards(home)
        small, shards = _split(names)
        if form is Form.MODELPACK:
            layers = [_raw_layer(home, name) for name in (*small, *shards)]
        else:
            layers = [_small_layer(home, small), *(_shard_layer(home, name) for name in shards)]
        return cls(form, tuple(layers), facts.annotations(parameters))


def sizes_of(files: Mapping[str, int], form: Form) -> list[LayerSize]:
    """The layers that files of these sizes in bytes would make, without having the files."""
    small, shards = _split(choose_files(files))
    if form is Form.MODELPACK:
        return [LayerSize(name, (name,), files[name]) for name in (*small, *shards)]

    def size(name: str) -> int:
        return len(_header(posixpath.join(MODEL_IMAGE_DIR, name), files[name])) + _padded(files[name])

    folders = len(_folders(small)) * tarfile.BLOCKSIZE
    first = LayerSize(_SMALL, tuple(small), folders + sum(map(size, small)) + len(_END))
    return [first, *(LayerSize(f"{name}.tar", (name,), size(name) + len(_END)) for name in shards)]


async def push_model(
    registry: Registry,
    packing: Packing,
    *,
    progress: Progress | None = None,
    notes: Cache | None = None,
    waiting: Waiting = lambda _: None,
    hashing: Callable[[str], None] = lambda _: None,
) -> str:
    """Push under the tag of the registry's reference; the digest of the manifest.

    A layer is hashed while the ones before it are on their way; what the registry has is not sent. `hashing` is told
    the title of each layer that is about to be read, `notes` remembers uploads that broke off. Raises as push_image.
    """
    progress = progress or Progress()
    progress.expect(packing.size)
    layers: list[Blob] = []
    diff_ids: list[str] = []
    async with Pushing(registry, waiting=waiting, progress=progress, notes=notes) as pushing:
        for plan in packing.layers:
            hashing(plan.title)
            layer = await asyncio.to_thread(_hashed, plan)
            pushing.start(layer)
            layers.append(layer)
            diff_ids.append(layer.digest)
        config = _config(packing, diff_ids)
        pushing.start(config)
    fields = {"artifactType": manifest.MODEL_MANIFEST} if packing.form is Form.MODELPACK else {}
    digest = await push_manifest(registry, manifest_of(config, layers, packing.annotations, **fields), waiting=waiting)
    progress.finish()
    return digest


def _hashed(plan: LayerPlan) -> Blob:
    digest, files = measure(plan.parts)
    annotations = {_TITLE: plan.title}
    if len(plan.files) == 1:
        annotations |= {manifest.FILE_PATH: plan.files[0], FILE_DIGEST: files}
    return Blob(plan.parts, plan.media_type, digest, plan.size, annotations)


def _config(packing: Packing, diff_ids: Sequence[str]) -> Blob:
    name = packing.annotations.get(MODEL_NAME, "")
    if packing.form is Form.MODELPACK:
        content: dict[str, Any] = {
            "descriptor": {"name": name} if name else {},
            "config": {"format": "safetensors"},
            "modelfs": {"type": "layers", "diffIds": list(diff_ids)},
        }
        return Blob.of_bytes(json.dumps(content).encode(), manifest.MODEL_CONFIG)
    content = {
        # Weights run on every machine, but runtimes want to be told one; this is the one KAITO's images name.
        "architecture": "amd64",
        "os": "linux",
        "config": {"Labels": dict(sorted(packing.annotations.items()))},
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
    }
    return Blob.of_bytes(json.dumps(content).encode(), manifest.OCI_CONFIG)


def _raw_layer(home: Path, name: str) -> LayerPlan:
    path = home / name
    kind = manifest.MODEL_WEIGHT if name.endswith(SHARD) else manifest.MODEL_FILE
    return LayerPlan(name, (name,), kind, (path,), path.stat().st_size)


def _shard_layer(home: Path, name: str) -> LayerPlan:
    return _layer(f"{name}.tar", (name,), [*_member(home, name), _END])


def _small_layer(home: Path, names: Sequence[str]) -> LayerPlan:
    parts: list[bytes | Path] = [_header(folder) for folder in _folders(names)]
    for name in names:
        parts += _member(home, name)
    return _layer(_SMALL, tuple(names), [*parts, _END])


def _layer(title: str, files: tuple[str, ...], parts: list[bytes | Path]) -> LayerPlan:
    return LayerPlan(title, files, manifest.OCI_LAYER, tuple(parts), sum(map(part_size, parts)))


def _member(home: Path, name: str) -> list[bytes | Path]:
    path = home / name
    size = path.stat().st_size
    padding = bytes(_padded(size) - size)
    return [_header(posixpath.join(MODEL_IMAGE_DIR, name), size), path, *([padding] if padding else [])]


def _header(name: str, size: int | None = None) -> bytes:
    """The header of a file, or of a folder when it has no size."""
    entry = tarfile.TarInfo(name)
    if size is None:
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
    else:
        entry.size, entry.mode = size, 0o644
    return entry.tobuf(tarfile.PAX_FORMAT)


def _padded(size: int) -> int:
    return size + -size % tarfile.BLOCKSIZE


def _split(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Small files, shards."""
    shards = [name for name in names if name.endswith(SHARD)]
    return [name for name in names if name not in shards], shards


def _folders(names: Sequence[str]) -> list[str]:
    """The folder of the model in the image, the ones above it and the ones that the names are in, from the top."""
    found = {MODEL_IMAGE_DIR, *(posixpath.join(MODEL_IMAGE_DIR, posixpath.dirname(name)) for name in names)}
    every = {str(folder) for path in found for folder in (PurePosixPath(path), *PurePosixPath(path).parents)}
    return sorted(every - {"."})
