# SPDX-License-Identifier: Apache-2.0
"""The real kubectl against the test cluster, as people use it."""

import json
import shutil
import subprocess
import threading
import time
from typing import Any

import pytest
import yaml

from cluster.client import Client
from cluster.fixture import Cluster, Kubectl
from cluster.server import TestCluster
from cluster.widget import a_widget


def text(obj: dict[str, Any]) -> str:
    return yaml.safe_dump({**obj, "metadata": {key: v for key, v in obj["metadata"].items() if key != "namespace"}})


def test_apply_creates_configures_and_leaves_unchanged(widgets: Client, cluster: Cluster, kubectl: Kubectl) -> None:
    assert "widget.test.kaito-ray.io/w created" in kubectl("apply", "-f", "-", stdin=text(a_widget(tags=["a"])))
    assert "unchanged" in kubectl("apply", "-f", "-", stdin=text(a_widget(tags=["a"])))
    widgets.patch(a_widget(namespace=cluster.namespace), {"size": {"count": 7}})
    assert "configured" in kubectl("apply", "-f", "-", stdin=text(a_widget()))
    found = widgets.get("test.kaito-ray.io/v1", "Widget", "w", cluster.namespace)
    assert ("tags" in found, found["size"]["count"]) == (False, 7), "ours is removed, theirs stays"


