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

# KAITO's annotations (its labels.go), honoured or refused with a reason.
ANNOTATION_ENABLE_LB = "kaito.sh/enablelb"
ANNOTATION_RUNTIME = "kaito.sh/runtime"
ANNOTATION_BYPASS_CHECKS = "kaito.sh/bypass-resource-checks"
ANNOTATION_PERFORMANCE_MODE = "kaito.sh/performance-mode"
ANNOTATION_LOCAL_WEIGHTS = "kaito.sh/use-local-weights"
ANNOTATION_NODE_IMAGE_FAMILY = "kaito.sh/node-image-family"
# Ours.
ANNOTATION_API_KEYS = "kaito-ray.io/api-keys"
ANNOTATION_AFTER_TUNING = "kaito-ray.io/after-tuning"
ANNOTATION_INSTANCE_TYPES = "kaito-ray.io/instance-types"
ANNOTATION_SPOT = "kaito-ray.io/spot"
ANNOTATION_IDLE_AFTER = "kaito-ray.io/idle-after"

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


def workspace_labels(name: str, namespace: str) -> dict[str, str]:
    """The labels every object made for a Workspace carries, pods included.

    A Workspace name may have up to 63 characters as an admitted DNS label, so it is a legal label value.
    """
    return {
        LABEL_MANAGED_BY: MANAGED_BY,
        LABEL_WORKSPACE: name,
        LABEL_WORKSPACE_NAMESPACE: namespace,
    }
