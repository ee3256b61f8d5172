# SPDX-License-Identifier: Apache-2.0
"""The resources a Kubernetes server has by itself, as far as kaito-ray and its clients touch them."""

import functools

from cluster.builtin_schema import schema_of
from cluster.resource import ALL_VERBS, Resource

RBAC = "rbac.authorization.k8s.io/v1"
ADMISSION = "admissionregistration.k8s.io/v1"
AUTHENTICATION = "authentication.k8s.io/v1"
AUTHORIZATION = "authorization.k8s.io/v1"


def _builtin(
    api_version: str,
    plural: str,
    kind: str,
    *,
    short: str = "",
    sub: str = "",
    category: str = "",
    clustered: bool = False,
    counted: bool = False,
    model: str = "",
    verbs: tuple[str, ...] = ALL_VERBS,
) -> Resource:
    group, _, version = api_version.rpartition("/")
    return Resource(
        group=group,
        version=version,
        plural=plural,
        singular=kind.lower(),
        kind=kind,
        namespaced=not clustered,
        schema=schema_of(model or f"V1{kind}"),
        short_names=tuple(short.split()),
        categories=tuple(category.split()),
        subresources=frozenset(sub.split()),
        verbs=verbs,
        spec_generation=counted,
        storage_version=version,
        table_name="events" if plural == "events" else "",
    )


@functools.cache
def builtin_resources() -> tuple[Resource, ...]:
    """One entry per built-in resource."""
    make = _builtin
    ask = ("create",)
    return (
        make("v1", "configmaps", "ConfigMap", short="cm"),
        make("v1", "endpoints", "Endpoints", short="ep"),
        make("v1", "events", "Event", short="ev", model="CoreV1Event"),
        make("v1", "namespaces", "Namespace", short="ns", sub="status finalize", clustered=True),
        make("v1", "nodes", "Node", short="no", sub="status", clustered=True),
        make("v1", "persistentvolumeclaims", "PersistentVolumeClaim", short="pvc", sub="status"),
        make("v1", "persistentvolumes", "PersistentVolume", short="pv", sub="status", clustered=True),
        make(
            "v1", "pods", "Pod", short="po", sub="status log binding eviction portforward", category="all",
            counted=True,
        ),
        make("v1", "secrets", "Secret"),
        make("v1", "serviceaccounts", "ServiceAccount", short="sa", sub="token"),
        make("v1", "services", "Service", short="svc", sub="status proxy", category="all"),
        make("events.k8s.io/v1", "events", "Event", short="ev", model="EventsV1Event"),
        make("apps/v1", "daemonsets", "DaemonSet", short="ds", sub="status", category="all", counted=True),
        make("apps/v1", "deployments", "Deployment", short="deploy", sub="status scale", category="all", counted=True),
        make("apps/v1", "replicasets", "ReplicaSet", short="rs", sub="status scale", category="all", counted=True),
        make("apps/v1", "statefulsets", "StatefulSet", short="sts", sub="status scale", category="all", counted=True),
        make("batch/v1", "cronjobs", "CronJob", short="cj", sub="status", category="all", counted=True),
        make("batch/v1", "jobs", "Job", sub="status", category="all", counted=True),
        make("policy/v1", "poddisruptionbudgets", "PodDisruptionBudget", short="pdb", sub="status", counted=True),
        make("networking.k8s.io/v1", "networkpolicies", "NetworkPolicy", short="netpol", counted=True),
        make("networking.k8s.io/v1", "ingresses", "Ingress", short="ing", sub="status", counted=True),
        make("discovery.k8s.io/v1", "endpointslices", "EndpointSlice", counted=True),
        make("coordination.k8s.io/v1", "leases", "Lease"),
        make("storage.k8s.io/v1", "storageclasses", "StorageClass", short="sc", clustered=True),
        make("scheduling.k8s.io/v1", "priorityclasses", "PriorityClass", short="pc", clustered=True, counted=True),
        make(RBAC, "roles", "Role"),
        make(RBAC, "rolebindings", "RoleBinding"),
        make(RBAC, "clusterroles", "ClusterRole", clustered=True),
        make(RBAC, "clusterrolebindings", "ClusterRoleBinding", clustered=True),
        make(
            ADMISSION, "validatingwebhookconfigurations", "ValidatingWebhookConfiguration",
            category="api-extensions", clustered=True, counted=True,
        ),
        make(
            ADMISSION, "mutatingwebhookconfigurations", "MutatingWebhookConfiguration",
            category="api-extensions", clustered=True, counted=True,
        ),
        make(
            "apiextensions.k8s.io/v1", "customresourcedefinitions", "CustomResourceDefinition", short="crd crds",
            sub="status", category="api-extensions", clustered=True, counted=True,
        ),
        make(AUTHENTICATION, "tokenreviews", "TokenReview", clustered=True, verbs=ask),
        make(AUTHENTICATION, "selfsubjectreviews", "SelfSubjectReview", clustered=True, verbs=ask),
        make(AUTHORIZATION, "selfsubjectaccessreviews", "SelfSubjectAccessReview", clustered=True, verbs=ask),
        make(AUTHORIZATION, "subjectaccessreviews", "SubjectAccessReview", clustered=True, verbs=ask),
        make(AUTHORIZATION, "localsubjectaccessreviews", "LocalSubjectAccessReview", verbs=ask),
        make(AUTHORIZATION, "selfsubjectrulesreviews", "SelfSubjectRulesReview", clustered=True, verbs=ask),
    )  # fmt: skip
