# SPDX-License-Identifier: Apache-2.0
"""What a Kubernetes server refuses in a pod's spec, in a Pod or in the template of a workload."""

import re
from typing import Any

from cluster import failure
from cluster.failure import Problem
from cluster.resource import Object

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_LABEL_TEXT = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with "
    f"an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '{_LABEL}')"
)
_PORT_RANGE = "must be between 1 and 65535, inclusive"
_CHOICES = {
    "restartPolicy": ("Always", "OnFailure", "Never"),
    "dnsPolicy": ("ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"),
    "imagePullPolicy": ("Always", "IfNotPresent", "Never"),
    "protocol": ("SCTP", "TCP", "UDP"),
}


def choice_problem(path: str, name: str, value: Any) -> list[Problem]:
    """A problem when a value is not among those of a closed choice."""
    allowed = _CHOICES[name]
    return [failure.not_supported(path, value, allowed)] if value is not None and value not in allowed else []


def pod_spec_problems(spec: Object, path: str) -> list[Problem]:
    """What is wrong with a defaulted pod spec."""
    problems: list[Problem] = []
    containers = spec.get("containers") or []
    if not containers:
        problems.append(failure.required(f"{path}.containers"))
    problems += choice_problem(f"{path}.restartPolicy", "restartPolicy", spec.get("restartPolicy"))
    problems += choice_problem(f"{path}.dnsPolicy", "dnsPolicy", spec.get("dnsPolicy"))
    volumes = _volumes(spec.get("volumes") or [], f"{path}.volumes", problems)
    names: set[str] = set()
    for field in ("containers", "initContainers"):
        for index, container in enumerate(spec.get(field) or ()):
            _container(container, f"{path}.{field}[{index}]", volumes, names, problems)
    for index, toleration in enumerate(spec.get("tolerations") or ()):
        place = f"{path}.tolerations[{index}]"
        if toleration.get("operator") == "Exists" and toleration.get("value"):
            detail = "value must be empty when `operator` is 'Exists'"
            problems.append(failure.bad_value(f"{place}.operator", toleration.get("value"), detail))
        if toleration.get("effect") not in (None, "NoSchedule", "PreferNoSchedule", "NoExecute"):
            allowed = ("NoSchedule", "PreferNoSchedule", "NoExecute")
            problems.append(failure.not_supported(f"{place}.effect", toleration["effect"], allowed))
    return problems


def _volumes(volumes: list[Object], path: str, problems: list[Problem]) -> set[str]:
    names: set[str] = set()
    for index, volume in enumerate(volumes):
        place, name = f"{path}[{index}]", volume.get("name", "")
        _label(f"{place}.name", name, problems)
        if name in names:
            problems.append(failure.duplicate(f"{place}.name", name))
        names.add(name)
        sources = [key for key in volume if key != "name"]
        problems += [
            failure.not_permitted(f"{place}.{key}", "may not specify more than 1 volume type") for key in sources[1:]
        ]
        if "persistentVolumeClaim" in volume and not volume["persistentVolumeClaim"].get("claimName"):
            problems.append(failure.required(f"{place}.persistentVolumeClaim.claimName"))
        if "secret" in volume and not volume["secret"].get("secretName"):
            problems.append(failure.required(f"{place}.secret.secretName"))
        if "configMap" in volume and not volume["configMap"].get("name"):
            problems.append(failure.required(f"{place}.configMap.name"))
    return names


