# SPDX-License-Identifier: Apache-2.0
"""Pods and Services as KubeRay 1.7 makes them of a RayCluster (ray-operator/controllers/ray/common). Pure."""

import json
from typing import Any

from cluster.resource import Object

HEAD_GROUP = "headgroup"
_DEFAULT_PORTS = {"client": 10001, "gcs-server": 6379, "dashboard": 8265, "metrics": 8080, "serve": 8000}
_START = "ulimit -n 65536; ray start"


def owner_reference(owner: Object) -> Object:
    """A controller reference, as controller-runtime sets it."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def head_pod(cluster: Object, *, serves: bool) -> Object:
    """The head pod of a RayCluster; `serves` puts it behind the serve Service."""
    group = cluster["spec"]["headGroupSpec"]
    labels = {"ray.io/serve": "true" if serves else "false"}
    return _pod(cluster, group, HEAD_GROUP, "head", labels, {"name": f"{cluster['metadata']['name']}-head"})


def worker_pod(cluster: Object, group: Object, *, replica: str = "", host: int = 0) -> Object:
    """A worker pod of a group; `replica` and `host` place it in a multi-host replica."""
    name = group["groupName"]
    labels = {"ray.io/serve": "true"}
    if replica:
        labels |= {"ray.io/worker-group-replica-name": replica, "ray.io/replica-host-index": str(host)}
    return _pod(
        cluster, group, name, "worker", labels, {"generateName": f"{cluster['metadata']['name']}-{name}-worker-"}
    )


def _pod(cluster: Object, group: Object, group_name: str, kind: str, labels: dict[str, str], name: Object) -> Object:
    template = json.loads(json.dumps(group["template"]))
    cluster_name, namespace = cluster["metadata"]["name"], cluster["metadata"]["namespace"]
    metadata = template.get("metadata") or {}
    template["metadata"] = {
        **name,
        "namespace": namespace,
        "annotations": metadata.get("annotations") or {},
        "labels": {
            **(metadata.get("labels") or {}),
            "app.kubernetes.io/name": "kuberay",
            "app.kubernetes.io/created-by": "kuberay-operator",
            "ray.io/is-ray-node": "yes",
            "ray.io/cluster": cluster_name,
            "ray.io/node-type": kind,
            "ray.io/group": group_name,
            "ray.io/identifier": f"{cluster_name}-{kind}",
            **labels,
        },
        "ownerReferences": [owner_reference(cluster)],
    }
    container = template["spec"]["containers"][0]
    if kind == "head" and not container.get("ports"):
        container["ports"] = [{"name": port, "containerPort": number} for port, number in _DEFAULT_PORTS.items()]
    if (metadata.get("annotations") or {}).get("ray.io/overwrite-container-cmd") != "true":
        parameters = " ".join(f"--{key}={value}" for key, value in (group.get("rayStartParams") or {}).items())
        container["command"] = ["/bin/bash", "-c", "--"]
        container["args"] = [f"{_START} {'--head' if kind == 'head' else ''} {parameters} --block "]
    container["env"] = [*(container.get("env") or ()), *_environment(cluster, group_name)]
    return {"apiVersion": "v1", "kind": "Pod", **template}


def _environment(cluster: Object, group_name: str) -> list[Object]:
    name, namespace = cluster["metadata"]["name"], cluster["metadata"]["namespace"]
    host = f"{name}-head-svc.{namespace}.svc.cluster.local"
    values = {
        "FQ_RAY_IP": host,
        "RAY_IP": host.partition(".")[0],
        "RAY_PORT": "6379",
        "RAY_ADDRESS": f"{host}:6379",
        "RAY_CLUSTER_NAME": name,
        "RAY_CLUSTER_NAMESPACE": namespace,
        "RAY_NODE_TYPE_NAME": group_name,
    }
    variables: list[Object] = [{"name": key, "value": value} for key, value in values.items()]
    options = cluster["spec"].get("authOptions") or {}
    if options.get("mode") == "token":
        secret = {"name": options.get("secretName") or name, "key": "auth_token"}
        variables.append({"name": "RAY_AUTH_MODE", "value": "token"})
        variables.append({"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": secret}})
    return variables


def head_service(owner: Object, cluster: Object, name: str) -> Object:
    """The headless Service of a cluster's head, for the cluster itself or its RayService or RayJob."""
    container = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container.get("ports") or ()} or _DEFAULT_PORTS
    return _service(
        owner,
        name,
        {"ray.io/cluster": cluster["metadata"]["name"], "ray.io/node-type": "head"},
        {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "ports": [_service_port(name, number) for name, number in ports.items()],
        },
        {"ray.io/identifier": f"{cluster['metadata']['name']}-head", "ray.io/node-type": "head"},
    )


def serve_service(service: Object, cluster_name: str) -> Object:
    """The Service in front of a RayService's replicas, as `spec.serveService` asks for it."""
    name = service["metadata"]["name"]
    custom = service["spec"].get("serveService") or {}
    metadata = custom.get("metadata") or {}
    spec: dict[str, Any] = {
        "type": service["spec"]["rayClusterConfig"]["headGroupSpec"].get("serviceType") or "ClusterIP"
    }
    spec |= custom.get("spec") or {}
    if not spec.get("ports"):
        spec["ports"] = [_service_port("serve", 8000)]
    spec["selector"] = {"ray.io/cluster": cluster_name, "ray.io/serve": "true"}
    labels = {
        "ray.io/originated-from-cr-name": name,
        "ray.io/originated-from-crd": "RayService",
        "ray.io/serve": f"{name}-serve",
        **(metadata.get("labels") or {}),
    }
    made = _service(service, metadata.get("name") or f"{name}-serve-svc", spec["selector"], spec, labels)
    made["metadata"]["annotations"] = metadata.get("annotations") or {}
    return made


def _service(owner: Object, name: str, selector: dict[str, str], spec: Object, labels: dict[str, str]) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": owner["metadata"]["namespace"],
            "labels": {
                "app.kubernetes.io/name": "kuberay",
                "app.kubernetes.io/created-by": "kuberay-operator",
                **labels,
            },
            "ownerReferences": [owner_reference(owner)],
        },
        "spec": {**spec, "selector": selector},
    }


def _service_port(name: str, number: int) -> Object:
    return {"name": name, "port": number, "targetPort": number, "protocol": "TCP", "appProtocol": "tcp"}


def condition(
    before: list[Object], kind: str, status: bool, reason: str, message: str, generation: int, moment: str
) -> Object:
    """A status condition; one that stays keeps its transition time."""
    value = "True" if status else "False"
    old = next((one for one in before if one["type"] == kind), {})
    since = old["lastTransitionTime"] if old.get("status") == value else moment
    return {
        "type": kind,
        "status": value,
        "reason": reason,
        "message": message,
        "observedGeneration": generation,
        "lastTransitionTime": since,
    }


def is_ready(pod: Object) -> bool:
    """Whether a pod runs and is ready."""
    status = pod.get("status") or {}
    return status.get("phase") == "Running" and any(
        one["type"] == "Ready" and one["status"] == "True" for one in status.get("conditions", ())
    )