def test_apply_of_core_kinds_merges_by_key(cluster: Cluster, kubectl: Kubectl) -> None:
    manifest = kubectl("create", "deployment", "d", "--image=a:1", "--dry-run=client", "-o", "yaml")
    kubectl("apply", "-f", "-", stdin=manifest)
    kubectl("set", "env", "deployment/d", "EXTRA=1")
    kubectl("apply", "-f", "-", stdin=manifest.replace("image: a:1", "image: a:2"))
    spec = cluster.client.get("apps/v1", "Deployment", "d", cluster.namespace)["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["image"] == "a:2"
    assert container["env"] == [{"name": "EXTRA", "value": "1"}]
    assert "deployment.apps/d scaled" in kubectl("scale", "deployment/d", "--replicas=3")
    assert cluster.client.get("apps/v1", "Deployment", "d", cluster.namespace)["spec"]["replicas"] == 3


def test_apply_says_what_is_wrong(widgets: Client, kubectl: Kubectl) -> None:
    del widgets
    typo = kubectl("apply", "-f", "-", stdin=text(a_widget(size={"unit": "cm", "cuont": 1})), fails=True)
    assert 'strict decoding error: unknown field "size.cuont"' in typo
    wrong = kubectl("apply", "-f", "-", stdin=text(a_widget(size={"unit": "ell"})), fails=True)
    assert 'The Widget "w" is invalid' in wrong
    assert 'size.unit: Unsupported value: "ell": supported values: "cm", "inch"' in wrong
    nowhere = kubectl("apply", "-f", "-", stdin=text({**a_widget(), "kind": "Gadget"}), fails=True)
    assert 'no matches for kind "Gadget" in version "test.kaito-ray.io/v1"' in nowhere


def test_a_deprecated_version_warns(widgets: Client, kubectl: Kubectl) -> None:
    del widgets
    old = {**a_widget(), "apiVersion": "test.kaito-ray.io/v1alpha1"}
    assert "Warning: test.kaito-ray.io/v1alpha1 Widget is deprecated" in kubectl("apply", "-f", "-", stdin=text(old))


def test_server_side_apply_with_conflict(widgets: Client, kubectl: Kubectl) -> None:
    del widgets
    first = text(a_widget(size={"unit": "cm", "count": 2}))
    assert "serverside-applied" in kubectl("apply", "--server-side", "-f", "-", stdin=first)
    other = text(a_widget(size={"unit": "cm", "count": 3}))
    refused = kubectl("apply", "--server-side", "--field-manager=other", "-f", "-", stdin=other, fails=True)
    assert 'Apply failed with 1 conflict: conflict with "kubectl": .size.count' in refused
    kubectl("apply", "--server-side", "--field-manager=other", "--force-conflicts", "-f", "-", stdin=other)


def test_a_client_side_apply_can_be_taken_over_server_side(widgets: Client, cluster: Cluster, kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=text(a_widget(tags=["a"])))
    kubectl("apply", "--server-side", "-f", "-", stdin=text(a_widget()))
    found = widgets.get("test.kaito-ray.io/v1", "Widget", "w", cluster.namespace)
    assert "tags" not in found, "what the client-side apply owned went over to the server-side one"


def test_get_prints_columns_and_wide_ones(widgets: Client, cluster: Cluster, kubectl: Kubectl) -> None:
    made = widgets.create(a_widget(namespace=cluster.namespace))
    conditions = [{"type": "Ready", "status": "True"}]
    widgets.patch(made, {"status": {"state": "fine", "conditions": conditions}}, subresource="status")
    lines = [line.split() for line in kubectl("get", "wg").splitlines()]
    assert lines[0] == ["NAME", "UNIT", "COUNT", "READY", "AGE"]
    assert lines[1][:4] == ["w", "cm", "1", "True"]
    wide = [line.split() for line in kubectl("get", "widgets", "-o", "wide").splitlines()]
    assert wide[0] == ["NAME", "UNIT", "COUNT", "READY", "AGE", "STATE"]
    assert wide[1][-1] == "fine"
    assert kubectl("get", "wg", "w", "-o", "jsonpath={.status.state}") == "fine"
    assert kubectl("get", "wg", "-o", "name") == "widget.test.kaito-ray.io/w\n"


def test_services_print_as_the_documents_show(cluster: Cluster, kubectl: Kubectl) -> None:
    ports = [{"name": "serve", "port": 80, "targetPort": 8000}, {"name": "torch", "port": 29500}]
    metadata = {"name": "workspace-phi-3-mini", "namespace": cluster.namespace}
    spec = {"ports": ports, "selector": {"a": "b"}}
    made = cluster.client.create({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
    lines = kubectl("get", "svc", "workspace-phi-3-mini").splitlines()
    assert lines[0].split() == ["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"]
    shown = ["workspace-phi-3-mini", "ClusterIP", made["spec"]["clusterIP"], "<none>", "80/TCP,29500/TCP"]
    assert lines[1].split()[:5] == shown
    address = kubectl("get", "svc", "workspace-phi-3-mini", "-o", "jsonpath={.spec.clusterIPs[0]}")
    assert address == made["spec"]["clusterIP"]


def test_describe_shows_status_and_events(widgets: Client, cluster: Cluster, kubectl: Kubectl) -> None:
    made = widgets.create(a_widget(namespace=cluster.namespace))
    widgets.patch(made, {"status": {"state": "fine"}}, subresource="status")
    identity = {key: made["metadata"][key] for key in ("name", "namespace", "uid")}
    about = {"apiVersion": made["apiVersion"], "kind": "Widget", **identity}
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "e", "namespace": cluster.namespace},
        "involvedObject": about,
        "reason": "Measured",
        "message": "it is one cm",
        "type": "Normal",
        "lastTimestamp": made["metadata"]["creationTimestamp"],
    }
    widgets.create(event)
    described = kubectl("describe", "widget", "w")
    assert "State:  fine" in described
    assert "Measured" in described
    assert "it is one cm" in described
    assert "Measured" in kubectl("get", "events")


def test_patch_label_annotate_and_edit_by_replace(widgets: Client, cluster: Cluster, kubectl: Kubectl) -> None:
    widgets.create(a_widget(namespace=cluster.namespace))
    assert "patched" in kubectl("patch", "wg", "w", "--type=merge", "-p", '{"size":{"count":3}}')
    kubectl("patch", "wg", "w", "--type=json", "-p", '[{"op":"add","path":"/tags","value":["t"]}]')
    kubectl("label", "wg", "w", "a=b")
    kubectl("annotate", "wg", "w", "c=d")
    kubectl("patch", "wg", "w", "--subresource=status", "--type=merge", "-p", '{"status":{"state":"s"}}')
    found = json.loads(kubectl("get", "wg", "w", "-o", "json"))
    assert (found["size"]["count"], found["tags"], found["status"]["state"]) == (3, ["t"], "s")
    assert (found["metadata"]["labels"], found["metadata"]["annotations"]) == ({"a": "b"}, {"c": "d"})
    found["tags"] = ["u"]
    kubectl("replace", "-f", "-", stdin=json.dumps(found))
    assert "immutable" in kubectl("patch", "wg", "w", "--type=merge", "-p", '{"size":{"unit":"inch"}}', fails=True)


def test_wait_for_a_condition_and_for_deletion(widgets: Client, cluster: Cluster, kubectl: Kubectl) -> None:
    made = widgets.create(a_widget(namespace=cluster.namespace))

    def later() -> None:
        time.sleep(0.5)
        change = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
        widgets.patch(made, change, subresource="status")

    thread = threading.Thread(target=later)
    thread.start()
    assert "condition met" in kubectl("wait", "--for=condition=Ready", "wg/w", "--timeout=10s")
    thread.join()
    assert "timed out" in kubectl("wait", "--for=condition=Never", "wg/w", "--timeout=1s", fails=True)
    assert 'widget.test.kaito-ray.io "w" deleted' in kubectl("delete", "wg", "w", "--wait")
    assert "No resources found" in kubectl("get", "wg")


def test_delete_waits_for_finalizers(widgets: Client, cluster: Cluster, kubectl: Kubectl) -> None:
    widget = a_widget(namespace=cluster.namespace)
    widget["metadata"]["finalizers"] = ["test.kaito-ray.io/hold"]
    widgets.create(widget)
    assert "timed out" in kubectl("delete", "wg", "w", "--timeout=1s", fails=True)
    widgets.patch(widget, {"metadata": {"finalizers": None}})
    assert "NotFound" in kubectl("get", "wg", "w", fails=True)


def test_get_watch_prints_rows_as_they_change(widgets: Client, cluster: Cluster, kubectl: Kubectl) -> None:
    del kubectl
    widgets.create(a_widget(namespace=cluster.namespace))
    command = ["kubectl", "--kubeconfig", str(cluster.kubeconfig), "-n", cluster.namespace, "get", "wg", "-w"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        try:
            assert watching.stdout is not None
            assert watching.stdout.readline().split() == ["NAME", "UNIT", "COUNT", "READY", "AGE"]
            assert watching.stdout.readline().split()[:3] == ["w", "cm", "1"]
            widgets.patch(a_widget(namespace=cluster.namespace), {"size": {"count": 5}})
            assert watching.stdout.readline().split()[:3] == ["w", "cm", "5"]
        finally:
            watching.terminate()


def test_explain_knows_custom_and_core_fields(widgets: Client, kubectl: Kubectl) -> None:
    del widgets
    explained = kubectl("explain", "widget.size")
    assert "How big it is." in explained
    assert "count\t<integer>" in explained
    assert "unit\t<string> -required-" in explained
    assert "<[]ContainerPort>" in kubectl("explain", "pod.spec.containers.ports")


def test_discovery_and_who_am_i(widgets: Client, kubectl: Kubectl) -> None:
    del widgets
    resources = kubectl("api-resources", "--api-group=test.kaito-ray.io")
    assert resources.splitlines()[1].split() == ["widgets", "wg", "test.kaito-ray.io/v1", "true", "Widget"]
    assert kubectl("auth", "can-i", "create", "widgets").strip() == "yes"
    assert "Server Version" in kubectl("version")


def test_imperative_creates(cluster: Cluster, kubectl: Kubectl) -> None:
    kubectl("create", "configmap", "m", "--from-literal=a=b")
    kubectl("create", "secret", "generic", "s", "--from-literal=token=abc")
    kubectl("create", "serviceaccount", "robot")
    assert cluster.client.get("v1", "ConfigMap", "m", cluster.namespace)["data"] == {"a": "b"}
    assert cluster.client.get("v1", "Secret", "s", cluster.namespace)["data"] == {"token": "YWJj"}
    assert 'configmaps "m" already exists' in kubectl("create", "configmap", "m", fails=True)
    assert kubectl("create", "token", "robot").strip()


def test_diff_shows_what_apply_would_change(widgets: Client, kubectl: Kubectl) -> None:
    del widgets
    if shutil.which("diff") is None:
        pytest.skip("diff is not installed")
    kubectl("apply", "-f", "-", stdin=text(a_widget()))
    assert kubectl("diff", "-f", "-", stdin=text(a_widget())) == ""
    larger = text(a_widget(size={"unit": "cm", "count": 4}))
    assert "+  count: 4" in kubectl("diff", "-f", "-", stdin=larger, fails=True)


def test_pods_and_nodes_print_as_usual(simulated: TestCluster, kubectl: Kubectl) -> None:
    simulated.simulate()
    simulated.add_node("gpu-0", gpus=1, labels={"apps": "phi-3"}, instance_type="Standard_NC24ads_A100_v4")
    kubectl("run", "p", "--image=registry.example/app:1")
    kubectl("wait", "--for=condition=Ready", "pod/p", "--timeout=10s")
    lines = [line.split() for line in kubectl("get", "pods", "-o", "wide").splitlines()]
    assert lines[0][:7] == ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE"]
    assert lines[1][:4] == ["p", "1/1", "Running", "0"]
    assert lines[1][6] == "gpu-0"
    assert "Ready" in kubectl("get", "nodes").splitlines()[1]
    described = kubectl("describe", "node", "gpu-0")
    assert "nvidia.com/gpu" in described
    kubectl("delete", "pod", "p")
    assert "NotFound" in kubectl("get", "pod", "p", fails=True)
