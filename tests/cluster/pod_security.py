# SPDX-License-Identifier: Apache-2.0
"""Pod Security admission: what the `pod-security.kubernetes.io/enforce` and `warn` labels of a namespace refuse.

The checks are those of the Pod Security Standards' levels `baseline` and `restricted`, in the words of
k8s.io/pod-security-admission.
"""

from collections.abc import Iterator
from typing import Any

from cluster.resource import Object

_LABEL = "pod-security.kubernetes.io/"
_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected",
            "secret"}  # fmt: skip
_CAPABILITIES = {"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE",
                 "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"}  # fmt: skip


def level_of(namespace: Object | None, mode: str) -> str:
    """The level a namespace sets for `enforce` or `warn`; `privileged` when it sets none."""
    labels = (namespace["metadata"].get("labels") or {}) if namespace else {}
    return str(labels.get(_LABEL + mode, "privileged"))


def violations(level: str, obj: Object) -> str:
    """What a pod, or the pods of a workload, would violate of a level, in one sentence; empty when nothing."""
    spec = obj["spec"] if obj["kind"] == "Pod" else obj["spec"].get("template", {}).get("spec")
    if spec is None or level == "privileged":
        return ""
    found = list(_baseline(spec))
    if level == "restricted":
        found += _restricted(spec)
    return f'violate PodSecurity "{level}:latest": {", ".join(found)}' if found else ""


def _containers(spec: Object) -> list[Object]:
    return [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]


def _named(containers: list[Object]) -> str:
    names = ", ".join(f'"{one["name"]}"' for one in containers)
    return f"container {names}" if len(containers) == 1 else f"containers {names}"


def _context(container: Object) -> Object:
    context: Object = container.get("securityContext") or {}
    return context


def _baseline(spec: Object) -> Iterator[str]:
    spaces = [name for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    if spaces:
        yield "host namespaces (" + ", ".join(f"{name}=true" for name in spaces) + ")"
    privileged = [one for one in _containers(spec) if _context(one).get("privileged")]
    if privileged:
        yield f"privileged ({_named(privileged)} must not set securityContext.privileged=true)"
    paths = [volume["name"] for volume in spec.get("volumes") or () if "hostPath" in volume]
    if paths:
        yield "hostPath volumes (" + ", ".join(f'volume "{name}"' for name in paths) + ")"
    ports = [one for one in _containers(spec) if any(port.get("hostPort") for port in one.get("ports") or ())]
    if ports:
        yield f"hostPort ({_named(ports)} uses hostPorts)"
    strange = [one for one in _containers(spec) if set(_added(one)) - _CAPABILITIES]
    if strange:
        yield f"non-default capabilities ({_named(strange)} must not include more in securityContext.capabilities.add)"


def _added(container: Object) -> list[str]:
    return (_context(container).get("capabilities") or {}).get("add") or []


def _restricted(spec: Object) -> Iterator[str]:
    pod: Any = spec.get("securityContext") or {}
    odd = [v["name"] for v in spec.get("volumes") or () if set(v) - {"name"} - _VOLUMES - {"hostPath"}]
    if odd:
        yield "restricted volume types (" + ", ".join(f'volume "{name}"' for name in odd) + ")"
    escalating = [one for one in _containers(spec) if _context(one).get("allowPrivilegeEscalation") is not False]
    if escalating:
        must = "must set securityContext.allowPrivilegeEscalation=false"
        yield f"allowPrivilegeEscalation != false ({_named(escalating)} {must})"
    capable = [
        one
        for one in _containers(spec)
        if "ALL" not in ((_context(one).get("capabilities") or {}).get("drop") or [])
        or set(_added(one)) - {"NET_BIND_SERVICE"}
    ]
    if capable:
        yield f'unrestricted capabilities ({_named(capable)} must set securityContext.capabilities.drop=["ALL"])'
    root = [one for one in _containers(spec) if _context(one).get("runAsNonRoot", pod.get("runAsNonRoot")) is not True]
    if root:
        yield f"runAsNonRoot != true (pod or {_named(root)} must set securityContext.runAsNonRoot=true)"
    if pod.get("runAsUser") == 0 or any(_context(one).get("runAsUser") == 0 for one in _containers(spec)):
        yield "runAsUser=0 (pod or containers must not set runAsUser=0)"
    unconfined = [
        one
        for one in _containers(spec)
        if (_context(one).get("seccompProfile") or pod.get("seccompProfile") or {}).get("type")
        not in ("RuntimeDefault", "Localhost")
    ]
    if unconfined:
        must = 'must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost"'
        yield f"seccompProfile (pod or {_named(unconfined)} {must})"
