# SPDX-License-Identifier: Apache-2.0
"""A ServePlan in, RayService, NetworkPolicy and PodDisruptionBudgets out."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from builders import a_serve_plan
from kaito_ray.plan import AdapterPlan, Autoscaling, PodSize, ServePlan
from kaito_ray.render.objects import render
from kaito_ray.render.raycluster import RAY_VERSION
from kaito_ray.serve_config import SHUTDOWN_TIMEOUT_S, serve_config
from kaito_ray.settings import Settings
from schemas import SHARED, pod_templates, problems

SETTINGS = Settings()
PIPELINE = a_serve_plan(nodes=4, gpus_per_node=2, nodes_per_replica=2, tensor_parallel=2, pipeline_parallel=2)
ELASTIC = a_serve_plan(autoscaling=Autoscaling(1, 4, 64), nodes=1)
EVERYTHING = a_serve_plan(
    autoscaling=Autoscaling(0, 4, 64),
    adapters=(AdapterPlan("legal", {"path": "/mnt/adapters/legal"}, 0.5),),
    hf_token_secret="hub-token",
    api_keys_secret="chat-keys",
    pull_secrets=("registry-a", "registry-b"),
    load_balancer=True,
    volumes=(
        {
            "name": "legal.v1",
            "source": {"persistentVolumeClaim": {"claimName": "legal"}},
            "mount": "/mnt/adapters/legal",
        },
    ),
)
PLANS = {"one GPU": a_serve_plan(), "two nodes per copy": PIPELINE, "elastic": ELASTIC, "everything": EVERYTHING}


def the(kind: str, plan: ServePlan, settings: Settings = SETTINGS) -> dict[str, Any]:
    [found] = [thing for thing in render(plan, settings) if thing["kind"] == kind]
    return found


def cluster(plan: ServePlan) -> dict[str, Any]:
    config = the("RayService", plan)["spec"]["rayClusterConfig"]
    assert isinstance(config, dict)
    return config


def workers(plan: ServePlan) -> dict[str, Any]:
    [group] = cluster(plan)["workerGroupSpecs"]
    assert isinstance(group, dict)
    return group


def pods(plan: ServePlan) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pod specs of head and worker."""
    return cluster(plan)["headGroupSpec"]["template"]["spec"], workers(plan)["template"]["spec"]


def env(pod: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in pod["containers"][0]["env"]}


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the CRDs beside the checkout")
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_api_server_and_kuberay_accept_everything(plan: ServePlan) -> None:
    for thing in render(plan, SETTINGS):
        assert problems(thing) == []


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_everything_carries_the_labels_of_its_workspace(plan: ServePlan) -> None:
    expected = {
        "app.kubernetes.io/managed-by": "kaito-ray",
        "kaito.sh/workspace": plan.name,
        "kaito.sh/workspacenamespace": plan.namespace,
    }
    objects = render(plan, SETTINGS)
    for thing in objects:
        assert thing["metadata"]["labels"] == expected
        assert thing["metadata"]["namespace"] == plan.namespace
    spec = the("RayService", plan)["spec"]
    assert spec["serveService"]["metadata"]["labels"] == expected
    templates = list(pod_templates(spec))
    assert len(templates) == 2
    assert all(template["metadata"]["labels"] == expected for _, template in templates)


def test_what_protects_pods_comes_before_them() -> None:
    kinds = [thing["kind"] for thing in render(a_serve_plan(), SETTINGS)]
    assert kinds == ["NetworkPolicy", "PodDisruptionBudget", "PodDisruptionBudget", "RayService"]


def test_a_change_of_adapters_changes_only_the_serve_config() -> None:
    before = render(a_serve_plan(), SETTINGS)
    adapters = (AdapterPlan("legal", {"image": "registry.example.com/legal:1"}, 0.5), AdapterPlan("b", {"urls": ["u"]}))
    after = render(a_serve_plan(adapters=adapters, pull_secrets=("registry-a",)), SETTINGS)
    texts = [
        next(thing for thing in objects if thing["kind"] == "RayService")["spec"].pop("serveConfigV2")
        for objects in (before, after)
    ]
    assert json.dumps(before) == json.dumps(after)
    assert texts[0] != texts[1]


