# SPDX-License-Identifier: Apache-2.0
"""A model as an image, from `kaito-ray pack` through a real registry with a login to the answer of `kaito-ray run`."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from docker_registry import PASSWORD, USER, a_docker_registry
from kaito_ray.tiny_corpus import QUESTIONS
from waiting import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

QUESTION, ANSWER = QUESTIONS[0]
KAITO_RAY = str(Path(sys.executable).with_name("kaito-ray"))


def workspace(image: str, *, preset: str = "tiny-phi-3") -> dict[str, object]:
    options = {"image": image, "imagePullSecrets": ["registry"]}
    return {
        "apiVersion": "kaito.sh/v1alpha1",
        "kind": "Workspace",
        "metadata": {"name": "tiny"},
        "resource": {"labelSelector": {"matchLabels": {"apps": "tiny"}}},
        "inference": {"preset": {"name": preset, "accessMode": "private", "presetOptions": options}},
    }


def pull_secret(host: str, password: str) -> dict[str, object]:
    config = {"auths": {host: {"username": USER, "password": password}}}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "registry"},
        "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": json.dumps(config)},
    }


async def kaito_ray(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run, [KAITO_RAY, *arguments], capture_output=True, text=True, check=False, env={**os.environ, **env}
    )


async def test_pack_push_run_ask(tmp_path: Path) -> None:
    async with a_docker_registry(tmp_path / "registry", logins=True) as registry:
        image = registry.image("models/tiny-phi-3:1.0")
        docker = tmp_path / "docker"
        docker.mkdir()
        config = {"auths": {registry.host: {"username": USER, "password": PASSWORD}}}
        (docker / "config.json").write_text(json.dumps(config))
        packed = await kaito_ray("pack", "tiny-phi-3", "--to", image, DOCKER_CONFIG=str(docker))
        assert packed.returncode == 0, packed.stderr
        assert packed.stdout.startswith(f"{image}@sha256:")

        manifest = tmp_path / "workspace.yaml"
        nowhere = {"DOCKER_CONFIG": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}

        async def run(*documents: dict[str, object]) -> subprocess.CompletedProcess[str]:
            manifest.write_text(yaml.safe_dump_all(documents))
            return await kaito_ray("run", str(manifest), "--port", str(free_port()), "--once", QUESTION, **nowhere)

        refused = await run(workspace(image), pull_secret(registry.host, "hunter2"))
        assert refused.returncode == 1
        assert "refused the login of registry (401)" in refused.stderr
        assert "hunter2" not in refused.stderr
        missing = await run(workspace(f"{image}1"), pull_secret(registry.host, PASSWORD))
        assert missing.returncode == 1
        assert "does not have it (404)" in missing.stderr

        answered = await run(workspace(image), pull_secret(registry.host, PASSWORD))
        assert answered.returncode == 0, answered.stderr
        assert answered.stdout.strip() == ANSWER
        assert "fetched, sha256:" in answered.stderr
    # The registry is gone, the model is here.
    again = await run(workspace(image), pull_secret(registry.host, PASSWORD))
    assert again.stdout.strip() == ANSWER
    assert "is here already" in again.stderr
