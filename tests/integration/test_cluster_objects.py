# SPDX-License-Identifier: Apache-2.0
"""Objects of the test cluster: created, read, updated, deleted, and refused with Kubernetes' own words."""

import re
from typing import Any

import pytest
from kubernetes import client as kubernetes_client
from kubernetes import config
from kubernetes.client.exceptions import ApiException

from cluster.client import Client, Refused
from cluster.fixture import Cluster
from cluster.server import TestCluster
from cluster.widget import a_widget


def a_map(namespace: str, name: str = "m", **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}, "data": data}


def a_pod(namespace: str, name: str = "p", **spec: Any) -> dict[str, Any]:
    containers = [{"name": "c", "image": "registry.example/app:1"}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"containers": containers, **spec},
    }


def refusal(action: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        action()
    return caught.value


def test_the_official_client_creates_reads_lists_and_deletes(cluster: Cluster) -> None:
    core: Any = kubernetes_client.CoreV1Api(config.new_client_from_config(str(cluster.kubeconfig)))  # type: ignore[no-untyped-call]
    made = core.create_namespaced_config_map(cluster.namespace, a_map(cluster.namespace, a="1"))
    assert made.metadata.uid
    assert made.metadata.creation_timestamp.tzinfo is not None
    assert int(made.metadata.resource_version) > 0
    assert core.read_namespaced_config_map("m", cluster.namespace).data == {"a": "1"}
    assert "m" in [one.metadata.name for one in core.list_namespaced_config_map(cluster.namespace).items]
    core.delete_namespaced_config_map("m", cluster.namespace)
    with pytest.raises(ApiException) as caught:
        core.read_namespaced_config_map("m", cluster.namespace)
    assert caught.value.status == 404


async def test_the_async_client_works_too(cluster: Cluster) -> None:
    from kubernetes.aio import client as aio
    from kubernetes.aio import config as aio_config

    settings = aio.Configuration()
    await aio_config.load_kube_config(str(cluster.kubeconfig), client_configuration=settings)  # type: ignore[no-untyped-call]
    async with aio.ApiClient(settings) as api:
        core: Any = aio.CoreV1Api(api)
        await core.create_namespaced_config_map(cluster.namespace, a_map(cluster.namespace, a="1"))
        patched = await core.patch_namespaced_config_map("m", cluster.namespace, {"data": {"b": "2"}})
        assert patched.data == {"a": "1", "b": "2"}


def test_refusals_are_status_objects_with_reason_and_details(cluster: Cluster) -> None:
    client, namespace = cluster.client, cluster.namespace
    client.create(a_map(namespace))
    again = refusal(lambda: client.create(a_map(namespace)))
    assert again.status == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": 'configmaps "m" already exists',
        "reason": "AlreadyExists",
        "details": {"name": "m", "kind": "configmaps"},
        "code": 409,
    }
    absent = refusal(lambda: client.get("apps/v1", "Deployment", "d", namespace))
    assert absent.message == 'deployments.apps "d" not found'
    assert absent.status["details"] == {"name": "d", "group": "apps", "kind": "deployments"}
    nowhere = refusal(lambda: client.create(a_map("no-such-namespace")))
    assert (nowhere.code, nowhere.message) == (404, 'namespaces "no-such-namespace" not found')


def test_a_group_that_is_not_served_answers_plain_404(cluster: Cluster) -> None:
    unknown = refusal(lambda: cluster.client.request("GET", "/apis/none.example/v1/namespaces/default/things"))
    assert (unknown.code, unknown.message) == (404, "404 page not found\n")
    in_known = refusal(lambda: cluster.client.request("GET", "/apis/apps/v1/namespaces/default/things"))
    assert in_known.message == "the server could not find the requested resource"


