# SPDX-License-Identifier: Apache-2.0
"""Refusals of the API as Kubernetes words them: an exception that carries a `Status` object.

Every layer of the test API server raises `Failure`; the listener writes its `status` as the body of the answer.
"""

from collections.abc import Sequence
from typing import Any

from cluster.resource import Resource

Causes = list[dict[str, str]]

# StatusReason -> HTTP code, as k8s.io/apimachinery's api/errors has them.
CODES = {
    "BadRequest": 400,
    "Unauthorized": 401,
    "Forbidden": 403,
    "NotFound": 404,
    "MethodNotAllowed": 405,
    "NotAcceptable": 406,
    "AlreadyExists": 409,
    "Conflict": 409,
    "Expired": 410,
    "UnsupportedMediaType": 415,
    "Invalid": 422,
    "TooManyRequests": 429,
    "InternalError": 500,
    "ServiceUnavailable": 503,
    "Timeout": 504,
}


class Failure(Exception):
    """A request that is refused; `status` is the Kubernetes `Status` object of the answer."""

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        code: int | None = None,
        details: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.code = code or CODES[reason]
        self.status: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": metadata or {},
            "status": "Failure",
            "message": message,
        }
        if reason:
            self.status["reason"] = reason
        if details:
            self.status["details"] = details
        self.status["code"] = self.code


def _details(resource: Resource, name: str) -> dict[str, Any]:
    details = {"name": name} if name else {}
    if resource.group:
        details["group"] = resource.group
    return {**details, "kind": resource.plural}


def not_found(resource: Resource, name: str) -> Failure:
    """404 for an object."""
    return Failure("NotFound", f'{resource.qualified} "{name}" not found', details=_details(resource, name))


def no_such_resource() -> Failure:
    """404 for a resource that the group and version do not have."""
    return Failure("NotFound", "the server could not find the requested resource", details={})


def already_exists(resource: Resource, name: str) -> Failure:
    """409 for a create."""
    return Failure("AlreadyExists", f'{resource.qualified} "{name}" already exists', details=_details(resource, name))


STALE = "the object has been modified; please apply your changes to the latest version and try again"


def conflict(resource: Resource, name: str, why: str = STALE) -> Failure:
    """409 for an update of an older version of the object."""
    message = f'Operation cannot be fulfilled on {resource.qualified} "{name}": {why}'
    return Failure("Conflict", message, details=_details(resource, name))


def precondition_failed(resource: Resource, name: str, why: str) -> Failure:
    """409 for a deletion; the kind stands where elsewhere the resource does."""
    kind = f"{resource.kind}.{resource.group}" if resource.group else resource.kind
    message = f'Operation cannot be fulfilled on {kind} "{name}": {why}'
    return Failure("Conflict", message, details={**_details(resource, name), "kind": resource.kind})


def apply_conflict(message: str, causes: Causes) -> Failure:
    """409 for a server-side apply that would take fields from other managers."""
    return Failure("Conflict", message, details={"causes": causes})


def bad_request(message: str) -> Failure:
    """400."""
    return Failure("BadRequest", message)


def forbidden(resource: Resource, name: str, why: str, causes: Causes | None = None) -> Failure:
    """403 for an object."""
    details = _details(resource, name)
    if causes:
        details["causes"] = causes
    return Failure("Forbidden", f'{resource.qualified} "{name}" is forbidden: {why}', details=details)


def method_not_allowed(resource: Resource, verb: str) -> Failure:
    """405."""
    return Failure(
        "MethodNotAllowed",
        f"{verb} is not supported on resources of kind {resource.qualified!r}".replace("'", '"'),
        details=_details(resource, ""),
    )


def unsupported_media_type(accepted: Sequence[str]) -> Failure:
    """415."""
    kinds = ", ".join(accepted)
    message = f"the body of the request was in an unknown format - accepted media types include: {kinds}"
    return Failure("UnsupportedMediaType", message)


def expired(message: str, metadata: dict[str, Any] | None = None) -> Failure:
    """410: the resource version asked for is no longer kept."""
    return Failure("Expired", message, metadata=metadata)


def invalid(resource: Resource, name: str, problems: "Sequence[Problem]") -> Failure:
    """422 with a cause for every problem."""
    texts = list(dict.fromkeys(str(problem) for problem in problems))
    text = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    kind = f"{resource.kind}.{resource.group}" if resource.group else resource.kind
    details = {"name": name} if name else {}
    if resource.group:
        details["group"] = resource.group
    causes = [{"reason": p.reason, "message": p.detail, "field": p.field} for p in problems]
    return Failure(
        "Invalid", f'{kind} "{name}" is invalid: {text}', details={**details, "kind": resource.kind, "causes": causes}
    )


def not_updatable(resource: Resource, name: str, problems: "Sequence[Problem]") -> Failure:
    """422 for an update that says too little about the version it is based on; it names the resource, not the kind."""
    refused = invalid(resource, name, problems)
    refused.status["message"] = f'{resource.qualified} "{name}" is invalid: {", ".join(map(str, problems))}'
    refused.status["details"]["kind"] = resource.plural
    return refused


class Problem:
    """One field error of a 422, as k8s.io/apimachinery's `field.Error` prints it."""

    __slots__ = ("detail", "field", "reason")

    def __init__(self, field: str, reason: str, detail: str) -> None:
        self.field = field
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.field}: {self.detail}" if self.field else self.detail


def required(field: str, detail: str = "") -> Problem:
    """A field that must be there."""
    return Problem(field, "FieldValueRequired", "Required value" + (f": {detail}" if detail else ""))


def bad_value(field: str, value: Any, detail: str) -> Problem:
    """A value that is not allowed."""
    return Problem(field, "FieldValueInvalid", f"Invalid value: {shown(value)}: {detail}")


def bad_type(field: str, seen: str, detail: str) -> Problem:
    """A value of the wrong JSON type; `seen` is the name of the type found."""
    return Problem(field, "FieldValueTypeInvalid", f'Invalid value: "{seen}": {detail}')


def not_supported(field: str, value: Any, allowed: Sequence[Any]) -> Problem:
    """A value outside an enumeration."""
    choices = ", ".join(shown(choice) for choice in allowed)
    return Problem(field, "FieldValueNotSupported", f"Unsupported value: {shown(value)}: supported values: {choices}")


def duplicate(field: str, value: Any) -> Problem:
    """A second item with the same key."""
    return Problem(field, "FieldValueDuplicate", f"Duplicate value: {shown(value)}")


def not_permitted(field: str, detail: str) -> Problem:
    """A field that may not be set or changed here."""
    return Problem(field, "FieldValueForbidden", f"Forbidden: {detail}")


def too_long(field: str, limit: int) -> Problem:
    """A string above its limit, in bytes."""
    return Problem(field, "FieldValueTooLong", f"Too long: may not be more than {limit} bytes")


def too_many(field: str, seen: int, limit: int) -> Problem:
    """A list above its limit."""
    return Problem(field, "FieldValueTooMany", f"Too many: {seen}: must have at most {limit} items")


def shown(value: Any) -> str:
    """A value as Go's field errors print it."""
    import json

    if value is None:
        return "null"
    if isinstance(value, (str, bool, int, float)):
        return json.dumps(value, ensure_ascii=False)
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
