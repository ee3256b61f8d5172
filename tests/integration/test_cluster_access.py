# SPDX-License-Identifier: Apache-2.0
"""RBAC of the test cluster: a service account may do what its roles say, and nothing else."""

from collections.abc import Iterator
from typing import Any

import pytest

from cluster.client import Client, Refused
from cluster.fixture import Cluster
from cluster.server import TestCluster

RBAC = "rbac.authorization.k8s.io/v1"


class Grants:
    """Roles of the service account `robot` in the test's namespace."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._made: list[dict[str, Any]] = []

    def __call__(self, kind: str, rules: list[dict[str, Any]]) -> None:
        """A role and its binding; returns once the first of the rules holds."""
        namespace = self._cluster.namespace
        metadata = {"name": f"robot-{namespace}", **({"namespace": namespace} if kind == "Role" else {})}
        role = {"apiVersion": RBAC, "kind": kind, "metadata": metadata, "rules": rules}
        binding = {
            "apiVersion": RBAC,
            "kind": f"{kind}Binding",
            "metadata": metadata,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": metadata["name"]},
            "subjects": [{"kind": "ServiceAccount", "namespace": namespace, "name": "robot"}],
        }
        self._made += [self._cluster.client.create(one) for one in (role, binding)]
        resource, _, subresource = rules[0]["resources"][0].partition("/")
        asked = {"verb": rules[0]["verbs"][0], "resource": resource, "subresource": subresource, "namespace": namespace}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "metadata": {},
            "spec": {"user": f"system:serviceaccount:{namespace}:robot", "resourceAttributes": asked},
        }
        client = self._cluster.client
        client.wait(lambda: client.create(review)["status"]["allowed"], bool)

    def revoke(self) -> None:
        """Take them away."""
        for one in self._made:
            self._cluster.client.delete(one)


@pytest.fixture
def grant(cluster: Cluster) -> Iterator[Grants]:
    grants = Grants(cluster)
    yield grants
    grants.revoke()


def a_map(name: str, namespace: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}}


@pytest.fixture
def robot(cluster: Cluster) -> Client:
    metadata = {"name": "robot", "namespace": cluster.namespace}
    cluster.client.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
    return Client(cluster.kubeconfig_of(cluster.namespace, "robot"))


def forbidden(action: Any) -> str:
    with pytest.raises(Refused) as caught:
        action()
    assert caught.value.code == 403
    return caught.value.message


def test_nothing_is_allowed_without_a_role(robot: Client, cluster: Cluster) -> None:
    assert forbidden(lambda: robot.list("v1", "ConfigMap")) == (
        f'configmaps is forbidden: User "system:serviceaccount:{cluster.namespace}:robot" cannot list resource '
        '"configmaps" in API '
        'group "" at the cluster scope'
    )
    place = cluster.namespace
    assert f'in the namespace "{place}"' in forbidden(lambda: robot.get("v1", "Secret", "s", place))


def test_a_cluster_role_allows_its_verbs_everywhere(robot: Client, cluster: Cluster, grant: Grants) -> None:
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list", "get", "create"]}]
    grant("ClusterRole", rules)
    robot.create(a_map("m", cluster.namespace))
    assert "m" in [one["metadata"]["name"] for one in robot.list("v1", "ConfigMap")]
    assert "cannot delete" in forbidden(lambda: robot.delete(a_map("m", cluster.namespace)))
    assert 'cannot patch resource "configmaps"' in forbidden(
        lambda: robot.patch(a_map("m", cluster.namespace), {"data": {"a": "b"}})
    )


def test_a_role_ends_at_its_namespace(robot: Client, cluster: Cluster, grant: Grants) -> None:
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["*"]}]
    grant("Role", rules)
    robot.create(a_map("m", cluster.namespace))
    forbidden(lambda: robot.create(a_map("m", "kube-public")))


def test_subresources_and_names_are_granted_apart(robot: Client, cluster: Cluster, grant: Grants) -> None:
    name = f"n-{cluster.namespace}"
    node = cluster.client.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    rules = [
        {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
        {"apiGroups": [""], "resources": ["nodes"], "resourceNames": [name], "verbs": ["get"]},
    ]
    grant("ClusterRole", rules)
    try:
        robot.patch(node, {"status": {"phase": "Running"}}, subresource="status")
        forbidden(lambda: robot.patch(node, {"metadata": {"labels": {"a": "b"}}}))
        assert robot.get("v1", "Node", name)
        forbidden(lambda: robot.get("v1", "Node", "other"))
    finally:
        cluster.client.delete(node)


def test_an_apply_that_creates_needs_both_verbs(robot: Client, cluster: Cluster, grant: Grants) -> None:
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["patch"]}]
    grant("ClusterRole", rules)
    assert "cannot create" in forbidden(lambda: robot.apply(a_map("m", cluster.namespace), "one"))
    cluster.client.create(a_map("m", cluster.namespace))
    robot.apply({**a_map("m", cluster.namespace), "data": {"a": "b"}}, "one")


def test_access_reviews_tell_the_same(robot: Client, grant: Grants) -> None:
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}]
    grant("ClusterRole", rules)

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