@pytest.mark.parametrize(
    ("obj", "words"),
    [
        (a_map("", "Upper"), 'metadata.name: Invalid value: "Upper": a lowercase RFC 1123 subdomain must consist of'),
        ({**a_map(""), "metadata": {"name": "a" * 254}}, "must be no more than 253 "),
        ({**a_map(""), "metadata": {"name": "a", "labels": {"a": "b c"}}}, "a valid label must be an empty string or"),
        ({**a_map(""), "metadata": {"name": "a", "labels": {"a": "b" * 64}}}, "must be no more than 63 "),
        ({**a_map(""), "metadata": {"name": "a", "annotations": {"a": "b" * 262_145}}}, "Too long: may not be"),
        (a_map("", **{"a/b": "1"}), 'data[a/b]: Invalid value: "a/b": a valid config key must consist of'),
        (a_pod("", containers=[]), "spec.containers: Required value"),
        (a_pod("", containers=[{"name": "c"}]), "spec.containers[0].image: Required value"),
        (
            a_pod("", restartPolicy="Sometimes"),
            'spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "OnFailure", "Never"',
        ),
        (
            a_pod("", containers=[{"name": "c", "image": "i", "resources": {"requests": {"nvidia.com/gpu": 1}}}]),
            "spec.containers[0].resources.limits: Required value: Limit must be set for non overcommitable resources",
        ),
        (
            a_pod("", containers=[{"name": "c", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]),
            'spec.containers[0].volumeMounts[0].name: Not found: "v"',
        ),
    ],
)  # fmt: skip
def test_invalid_objects_are_refused_with_the_field(cluster: Cluster, obj: dict[str, Any], words: str) -> None:
    obj = {**obj, "metadata": {**obj["metadata"], "namespace": cluster.namespace}}
    seen = refusal(lambda: cluster.client.create(obj))
    assert seen.code == 422
    assert words in seen.message
    assert seen.status["details"]["causes"][0]["field"] in seen.message


def test_wrong_json_types_are_refused_before_validation(cluster: Cluster) -> None:
    pod = a_pod(cluster.namespace)
    pod["spec"]["containers"][0]["env"] = [{"name": "A", "value": 1}]
    seen = refusal(lambda: cluster.client.create(pod))
    assert (seen.code, seen.status["reason"]) == (400, "BadRequest")
    assert "cannot unmarshal number into Go struct field" in seen.message


def test_updates_need_the_current_resource_version(widgets: Client, cluster: Cluster) -> None:
    first = widgets.create(a_widget(namespace=cluster.namespace))
    second = widgets.replace({**first, "tags": ["x"]})
    assert second["metadata"]["generation"] == 2
    stale = refusal(lambda: widgets.replace({**first, "tags": ["y"]}))
    assert stale.code == 409
    assert stale.message == (
        'Operation cannot be fulfilled on widgets.test.kaito-ray.io "w": the object has been modified; please apply '
        "your changes to the latest version and try again"
    )
    bare = {**first, "metadata": {"name": "w", "namespace": cluster.namespace}}
    unspecified = refusal(lambda: widgets.replace(bare)).message.replace("0x0", "0")
    assert "metadata.resourceVersion: Invalid value: 0: must be specified for an update" in unspecified


def test_a_write_that_changes_nothing_keeps_the_resource_version(widgets: Client, cluster: Cluster) -> None:
    made = widgets.create(a_widget(namespace=cluster.namespace))
    assert widgets.replace(made)["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
    patched = widgets.patch(made, {"size": {"unit": "cm"}})
    assert patched["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]


def test_status_and_the_rest_are_written_apart(widgets: Client, cluster: Cluster) -> None:
    made = widgets.create(a_widget(namespace=cluster.namespace, status={"state": "sent along"}))
    assert "status" not in made
    through_main = widgets.patch(made, {"status": {"state": "x"}, "tags": ["t"]})
    assert ("status" in through_main, through_main["tags"]) == (False, ["t"])
    through_status = widgets.patch(
        made, {"status": {"state": "y"}, "tags": ["u"], "metadata": {"labels": {"a": "b"}}}, subresource="status"
    )
    assert (through_status["status"], through_status["tags"]) == ({"state": "y"}, ["t"])
    assert "labels" not in through_status["metadata"]
    assert through_status["metadata"]["generation"] == through_main["metadata"]["generation"] == 2
    labelled = widgets.patch(made, {"metadata": {"labels": {"a": "b"}}})
    assert labelled["metadata"]["generation"] == 2


def test_generate_name_makes_distinct_names(cluster: Cluster) -> None:
    metadata = {"generateName": "gen-", "namespace": cluster.namespace}
    seed = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}
    names = {cluster.client.create(seed)["metadata"]["name"] for _ in range(5)}
    assert len(names) == 5
    assert all(re.fullmatch(r"gen-[bcdfghjklmnpqrstvwxz2456789]{5}", name) for name in names)


def test_dry_run_checks_and_stores_nothing(cluster: Cluster) -> None:
    client = cluster.client
    assert client.create(a_map(cluster.namespace, a="1"), dryRun="All")["data"] == {"a": "1"}
    assert client.find("v1", "ConfigMap", "m", cluster.namespace) is None
    assert refusal(lambda: client.create(a_map(cluster.namespace, "Upper"), dryRun="All")).code == 422


def test_defaults_are_filled_in_and_quantities_made_canonical(cluster: Cluster) -> None:
    resources = {"limits": {"cpu": "0.5", "memory": "1024Mi", "nvidia.com/gpu": 1}}
    pod = a_pod(cluster.namespace, containers=[{"name": "c", "image": "registry.example/app", "resources": resources}])
    made = cluster.client.create(pod)["spec"]
    container = made["containers"][0]
    assert container["resources"]["limits"] == {"cpu": "500m", "memory": "1Gi", "nvidia.com/gpu": "1"}
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert container["imagePullPolicy"] == "Always"
    assert (made["restartPolicy"], made["terminationGracePeriodSeconds"]) == ("Always", 30)
    port = {"port": 80, "targetPort": 8000, "name": "serve"}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "s", "namespace": cluster.namespace},
        "spec": {"ports": [port], "selector": {"a": "b"}},
    }
    spec = cluster.client.create(service)["spec"]
    assert spec["ports"] == [{**port, "protocol": "TCP"}]
    assert spec["clusterIPs"] == [spec["clusterIP"]]
    metadata = {"name": "s", "namespace": cluster.namespace}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"a": "b"}}
    made = cluster.client.create(secret)
    assert (made["data"], made["type"], "stringData" in made) == ({"a": "Yg=="}, "Opaque", False)


