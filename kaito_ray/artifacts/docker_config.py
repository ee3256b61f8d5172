# SPDX-License-Identifier: Apache-2.0
"""The logins that docker, podman and skopeo left on this machine, for one registry.

Called by pack_command.py and for the local run. In pods logins come from mounted Secrets instead (credential.py).
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from kaito_ray.artifacts.credential import Login, logins_for, parse_config
from kaito_ray.artifacts.reason import Reason
from kaito_ray.artifacts.reference import Reference
from kaito_ray.errors import ArtifactRefused

_HELPER = re.compile(r"[a-zA-Z0-9._-]+")
_DOCKER_HUB_KEY = "https://index.docker.io/v1/"
_REFRESH_USER = "<token>"  # what helpers answer as user name when the secret is a refresh token


def machine_logins(reference: Reference, environment: Mapping[str, str]) -> list[Login]:
    """Logins in the order skopeo looks for them: REGISTRY_AUTH_FILE, containers' auth.json, docker's config.json."""
    found: list[Login] = []
    for path in _files(environment):
        if not path.is_file():
            continue
        text = path.read_text()
        auths = parse_config(json.dumps({"auths": _object(text, path).get("auths") or {}}), str(path))
        found += logins_for(reference.host, reference.repository, [(str(path), auths)])
        if helped := _ask_helper(reference, _object(text, path)):
            found.append(helped)
    return found


def machine_config(images: Iterable[str], environment: Mapping[str, str]) -> str:
    """A Docker configuration with the logins for these images; empty when there are none.

    What cannot be read is passed over: whether an image needs a login is for the registry to say.
    """
    auths = {}
    for image in sorted(set(images)):
        try:
            reference = Reference.parse(image)
            logins = machine_logins(reference, environment)
        except ArtifactRefused:
            continue
        for login in logins[:1]:
            auths[f"{reference.host}/{reference.repository}"] = {
                "username": login.user,
                "password": login.password,
                "identitytoken": login.refresh_token,
            }
    return json.dumps({"auths": auths}) if auths else ""


def _files(environment: Mapping[str, str]) -> list[Path]:
    if named := environment.get("REGISTRY_AUTH_FILE"):
        return [Path(named)]
    home = Path(environment.get("HOME") or Path.home())
    runtime = environment.get("XDG_RUNTIME_DIR")
    docker = environment.get("DOCKER_CONFIG")
    return [
        *([Path(runtime) / "containers" / "auth.json"] if runtime else []),
        Path(docker or home / ".docker") / "config.json",
    ]


def _object(text: str, path: Path) -> dict[str, object]:
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ArtifactRefused(f"{path} is not a JSON object", reason=Reason.INVALID_SOURCE)
    return content


def _ask_helper(reference: Reference, config: Mapping[str, object]) -> Login | None:
    """The login that a credential helper keeps; None when there is no helper, or it knows no login."""
    helpers = config.get("credHelpers")
    name = (helpers.get(reference.host) if isinstance(helpers, dict) else None) or config.get("credsStore")
    if not isinstance(name, str) or not _HELPER.fullmatch(name):
        return None
    program = shutil.which(f"docker-credential-{name}")
    if program is None:
        return None
    server = _DOCKER_HUB_KEY if reference.host == "docker.io" else reference.host
    try:
        done = subprocess.run([program, "get"], input=server, capture_output=True, text=True, check=False, timeout=30)
        answer = json.loads(done.stdout) if done.returncode == 0 else {}
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return None
    user, secret = str(answer.get("Username") or ""), str(answer.get("Secret") or "")
    if not secret:
        return None
    if user == _REFRESH_USER:
        return Login("", "", secret, program)
    return Login(user, secret, origin=program)
