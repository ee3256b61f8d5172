# SPDX-License-Identifier: Apache-2.0
"""A rendered object and the live one in, whether anything must be written out. Pure; called by apply.py.

Two questions are asked. Did we render something else since it was applied? The annotation `kaito-ray.io/applied`
holds a hash of what was, so that a field we no longer name counts too. Did somebody change our fields? Every field we
name must be there with our value; fields that others or the API server added are theirs.
"""

import hashlib
import json
from typing import Any

from kaito_ray import names

KubeObject = dict[str, Any]


def stamped(document: KubeObject, owner: KubeObject) -> KubeObject:
    """The rendered object as it is applied: owned by the Workspace `owner`, and with the hash of what was rendered."""
    metadata = document["metadata"]
    reference = {
        "apiVersion": f"{names.GROUP}/v1beta1",
        "kind": names.KIND,
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    annotations = {**metadata.get("annotations", {}), names.ANNOTATION_APPLIED: digest(document)}
    return {**document, "metadata": {**metadata, "annotations": annotations, "ownerReferences": [reference]}}


def digest(value: Any) -> str:
    """A short hash, the same for equal values."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_current(wanted: KubeObject, live: KubeObject) -> bool:
    """Whether the live object already is what `wanted`, a stamped object, asks for."""
    return was_applied(wanted, live) and covers(wanted, live)


def was_applied(wanted: KubeObject, live: KubeObject) -> bool:
    """Whether what is wanted was applied before, whatever became of it since."""
    return _applied(wanted) == _applied(live)


def covers(wanted: Any, live: Any, *, _top: bool = True) -> bool:
    """Whether every field of `wanted` is in `live` with its value.

    Lists must agree entry by entry, except owner references, of which others may add some. A field that is empty in
    `wanted` may be missing, since the API server leaves out zero values. Objects out of a list have no kind.
    """
    if isinstance(wanted, dict) and isinstance(live, dict):
        for key, value in wanted.items():
            if _top and key in {"apiVersion", "kind"}:
                continue
            if key not in live:
                if value:
                    return False
            elif key == "ownerReferences":
                if not all(any(covers(one, other, _top=False) for other in live[key]) for one in value):
                    return False
            elif not covers(value, live[key], _top=False):
                return False
        return True
    if isinstance(wanted, list) and isinstance(live, list):
        return len(wanted) == len(live) and all(
            covers(one, other, _top=False) for one, other in zip(wanted, live, strict=True)
        )
    return bool(wanted == live)


def _applied(document: KubeObject) -> str:
    annotations = document["metadata"].get("annotations") or {}
    return str(annotations.get(names.ANNOTATION_APPLIED, ""))
