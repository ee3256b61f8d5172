# SPDX-License-Identifier: Apache-2.0
"""Docker configurations (Secrets of type kubernetes.io/dockerconfigjson) in; the logins for one registry out.

Read anew for every pull, because Kubernetes refreshes mounted Secrets in place. Nothing here ever puts a secret in
a message. Called by registry.py through source.py and push.py.
"""

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kaito_ray.artifacts.reason import Reason
from kaito_ray.errors import ArtifactRefused

_DOCKER_HUB = {"docker.io", "index.docker.io", "registry-1.docker.io"}


@dataclass(frozen=True, slots=True)
class Login:
    """A user with a password, or a refresh token (`identitytoken`) that buys access tokens."""

    user: str
    password: str = field(repr=False)
    refresh_token: str = field(default="", repr=False)
    origin: str = ""
    """Which Secret it comes from, for messages."""

    def basic(self) -> str:
        """The value of an Authorization header."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def read_logins(folder: Path, names: Iterable[str] | None = None) -> list[tuple[str, Mapping[str, Any]]]:
    """The Docker configurations of a folder: `<name>.json` each, or those of `names` in their order.

    A name without a file is skipped: Kubernetes mounts a new Secret some time after it was named.
    """
    wanted = [folder / f"{name}.json" for name in names] if names is not None else sorted(folder.glob("*.json"))
    return [(path.stem, parse_config(path.read_text(), path.stem)) for path in wanted if path.is_file()]


def parse_config(text: str, origin: str) -> Mapping[str, Any]:
    """The `auths` of a Docker configuration; raises ArtifactRefused when it is none."""
    try:
        config = json.loads(text)
        auths = config.get("auths", config if "auths" not in config else {})
        if not all(isinstance(value, dict) for value in auths.values()):
            raise ValueError
    except (ValueError, AttributeError):
        raise ArtifactRefused(
            f"the pull secret {origin} is no Docker configuration (.dockerconfigjson with auths)",
            reason=Reason.INVALID_SOURCE,
        ) from None
    return {str(key): value for key, value in auths.items()}


def logins_for(host: str, repository: str, configs: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Login]:
    """The logins whose key names this registry, and this repository where the key has a path; closest path first."""
    found = []
    for origin, auths in configs:
        for key, value in auths.items():
            server, _, path = key.removeprefix("https://").removeprefix("http://").partition("/")
            path = path.strip("/")
            if server.lower() not in _same_registry(host):
                continue
            if path in {"v1", "v2"}:
                path = ""
            if path and not (repository == path or repository.startswith(f"{path}/")):
                continue
            login = _login(value, origin)
            if login:
                found.append((-len(path), login))
    return [login for _, login in sorted(found, key=lambda pair: pair[0])]


def _same_registry(host: str) -> set[str]:
    return _DOCKER_HUB if host.lower() in _DOCKER_HUB else {host.lower()}


def _login(value: Mapping[str, Any], origin: str) -> Login | None:
    user, password = str(value.get("username") or ""), str(value.get("password") or "")
    if not user and value.get("auth"):
        try:
            user, _, password = base64.b64decode(str(value["auth"])).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise ArtifactRefused(
                f"the pull secret {origin} has an `auth` that is not base64 of user:password",
                reason=Reason.INVALID_SOURCE,
            ) from None
    refresh = str(value.get("identitytoken") or "")
    # Docker writes NUL bytes behind passwords of some credential stores.
    return Login(user, password.rstrip("\0"), refresh, origin) if user or refresh else None