def test_finalizers_hold_an_object_until_they_are_taken_away(widgets: Client, cluster: Cluster) -> None:
    widget = a_widget(namespace=cluster.namespace)
    widget["metadata"]["finalizers"] = ["test.kaito-ray.io/hold"]
    made = widgets.create(widget)
    held = widgets.delete(made)
    assert held["metadata"]["deletionTimestamp"]
    assert held["metadata"]["generation"] == made["metadata"]["generation"] + 1
    two = {"metadata": {"finalizers": ["test.kaito-ray.io/hold", "a.example/b"]}}
    added = refusal(lambda: widgets.patch(made, two))
    assert "no new finalizers can be added if the object is being deleted" in added.message
    widgets.patch(made, {"metadata": {"finalizers": []}})
    assert widgets.find(made["apiVersion"], made["kind"], "w", cluster.namespace) is None


def test_deletion_honours_preconditions_and_says_what_it_deleted(widgets: Client, cluster: Cluster) -> None:
    made = widgets.create(a_widget(namespace=cluster.namespace))
    wrong = refusal(lambda: widgets.delete(made, preconditions={"uid": "another"}))
    assert (wrong.code, made["metadata"]["uid"] in wrong.message) == (409, True)
    done = widgets.delete(made, preconditions={"uid": made["metadata"]["uid"]})
    assert done["status"] == "Success"
    details = {"name": "w", "group": "test.kaito-ray.io", "kind": "widgets", "uid": made["metadata"]["uid"]}
    assert done["details"] == details


def test_immutable_fields_stay(cluster: Cluster) -> None:
    client = cluster.client
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": cluster.namespace}}
    made = client.create(secret)
    assert "type: Invalid value" in refusal(lambda: client.patch(made, {"type": "kubernetes.io/tls"})).message
    pod = client.create(a_pod(cluster.namespace))
    assert "pod updates may not change fields other than" in refusal(
        lambda: client.patch(pod, {"spec": {"hostname": "other"}})
    ).message  # fmt: skip
    assert "metadata.uid: Invalid value" in refusal(lambda: client.patch(pod, {"metadata": {"uid": "x"}})).message


def test_lists_come_in_pages(cluster: Cluster) -> None:
    for number in range(5):
        cluster.client.create(a_map(cluster.namespace, f"page-{number}"))
    path = cluster.client.path("v1", "ConfigMap", cluster.namespace)
    names: list[str] = []
    token = ""
    while True:
        page = cluster.client.request("GET", path, limit=2, **({"continue": token} if token else {}))
        names += [one["metadata"]["name"] for one in page["items"]]
        token = page["metadata"].get("continue", "")
        if not token:
            break
        assert page["metadata"]["remainingItemCount"] > 0
    assert [name for name in names if name.startswith("page-")] == [f"page-{number}" for number in range(5)]


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("app=a", ["one"]),
        ("app!=a", ["three", "two"]),
        ("app in (a,b)", ["one", "two"]),
        ("app notin (a),tier", ["two"]),
        ("!tier", ["three"]),
    ],
)
def test_label_selectors(cluster: Cluster, selector: str, names: list[str]) -> None:
    labelled = {"one": {"app": "a", "tier": "x"}, "two": {"app": "b", "tier": "x"}, "three": {"app": "c"}}
    for name, labels in labelled.items():
        obj = a_map(cluster.namespace, name)
        obj["metadata"]["labels"] = {**labels, "test": "selectors"}
        cluster.client.create(obj)
    found = cluster.client.list("v1", "ConfigMap", cluster.namespace, labelSelector=f"test=selectors,{selector}")
    assert [one["metadata"]["name"] for one in found] == names


