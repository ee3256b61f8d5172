# SPDX-License-Identifier: Apache-2.0
"""The protobuf bodies of `kubectl create namespace|configmap|secret|serviceaccount|token` and `kubectl auth`.

kubectl's typed clients write Kubernetes' protobuf envelope. Only the messages of those commands are read here; the
field numbers are those of the generated.proto files of k8s.io/api and k8s.io/apimachinery.
"""

import base64
from collections.abc import Iterator
from typing import Any

from cluster.failure import Failure, unsupported_media_type
from cluster.resource import Object

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\x00"
# number -> (field, how its bytes are read)
_METADATA: dict[int, tuple[str, str]] = {
    1: ("name", "text"),
    2: ("generateName", "text"),
    3: ("namespace", "text"),
    11: ("labels", "map"),
    12: ("annotations", "map"),
}
_FIELDS: dict[str, dict[int, tuple[str, str]]] = {
    "Namespace": {1: ("metadata", "metadata")},
    "ServiceAccount": {1: ("metadata", "metadata")},
    "ConfigMap": {1: ("metadata", "metadata"), 2: ("data", "map"), 3: ("binaryData", "bytes map")},
    "Secret": {1: ("metadata", "metadata"), 2: ("data", "bytes map"), 3: ("type", "text"), 4: ("stringData", "map")},
    "SelfSubjectReview": {1: ("metadata", "metadata")},
    "SelfSubjectAccessReview": {1: ("metadata", "metadata"), 2: ("spec", "access spec")},
    "SelfSubjectRulesReview": {1: ("metadata", "metadata")},
    "TokenRequest": {1: ("metadata", "metadata")},
}
_PARTS: dict[str, dict[int, tuple[str, str]]] = {
    "metadata": _METADATA,
    "access spec": {1: ("resourceAttributes", "resource"), 2: ("nonResourceAttributes", "path")},
    "resource": {1: ("namespace", "text"), 2: ("verb", "text"), 3: ("group", "text"), 4: ("version", "text"),
                 5: ("resource", "text"), 6: ("subresource", "text"), 7: ("name", "text")},
    "path": {1: ("path", "text"), 2: ("verb", "text")},
}  # fmt: skip


def is_protobuf(body: bytes) -> bool:
    """Whether a body is in Kubernetes' protobuf envelope."""
    return body.startswith(_MAGIC)


def parse_protobuf(body: bytes) -> Object:
    """The object in an envelope. Raises Failure (415) for kinds that are not read here."""
    type_meta: Object = {}
    raw = b""
    for number, value in _fields(body[len(_MAGIC) :]):
        if number == 1:
            names = {1: "apiVersion", 2: "kind"}
            type_meta = {names[at]: part.decode() for at, part in _fields(value) if at in names}
        elif number == 2:
            raw = value
    kind = type_meta.get("kind", "")
    if kind in ("CreateOptions", "DeleteOptions"):
        return type_meta
    if kind not in _FIELDS:
        raise unsupported_media_type(["application/json", "application/yaml"])
    return {**type_meta, **_message(raw, _FIELDS[kind])}


def _message(data: bytes, fields: dict[int, tuple[str, str]]) -> Object:
    found: Object = {}
    for number, value in _fields(data):
        if number not in fields:
            continue
        name, kind = fields[number]
        if kind == "text":
            if value:
                found[name] = value.decode()
        elif kind in _PARTS:
            found[name] = _message(value, _PARTS[kind])
        else:
            entry = dict(_fields(value))
            text = entry.get(2, b"")
            found.setdefault(name, {})[entry.get(1, b"").decode()] = (
                base64.b64encode(text).decode() if kind == "bytes map" else text.decode()
            )
    return found


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The length-delimited fields of a message; numbers are passed over."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        if tag & 7 == 2:
            length, position = _varint(data, position)
            yield tag >> 3, data[position : position + length]
            position += length
        elif tag & 7 == 0:
            _, position = _varint(data, position)
        else:
            raise Failure("BadRequest", f"unexpected wire type {tag & 7} in a protobuf body")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        shift += 7
        if not byte & 128:
            return value, position
