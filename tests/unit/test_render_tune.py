# SPDX-License-Identifier: Apache-2.0
"""A TunePlan in, the RayJob and what it needs out."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builders import a_tune_plan
from kaito_ray.plan import TunePlan
from kaito_ray.render.objects import render
from kaito_ray.settings import Settings
from schemas import SHARED, pod_templates, problems
from tune_jobs.arguments import Arguments
from tune_rig import a_tiny_tune_plan

SETTINGS = Settings()
TO_VOLUME = a_tune_plan(
    input={"volumeSource": {"persistentVolumeClaim": {"claimName": "data"}}},
    output={"volumeSource": {"persistentVolumeClaim": {"claimName": "result"}}},
)
FROM_IMAGE = a_tune_plan(
    input={"image": "registry.example.com/data:1", "imagePullSecrets": ["pull-b", "pull-a"]}, nodes=2, workers=2
)
PLANS = {"url to image": a_tune_plan(), "volume to volume": TO_VOLUME, "image, two nodes": FROM_IMAGE}


def by_kind(plan: TunePlan, settings: Settings = SETTINGS) -> dict[str, dict[str, Any]]:
    """The objects by kind; of two budgets the one for workers stays."""
    return {thing["kind"]: thing for thing in render(plan, settings)}


def worker(plan: TunePlan, settings: Settings = SETTINGS) -> dict[str, Any]:
    [group] = by_kind(plan, settings)["RayJob"]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    spec = group["template"]["spec"]
    assert isinstance(spec, dict)
    return spec


def mounted(plan: TunePlan, settings: Settings = SETTINGS) -> dict[str, dict[str, Any]]:
    """Volumes by the path where the worker sees them."""
    spec = worker(plan, settings)
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    return {mount["mountPath"]: volumes[mount["name"]] for mount in spec["containers"][0]["volumeMounts"]}


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the CRDs beside the checkout")
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_api_server_and_kuberay_accept_everything(plan: TunePlan) -> None:
    for thing in render(plan, SETTINGS):
        assert problems(thing) == []


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_everything_carries_the_labels_of_its_workspace(plan: TunePlan) -> None:
    for thing in render(plan, SETTINGS):
        labels = thing["metadata"]["labels"]
        assert (labels["kaito.sh/workspace"], labels["app.kubernetes.io/managed-by"]) == (plan.name, "kaito-ray")
    templates = [template for _, template in pod_templates(by_kind(plan)["RayJob"]["spec"])]
    assert [template["metadata"]["labels"]["kaito.sh/workspace"] for template in templates] == [plan.name] * 2


def test_the_job_reads_its_arguments_from_a_file() -> None:
    objects = by_kind(a_tune_plan())
    name = objects["RayJob"]["metadata"]["name"]
    assert objects["RayJob"]["spec"]["entrypoint"] == ("python -m tune_jobs.qlora /etc/kaito-ray/tune/arguments.json")
    assert mounted(a_tune_plan())["/etc/kaito-ray/tune"]["configMap"] == {"name": name}
    arguments = json.loads(objects["ConfigMap"]["data"]["arguments.json"])
    assert objects["ConfigMap"]["metadata"]["name"] == name
    assert (arguments["method"], arguments["workers"]) == ("qlora", 1)
    assert arguments["data"]["source"]["urls"] == ["https://example.com/data/train.parquet?download=true"]


@pytest.mark.parametrize(
    "change",
    [
        {"method": "lora"},
        {"input": {"urls": ["https://example.com/other.parquet"]}},
        {"output": {"image": "registry.example.com/adapters/phi-3:0.0.2", "imagePushSecret": "registry-push"}},
        {"config_digest": "what-the-configmap-says"},
        {"uid": "another-object-of-the-same-name"},
    ],
)
def test_a_changed_wish_is_another_job(change: dict[str, Any]) -> None:
    assert (
        by_kind(a_tune_plan())["RayJob"]["metadata"]["name"]
        != (by_kind(a_tune_plan(**change))["RayJob"]["metadata"]["name"])
    )


@pytest.mark.parametrize(
    "change",
    [{"arguments": {**a_tune_plan().arguments, "epochs_min_steps": 4}}, {"hourly_usd": 9.0}, {"warnings": ("new",)}],
)
def test_other_defaults_of_ours_do_not_train_again(change: dict[str, Any]) -> None:
    assert (
        by_kind(a_tune_plan())["RayJob"]["metadata"]["name"]
        == (by_kind(a_tune_plan(**change))["RayJob"]["metadata"]["name"])
    )


@pytest.mark.parametrize("name", ["t", "p" * 47, "p" * 63, "7b"])
def test_job_names_fit_kuberay_and_name_the_submission(name: str) -> None:
    job = by_kind(a_tune_plan(name=name))["RayJob"]
    assert len(job["metadata"]["name"]) <= 47
    assert job["metadata"]["name"][0].isalpha()
    assert job["spec"]["jobId"] == job["metadata"]["name"]


def test_a_result_that_becomes_an_image_keeps_its_checkpoints_on_a_claim() -> None:
    objects = by_kind(a_tune_plan())
    claim = objects["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert "storageClassName" not in claim["spec"]
    assert mounted(a_tune_plan())["/mnt/output"]["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"]}


def test_several_nodes_share_the_claim() -> None:
    claim = by_kind(FROM_IMAGE, Settings(checkpoint_storage_class="azurefile"))["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert claim["spec"]["storageClassName"] == "azurefile"


def test_without_storage_checkpoints_stay_in_the_pod() -> None:
    settings = Settings(checkpoint_storage_class="none")
    assert "PersistentVolumeClaim" not in by_kind(a_tune_plan(), settings)
    assert mounted(a_tune_plan(), settings)["/mnt/output"]["emptyDir"] == {}


def test_the_users_volumes_are_used_as_they_are() -> None:
    assert "PersistentVolumeClaim" not in by_kind(TO_VOLUME)
    volumes = mounted(TO_VOLUME)
    assert volumes["/mnt/data"]["persistentVolumeClaim"] == {"claimName": "data"}
    assert volumes["/mnt/output"]["persistentVolumeClaim"] == {"claimName": "result"}
    read_only = {
        mount["mountPath"]: mount.get("readOnly", False) for mount in worker(TO_VOLUME)["containers"][0]["volumeMounts"]
    }
    assert read_only["/mnt/data"] is True
    assert read_only["/mnt/output"] is False


def test_registry_secrets_lie_as_files_and_their_values_nowhere() -> None:
    sources = mounted(FROM_IMAGE)["/etc/kaito-ray/registry"]["projected"]["sources"]
    assert [source["secret"]["items"][0]["path"] for source in sources] == ["pull-a.json", "pull-b.json"]
    [push] = mounted(FROM_IMAGE)["/etc/kaito-ray/push"]["projected"]["sources"]
    assert push["secret"]["name"] == "registry-push"
    assert "/etc/kaito-ray/push" not in mounted(TO_VOLUME)
    unfilled = {**FROM_IMAGE.output, "imagePushSecret": "ACR_REGISTRY_SECRET_HERE"}
    assert "/etc/kaito-ray/push" not in mounted(replace(FROM_IMAGE, output=unfilled))


def test_a_folder_of_the_node_can_be_written() -> None:
    output = {"volumeSource": {"hostPath": {"path": "/srv/adapters", "type": "DirectoryOrCreate"}}}
    pod = worker(a_tune_plan(output=output))
    prepare = next(one for one in pod["initContainers"] if one["name"] == "prepare-output")
    assert prepare["command"][-2:] == ["/mnt/output", "1000:1000"]
    assert prepare["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["CHOWN"]}
    elsewhere = worker(FROM_IMAGE).get("initContainers", [])
    assert "prepare-output" not in [one["name"] for one in elsewhere]


def test_gpus_are_free_soon_after_the_job_ended() -> None:
    spec = by_kind(a_tune_plan())["RayJob"]["spec"]
    delays = {
        condition.get("jobStatus", condition.get("jobDeploymentStatus")): (rule["policy"], condition["ttlSeconds"])
        for rule in spec["deletionStrategy"]["deletionRules"]
        for condition in [rule["condition"]]
    }
    assert delays["SUCCEEDED"][0] == "DeleteCluster"
    assert delays["SUCCEEDED"][1] <= 300
    assert delays["Failed"][0] == "DeleteCluster"
    assert delays["Failed"][1] >= 600


def test_a_lost_cluster_is_tried_again_and_a_stuck_one_given_up() -> None:
    spec = by_kind(a_tune_plan())["RayJob"]["spec"]
    assert spec["backoffLimit"] >= 1
    assert spec["preRunningDeadlineSeconds"] >= 1800


def test_nobody_but_the_operators_and_the_jobs_own_pods_reach_it() -> None:
    policy = by_kind(a_tune_plan())["NetworkPolicy"]
    ports = {port["port"] for rule in policy["spec"]["ingress"] for port in rule.get("ports", [])}
    assert ports == {8265, 52365, 8080, 9101}


def test_training_loses_no_worker_to_a_drain() -> None:
    assert by_kind(FROM_IMAGE)["PodDisruptionBudget"]["spec"]["minAvailable"] == 2
    assert worker(FROM_IMAGE)["containers"][0]["readinessProbe"]["httpGet"]["port"] == 52365


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_the_file_is_one_that_the_job_reads(plan: TunePlan) -> None:
    complete = replace(plan, arguments=a_tiny_tune_plan().arguments)
    arguments = Arguments.model_validate_json(by_kind(complete)["ConfigMap"]["data"]["arguments.json"])
    assert arguments.output.folder == Path("/mnt/output")
    assert bool(arguments.output.image) != bool(plan.output.get("volumeSource"))
    assert arguments.data.source == (
        {"path": "/mnt/data"}
        if "volumeSource" in plan.input
        else {key: plan.input[key] for key in ("urls", "image", "imagePullSecrets") if key in plan.input}
    )