def test_serve_config_is_the_one_the_local_run_uses() -> None:
    text = the("RayService", EVERYTHING)["spec"]["serveConfigV2"]
    assert yaml.safe_load(text) == serve_config(EVERYTHING)
    assert text == yaml.safe_dump(serve_config(EVERYTHING), sort_keys=True, width=2**20, allow_unicode=True)


def test_service_answers_on_port_80_under_the_name_of_the_workspace() -> None:
    service = the("RayService", a_serve_plan())["spec"]["serveService"]
    assert service["metadata"]["name"] == "workspace-phi-3-mini"
    assert service["spec"]["type"] == "ClusterIP"
    ports = [(port["port"], port["targetPort"]) for port in service["spec"]["ports"]]
    assert ports == [(80, 8000), (29500, 29500)]


@pytest.mark.parametrize(
    ("name", "service", "child"),
    [
        ("phi", "phi", "phi"),
        ("p" * 47, "p" * 47, "p" * 47),
        ("p" * 63, "p" * 63, "p" * 38 + "-ca6d4758"),
        ("7b-chat", "w7b-chat-e14c5e17", "w7b-chat-e14c5e17"),
    ],
)
def test_names_stay_or_carry_a_hash(name: str, service: str, child: str) -> None:
    found = render(a_serve_plan(name=name), SETTINGS)[-1]
    assert found["metadata"]["name"] == child
    assert found["spec"]["serveService"]["metadata"]["name"] == service
    assert found["metadata"]["labels"]["kaito.sh/workspace"] == name


def test_long_names_that_begin_alike_stay_apart() -> None:
    names = {render(a_serve_plan(name="p" * 60 + end), SETTINGS)[-1]["metadata"]["name"] for end in "abc"}
    assert len(names) == 3


