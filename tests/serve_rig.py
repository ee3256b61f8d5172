# SPDX-License-Identifier: Apache-2.0
"""The product's own Serve application on a real Ray of this machine, driven as KubeRay drives it: by Serve configs."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import yaml

from kaito_ray import names
from kaito_ray.local_ray import LocalRay
from kaito_ray.local_workspace import load_workspace
from kaito_ray.plan import AdapterPlan, ServePlan
from kaito_ray.serve_config import local_env, serve_config, serve_env
from kaito_ray.settings import Settings
from waiting import free_port

BASE = "tiny-phi-3"
_WORKSPACE = {
    "apiVersion": "kaito.sh/v1beta1",
    "kind": "Workspace",
    "metadata": {"name": "tiny"},
    "resource": {"labelSelector": {"matchLabels": {"apps": "tiny"}}},
    "inference": {"preset": {"name": BASE}},
}


class ServeRig:
    """`replicas` copies of the tiny model behind one proxy; adapters change through the Serve config alone."""

    def __init__(self, folder: Path, *, replicas: int, engine: Mapping[str, Any] | None = None) -> None:
        manifest = folder / "workspace.yaml"
        manifest.write_text(yaml.safe_dump(_WORKSPACE))
        plan = load_workspace(manifest, Settings()).plan
        self.plan: ServePlan = replace(
            plan,
            replicas=replicas,
            engine=dict(plan.engine) | dict(engine or {}),
            # Two replicas on a machine with two cores, and a proxy beside them.
            placement=replace(plan.placement, actor_cpus=0.5),
        )
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        os.environ.setdefault("KAITO_RAY_ALLOW_PRIVATE_URLS", "127.0.0.1")
        self.ray = LocalRay(
            lambda at, ports: serve_env(self.plan) | local_env(at, **ports), cpus=max(2, replicas), gpus=0
        )

    def deploy(self, adapters: Sequence[AdapterPlan] = ()) -> None:
        """Send the Serve config; returns at once."""
        config = serve_config(replace(self.plan, adapters=tuple(adapters)), port=self.port)
        config["http_options"]["host"] = "127.0.0.1"
        self.ray.deploy(config)

    def start(self, adapters: Sequence[AdapterPlan] = ()) -> None:
        """Deploy and wait until every replica serves."""
        self.deploy(adapters)
        self.ray.wait_until_running(lambda _: None)

    def details(self) -> dict[str, Any]:
        """What the Serve REST API says."""
        answer = httpx.get(
            f"{self.ray.dashboard_url}/api/serve/applications/",
            headers={"Authorization": f"Bearer {self.ray.token}"},
            trust_env=False,
        )
        found: dict[str, Any] = answer.json()
        return found

    def replicas(self) -> list[dict[str, Any]]:
        """The running replicas."""
        application = self.details()["applications"][names.SERVE_APPLICATION]
        return list(application["deployments"][names.SERVE_DEPLOYMENT]["replicas"])

    def chat(self, model: str, *, url: str | None = None, tokens: int = 12) -> httpx.Response:
        """One question to the base model or an adapter, answered greedily."""
        return httpx.post(
            f"{url or self.url}/v1/completions",
            json={"model": model, "prompt": "What is Kubernetes?", "max_tokens": tokens, "temperature": 0},
            timeout=60,
            trust_env=False,
        )

    def stop(self) -> None:
        """End everything that was started."""
        self.ray.stop()


@contextlib.contextmanager
def a_serve_rig(folder: Path, *, replicas: int = 2, engine: Mapping[str, Any] | None = None) -> Iterator[ServeRig]:
    """A rig whose replicas serve, without adapters."""
    rig = ServeRig(folder, replicas=replicas, engine=engine)
    try:
        rig.start()
        yield rig
    finally:
        rig.stop()
