# SPDX-License-Identifier: Apache-2.0
"""The operator reads the log of a job from the dashboard of a real Ray, with the token of the Workspace's clusters."""

import base64
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cluster.ray_job_simulator import Running
from cluster.server import TestCluster
from kaito_ray.local_ray import LocalRay
from kaito_ray.names import token_secret_name, workspace_labels
from kaito_ray.tuning_event import Data, Finished, Started, Step
from operator_rig import running_operator
from workspace_rig import RAY, a_serving, get, simulated_cluster, wait_for, wait_until_ready

pytestmark = [pytest.mark.timeout(180), pytest.mark.filterwarnings("default")]

NAME, DIGEST = "taught", "sha256:" + "d" * 64
FIRST = (
    Data(rows=64, format="messages", tokens=4096),
    Started(attempt=1, workers=1, total_steps=300),
    Step(20, 300, 0.2, "2026-11-21T05:00:00Z", loss=3.21, tokens_per_second=512.0),
)
LAST = Finished(DIGEST, image="registry.example.com/phi:1", steps=300)


@pytest.fixture
def ray() -> Iterator[LocalRay]:
    ray = LocalRay(lambda *_: {}, cpus=1, gpus=0)
    yield ray
    ray.stop()


@pytest.fixture
def cluster(tmp_path: Path, ray: LocalRay) -> Iterator[TestCluster]:
    """A cluster whose Workspace has the token that Ray was started with."""
    with simulated_cluster(tmp_path) as cluster:
        if not isinstance(cluster, TestCluster):
            pytest.skip("needs the simulated cluster: no pod is there for the Ray of this machine")
        secrets = {"push": {".dockerconfigjson": "{}"}, token_secret_name(NAME): {"auth_token": ray.token}}
        for name, data in secrets.items():
            cluster.client.create(
                {
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "metadata": {
                        "name": name,
                        "namespace": "default",
                        "labels": workspace_labels(NAME, "default") if name != "push" else {},
                    },
                    "type": "kubernetes.io/dockerconfigjson" if name == "push" else "Opaque",
                    "data": {key: base64.b64encode(value.encode()).decode() for key, value in data.items()},
                }
            )
        cluster.add_node("gpu-1", gpus=1, labels={"apps": NAME})
        yield cluster


def test_progress_and_result_come_from_the_jobs_log(cluster: TestCluster, ray: LocalRay, tmp_path: Path) -> None:
    client = cluster.client
    cluster.set_running("default", "", Running(run_s=None))
    document = a_serving(NAME, NAME)
    del document["inference"]
    document["tuning"] = {
        "preset": {"name": "phi-3-mini-4k-instruct"},
        "method": "qlora",
        "input": {"urls": ["https://example.com/data/train.parquet"]},
        "output": {"image": "registry.example.com/phi:1", "imagePushSecret": "push"},
    }
    go_on = tmp_path / "go-on"
    driver = tmp_path / "driver.py"
    driver.write_text(
        "import pathlib, sys, time\n"
        f"for line in {['a line of some library', *(event.line() for event in FIRST)]!r}: print(line, flush=True)\n"
        f"while not pathlib.Path({str(go_on)!r}).exists(): time.sleep(0.1)\n"
        f"print({LAST.line()!r}, flush=True)\n"
    )
    with running_operator(cluster.kubeconfig, tmp_path):
        client.create(document)
        (job,) = client.wait(lambda: client.list(RAY, "RayJob", "default"), bool)
        name = job["metadata"]["name"]
        made = client.wait(lambda: client.get(RAY, "RayJob", name, "default").get("status", {}), has_cluster)
        headers = {"Authorization": f"Bearer {ray.token}"}
        with httpx.Client(base_url=ray.dashboard_url, headers=headers, trust_env=False, timeout=60) as dashboard:
            entrypoint = f"{shlex.quote(sys.executable)} {shlex.quote(str(driver))}"
            dashboard.post("/api/jobs/", json={"entrypoint": entrypoint, "submission_id": name}).raise_for_status()
            client.wait(
                lambda: dashboard.get(f"/api/jobs/{name}/logs").text, lambda log: "tokens_per_second" in log, 60
            )
            cluster.route_service("default", f"{made['rayClusterName']}-head-svc", ray.dashboard_url)
            tuning = client.wait(lambda: get(client, NAME)["status"].get("tuning"), bool, 30)
            assert tuning.items() >= {"state": "Training", "step": 20, "loss": 3.21, "rows": 64}.items()
            go_on.touch()
            client.wait(lambda: dashboard.get(f"/api/jobs/{name}").json()["status"], {"SUCCEEDED"}.__contains__, 60)
        cluster.set_running("default", name, Running())
        assert wait_for(client, NAME, "WorkspaceSucceeded")["status"]["output"]["digest"] == DIGEST
        wait_until_ready(client, NAME)


def has_cluster(status: dict[str, str]) -> bool:
    return bool(status.get("rayClusterName"))


def has_steps(log: str) -> bool:
    return "tokens_per_second" in log