def _container(container: Object, path: str, volumes: set[str], names: set[str], problems: list[Problem]) -> None:
    name = container.get("name", "")
    _label(f"{path}.name", name, problems)
    if name in names:
        problems.append(failure.duplicate(f"{path}.name", name))
    names.add(name)
    image = container.get("image", "")
    if not image:
        problems.append(failure.required(f"{path}.image"))
    elif image != image.strip():
        problems.append(failure.bad_value(f"{path}.image", image, "must not have leading or trailing whitespace"))
    problems += choice_problem(f"{path}.imagePullPolicy", "imagePullPolicy", container.get("imagePullPolicy"))
    _ports(container.get("ports") or [], f"{path}.ports", problems)
    for index, variable in enumerate(container.get("env") or ()):
        if not variable.get("name"):
            problems.append(failure.required(f"{path}.env[{index}].name"))
        elif "=" in variable["name"]:
            problems.append(failure.bad_value(f"{path}.env[{index}].name", variable["name"], "a valid environment variable name must consist only of printable ASCII characters other than '='"))  # noqa: E501  # fmt: skip
        if variable.get("value") and variable.get("valueFrom"):
            detail = "may not be specified when `value` is not empty"
            problems.append(failure.bad_value(f"{path}.env[{index}].valueFrom", "", detail))
    mounted: set[str] = set()
    for index, mount in enumerate(container.get("volumeMounts") or ()):
        place = f"{path}.volumeMounts[{index}]"
        if mount.get("name") not in volumes:
            problems.append(Problem(f"{place}.name", "FieldValueNotFound", f'Not found: "{mount.get("name", "")}"'))
        if not mount.get("mountPath"):
            problems.append(failure.required(f"{place}.mountPath"))
        elif mount["mountPath"] in mounted:
            problems.append(failure.bad_value(f"{place}.mountPath", mount["mountPath"], "must be unique"))
        mounted.add(mount.get("mountPath", ""))
    _resources(container.get("resources") or {}, f"{path}.resources", problems)
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        handlers = {"exec", "httpGet", "tcpSocket", "grpc"} & set(container.get(probe) or {})
        if probe in container and not handlers:
            problems.append(failure.required(f"{path}.{probe}", "must specify a handler type"))


def _ports(ports: list[Object], path: str, problems: list[Problem]) -> None:
    names: set[str] = set()
    for index, port in enumerate(ports):
        place, name = f"{path}[{index}]", port.get("name")
        number = port.get("containerPort", 0)
        if not 0 < number < 65_536:
            problems.append(failure.bad_value(f"{place}.containerPort", number, _PORT_RANGE))
        problems += choice_problem(f"{place}.protocol", "protocol", port.get("protocol"))
        if name is not None:
            if len(name) > 15:
                problems.append(failure.bad_value(f"{place}.name", name, "must be no more than 15 characters"))
            if name in names:
                problems.append(failure.duplicate(f"{place}.name", name))
            names.add(name)


def _resources(resources: Object, path: str, problems: list[Problem]) -> None:
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    for name, amount in requests.items():
        if name in limits and amount_of(amount) > amount_of(limits[name]):
            detail = f"must be less than or equal to {name} limit of {limits[name]}"
            problems.append(failure.bad_value(f"{path}.requests", amount, detail))
    for name in {*limits, *requests}:
        # Extended resources such as nvidia.com/gpu cannot be overcommitted or split.
        if "/" not in name or name.startswith("kubernetes.io/"):
            continue
        if name not in limits:
            problems.append(failure.required(f"{path}.limits", "Limit must be set for non overcommitable resources"))
        elif name in requests and requests[name] != limits[name]:
            detail = f"must be equal to {name} limit of {limits[name]}"
            problems.append(failure.bad_value(f"{path}.requests", requests[name], detail))
        for field, amounts in (("limits", limits), ("requests", requests)):
            if name in amounts and amount_of(amounts[name]) % 1:
                problems.append(failure.bad_value(f"{path}.{field}[{name}]", amounts[name], "must be an integer"))


_SUFFIXES = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
             "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50, "Ei": 2.0**60}  # fmt: skip


def amount_of(text: Any) -> float:
    """A quantity as a number; 0 for what is none."""
    match = re.fullmatch(r"([+-]?[\d.]+(?:[eE][+-]?\d+)?)(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?", str(text))
    return float(match[1]) * _SUFFIXES.get(match[2] or "", 1.0) if match else 0.0


def _label(field: str, name: str, problems: list[Problem]) -> None:
    if not name:
        problems.append(failure.required(field))
    elif len(name) > 63:
        problems.append(failure.bad_value(field, name, "must be no more than 63 bytes"))
    elif not re.fullmatch(_LABEL, name):
        problems.append(failure.bad_value(field, name, _LABEL_TEXT))
