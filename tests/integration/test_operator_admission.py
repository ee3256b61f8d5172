# SPDX-License-Identifier: Apache-2.0
"""The admission webhook, asked by the API server over TLS: everything that is wrong at once, and nothing held back."""

import base64
import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.client import Client, Refused
from cluster.fixture import Cluster
from operator_rig import running_operator
from waiting import free_port
from workspace_rig import API, a_serving, get, kubectl, simulated_cluster, user_manifest, wait_until_gone

pytestmark = pytest.mark.timeout(120)

Object = dict[str, Any]
ADAPTER = {"source": {"name": "sql", "image": "registry.example.com/sql:1"}}


def configuration() -> Object:
    """The ValidatingWebhookConfiguration as the chart makes it, the authority still missing."""
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "kaito-ray"},
        "webhooks": [
            {
                "name": "workspaces.kaito-ray.io",
                "rules": [
                    {
                        "apiGroups": ["kaito.sh"],
                        "apiVersions": ["v1alpha1", "v1beta1"],
                        "operations": ["CREATE", "UPDATE"],
                        "resources": ["workspaces"],
                    }
                ],
                "clientConfig": {"service": {"name": "kaito-ray-webhook", "namespace": "default", "path": "/validate"}},
                "failurePolicy": "Fail",
                "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
            }
        ],
    }


def authority(client: Client) -> str:
    """What the configuration says whom to trust; empty as long as it says nothing."""
    found = client.get("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration", "kaito-ray")
    return str(found["webhooks"][0]["clientConfig"].get("caBundle", ""))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster whose API server asks the operator's webhook; one Workspace is older than it."""
    folder, port = tmp_path_factory.mktemp("cluster"), free_port()
    with simulated_cluster(folder) as cluster:
        older = a_serving("older", inference={"preset": {"name": "retired-model-of-2023"}})
        cluster.client.create(older)
        cluster.client.create(configuration())
        cluster.route_service("default", "kaito-ray-webhook", f"https://127.0.0.1:{port}")
        with running_operator(cluster.kubeconfig, folder, webhook_port=str(port)) as operator:
            cluster.client.wait(lambda: authority(cluster.client), bool)
            operator.until(lambda: _listens(port), 20, "does not serve its webhook")
            yield cluster


@pytest.fixture
def client(cluster: Cluster) -> Client:
    return cluster.client


def test_all_problems_at_once(client: Client) -> None:
    document = a_serving(
        "wrong",
        inference={
            "preset": {"name": "no-such-model"},
            "config": "Not A Name",
            "adapters": [{"source": {"name": "Bad Name", "image": "x/y:1"}}],
        },
    )
    document["resource"]["instanceType"] = "Standard_NC999_v9"
    message = _refusal(client, document)
    for field in (
        "inference.adapters[0].source.name",
        "inference.config",
        "inference.preset.name",
        "resource.instanceType",
    ):
        assert field in message


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"resource": {"instanceType": "Standard_NC999_v9"}}, "resource.instanceType", "Standard_NC999_v9"),
        ({"inference": {"preset": {"name": "no-such-model"}}}, "inference.preset.name", "no-such-model"),
        (
            {"inference": {"preset": {"name": "meta-llama/Llama-3.3-70B-Instruct"}}},
            "resource.instanceType",
            "too little",
        ),
        (
            {"inference": {"preset": None, "template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}}},
            "inference.template",
            "presets only",
        ),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_made(
    client: Client, change: dict[str, Any], field: str, words: str
) -> None:
    document = a_serving("impossible")
    document["resource"] |= change.get("resource", {})
    document["inference"] = {
        key: value for key, value in {**document["inference"], **change.get("inference", {})}.items() if value
    }
    if "70B" in str(document):
        document["resource"]["instanceType"] = "Standard_NV6ads_A10_v5"
    message = _refusal(client, document)
    assert field in message
    assert words in message


def test_a_retired_size_is_a_warning(cluster: Cluster, client: Client, tmp_path: Path) -> None:
    path = tmp_path / "workspace.json"
    document = user_manifest("01")
    path.write_text(json.dumps(document))
    said = kubectl(cluster.kubeconfig, "apply", "-f", str(path))
    assert "created" in said
    assert "Warning" in said
    assert "retired" in said
    assert "Standard_NC24ads_A100_v4" in said or "Standard_N" in said.replace("Standard_NC6s_v3", "")
    client.delete(get(client, document["metadata"]["name"]))


def test_a_preset_cannot_be_changed(client: Client) -> None:
    client.create(a_serving("fixed"))
    with pytest.raises(Refused) as refused:
        client.patch(get(client, "fixed"), {"inference": {"preset": {"name": "phi-3-mini-128k-instruct"}}})
    assert "preset" in refused.value.message
    assert "cannot be changed" in refused.value.message


def test_serving_cannot_be_turned_into_tuning(cluster: Cluster, tmp_path: Path) -> None:
    """The user's pages have two manifests of one name: the second says what to do instead of crashing."""
    first, second = tmp_path / "01.json", tmp_path / "02.json"
    first.write_text(json.dumps(user_manifest("01")))
    second.write_text(json.dumps(user_manifest("02")))
    kubectl(cluster.kubeconfig, "apply", "-f", str(first))
    said = kubectl(cluster.kubeconfig, "apply", "-f", str(second), check=False)
    assert "delete the Workspace first" in said
    assert "another name" in said


def test_what_an_older_release_accepted_stays_editable_and_deletable(client: Client) -> None:
    older = get(client, "older")
    client.patch(older, {"metadata": {"labels": {"team": "a"}}})
    client.patch(older, {"metadata": {"annotations": {"note": "keep"}}})
    edited = client.patch(older, {"inference": {"adapters": [ADAPTER]}})
    assert edited["inference"]["adapters"][0]["source"]["name"] == "sql"
    bad = {"source": {"name": "two-sources", "image": "r/a:1", "urls": ["https://example.com/a"]}}
    with pytest.raises(Refused) as refused:
        client.patch(older, {"inference": {"adapters": [ADAPTER, bad]}})
    assert "retired-model-of-2023" not in refused.value.message
    client.delete(get(client, "older"))
    wait_until_gone(client, API, "Workspace", "older")


def test_the_certificate_is_signed_by_what_the_api_server_was_given(cluster: Cluster, client: Client) -> None:
    bundle = base64.b64decode(authority(client)).decode()
    context = ssl.create_default_context(cadata=bundle)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    secret = client.get("v1", "Secret", "kaito-ray-webhook", "default")
    assert base64.b64decode(secret["data"]["ca.crt"]).decode() == bundle
    if cluster.is_simulated:
        assert cluster.api.admission.caller.routes  # asked by name of the Service, over TLS, all along


def _refusal(client: Client, document: Object) -> str:
    with pytest.raises(Refused) as refused:
        client.create(document)
    return refused.value.message


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
