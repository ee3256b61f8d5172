# SPDX-License-Identifier: Apache-2.0
"""The kinds that are asked rather than stored: access reviews and `kubectl auth whoami`."""

from typing import Any

from cluster.access import Access, User, user_of
from cluster.call import Call
from cluster.failure import Failure
from cluster.resource import Object

REVIEWS = {
    "SelfSubjectAccessReview", "SubjectAccessReview", "LocalSubjectAccessReview", "SelfSubjectReview", "TokenReview",
    "SelfSubjectRulesReview",
}  # fmt: skip


def answered(access: Access, call: Call, body: Any, admin_token: str) -> Object:
    """A review with its status filled in."""
    document: Object = {"kind": call.resource.kind, "apiVersion": call.resource.api_version, **(body or {})}
    document.setdefault("metadata", {})
    spec = document.get("spec") or {}
    user: User = (call.user, call.groups)
    match call.resource.kind:
        case "SelfSubjectReview":
            status: Object = {"userInfo": {"username": user[0], "groups": list(user[1])}}
        case "TokenReview":
            status = _token_status(spec.get("token", ""), admin_token)
        case "SelfSubjectRulesReview":
            status = {"resourceRules": [], "nonResourceRules": [], "incomplete": True}
        case kind:
            if kind != "SelfSubjectAccessReview":
                user = (spec.get("user", ""), tuple(spec.get("groups") or ()))
            status = {"allowed": _allowed(access, user, spec)}
    return {**document, "status": status}


def _allowed(access: Access, user: User, spec: Object) -> bool:
    asked = spec.get("resourceAttributes")
    if asked is None:
        path = spec.get("nonResourceAttributes") or {}
        return access.allows_path(user, path.get("verb", ""), path.get("path", ""))
    plural = asked.get("resource", "")
    if asked.get("subresource"):
        plural += f"/{asked['subresource']}"
    return access.allows(
        user, asked.get("verb", ""), asked.get("group", ""), plural, asked.get("namespace", ""), asked.get("name", "")
    )


def _token_status(token: str, admin_token: str) -> Object:
    try:
        name, groups = user_of(f"Bearer {token}", admin_token)
    except Failure:
        return {"authenticated": False, "error": "invalid bearer token"}
    return {"authenticated": True, "user": {"username": name, "groups": list(groups)}}