def test_field_selectors(cluster: Cluster) -> None:
    client = cluster.client
    client.create(a_map(cluster.namespace, "one"))
    client.create(a_map(cluster.namespace, "two"))
    found = client.list("v1", "ConfigMap", cluster.namespace, fieldSelector="metadata.name=two")
    assert [one["metadata"]["name"] for one in found] == ["two"]
    unknown = refusal(lambda: client.list("v1", "ConfigMap", cluster.namespace, fieldSelector="data.a=1"))
    assert (unknown.code, "data.a" in unknown.message) == (400, True)


def test_events_are_one_kind_in_two_groups(cluster: Cluster) -> None:
    about = {"apiVersion": "v1", "kind": "Pod", "name": "p", "namespace": cluster.namespace, "uid": "u"}
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "e", "namespace": cluster.namespace},
        "involvedObject": about,
        "reason": "Tested",
        "message": "all is well",
        "type": "Normal",
    }
    cluster.client.create(event)
    found = cluster.client.get("events.k8s.io/v1", "Event", "e", cluster.namespace)
    assert (found["note"], found["regarding"]["name"]) == ("all is well", "p")
    selected = f"involvedObject.name=p,involvedObject.namespace={cluster.namespace}"
    assert cluster.client.list("v1", "Event", cluster.namespace, fieldSelector=selected)
    about["namespace"] = "elsewhere"
    event["metadata"] = {"name": "f", "namespace": cluster.namespace}
    assert "does not match event.namespace" in refusal(lambda: cluster.client.create(event)).message


def test_custom_resources_are_served_in_all_versions(widgets: Client, cluster: Cluster) -> None:
    widgets.create(a_widget(namespace=cluster.namespace) | {"apiVersion": "test.kaito-ray.io/v1alpha1"})
    assert widgets.get("test.kaito-ray.io/v1", "Widget", "w", cluster.namespace)["apiVersion"] == "test.kaito-ray.io/v1"
    old = widgets.get("test.kaito-ray.io/v1alpha1", "Widget", "w", cluster.namespace)
    assert old["apiVersion"] == "test.kaito-ray.io/v1alpha1"


def test_a_definition_that_goes_takes_its_objects_along(widgets: Client, cluster: Cluster) -> None:
    widgets.create(a_widget(namespace=cluster.namespace))
    name = "widgets.test.kaito-ray.io"
    widgets.delete(widgets.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", name))
    widgets.wait(
        lambda: widgets.find("apiextensions.k8s.io/v1", "CustomResourceDefinition", name), lambda found: found is None
    )
    path = f"/apis/test.kaito-ray.io/v1/namespaces/{cluster.namespace}/widgets/w"
    widgets.wait(lambda: refusal(lambda: widgets.request("GET", path)).code, lambda code: code == 404)


def test_a_claim_in_use_outlives_its_deletion(simulated: TestCluster) -> None:
    client = simulated.client
    simulated.simulate()
    simulated.add_node("n")
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "c", "namespace": "default"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    assert client.create(claim)["spec"]["storageClassName"] == "default"
    client.wait(
        lambda: client.get("v1", "PersistentVolumeClaim", "c", "default")["status"],
        lambda status: status["phase"] == "Bound",
    )
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]
    pod = client.create(a_pod("default", volumes=volumes))
    held = client.delete(claim)
    assert held["metadata"]["finalizers"] == ["kubernetes.io/pvc-protection"]
    client.delete(pod)
    client.wait(lambda: client.find("v1", "PersistentVolumeClaim", "c", "default"), lambda found: found is None)


def test_a_restricted_namespace_refuses_careless_pods(cluster: Cluster) -> None:
    client = cluster.client
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    name = f"{cluster.namespace}-restricted"
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    client.create(namespace)
    careless = refusal(lambda: client.create(a_pod(name)))
    assert careless.code == 403
    assert (
        'pods "p" is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation' in careless.message
    )
    for word in ("capabilities", "runAsNonRoot != true", "seccompProfile"):
        assert word in careless.message
    context = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    careful = a_pod(
        name,
        containers=[{"name": "c", "image": "i:1", "securityContext": context}],
        securityContext={"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
    )
    assert client.create(careful, dryRun="All")
    client.delete(namespace)
