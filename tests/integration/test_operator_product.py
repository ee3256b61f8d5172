# SPDX-License-Identifier: Apache-2.0
"""The operator as a product: probes, metrics, logs, settings that are wrong, an orderly end."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.fixture import Cluster
from operator_rig import Operator, running_operator
from workspace_rig import a_serving, simulated_cluster, wait_for, wait_until_ready

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with simulated_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.add_node("gpu-1", gpus=1, labels={"apps": "phi"})
        yield cluster


def test_metrics_and_logs(cluster: Cluster, tmp_path: Path) -> None:
    client = cluster.client
    scope = ["--all-namespaces", "--log-format=json"]
    with running_operator(cluster.kubeconfig, tmp_path, scope=scope) as operator:
        client.create(a_serving("phi", "phi"))
        client.create(a_serving("impossible", inference={"preset": {"name": "no-such-model"}}))
        wait_until_ready(client, "phi")
        wait_for(client, "impossible", "ResourceReady", "False", reason="UnknownPreset")
        assert operator.probe("healthz") == (200, "ok\n")
        assert operator.probe("readyz") == (200, "ok\n")
        metrics = operator.probe("metrics")[1]
        for line in (
            'kaito_ray_workspaces{preset="phi-3-mini-4k-instruct",state="Ready"} 1.0',
            'kaito_ray_workspaces{preset="no-such-model",state="Pending"} 1.0',
            "kaito_ray_time_to_ready_seconds_count 1.0",
            "kaito_ray_leader 1.0",
        ):
            assert line in metrics
        assert re.search(r'kaito_ray_api_requests_total{code="201",kind="rayservices",method="PATCH"} 1.0', metrics)
        assert int(float(re.findall(r"kaito_ray_reconcile_seconds_count (\S+)", metrics)[0])) >= 2
        token = client.get("v1", "Secret", "phi-ray-token", "default")["data"]["auth_token"]
        key = client.get("v1", "Secret", "kaito-ray-webhook", "default")["data"]["tls.key"]
        assert operator.stop() == 0
    records = [json.loads(line) for line in operator.log.splitlines()]
    (ready,) = [record for record in records if record["message"].startswith("WorkspaceReady")]
    assert (ready["object"]["namespace"], ready["object"]["name"]) == ("default", "phi")
    assert ready["severity"] == "info"
    for secret in (token, key):
        assert secret not in operator.log
        assert base64.b64decode(secret).decode() not in operator.log
    assert not any("exc_info" in record for record in records)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"KAITO_RAY_PROVISIONER": "magic", "KAITO_RAY_MAX_NODES": "many"},
            ["KAITO_RAY_PROVISIONER", "'magic'", "KAITO_RAY_MAX_NODES", "'many'"],
        ),
        ({"KAITO_RAY_PROVISIONER": "aks"}, ["KAITO_RAY_SUBSCRIPTION_ID", "KAITO_RAY_CLUSTER_NAME", "AZURE_CLIENT_ID"]),
    ],
)
def test_wrong_settings_are_one_sentence(
    cluster: Cluster, tmp_path: Path, settings: dict[str, str], words: list[str]
) -> None:
    operator = Operator(cluster.kubeconfig, tmp_path, environment=settings)
    operator.wait_until_stopped()
    assert operator.stop() == 1
    (line,) = operator.log.splitlines()
    assert [word for word in words if word not in line] == []


def test_no_cluster_is_one_sentence(tmp_path: Path) -> None:
    operator = Operator(tmp_path / "no-kubeconfig", tmp_path)
    operator.wait_until_stopped()
    assert operator.stop() == 1
    assert operator.log.splitlines()[-1].startswith("the operator cannot start: there is no way to a cluster")
    assert "Traceback" not in operator.log


def test_a_second_operator_on_one_machine_does_without_probes(cluster: Cluster, tmp_path: Path) -> None:
    with running_operator(cluster.kubeconfig, tmp_path) as first:
        second = Operator(cluster.kubeconfig, tmp_path / "..", health_port=str(first.health_port))
        try:
            second.until(lambda: "no probes and metrics" in second.log, 60, "did not notice the port")
            assert second.running
        finally:
            assert second.stop() == 0
