# SPDX-License-Identifier: Apache-2.0
"""Every object name, label, annotation, port and selector, spelled once."""

import hashlib
import re

GROUP = "kaito.sh"
KIND = "Workspace"
PLURAL = "workspaces"
FIELD_MANAGER = "kaito-ray"
FINALIZER = "kaito-ray.io/workspace"

LABEL_WORKSPACE = "kaito.sh/workspace"
LABEL_WORKSPACE_NAMESPACE = "kaito.sh/workspacenamespace"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGED_BY = "kaito-ray"
# Kubelets refuse unknown labels of kubernetes.io, so nodes and pools carry this one instead.
LABEL_NODE_MANAGED_BY = "kaito-ray.io/managed-by"
# On pods that judge training data; Ray pods have none of these.
LABEL_PART, PART_LINT = "kaito-ray.io/part", "lint"
LABEL_JOB = "kaito-ray.io/job"
LABEL_ATTEMPT = "kaito-ray.io/attempt"

# KAITO's annotations (its labels.go), honoured or refused with a reason.
ANNOTATION_ENABLE_LB = "kaito.sh/enablelb"
ANNOTATION_RUNTIME = "kaito.sh/runtime"
ANNOTATION_BYPASS_CHECKS = "kaito.sh/bypass-resource-checks"
ANNOTATION_PERFORMANCE_MODE = "kaito.sh/performance-mode"
ANNOTATION_LOCAL_WEIGHTS = "kaito.sh/use-local-weights"
ANNOTATION_NODE_IMAGE_FAMILY = "kaito.sh/node-image-family"
ANNOTATION_NODE_CLASS = "kaito.sh/node-class-name"
# Ours.
ANNOTATION_API_KEYS = "kaito-ray.io/api-keys"
ANNOTATION_AFTER_TUNING = "kaito-ray.io/after-tuning"
ANNOTATION_INSTANCE_TYPES = "kaito-ray.io/instance-types"
ANNOTATION_SPOT = "kaito-ray.io/spot"
ANNOTATION_FOLLOW_TAGS = "kaito-ray.io/follow-tags"
ANNOTATION_MODEL_CLAIM = "kaito-ray.io/model-claim"
"""A PersistentVolumeClaim that holds the model, `claim` or `claim/folder`, mounted read-only instead of fetching."""
ANNOTATION_IDLE_AFTER = "kaito-ray.io/idle-after"
# Written by the operator on what it makes: hashes of the whole object and of its Ray cluster, as they were applied.
ANNOTATION_APPLIED = "kaito-ray.io/applied"
ANNOTATION_CLUSTER_CONFIG = "kaito-ray.io/cluster-config"
ANNOTATION_LAST_REQUEST = "kaito-ray.io/last-request"
"""RFC 3339 time of the newest request, written by whoever sees the traffic; what `idle-after` counts from."""

ANNOTATION_WORKSPACE_UID = "kaito-ray.io/workspace-uid"
"""On objects of the cluster that were made for a Workspace, which cannot own them."""

# Labels and the taint of GPU nodes.
LABEL_AGENT_POOL = "kubernetes.azure.com/agentpool"
LABEL_NODE_POOL = "karpenter.sh/nodepool"
LABEL_MACHINE_TYPE = "kaito.sh/machine-type"
TAINT_GPU = {"key": "sku", "value": "gpu", "effect": "NoSchedule"}

# Azure's tags of an agent pool: labels cannot hold a UID with a time, and a tag's name may have no slash.
TAG_UID = "kaito-ray-workspace-uid"
TAG_WORKSPACE = "kaito-ray-workspace"
TAG_NAMESPACE = "kaito-ray-namespace"
TAG_ATTEMPT = "kaito-ray-attempt"
TAG_CREATED = "kaito-ray-created"

SERVE_APPLICATION = "chat"
SERVE_DEPLOYMENT = "Chat"
SERVE_IMPORT_PATH = "serve_apps.chat:build"
TUNE_ENTRYPOINT = "python -m tune_jobs.qlora"

PORT_SERVICE = 80
PORT_SERVE = 8000
PORT_DASHBOARD = 8265
PORT_GCS = 6379
PORT_CLIENT = 10001
PORT_METRICS = 8080
PORT_AGENT = 52365
PORT_HAPROXY_METRICS = 9101
# Named beside port 80 because the documents users follow print it; nothing calls it.
PORT_TORCH = 29500