def test_head_takes_no_work_and_no_gpu() -> None:
    assert cluster(a_serve_plan())["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    head, _ = pods(a_serve_plan())
    assert head["containers"][0]["resources"] == {
        "requests": {"cpu": "2", "memory": "8Gi"},
        "limits": {"memory": "8Gi"},
    }
    assert "tolerations" not in head


def test_worker_takes_the_gpus_of_a_node_with_the_users_labels() -> None:
    _, worker = pods(a_serve_plan(worker=PodSize(3.5, 14.25, 4), node_labels={"b": "2", "a": "1"}))
    assert worker["containers"][0]["resources"] == {
        "requests": {"cpu": "3500m", "memory": "14592Mi", "nvidia.com/gpu": "4"},
        "limits": {"memory": "14592Mi", "nvidia.com/gpu": "4"},
    }
    assert list(worker["nodeSelector"].items()) == [("kubernetes.io/os", "linux"), ("a", "1"), ("b", "2")]
    tolerated = {(toleration["key"], toleration.get("value")) for toleration in worker["tolerations"]}
    assert tolerated == {
        ("sku", "gpu"),
        ("nvidia.com/gpu", None),
        ("kubernetes.azure.com/scalesetpriority", "spot"),
    }


def test_a_machine_without_gpus_asks_for_none() -> None:
    _, worker = pods(a_serve_plan(worker=PodSize(2, 4), gpus_per_node=0))
    assert "nvidia.com/gpu" not in worker["containers"][0]["resources"]["limits"]


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_pods_have_no_rights_they_do_not_need(plan: ServePlan) -> None:
    head, worker = pods(plan)
    for pod in (head, worker):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
    assert worker["automountServiceAccountToken"] is False
    # Ray's autoscaler runs in the head pod and asks the API server for pods.
    assert head["automountServiceAccountToken"] is (plan.autoscaling is not None)


def test_ray_asks_for_a_token_that_survives_upgrades() -> None:
    assert cluster(a_serve_plan())["authOptions"] == {
        "mode": "token",
        "secretName": "workspace-phi-3-mini-ray-token",
    }


def test_secrets_are_named_for_workers_and_never_for_the_head() -> None:
    head, worker = pods(EVERYTHING)
    assert not {"HF_TOKEN"} & (env(worker).keys() | env(head).keys())
    assert [volume["name"] for volume in head["volumes"]] == ["cache"]
    volumes = {volume["name"]: volume for volume in worker["volumes"]}
    assert volumes["api-keys"]["secret"] == {"secretName": "chat-keys", "defaultMode": 0o440}
    mounts = {mount["name"]: mount for mount in worker["containers"][0]["volumeMounts"]}
    assert mounts["api-keys"] == {"name": "api-keys", "mountPath": "/etc/kaito-ray/api-keys", "readOnly": True}


def test_volumes_are_mounted_where_the_plan_says() -> None:
    _, worker = pods(EVERYTHING)
    mounts = {mount["mountPath"]: mount for mount in worker["containers"][0]["volumeMounts"]}
    assert mounts["/mnt/adapters/legal"]["readOnly"] is True
    assert "readOnly" not in mounts["/var/cache/kaito-ray"]
    volumes = {volume["name"]: volume for volume in worker["volumes"]}
    assert volumes[mounts["/mnt/adapters/legal"]["name"]]["persistentVolumeClaim"] == {"claimName": "legal"}


def test_head_and_workers_see_the_same_environment_in_order() -> None:
    head, worker = pods(a_serve_plan())
    assert env(head) == env(worker)
    assert list(env(head)) == sorted(env(head))
    assert env(head)["HOME"] == "/var/cache/kaito-ray"


def test_pods_learn_which_private_addresses_they_may_fetch() -> None:
    settings = Settings(allow_private_urls=("10.0.0.0/8", "files.local"))
    [group] = the("RayService", a_serve_plan(), settings)["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert env(group["template"]["spec"])["KAITO_RAY_ALLOW_PRIVATE_URLS"] == "10.0.0.0/8,files.local"


def test_requests_end_before_ray_and_ray_before_the_kubelet() -> None:
    head, worker = pods(a_serve_plan())
    for pod in (head, worker):
        drain = int(env(pod)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert SHUTDOWN_TIMEOUT_S < drain < pod["terminationGracePeriodSeconds"] <= 180


def test_probes_need_no_program_in_the_image() -> None:
    head, worker = pods(a_serve_plan())
    ready = worker["containers"][0]["readinessProbe"]["httpGet"]
    assert ready == {"path": "/-/healthz", "port": 8000}
    for pod in (head, worker):
        assert pod["containers"][0]["livenessProbe"]["httpGet"] == {"path": "/api/healthz", "port": 52365}


def test_nodes_that_share_a_model_start_and_go_together() -> None:
    group = workers(PIPELINE)
    assert (group["numOfHosts"], group["replicas"], group["minReplicas"], group["maxReplicas"]) == (2, 2, 2, 2)


def test_fixed_replicas_leave_the_autoscaler_off() -> None:
    assert "enableInTreeAutoscaling" not in cluster(a_serve_plan())
    assert workers(a_serve_plan(nodes=3))["replicas"] == 3


@pytest.mark.parametrize(
    ("plan", "groups"),
    [
        (a_serve_plan(autoscaling=Autoscaling(1, 4, 8)), (1, 4)),
        (a_serve_plan(autoscaling=Autoscaling(0, 4, 8)), (0, 4)),
        (a_serve_plan(autoscaling=Autoscaling(1, 5, 8), gpus_per_node=2), (1, 3)),
        (a_serve_plan(autoscaling=Autoscaling(1, 5, 8), gpus_per_node=2, tensor_parallel=2), (1, 5)),
        (a_serve_plan(autoscaling=Autoscaling(1, 2, 8), gpus_per_node=0), (1, 2)),
        (
            a_serve_plan(
                autoscaling=Autoscaling(1, 3, 8),
                gpus_per_node=8,
                nodes_per_replica=2,
                tensor_parallel=8,
                pipeline_parallel=2,
            ),
            (1, 3),
        ),
    ],
)
def test_autoscaling_bounds_count_nodes_and_leave_replicas_to_ray(plan: ServePlan, groups: tuple[int, int]) -> None:
    group = workers(plan)
    assert (group["minReplicas"], group["maxReplicas"]) == groups
    assert "replicas" not in group
    assert cluster(plan)["enableInTreeAutoscaling"] is True
    assert cluster(plan)["autoscalerOptions"]["version"] == "v2"


def test_the_head_answers_requests_only_to_wake_what_sleeps() -> None:
    assert the("RayService", a_serve_plan())["spec"]["excludeHeadPodFromServeSvc"] is True
    assert the("RayService", ELASTIC)["spec"]["excludeHeadPodFromServeSvc"] is True
    assert the("RayService", EVERYTHING)["spec"]["excludeHeadPodFromServeSvc"] is False


@pytest.mark.parametrize(("nodes", "kept"), [(1, 1), (2, 1), (5, 4)])
def test_one_copy_at_a_time_may_move_and_the_head_never(nodes: int, kept: int) -> None:
    budgets = [thing for thing in render(a_serve_plan(nodes=nodes), SETTINGS) if "minAvailable" in thing["spec"]]
    least = {
        budget["spec"]["selector"]["matchLabels"]["ray.io/node-type"]: budget["spec"]["minAvailable"]
        for budget in budgets
    }
    assert least == {"head": 1, "worker": kept}


def callers(policy: dict[str, Any], port: int) -> list[Any]:
    """Who may reach `port`: the `from` lists of rules that name it."""
    return [
        rule.get("from", "anybody")
        for rule in policy["spec"]["ingress"]
        if port in [entry["port"] for entry in rule.get("ports", [])]
    ]


def test_only_the_operators_reach_what_runs_code() -> None:
    settings = Settings(kuberay_namespace="ray-system", operator_namespace="kaito-ray")
    policy = the("NetworkPolicy", a_serve_plan(), settings)
    for port in (8265, 52365):
        [peers] = callers(policy, port)
        assert [peer["namespaceSelector"]["matchExpressions"][0]["values"] for peer in peers] == [
            ["ray-system"],
            ["kaito-ray"],
        ]
        assert all(peer["podSelector"]["matchLabels"] for peer in peers)
    for port in (6379, 10001, 8404, 29500):
        assert callers(policy, port) == []


def test_own_pods_reach_each_other_on_every_port() -> None:
    policy = the("NetworkPolicy", a_serve_plan())
    own = {"kaito.sh/workspace": "workspace-phi-3-mini", "kaito.sh/workspacenamespace": "default"}
    assert policy["spec"]["podSelector"] == {"matchLabels": own}
    assert {"from": [{"podSelector": {"matchLabels": own}}]} in policy["spec"]["ingress"]


def test_clients_of_the_cluster_reach_the_server_and_everybody_through_a_load_balancer() -> None:
    assert callers(the("NetworkPolicy", a_serve_plan()), 8000) == [[{"namespaceSelector": {}}]]
    assert callers(the("NetworkPolicy", EVERYTHING), 8000) == ["anybody"]
    assert the("RayService", EVERYTHING)["spec"]["serveService"]["spec"]["type"] == "LoadBalancer"


def test_metrics_are_for_monitoring() -> None:
    policy = the("NetworkPolicy", a_serve_plan(), Settings(monitoring_namespaces=("prometheus",)))
    for port in (8080, 9101):
        [[peer]] = callers(policy, port)
        assert peer["namespaceSelector"]["matchExpressions"][0]["values"] == ["prometheus"]
    assert callers(the("NetworkPolicy", a_serve_plan(), Settings(monitoring_namespaces=())), 8080) == []


def test_pods_cannot_ask_the_node_for_its_credentials() -> None:
    egress = the("NetworkPolicy", a_serve_plan())["spec"]["egress"]
    open_ports = {port["port"] for rule in egress if "to" not in rule for port in rule["ports"]}
    assert 80 not in open_ports
    [block] = [
        peer["ipBlock"]
        for rule in egress
        for peer in rule.get("to", [])
        if peer.get("ipBlock", {}).get("cidr") == "0.0.0.0/0"
    ]
    assert "169.254.169.254/32" in block["except"]


def test_ray_in_the_pods_is_the_ray_that_is_pinned() -> None:
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f'"ray[serve]=={RAY_VERSION}"' in pyproject
