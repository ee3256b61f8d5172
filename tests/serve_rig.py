# SPDX-License-Identifier: Apache-2.0
"""The product's own Serve application on a real Ray of this machine, driven as KubeRay drives it: by Serve configs."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
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

    def scale(self, replicas: int, adapters: Sequence[AdapterPlan]) -> None:
        """Ask for so many replicas with those adapters; returns at once."""
        self.plan = replace(self.plan, replicas=replicas)
        self.deploy(adapters)

    def start(self, adapters: Sequence[AdapterPlan] = ()) -> None:
        """Deploy and wait until every replica serves."""
        self.deploy(adapters)
        self.ray.wait_until_running(lambda _: None)

    def details(self) -> dict[str, Any]:
        """What the Serve REST API says."""
        answer = httpx.get(
            f"{self.ray.dashboard_url}/api/serve/applications/",
            headers={"Authorization": f"Bearer {self.ray.token}"},
            timeout=30,
            trust_env=False,
        )
        found: dict[str, Any] = answer.json()
        return found

    def replicas(self) -> list[dict[str, Any]]:
        """The replicas that serve; one that takes over a new user_config is updating, and serves."""
        return [replica for replica in self.all_replicas() if replica["state"] in {"RUNNING", "UPDATING"}]

    def all_replicas(self) -> list[dict[str, Any]]:
        """Those that start and stop, too."""
        application = self.details()["applications"][names.SERVE_APPLICATION]
        found: list[dict[str, Any]] = application["deployments"][names.SERVE_DEPLOYMENT]["replicas"]
        return found

    def pids(self) -> set[int]:
        """The processes of the replicas."""
        return {int(replica["pid"]) for replica in self.replicas()}

    def replica_urls(self) -> list[str]:
        """Where each replica answers by itself, past the proxy."""
        found = []
        for pid in sorted(self.pids()):
            listening = [
                connection.laddr.port
                for connection in psutil.Process(pid).net_connections("tcp")
                if connection.status == psutil.CONN_LISTEN
            ]
            for port in listening:
                url = f"http://127.0.0.1:{port}"
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(f"{url}/adapters", timeout=20, trust_env=False).status_code == 200:
                        found.append(url)
        return found

    def states(self) -> list[dict[str, dict[str, Any]]]:
        """`GET /adapters` of each replica, by the adapter's name."""
        answers = [httpx.get(f"{url}/adapters", timeout=30, trust_env=False).json() for url in self.replica_urls()]
        return [{state["name"]: state for state in answer} for answer in answers]

    def reports(self, url: str) -> dict[str, dict[str, dict[str, Any]]]:
        """What one replica knows of all of them: by replica, by the adapter's name."""
        answer = httpx.get(f"{url}/adapters", params={"replicas": "all"}, timeout=30, trust_env=False)
        answer.raise_for_status()
        return {one["replica"]: {state["name"]: state for state in one["adapters"]} for one in answer.json()}

    def chat(self, model: str, *, url: str | None = None, tokens: int = 12) -> httpx.Response:
        """One question to the base model or an adapter, answered greedily."""
        return httpx.post(
            f"{url or self.url}/v1/completions",
            json={"model": model, "prompt": "What is Kubernetes?", "max_tokens": tokens, "temperature": 0},
            timeout=60,
            trust_env=False,
        )

    def models(self) -> list[dict[str, Any]]:
        """`GET /v1/models`."""
        return list(httpx.get(f"{self.url}/v1/models", timeout=30, trust_env=False).json()["data"])

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
