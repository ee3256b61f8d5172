# SPDX-License-Identifier: Apache-2.0
"""Owner references and namespaces on the test cluster: what is deleted along, first, or never."""

from typing import Any

import pytest

from cluster.client import Client, Refused
from cluster.fixture import Cluster


def a_map(namespace: str, name: str, *owners: dict[str, Any], blocks: bool = True) -> dict[str, Any]:
    references = [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"],
            "blockOwnerDeletion": blocks,
        }
        for owner in owners
    ]
    metadata: dict[str, Any] = {"name": name, "namespace": namespace}
    if references:
        metadata["ownerReferences"] = references
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}


def gone(client: Client, namespace: str, name: str) -> None:
    client.wait(lambda: client.find("v1", "ConfigMap", name, namespace), lambda found: found is None)


def test_dependents_follow_their_owner(cluster: Cluster) -> None:
    client, namespace = cluster.client, cluster.namespace
    owner = client.create(a_map(namespace, "owner"))
    child = client.create(a_map(namespace, "child", owner))
    client.create(a_map(namespace, "grandchild", child))
    client.delete(owner)
    gone(client, namespace, "child")
    gone(client, namespace, "grandchild")


def test_a_dependent_with_another_owner_stays(cluster: Cluster) -> None:
    client, namespace = cluster.client, cluster.namespace
    first, second = client.create(a_map(namespace, "first")), client.create(a_map(namespace, "second"))
    client.create(a_map(namespace, "child", first, second))
    client.delete(first)
    left = client.wait(
        lambda: client.get("v1", "ConfigMap", "child", namespace)["metadata"].get("ownerReferences", []),
        lambda references: len(references) == 1,
    )
    assert left[0]["name"] == "second"


def test_an_object_of_an_absent_owner_is_collected(cluster: Cluster) -> None:
    client, namespace = cluster.client, cluster.namespace
    owner = client.create(a_map(namespace, "owner"))
    client.delete(owner)
    client.create(a_map(namespace, "late", owner))
    gone(client, namespace, "late")


def test_foreground_deletion_waits_for_the_dependents(cluster: Cluster) -> None:
    client, namespace = cluster.client, cluster.namespace
    owner = client.create(a_map(namespace, "owner"))
    child = a_map(namespace, "child", owner)
    child["metadata"]["finalizers"] = ["test.kaito-ray.io/hold"]
    client.create(child)
    client.delete(owner, propagationPolicy="Foreground")
    client.wait(
        lambda: client.get("v1", "ConfigMap", "child", namespace)["metadata"],
        lambda found: "deletionTimestamp" in found,
    )
    waiting = client.get("v1", "ConfigMap", "owner", namespace)["metadata"]
    assert waiting["finalizers"] == ["foregroundDeletion"]
    client.patch(child, {"metadata": {"finalizers": None}})
    gone(client, namespace, "owner")


def test_orphaned_dependents_stay(cluster: Cluster) -> None:
    client, namespace = cluster.client, cluster.namespace
    owner = client.create(a_map(namespace, "owner"))
    client.create(a_map(namespace, "child", owner))
    client.delete(owner, propagationPolicy="Orphan")
    gone(client, namespace, "owner")
    assert "ownerReferences" not in client.get("v1", "ConfigMap", "child", namespace)["metadata"]


def test_a_namespace_takes_everything_along_and_lets_nothing_new_in(cluster: Cluster) -> None:
    client = cluster.client
    metadata = {"generateName": "kaito-ray-gone-"}
    namespace = client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    name = namespace["metadata"]["name"]
    held = a_map(name, "held")
    held["metadata"]["finalizers"] = ["test.kaito-ray.io/hold"]
    client.create(held)
    client.create(a_map(name, "free"))
    client.delete(namespace)
    gone(client, name, "free")
    with pytest.raises(Refused) as caught:
        client.create(a_map(name, "new"))
    assert caught.value.code == 403
    assert f"unable to create new content in namespace {name} because it is being terminated" in caught.value.message
    assert caught.value.status["details"]["causes"][0]["reason"] == "NamespaceTerminating"
    client.patch(held, {"metadata": {"finalizers": None}})
    client.wait(lambda: client.find("v1", "Namespace", name), lambda found: found is None, 30)


def test_a_whole_collection_can_be_deleted(cluster: Cluster) -> None:
    client, namespace = cluster.client, cluster.namespace
    for name in ("one", "two"):
        obj = a_map(namespace, name)
        obj["metadata"]["labels"] = {"batch": "x"}
        client.create(obj)
    client.create(a_map(namespace, "three"))
    client.request("DELETE", client.path("v1", "ConfigMap", namespace), labelSelector="batch=x")
    gone(client, namespace, "one")
    gone(client, namespace, "two")
    assert client.find("v1", "ConfigMap", "three", namespace)
