# SPDX-License-Identifier: Apache-2.0
"""Discovery documents: what the server serves, in the old form and the aggregated one kubectl prefers."""

from typing import Any

from cluster.resource import Object, Registry, Resource

AGGREGATED = "application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList"
VERSION = {
    "major": "1",
    "minor": "33",
    "gitVersion": "v1.33.4",
    "gitCommit": "0" * 40,
    "gitTreeState": "clean",
    "buildDate": "2025-08-12T00:00:00Z",
    "goVersion": "go1.24.5",
    "compiler": "gc",
    "platform": "linux/amd64",
}
_STATUS_VERBS = ["get", "patch", "update"]
_SUBRESOURCES: dict[str, tuple[str, str, str, list[str]]] = {
    # subresource: group, version, kind, verbs of what it takes
    "scale": ("autoscaling", "v1", "Scale", _STATUS_VERBS),
    "log": ("", "v1", "Pod", ["get"]),
    "binding": ("", "v1", "Binding", ["create"]),
    "eviction": ("policy", "v1", "Eviction", ["create"]),
    "portforward": ("", "v1", "PodPortForwardOptions", ["create", "get"]),
    "token": ("authentication.k8s.io", "v1", "TokenRequest", ["create"]),
    "finalize": ("", "v1", "Namespace", ["update"]),
    "proxy": ("", "v1", "ServiceProxyOptions", ["create", "delete", "get", "patch", "update"]),
}


def core_versions() -> Object:
    """GET /api."""
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}


def group_list(registry: Registry) -> Object:
    """GET /apis."""
    groups = [_group(name, versions) for name, versions in _groups(registry).items() if name]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def group(registry: Registry, name: str) -> Object | None:
    """GET /apis/GROUP."""
    versions = _groups(registry).get(name)
    return {"kind": "APIGroup", "apiVersion": "v1", **_group(name, versions)} if versions else None


def resource_list(registry: Registry, group_name: str, version: str) -> Object | None:
    """GET /api/v1 or /apis/GROUP/VERSION."""
    if not registry.has_group_version(group_name, version):
        return None
    entries: list[Object] = []
    for resource in _of(registry, group_name, version):
        entries.append(
            {
                "name": resource.plural,
                "singularName": resource.singular,
                "namespaced": resource.namespaced,
                "kind": resource.kind,
                "verbs": list(resource.verbs),
                **({"shortNames": list(resource.short_names)} if resource.short_names else {}),
                **({"categories": list(resource.categories)} if resource.categories else {}),
            }
        )
        for name in sorted(resource.subresources):
            in_group, in_version, kind, verbs = _subresource(resource, name)
            place = {"group": in_group, "version": in_version} if kind != resource.kind else {}
            entries.append(
                {
                    "name": f"{resource.plural}/{name}",
                    "singularName": "",
                    "namespaced": resource.namespaced,
                    "kind": kind,
                    "verbs": verbs,
                    **place,
                }
            )
    api_version = f"{group_name}/{version}" if group_name else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version, "resources": entries}


def aggregated(registry: Registry, *, core: bool, version: str) -> Object:
    """GET /api (core) or /apis as an APIGroupDiscoveryList."""
    items = []
    for name, versions in _groups(registry).items():
        if bool(name) == core:
            continue
        found: list[Any] = [
            {
                "version": one,
                "resources": [_aggregated(resource) for resource in _of(registry, name, one)],
                "freshness": "Current",
            }
            for one in versions
        ]
        items.append({"metadata": {"name": name, "creationTimestamp": None}, "versions": found})
    return {
        "kind": "APIGroupDiscoveryList",
        "apiVersion": f"apidiscovery.k8s.io/{version}",
        "metadata": {},
        "items": items,
    }


def _aggregated(resource: Resource) -> Object:
    entry: Object = {
        "resource": resource.plural,
        "responseKind": {"group": resource.group, "version": resource.version, "kind": resource.kind},
        "scope": "Namespaced" if resource.namespaced else "Cluster",
        "singularResource": resource.singular,
        "verbs": list(resource.verbs),
    }
    if resource.short_names:
        entry["shortNames"] = list(resource.short_names)
    if resource.categories:
        entry["categories"] = list(resource.categories)
    subresources = []
    for name in sorted(resource.subresources):
        in_group, in_version, kind, verbs = _subresource(resource, name)
        subresources.append(
            {
                "subresource": name,
                "responseKind": {"group": in_group, "version": in_version, "kind": kind},
                "verbs": verbs,
            }
        )
    if subresources:
        entry["subresources"] = subresources
    return entry


def _subresource(resource: Resource, name: str) -> tuple[str, str, str, list[str]]:
    return _SUBRESOURCES.get(name) or (resource.group, resource.version, resource.kind, _STATUS_VERBS)


def _groups(registry: Registry) -> dict[str, list[str]]:
    """Versions by group, the preferred one first: stable before beta before alpha, then the higher number."""
    found: dict[str, list[str]] = {}
    for resource in registry:
        versions = found.setdefault(resource.group, [])
        if resource.version not in versions:
            versions.append(resource.version)
    for versions in found.values():
        versions.sort(key=_rank)
    return found


def _rank(version: str) -> tuple[int, int, int]:
    import re

    match = re.fullmatch(r"v(\d+)(?:(alpha|beta)(\d+))?", version)
    if not match:
        return (3, 0, 0)
    stage = {None: 0, "beta": 1, "alpha": 2}[match[2]]
    return (stage, -int(match[1]), -int(match[3] or 0))


def _group(name: str, versions: list[str]) -> Object:
    entries = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": entries, "preferredVersion": entries[0]}


def _of(registry: Registry, group_name: str, version: str) -> list[Resource]:
    found = [one for one in registry if one.group == group_name and one.version == version]
    return sorted(found, key=lambda one: one.plural)
