# SPDX-License-Identifier: Apache-2.0
"""The defaults of a pod's spec, wherever one stands: in a Pod or in the template of a workload."""

from cluster.resource import Object


def fill_pod_spec(spec: Object) -> None:
    """Fill in what core/v1's defaulting fills in."""
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("schedulerName", "default-scheduler")
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("securityContext", {})
    if "serviceAccountName" in spec:
        spec.setdefault("serviceAccount", spec["serviceAccountName"])
    for container in [*spec.get("containers", ()), *spec.get("initContainers", ())]:
        _fill_container(container)
    for volume in spec.get("volumes", ()):
        _fill_volume(volume)


def _fill_container(container: Object) -> None:
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("terminationMessagePolicy", "File")
    image = container.get("image", "")
    tag = image.rpartition("/")[2].partition(":")[2]
    latest = "@" not in image and tag in ("", "latest")
    container.setdefault("imagePullPolicy", "Always" if latest else "IfNotPresent")
    container.setdefault("resources", {})
    for port in container.get("ports", ()):
        port.setdefault("protocol", "TCP")
    for variable in container.get("env", ()):
        reference = variable.get("valueFrom", {}).get("fieldRef")
        if reference is not None:
            reference.setdefault("apiVersion", "v1")
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        if name in container:
            _fill_probe(container[name])
    for hook in container.get("lifecycle", {}).values():
        if isinstance(hook, dict) and "httpGet" in hook:
            _fill_http(hook["httpGet"])


def _fill_probe(probe: Object) -> None:
    for name, value in (("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)):
        probe.setdefault(name, value)
    if "httpGet" in probe:
        _fill_http(probe["httpGet"])
    if "grpc" in probe:
        probe["grpc"].setdefault("service", "")


def _fill_http(action: Object) -> None:
    action.setdefault("path", "/")
    action.setdefault("scheme", "HTTP")


def _fill_volume(volume: Object) -> None:
    for name, field in (("configMap", "defaultMode"), ("secret", "defaultMode"), ("downwardAPI", "defaultMode")):
        if name in volume:
            volume[name].setdefault(field, 420)
    if "hostPath" in volume:
        volume["hostPath"].setdefault("type", "")
    projected = volume.get("projected")
    if projected is not None:
        projected.setdefault("defaultMode", 420)
        for source in projected.get("sources", ()):
            if "serviceAccountToken" in source:
                source["serviceAccountToken"].setdefault("expirationSeconds", 3600)
    if len(volume) == 1:
        volume["emptyDir"] = {}
