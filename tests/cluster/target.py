# SPDX-License-Identifier: Apache-2.0
"""A URL path of the API taken apart: group, version, namespace, resource, name and subresource."""

from dataclasses import dataclass

from cluster.failure import no_such_resource
from cluster.resource import Registry, Resource


class NoSuchPath(Exception):
    """Nothing is served under the path at all; answered by plain text, as Go's mux does."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a path points at."""

    resource: Resource
    namespace: str
    name: str
    subresource: str
    rest: str = ""


def parse_target(registry: Registry, path: str) -> Target:
    """The target of a path below /api or /apis. Raises NoSuchPath, or Failure (404) within a served group."""
    parts = path.strip("/").split("/")
    if parts[0] == "api" and len(parts) >= 2:
        group, version, rest = "", parts[1], parts[2:]
    elif parts[0] == "apis" and len(parts) >= 3:
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        raise NoSuchPath
    if not rest or not registry.has_group_version(group, version):
        raise NoSuchPath
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in ("status", "finalize"):
        namespace, rest = rest[1], rest[2:]
    resource = registry.find(group, version, rest[0])
    if resource is None:
        raise no_such_resource()
    name = rest[1] if len(rest) > 1 else ""
    subresource = rest[2] if len(rest) > 2 else ""
    if subresource and subresource not in resource.subresources:
        raise no_such_resource()
    if bool(namespace) and not resource.namespaced:
        raise no_such_resource()
    if name and resource.namespaced and not namespace:
        raise no_such_resource()
    return Target(resource, namespace, name, subresource, "/".join(rest[3:]))
