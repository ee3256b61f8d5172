# SPDX-License-Identifier: Apache-2.0
"""What an API server checks of a pod beyond its schema, as far as our pods can get it wrong."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_QUANTITY = r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?"
_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")


def pod_problems(template: Mapping[str, Any]) -> Iterator[str]:
    """Problems of one pod template."""
    spec = template["spec"]
    volumes = [volume["name"] for volume in spec.get("volumes", [])]
    yield from _repeated("volume", volumes)
    for volume in spec.get("volumes", []):
        if not re.fullmatch(_LABEL, volume["name"]):
            yield f"volume {volume['name']!r} is no DNS label"
        if len(volume) != 2:
            yield f"volume {volume['name']!r} has {len(volume) - 1} sources, not one"
    yield from _repeated("container", [one["name"] for one in _containers(spec)])
    for container in _containers(spec):
        for problem in _container_problems(container, volumes):
            yield f"container {container['name']}: {problem}"


def _containers(spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*spec.get("initContainers", ()), *spec["containers"]]


def _container_problems(container: Mapping[str, Any], volumes: list[str]) -> Iterator[str]:
    yield from _repeated("variable", [entry["name"] for entry in container["env"]])
    yield from _repeated("mount path", [mount["mountPath"] for mount in container["volumeMounts"]])
    yield from _repeated("port name", [port["name"] for port in container.get("ports", ())])
    for mount in container["volumeMounts"]:
        if mount["name"] not in volumes:
            yield f"mount of unknown volume {mount['name']!r}"
        if not mount["mountPath"].startswith("/"):
            yield f"mount path {mount['mountPath']!r} is not absolute"
    for port in container.get("ports", ()):
        if len(port["name"]) > 15 or not re.fullmatch(_LABEL, port["name"]):
            yield f"port name {port['name']!r}"
    for entry in container["env"]:
        if ("value" in entry) == ("valueFrom" in entry) or not isinstance(entry.get("value", ""), str):
            yield f"variable {entry['name']} needs a text or one reference"
    for probe in _PROBES:
        if len({"httpGet", "exec", "tcpSocket", "grpc"} & container.get(probe, {"exec": {}}).keys()) != 1:
            yield f"{probe} needs one handler"
    requests, limits = container["resources"]["requests"], container["resources"]["limits"]
    for name, quantity in [*requests.items(), *limits.items()]:
        if not re.fullmatch(_QUANTITY, quantity):
            yield f"{name}: {quantity!r} is no quantity"
    for name in (requests.keys() | limits.keys()) - {"cpu", "memory"}:
        if requests.get(name) != limits.get(name):
            yield f"{name} must be requested and limited alike"


def _repeated(what: str, values: list[str]) -> Iterator[str]:
    for value, times in Counter(values).items():
        if times > 1:
            yield f"{what} {value!r} {times} times"
