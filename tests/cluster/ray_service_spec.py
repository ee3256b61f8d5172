# SPDX-License-Identifier: Apache-2.0
"""What KubeRay's RayService controller reads from a spec: the cluster it asks for, its hash, what is wrong. Pure."""

import functools
import hashlib
import json

import yaml

from cluster.metadata import generated
from cluster.ray_pod import owner_reference
from cluster.resource import Object

HASH = "ray.io/hash-without-replicas-and-workers-to-delete"
OWNER = "ray.io/originated-from-cr-name"


def wanted_cluster(service: Object, digest: str) -> Object:
    metadata = service["metadata"]
    annotations = {
        **(metadata.get("annotations") or {}),
        HASH: digest,
        "ray.io/num-worker-groups": str(len(service["spec"]["rayClusterConfig"].get("workerGroupSpecs") or ())),
        "ray.io/kuberay-version": "1.7.0",
        "ray.io/enable-serve-service": "false" if service["spec"].get("excludeHeadPodFromServeSvc") else "true",
    }
    annotations.pop("kubectl.kubernetes.io/last-applied-configuration", None)
    labels = {**(metadata.get("labels") or {}), OWNER: metadata["name"], "ray.io/originated-from-crd": "RayService"}
    return {
        "metadata": {
            "name": generated(f"{metadata['name']}-"),
            "namespace": metadata["namespace"],
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [owner_reference(service)],
        },
        "spec": json.loads(json.dumps(service["spec"]["rayClusterConfig"])),
    }


def cluster_hash(spec: Object) -> str:
    """The hash of what needs a new cluster when it changes (utils/util.go, GenerateHashWithoutReplicas...)."""
    muted = json.loads(json.dumps(spec))
    muted.pop("upgradeStrategy", None)
    for group in [muted["headGroupSpec"], *(muted.get("workerGroupSpecs") or ())]:
        for key in ("replicas", "minReplicas", "maxReplicas"):
            group.pop(key, None)
        (group.get("scaleStrategy") or {}).pop("workersToDelete", None)
        if not group.get("scaleStrategy"):
            group.pop("scaleStrategy", None)
        for key in ("tolerations", "schedulingGates"):
            group["template"].get("spec", {}).pop(key, None)
    return hashlib.sha1(json.dumps(muted, sort_keys=True).encode(), usedforsecurity=False).hexdigest()


def spec_problem(service: Object) -> str:
    name = service["metadata"]["name"]
    if len(name) > 47:
        return f"The RayService metadata is invalid: RayService name should be no more than 47 characters: {name}"
    problem, _ = parsed_config(service["spec"].get("serveConfigV2", ""))
    if problem:
        return f"The RayService spec is invalid: serveConfigV2: {problem}"
    for group in service["spec"]["rayClusterConfig"].get("workerGroupSpecs") or ():
        if not service["spec"]["rayClusterConfig"].get("enableInTreeAutoscaling") and group.get("maxReplicas") is None:
            return f"worker group {group['groupName']} is missing minReplicas or maxReplicas"
    return ""


@functools.lru_cache(maxsize=4096)
def parsed_config(config: str) -> tuple[str, tuple[tuple[str, tuple[str, ...]], ...]]:
    """What is wrong with a Serve config, and its applications with their deployments."""
    try:
        applications = (yaml.load(config, yaml.CSafeLoader) or {}).get("applications") or ()
        return "", tuple((one["name"], tuple(d["name"] for d in one.get("deployments") or ())) for one in applications)
    except (yaml.YAMLError, AttributeError, TypeError, KeyError) as error:
        return str(error) or type(error).__name__, ()