# Folders inside Ray pods. What is mounted read-only lies below /etc/kaito-ray, what pods write below the cache.
CACHE_DIR = "/var/cache/kaito-ray"
REGISTRY_AUTH_DIR = "/etc/kaito-ray/registry"
"""Holds one Docker configuration (`<Secret's name>.json`) per pull secret that adapters or data name."""
PUSH_AUTH_DIR = "/etc/kaito-ray/push"
"""Holds, in the same form, the Docker configuration that the tuned adapter is pushed with."""
TUNE_DIR = "/etc/kaito-ray/tune"
TUNE_ARGUMENTS = "arguments.json"
ENV_LINGER_S = "KAITO_RAY_LINGER_S"
"""How long a job that must not be tried again stays to be heard."""
TUNE_DATA_DIR = "/mnt/data"
TUNE_OUTPUT_DIR = "/mnt/output"
TUNE_LINT_MODULE = "tune_jobs.lint"

MODEL_IMAGE_DIR = "workspace/weights"
"""The folder of a model image that holds config.json and the shards: where KAITO's preset images have them."""

MODELS_DIR = "/var/lib/kaito-ray/models"
"""Where pods have the model: the cache that a container before Ray fetches into, or a volume that holds it."""
MODEL_AUTH_DIR = "/etc/kaito-ray/model-registry"
"""Docker configurations (`<Secret's name>.json`) for the model's image; only the fetching container has them."""
CONTAINER_FETCH = "fetch-model"
MODEL_FETCH_MODULE = "kaito_ray.model_fetch"

GROUP_WORKERS = "workers"
TOKEN_SECRET_KEY = "auth_token"  # fixed by KubeRay  # noqa: S105

# KubeRay appends up to 16 characters to the name of a RayService or RayJob and refuses longer ones
# (ray-operator/controllers/ray/utils/validation.go).
CHILD_NAME_MAX = 47
LABEL_VALUE_MAX = 63


def child_name(workspace: str) -> str:
    """The name of the RayService, RayJob and other children of a Workspace: DNS-1035, at most 47 characters.

    A name that already qualifies is kept. Any other is cut and carries a hash of the whole, so that two long
    names never meet.
    """
    if len(workspace) <= CHILD_NAME_MAX and re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", workspace):
        return workspace
    return shortened(workspace, CHILD_NAME_MAX)


def shortened(name: str, length: int) -> str:
    """`name` as a DNS-1035 label of at most `length` characters that ends in a hash of the whole."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    slug = re.sub(r"[^a-z0-9-]+", "-", name.lower())
    if not slug[:1].isalpha():
        slug = f"w{slug}" if slug[:1].isdigit() else f"w{slug.lstrip('-')}"
    return f"{slug[: length - len(digest) - 1].rstrip('-')}-{digest}"


def service_name(workspace: str) -> str:
    """The name of the Service: the Workspace's own, as KAITO's users expect.

    Services must be DNS-1035 labels, so a Workspace that starts with a digit gets its name behind a `w` and with a
    hash; `status.endpoint` tells which.
    """
    if re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", workspace):
        return workspace
    return shortened(workspace, LABEL_VALUE_MAX)


def job_name(workspace: str, digest: str) -> str:
    """The name of a tuning RayJob: `digest` stands for what was asked, so that a changed wish is another job."""
    base = child_name(workspace)
    room = CHILD_NAME_MAX - len(digest) - 1
    if len(base) > room:
        base = shortened(workspace, room)
    return f"{base}-{digest}"


def lint_name(job: str, attempt: int) -> str:
    """The name of the pod that judges the data of a tuning RayJob, and of its ConfigMap; each attempt is another."""
    return f"{job}-lint-{attempt}"


def token_secret_name(workspace: str) -> str:
    """The Secret with the token of the Workspace's Ray clusters: made once, so that upgrades do not change it."""
    return f"{child_name(workspace)}-ray-token"


def model_link(kind: str, reference: str, revision: str, form: str) -> str:
    """The path below a cache for a model of that source, in the form that is read."""
    text = " ".join((kind, reference, revision, *([] if form == "engine" else [form])))
    return f"links/{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def model_facts_name(workspace: str) -> str:
    """The ConfigMap with what the hub said about a model that the catalogue does not have; asked once, then kept."""
    return f"{child_name(workspace)}-model"


def registry_secret_name(workspace: str) -> str:
    """The Secret that gathers the pull secrets of adapters under one name.

    Its name never changes, so that an adapter with another pull secret leaves the pods as they are.
    """
    return f"{child_name(workspace)}-registry"


def workspace_labels(name: str, namespace: str) -> dict[str, str]:
    """The labels every object made for a Workspace carries, pods included.

    A Workspace name may have up to 63 characters as an admitted DNS label, so it is a legal label value.
    """
    return {
        LABEL_MANAGED_BY: MANAGED_BY,
        LABEL_WORKSPACE: name,
        LABEL_WORKSPACE_NAMESPACE: namespace,
    }
