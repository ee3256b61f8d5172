# SPDX-License-Identifier: Apache-2.0
"""RBAC of the test cluster: a service account may do what its roles say, and nothing else."""

from typing import Any

import pytest

from cluster.client import Client, Refused
from cluster.server import TestCluster

RBAC = "rbac.authorization.k8s.io/v1"


def grant(client: Client, kind: str, name: str, rules: list[dict[str, Any]], namespace: str = "") -> None:
    """A role and its binding to the service account default/robot."""
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    client.create({"apiVersion": RBAC, "kind": kind, "metadata": metadata, "rules": rules})
    client.create(
        {
            "apiVersion": RBAC,
            "kind": f"{kind}Binding",
            "metadata": metadata,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
            "subjects": [{"kind": "ServiceAccount", "namespace": "default", "name": "robot"}],
        }
    )


def a_map(name: str, namespace: str = "default") -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}}


@pytest.fixture
def robot(simulated: TestCluster) -> Client:
    simulated.client.create(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot", "namespace": "default"}}
    )
    return Client(simulated.kubeconfig_of("default", "robot"))


def forbidden(action: Any) -> str:
    with pytest.raises(Refused) as caught:
        action()
    assert caught.value.code == 403
    return caught.value.message


def test_nothing_is_allowed_without_a_role(robot: Client) -> None:
    assert forbidden(lambda: robot.list("v1", "ConfigMap")) == (
        'configmaps is forbidden: User "system:serviceaccount:default:robot" cannot list resource "configmaps" in API '
        'group "" at the cluster scope'
    )
    assert 'in the namespace "default"' in forbidden(lambda: robot.get("v1", "Secret", "s", "default"))


def test_a_cluster_role_allows_its_verbs_everywhere(robot: Client, simulated: TestCluster) -> None:
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list", "get", "create"]}]
    grant(simulated.client, "ClusterRole", "maps", rules)
    robot.create(a_map("m"))
    assert "m" in [one["metadata"]["name"] for one in robot.list("v1", "ConfigMap")]
    assert "cannot delete" in forbidden(lambda: robot.delete(a_map("m")))
    assert 'cannot patch resource "configmaps"' in forbidden(lambda: robot.patch(a_map("m"), {"data": {"a": "b"}}))


def test_a_role_ends_at_its_namespace(robot: Client, simulated: TestCluster) -> None:
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["*"]}]
    grant(simulated.client, "Role", "maps", rules, "default")
    robot.create(a_map("m"))
    forbidden(lambda: robot.create(a_map("m", "kube-public")))


def test_subresources_and_names_are_granted_apart(robot: Client, simulated: TestCluster) -> None:
    simulated.add_node("n")
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}}
    rules = [
        {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
        {"apiGroups": [""], "resources": ["nodes"], "resourceNames": ["n"], "verbs": ["get"]},
    ]
    grant(simulated.client, "ClusterRole", "nodes", rules)
    robot.patch(node, {"status": {"phase": "Running"}}, subresource="status")
    forbidden(lambda: robot.patch(node, {"metadata": {"labels": {"a": "b"}}}))
    assert robot.get("v1", "Node", "n")
    forbidden(lambda: robot.get("v1", "Node", "other"))


def test_an_apply_that_creates_needs_both_verbs(robot: Client, simulated: TestCluster) -> None:
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["patch"]}]
    grant(simulated.client, "ClusterRole", "maps", rules)
    assert "cannot create" in forbidden(lambda: robot.apply(a_map("m"), "one"))
    simulated.client.create(a_map("m"))
    robot.apply({**a_map("m"), "data": {"a": "b"}}, "one")


def test_access_reviews_tell_the_same(robot: Client, simulated: TestCluster) -> None:
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}]
    grant(simulated.client, "ClusterRole", "maps", rules)

    def may(verb: str) -> bool:
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {"verb": verb, "resource": "configmaps"}},
        }
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        return bool(robot.request("POST", path, review)["status"]["allowed"])

    assert (may("list"), may("delete")) == (True, False)


def test_a_wrong_token_is_no_user(simulated: TestCluster) -> None:
    stranger = Client(simulated.kubeconfig_of("default", ""))
    with pytest.raises(Refused) as caught:
        stranger.list("v1", "ConfigMap")
    assert (caught.value.code, caught.value.status["reason"]) == (401, "Unauthorized")
