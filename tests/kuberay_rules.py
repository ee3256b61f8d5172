# SPDX-License-Identifier: Apache-2.0
"""What KubeRay's controllers refuse although the schema allows it, as far as our objects use the fields.

From ray-operator/controllers/ray/utils/validation.go of v1.7.0. Values come with the schema's defaults filled in.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

_DNS_1035 = r"[a-z]([-a-z0-9]*[a-z0-9])?"
_START_RESOURCES = {"num-cpus", "num-gpus", "memory", "resources"}
_DELETION_ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")


def ray_service_problems(service: Mapping[str, Any]) -> Iterator[str]:
    """Problems of a RayService."""
    spec = service["spec"]
    yield from _name_problems(service)
    yield from _cluster_problems(spec["rayClusterConfig"])
    if spec["rayClusterConfig"]["headGroupSpec"].get("headService", {}).get("metadata", {}).get("name"):
        yield "headGroupSpec.headService must have no name"
    strategy = spec.get("upgradeStrategy", {}).get("type", "NewCluster")
    if strategy not in {"NewCluster", "None"}:
        yield f"upgradeStrategy {strategy} needs a gateway, and no serveService"
    if spec.get("rayClusterDeletionDelaySeconds", 0) < 0:
        yield "rayClusterDeletionDelaySeconds is negative"
    serve = spec["serveService"]
    if not re.fullmatch(_DNS_1035, serve["metadata"]["name"]) or len(serve["metadata"]["name"]) > 63:
        yield f"Service name {serve['metadata']['name']!r}"
    head = spec["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    if any(port["name"].split("-")[0] == "serve" for port in head["ports"]):
        yield "a serve port on the head replaces the ports of serveService"
    applications = yaml.safe_load(spec["serveConfigV2"])["applications"]
    if len({application["name"] for application in applications}) != len(applications):
        yield "application names repeat"


def ray_job_problems(job: Mapping[str, Any]) -> Iterator[str]:
    """Problems of a RayJob."""
    spec = job["spec"]
    yield from _name_problems(job)
    yield from _cluster_problems(spec["rayClusterSpec"])
    mode = spec["submissionMode"]
    if mode not in {"K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"}:
        yield f"submissionMode {mode}"
    if mode == "SidecarMode" and {"submitterPodTemplate", "submitterConfig"} & spec.keys():
        yield "SidecarMode takes no submitter"
    if mode == "InteractiveMode" and spec.get("backoffLimit", 0) > 0:
        yield "InteractiveMode takes no backoffLimit"
    if spec.get("backoffLimit", 0) < 0:
        yield "backoffLimit is negative"
    for deadline in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(deadline, 1) <= 0:
            yield f"{deadline} must be positive"
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        yield "suspend needs shutdownAfterJobFinishes"
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not spec.get("shutdownAfterJobFinishes"):
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    yield from _deletion_problems(spec)


def _deletion_problems(spec: Mapping[str, Any]) -> Iterator[str]:
    rules = spec.get("deletionStrategy", {}).get("deletionRules", [])
    if rules and spec.get("shutdownAfterJobFinishes"):
        yield "deletionRules and shutdownAfterJobFinishes exclude each other"
    delays: dict[str, dict[str, int]] = {}
    for rule in rules:
        condition = rule["condition"]
        if ("jobStatus" in condition) == ("jobDeploymentStatus" in condition):
            yield "a deletion condition has exactly one of jobStatus and jobDeploymentStatus"
            continue
        when = str(condition.get("jobStatus") or condition["jobDeploymentStatus"])
        if rule["policy"] in delays.setdefault(when, {}):
            yield f"{rule['policy']} twice for {when}"
        if rule["policy"] == "DeleteWorkers" and spec["rayClusterSpec"].get("enableInTreeAutoscaling"):
            yield "DeleteWorkers does not go with autoscaling"
        delays[when][rule["policy"]] = condition.get("ttlSeconds", 0)
    for when, by_policy in delays.items():
        ordered = [by_policy[policy] for policy in _DELETION_ORDER if policy in by_policy]
        if ordered != sorted(ordered):
            yield f"{when}: workers, cluster and self must go in this order"


def _name_problems(thing: Mapping[str, Any]) -> Iterator[str]:
    name = thing["metadata"]["name"]
    if len(name) > 47:
        yield f"name has {len(name)} characters, 47 are allowed"
    if not re.fullmatch(_DNS_1035, name):
        yield f"name {name!r} is no DNS-1035 label"


def _cluster_problems(cluster: Mapping[str, Any]) -> Iterator[str]:
    autoscaling = cluster.get("enableInTreeAutoscaling", False)
    v2 = autoscaling and cluster.get("autoscalerOptions", {}).get("version") == "v2"
    groups = [("head", cluster["headGroupSpec"])]
    groups += [(group["groupName"], group) for group in cluster.get("workerGroupSpecs", [])]
    for name, group in groups:
        parameters = group.get("rayStartParams", {})
        if not group["template"]["spec"].get("containers"):
            yield f"{name}: no container"
        if _START_RESOURCES & parameters.keys() and group.get("resources"):
            yield f"{name}: resources in rayStartParams and in resources"
        if "labels" in parameters:
            yield f"{name}: rayStartParams has labels"
        if v2 and group["template"]["spec"].get("restartPolicy", "Never") != "Never":
            yield f"{name}: restartPolicy with autoscaler v2"
    for group in cluster.get("workerGroupSpecs", []):
        if not 0 <= group["minReplicas"] <= group["maxReplicas"]:
            yield f"{group['groupName']}: minReplicas {group['minReplicas']}, maxReplicas {group['maxReplicas']}"
        if not autoscaling and not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
            yield f"{group['groupName']}: replicas {group['replicas']} outside its bounds"
        if "idleTimeoutSeconds" in group and not v2:
            yield f"{group['groupName']}: idleTimeoutSeconds needs autoscaler v2"
    if cluster.get("authOptions", {}).get("mode") == "token":
        version = tuple(int(part) for part in cluster.get("rayVersion", "0").split("."))
        if version < (2, 52):
            yield f"token authentication needs rayVersion 2.52 or later, not {cluster.get('rayVersion')}"
    head_env = {entry["name"] for entry in cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]}
    if "RAY_REDIS_ADDRESS" in head_env:
        yield "RAY_REDIS_ADDRESS without gcsFaultToleranceOptions"
    if "RAY_enable_autoscaler_v2" in head_env:
        yield "RAY_enable_autoscaler_v2 is set by autoscalerOptions.version"
