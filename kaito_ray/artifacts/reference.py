# SPDX-License-Identifier: Apache-2.0
"""An image reference as people write it, `registry/repository:tag@digest`, in its parts. Pure."""

import re
from dataclasses import dataclass, replace
from typing import Self

from kaito_ray.artifacts.reason import Reason
from kaito_ray.errors import ArtifactRefused

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    r"(?P<name>[^@]+?)(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?", re.ASCII
)
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class Reference:
    """Where an image is. `digest` wins over `tag`, which is then only for people to read."""

    host: str
    """Registry with its port, such as `registry.example:5000`."""
    repository: str
    tag: str
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Split a reference as docker does: without a host it is Docker Hub, without a tag `latest`.

        Raises ArtifactRefused with the text seen.
        """
        match = _REFERENCE.fullmatch(text.removeprefix("docker://").removeprefix("oci://"))
        host, slash, repository = match["name"].partition("/") if match else ("", "", "")
        if slash == "" or not ("." in host or ":" in host or host == "localhost"):
            host, repository = "docker.io", match["name"] if match else ""
        if host in {"docker.io", "index.docker.io"}:
            host, repository = "docker.io", repository if "/" in repository else f"library/{repository}"
        if match is None or not _HOST.fullmatch(host) or not _REPOSITORY.fullmatch(repository) or len(text) > 512:
            raise ArtifactRefused(
                f"{text[:100]!r} is no image reference such as registry.example/team/adapter:1.0",
                reason=Reason.INVALID_SOURCE,
            )
        return cls(host, repository, match["tag"] or "latest", match["digest"] or "")

    def at(self, digest: str) -> Self:
        """The same image pinned."""
        return replace(self, digest=digest)

    @property
    def wanted(self) -> str:
        """What to ask the registry for."""
        return self.digest or self.tag

    @property
    def hostname(self) -> str:
        """The registry without its port."""
        return re.sub(r":[0-9]+$", "", self.host)

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}" + (f"@{self.digest}" if self.digest else f":{self.tag}")
