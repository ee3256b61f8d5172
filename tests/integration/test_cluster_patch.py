# SPDX-License-Identifier: Apache-2.0
"""The patch formats of the test cluster: JSON, merge and strategic merge."""

from typing import Any

import pytest

from cluster.client import Client, Refused
from cluster.fixture import Cluster
from cluster.widget import a_widget

STRATEGIC = "application/strategic-merge-patch+json"


def a_deployment(namespace: str) -> dict[str, Any]:
    containers = [
        {"name": "a", "image": "a:1", "env": [{"name": "X", "value": "1"}], "ports": [{"containerPort": 80}]},
        {"name": "b", "image": "b:1", "args": ["one", "two"]},
    ]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "d", "namespace": namespace},
        "spec": {
            "selector": {"matchLabels": {"app": "d"}},
            "template": {
                "metadata": {"labels": {"app": "d"}},
                "spec": {"containers": containers, "tolerations": [{"key": "old", "operator": "Exists"}]},
            },
        },
    }


def test_json_patch(widgets: Client, cluster: Cluster) -> None:
    made = widgets.create(a_widget(namespace=cluster.namespace, tags=["a", "b"]))
    patched = widgets.patch(
        made,
        [
            {"op": "test", "path": "/size/unit", "value": "cm"},
            {"op": "add", "path": "/tags/-", "value": "c"},
            {"op": "remove", "path": "/tags/0"},
            {"op": "replace", "path": "/size/count", "value": 4},
        ],
    )
    assert (patched["tags"], patched["size"]["count"]) == (["b", "c"], 4)


def test_a_json_patch_that_does_not_fit_changes_nothing(widgets: Client, cluster: Cluster) -> None:
    made = widgets.create(a_widget(namespace=cluster.namespace))
    failing_test = [
        {"op": "replace", "path": "/size/count", "value": 4},
        {"op": "test", "path": "/size/unit", "value": "inch"},
    ]
    with pytest.raises(Refused) as caught:
        widgets.patch(made, failing_test)
    assert caught.value.code == 422
    assert widgets.get(made["apiVersion"], made["kind"], "w", cluster.namespace)["size"]["count"] == 1


def test_merge_patch_replaces_lists_and_null_removes(widgets: Client, cluster: Cluster) -> None:
    made = widgets.create(a_widget(namespace=cluster.namespace, tags=["a", "b"], parts=[{"name": "x"}]))
    patched = widgets.patch(made, {"tags": ["c"], "parts": None, "size": {"note": "hi"}})
    assert patched["tags"] == ["c"]
    assert "parts" not in patched
    assert patched["size"] == {"unit": "cm", "count": 1, "note": "hi"}


def test_a_patch_with_a_resource_version_is_conditional(widgets: Client, cluster: Cluster) -> None:
    made = widgets.create(a_widget(namespace=cluster.namespace))
    version = made["metadata"]["resourceVersion"]
    widgets.patch(made, {"metadata": {"resourceVersion": version}, "tags": ["a"]})
    with pytest.raises(Refused) as caught:
        widgets.patch(made, {"metadata": {"resourceVersion": version}, "tags": ["b"]})
    assert caught.value.code == 409


def test_strategic_merge_merges_keyed_lists_by_key(cluster: Cluster) -> None:
    made = cluster.client.create(a_deployment(cluster.namespace))
    change = {
        "containers": [
            {"name": "a", "image": "a:2", "env": [{"name": "Y", "value": "2"}, {"name": "X", "$patch": "delete"}]},
            {"name": "c", "image": "c:1"},
        ],
        "tolerations": [{"key": "new", "operator": "Exists"}],
    }
    patched = cluster.client.patch(made, {"spec": {"template": {"spec": change}}}, content_type=STRATEGIC)
    spec = patched["spec"]["template"]["spec"]
    assert {one["name"]: one["image"] for one in spec["containers"]} == {"a": "a:2", "b": "b:1", "c": "c:1"}
    first = next(one for one in spec["containers"] if one["name"] == "a")
    assert first["env"] == [{"name": "Y", "value": "2"}]
    assert first["ports"] == [{"containerPort": 80, "protocol": "TCP"}]
    assert [one["key"] for one in spec["tolerations"]] == ["new"]


def test_strategic_merge_directives(cluster: Cluster) -> None:
    made = cluster.client.create(a_deployment(cluster.namespace))
    change: dict[str, Any] = {
        "$setElementOrder/containers": [{"name": "b"}, {"name": "a"}],
        "containers": [{"name": "a", "image": "a:3"}],
    }
    patched = cluster.client.patch(made, {"spec": {"template": {"spec": change}}}, content_type=STRATEGIC)
    assert [one["name"] for one in patched["spec"]["template"]["spec"]["containers"]] == ["b", "a"]
    gone = {"containers": [{"name": "b", "$patch": "delete"}]}
    patched = cluster.client.patch(made, {"spec": {"template": {"spec": gone}}}, content_type=STRATEGIC)
    assert [one["name"] for one in patched["spec"]["template"]["spec"]["containers"]] == ["a"]


def test_custom_resources_take_no_strategic_merge(widgets: Client, cluster: Cluster) -> None:
    made = widgets.create(a_widget(namespace=cluster.namespace))
    with pytest.raises(Refused) as caught:
        widgets.patch(made, {"tags": ["a"]}, content_type=STRATEGIC)
    assert caught.value.code == 415
    assert "application/merge-patch+json" in caught.value.message


def test_node_conditions_and_pod_conditions_merge_by_type(cluster: Cluster) -> None:
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"n-{cluster.namespace}"}}
    made = cluster.client.create(node)
    try:
        for kind in ("Ready", "DiskPressure"):
            change = {"status": {"conditions": [{"type": kind, "status": "True"}]}}
            patched = cluster.client.patch(made, change, subresource="status", content_type=STRATEGIC)
        assert {one["type"] for one in patched["status"]["conditions"]} >= {"Ready", "DiskPressure"}
    finally:
        cluster.client.delete(made)
