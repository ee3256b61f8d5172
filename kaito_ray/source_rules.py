# SPDX-License-Identifier: Apache-2.0
"""Rules about where data and adapters come from and go to: sources, volumes, images, URLs, names of other objects.

Called by workspace_rules.py with mappings of a plain document; each rule yields the Problems it finds.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from kaito_ray.document import Document, Path, items, nearest, shown, text
from kaito_ray.errors import Problem
from kaito_ray.urls import refuse_url

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
# An image reference as registries define it: [host[:port]/]path[:tag][@digest].
_HOST_PART = "[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = rf"(?:{_HOST_PART}(?:\.{_HOST_PART})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_TAG, _DIGEST = r"(?::[\w][\w.-]{0,127})?", "(?:@[a-z0-9+._-]+:[0-9a-fA-F]{32,})?"
_IMAGE = re.compile(rf"(?:{_HOST}/)?{_COMPONENT}(?:/{_COMPONENT})*{_TAG}{_DIGEST}", re.ASCII)
# Words that a document's author left for the user to replace, such as ACR_REPO_HERE.
_PLACEHOLDER = re.compile(
    r"(?<![A-Za-z0-9_])(?:(?:[A-Z0-9]{1,32}_){1,8}HERE|YOUR(?:_[A-Z0-9]{1,32}){1,8})(?![A-Za-z0-9_])"
)
# fmt: off
_VOLUME_KINDS = (
    "awsElasticBlockStore", "azureDisk", "azureFile", "cephfs", "cinder", "configMap", "csi", "downwardAPI", "emptyDir",
    "ephemeral", "fc", "flexVolume", "flocker", "gcePersistentDisk", "gitRepo", "glusterfs", "hostPath", "image",
    "iscsi", "nfs", "persistentVolumeClaim", "photonPersistentDisk", "portworxVolume", "projected", "quobyte", "rbd",
    "scaleIO", "secret", "storageos", "vsphereVolume",
)
# fmt: on


def placeholders(text: str) -> list[str]:
    """The words in `text` that are still to be replaced, such as ACR_REPO_HERE."""
    return _PLACEHOLDER.findall(text)


def source_problems(
    source: Document, path: Path, choices: tuple[str, ...], allowed: Collection[str]
) -> Iterator[Problem]:
    """A DataSource that must have exactly one of `choices`; `allowed` lifts the rule against private URLs."""
    yield from not_exactly_one(source, path, choices)
    yield from image_problems(text(source, "image"), (*path, "image"))
    yield from volume_problems(source, path)
    for index, secret in items(source, "imagePullSecrets"):
        yield from name_problems(secret, (*path, "imagePullSecrets", index))
    for index, url in items(source, "urls"):
        if isinstance(url, str) and not placeholders(url):
            refused = refuse_url(url, allowed)
            if refused:
                yield Problem((*path, "urls", index), refused)


def not_exactly_one(source: Document, path: Path, choices: tuple[str, ...]) -> Iterator[Problem]:
    """None or several of `choices`; an empty string or list counts as absent."""
    given = [choice for choice in choices if source.get(choice) not in ("", []) and choice in source]
    if len(given) != 1:
        listed = f"{', '.join(choices[:-1])} and {choices[-1]}"
        yield Problem(path, f"must have exactly one of {listed}, got {' and '.join(given) or 'none'}")


def volume_problems(source: Document, path: Path) -> Iterator[Problem]:
    """A volumeSource that is not one kind of volume with what that kind cannot do without."""
    volume = source.get("volumeSource")
    if not isinstance(volume, Mapping):
        return
    path = (*path, "volumeSource")
    if len(volume) != 1:
        yield Problem(path, f"must name exactly one kind of volume, got {', '.join(sorted(volume)) or 'none'}")
    for kind, value in volume.items():
        if kind not in _VOLUME_KINDS:
            alike = nearest(kind, _VOLUME_KINDS)
            yield Problem((*path, kind), "is not a kind of volume" + (f"; did you mean {alike}?" if alike else ""))
        elif not isinstance(value, Mapping):
            yield Problem((*path, kind), f"must be a mapping, got {shown(value)}")
    for kind, key in (("hostPath", "path"), ("persistentVolumeClaim", "claimName")):
        value = volume.get(kind)
        if isinstance(value, Mapping) and not (isinstance(value.get(key), str) and value[key]):
            yield Problem((*path, kind, key), "is missing")


def image_problems(image: str, path: Path) -> Iterator[Problem]:
    """An image reference that no registry would understand; unfilled placeholders are let through."""
    # The length comes first so that the pattern never sees a text long enough to be slow on.
    if image and (len(image) > 512 or not (placeholders(image) or _IMAGE.fullmatch(image))):
        yield Problem(path, f"must be an image such as registry.example/team/adapter:1.0, got {shown(image)}")


def is_dns_label(text: str) -> bool:
    """Whether `text` may name a Workspace or a namespace."""
    return len(text) <= 63 and _DNS_LABEL.fullmatch(text) is not None


def is_dns_subdomain(text: str) -> bool:
    """Whether `text` may name a ConfigMap or a Secret."""
    return 0 < len(text) <= 253 and all(_DNS_LABEL.fullmatch(part) for part in text.split("."))


def name_problems(name: Any, path: Path) -> Iterator[Problem]:
    """The name of a ConfigMap, Secret or adapter that cannot be one; unfilled placeholders are let through."""
    if isinstance(name, str) and name and not placeholders(name) and not is_dns_subdomain(name):
        yield Problem(
            path,
            "must have at most 253 lower-case letters, digits, hyphens and dots, beginning and ending with a letter or"
            f" digit, got {shown(name)}",
        )
