# SPDX-License-Identifier: Apache-2.0
"""The Helm chart: what it renders to, under which values, with which rights."""

import json
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from helm_template import CHART, render_chart, render_files
from kaito_ray.settings import PREFIX, Settings
from schemas import model_problems

Object = dict[str, Any]
# Set by the chart itself, because other parts of it must agree.
_OWN = {
    "operator_namespace",
    "health_port",
    "webhook_port",
    "webhook_service",
    "webhook_configuration",
    "webhook_cert_dir",
}
_MODELS = {
    "ClusterRole": "V1ClusterRole",
    "ClusterRoleBinding": "V1ClusterRoleBinding",
    "ConfigMap": "V1ConfigMap",
    "DaemonSet": "V1DaemonSet",
    "Deployment": "V1Deployment",
    "NetworkPolicy": "V1NetworkPolicy",
    "PodDisruptionBudget": "V1PodDisruptionBudget",
    "Role": "V1Role",
    "RoleBinding": "V1RoleBinding",
    "Service": "V1Service",
    "ServiceAccount": "V1ServiceAccount",
    "ValidatingWebhookConfiguration": "V1ValidatingWebhookConfiguration",
}
EVERYTHING: Object = {
    "settings": {"namespaces": ["a", "b"], "provisioner": "karpenter", "maxNodes": 4, "zones": ["1"]},
    "azure": {"clientId": "client", "tenantId": "tenant", "credentialsSecret": "azure"},
    "webhook": {"certManager": {"enabled": True}},
    "monitoring": {"podMonitor": {"enabled": True, "labels": {"x": "y"}}, "dashboard": {"enabled": True}},
    "image": {"pullSecrets": [{"name": "pull"}]},
    "tolerations": [{"key": "a", "operator": "Exists"}],
    "priorityClassName": "system-cluster-critical",
    "podAnnotations": {"a": "b"},
}


def of_kind(objects: list[Object], kind: str, name: str = "kaito-ray") -> Object:
    (found,) = [one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name]
    return found


@pytest.mark.parametrize("values", [{}, EVERYTHING, {"replicas": 1, "webhook": {"enabled": False}}])
def test_every_object_is_one_that_an_api_server_takes(values: Object) -> None:
    objects = render_chart(values)
    keys = [(one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in objects]
    assert len(keys) == len(set(keys))
    for one in objects:
        if one["kind"] in _MODELS:
            assert model_problems(one, _MODELS[one["kind"]]) == []


def test_every_setting_is_a_value() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())["settings"]
    names = {"".join(f"_{one.lower()}" if one.isupper() else one for one in key) for key in values}
    assert names == set(Settings.model_fields) - _OWN
    container = of_kind(render_chart(EVERYTHING), "Deployment")["spec"]["template"]["spec"]["containers"][0]
    environ = {one["name"]: one.get("value", "") for one in container["env"]}
    settings = Settings.from_env(environ)
    assert (settings.namespaces, settings.max_nodes, settings.zones) == (("a", "b"), 4, ("1",))
    assert {name.removeprefix(PREFIX).lower() for name in environ if name.startswith(PREFIX)} <= set(
        Settings.model_fields
    )


def test_the_operator_meets_the_restricted_pod_security_standard() -> None:
    spec = of_kind(render_chart(), "Deployment")["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    assert not any("hostPath" in volume for volume in spec["volumes"])


def test_selectors_find_the_pods() -> None:
    objects = render_chart()
    labels = of_kind(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        of_kind(objects, "Deployment")["spec"]["selector"]["matchLabels"],
        of_kind(objects, "Service", "kaito-ray-webhook")["spec"]["selector"],
        of_kind(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        of_kind(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(selector.items() <= labels.items() for selector in selectors)
    plugin = of_kind(objects, "DaemonSet", "kaito-ray-device-plugin")["spec"]["template"]["metadata"]["labels"]
    assert not any(selector.items() <= plugin.items() for selector in selectors)


def test_with_namespaces_no_secret_of_another_one_can_be_read() -> None:
    objects = render_chart({"settings": {"namespaces": ["a", "b"]}})
    cluster = {resource for rule in of_kind(objects, "ClusterRole")["rules"] for resource in rule["resources"]}
    assert cluster == {"nodes", "namespaces", "customresourcedefinitions", "validatingwebhookconfigurations"}
    roles = [one for one in objects if one["kind"] == "Role" and one["metadata"]["name"] == "kaito-ray"]
    assert [role["metadata"]["namespace"] for role in roles] == ["a", "b"]
    container = of_kind(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert container["args"][1:] == ["--namespace=a", "--namespace=b"]
    hook = of_kind(objects, "ValidatingWebhookConfiguration")["webhooks"][0]
    assert hook["namespaceSelector"]["matchExpressions"][0]["values"] == ["a", "b"]


@pytest.mark.parametrize("values", [{}, {"settings": {"namespaces": ["a"]}}])
def test_no_right_is_a_wildcard(values: Object) -> None:
    rules = [rule for one in render_chart(values) for rule in one.get("rules", [])]
    assert rules
    assert not any("*" in rule[part] for rule in rules for part in ("verbs", "resources", "apiGroups"))


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    from kaito_ray.metrics import REGISTRY, WorkspaceCollector

    known = {metric.name for metric in REGISTRY.collect()} | {
        metric.name for metric in WorkspaceCollector(list).collect()
    }
    dashboard = json.loads((CHART / "files" / "dashboard.json").read_text())
    asked = {
        word
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
        for word in target["expr"].replace("(", " ").replace("{", " ").replace("[", " ").replace(")", " ").split()
        if word.startswith("kaito_ray_")
    }
    assert asked
    endings = ("_bucket", "_count", "_total", "")
    assert [word for word in asked if not any(word.removesuffix(ending) in known for ending in endings)] == []


def test_plain_manifests_are_those_of_the_chart() -> None:
    path = CHART.parent / "install" / "kaito-ray.yaml"
    assert list(yaml.load_all(path.read_text(), yaml.CSafeLoader)) == render_chart(), "run `make generate`"


def test_helm_agrees() -> None:
    helm = shutil.which("helm")
    if helm is None:
        pytest.skip("needs helm")
    arguments = ["template", "kaito-ray", str(CHART), "--namespace", "kaito-ray", "--set", "kuberay.enabled=false"]
    said = subprocess.run([helm, *arguments], capture_output=True, text=True, check=True, timeout=60).stdout
    rendered = [document for document in yaml.safe_load_all(said) if document]

    def key(one: Object) -> tuple[str, str]:
        return one["kind"], one["metadata"]["name"]

    assert sorted(rendered, key=key) == sorted(render_chart(), key=key)


def test_no_template_is_left_open() -> None:
    for file, text in render_files(EVERYTHING).items():
        assert file == "monitoring.yaml" or "{{" not in text  # the dashboard has templates of its own
