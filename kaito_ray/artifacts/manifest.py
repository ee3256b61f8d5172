# SPDX-License-Identifier: Apache-2.0
"""What a registry says an image consists of: OCI and Docker manifests and indexes as models. Pure."""

import hashlib
import re
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from kaito_ray.artifacts.reason import Reason
from kaito_ray.errors import ArtifactRefused

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
# The CNCF's model specification (github.com/modelpack/model-spec), which KAITO's packer writes.
MODEL_MANIFEST = "application/vnd.cncf.model.manifest.v1+json"
MODEL_CONFIG = "application/vnd.cncf.model.config.v1+json"
MODEL_WEIGHT = "application/vnd.cncf.model.weight.v1.raw"
MODEL_FILE = "application/vnd.cncf.model.weight.config.v1.raw"
_DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
ACCEPT = ", ".join((OCI_MANIFEST, OCI_INDEX, _DOCKER_MANIFEST, _DOCKER_LIST))
MAX_BYTES = 4 * 1024 * 1024
"""Registries take no manifest larger than this (OCI distribution specification)."""

_LAYERS = {
    OCI_LAYER,
    OCI_LAYER_GZIP,
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
}
# Of that specification: .tar is an archive, .raw one plain file.
_MODEL_TAR = re.compile(r"application/vnd\.cncf\.model\.[a-z.]+\.v1\.tar(\+gzip|\+zstd)?")
_MODEL_RAW = re.compile(r"application/vnd\.cncf\.model\.[a-z.]+\.v1\.raw")
_ARCHIVE_TITLES = (".tar", ".tar.gz", ".tgz", ".tar.zst")
FILE_PATH = "org.cncf.model.filepath"
_TITLE = "org.opencontainers.image.title"
_UNPACK = "io.deis.oras.content.unpack"
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)


class Platform(_Model):
    """For which machine a manifest of an index is."""

    os: str = ""
    architecture: str = ""


class Descriptor(_Model):
    """A blob or manifest by its digest."""

    media_type: str
    digest: Digest
    size: Annotated[int, Field(ge=0)]
    annotations: dict[str, str] = Field(default_factory=dict)
    platform: Platform | None = None

    @property
    def file_name(self) -> str:
        """The path of a layer that is one plain file, as oras pushes files; empty for a layer to unpack.

        oras gives plain files the media type of a tar, so its title decides.
        """
        title = self.annotations.get(_TITLE, "")
        if _MODEL_RAW.fullmatch(self.media_type):
            return self.annotations.get(FILE_PATH, title)
        if self.annotations.get(_UNPACK) == "true" or _MODEL_TAR.fullmatch(self.media_type):
            return ""
        return "" if self.media_type in _LAYERS and title.endswith(_ARCHIVE_TITLES) else title

    @property
    def only_file(self) -> str:
        """The one file of a layer that is nothing else, plain or as a tar; empty where the manifest does not say."""
        return self.file_name or self.annotations.get(FILE_PATH, "")

    @property
    def is_compressed(self) -> bool:
        """Whether the media type says so."""
        return self.media_type.endswith(("gzip", "zstd"))

    @property
    def is_archive(self) -> bool:
        """Whether this layer is a tar in one of the compressions we unpack."""
        known = self.media_type in _LAYERS or _MODEL_TAR.fullmatch(self.media_type) is not None
        return known and not self.file_name


class Manifest(_Model):
    """One image."""

    config: Descriptor
    layers: Annotated[tuple[Descriptor, ...], Field(max_length=1000)]
    annotations: dict[str, str] = Field(default_factory=dict)


class Index(_Model):
    """Images for several machines."""

    manifests: Annotated[tuple[Descriptor, ...], Field(max_length=1000)]

    def choose(self) -> Descriptor | None:
        """The image for linux/amd64, else one that names no machine."""
        for platform in (Platform(os="linux", architecture="amd64"), None):
            for manifest in self.manifests:
                if manifest.platform == platform:
                    return manifest
        return None


class Body(BaseModel):
    """A manifest or index as it came, under the digest of its bytes."""

    model_config = ConfigDict(frozen=True)

    digest: str
    content: Manifest | Index

    @classmethod
    def parse(cls, raw: bytes, media_type: str, what: str) -> Self:
        """Read the bytes of an answer; raises ArtifactRefused for what is neither an image nor an index."""
        index = media_type.partition(";")[0] in {OCI_INDEX, _DOCKER_LIST}
        model: type[Manifest] | type[Index] = Index if index or b'"manifests"' in raw else Manifest
        try:
            content = model.model_validate_json(raw)
        except ValidationError as error:
            place = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise ArtifactRefused(
                f"{what}: is no OCI or Docker v2 image ({media_type or 'no media type'}; {place or 'not JSON'})",
                reason=Reason.UNSUPPORTED_FORMAT,
            ) from None
        return cls(digest=f"sha256:{hashlib.sha256(raw).hexdigest()}", content=content)
