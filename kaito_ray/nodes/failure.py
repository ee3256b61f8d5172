# SPDX-License-Identifier: Apache-2.0
"""An error of Azure in, a reason that a person can act on out.

The input is an exception of the SDK, or the `provisioning_error` that a failed agent pool keeps, so that an operator
that was restarted in between reports the same. Called by aks.py for both; attempt.py decides by the reason what is
tried next. Rules and their order follow what AKS was seen to answer: the class of the SDK's exception says little
(every 409 is a ResourceExistsError, quota included), so the codes and texts decide.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from azure.core.exceptions import (
    ClientAuthenticationError,
    DecodeError,
    HttpResponseError,
    ServiceRequestError,
    ServiceResponseError,
)

MESSAGE_MAX = 1024


class Reason(StrEnum):
    """Why there are no nodes yet: the reason of ResourceReady, and of an attempt in `status.nodePool`."""

    SPOT_QUOTA = "SpotQuotaExceeded"
    REGIONAL_QUOTA = "RegionalQuotaExceeded"
    FAMILY_QUOTA = "SkuFamilyQuotaExceeded"
    IN_PROGRESS = "OperationInProgress"
    PREEMPTED = "OperationPreempted"
    SKU_UNAVAILABLE = "SkuNotAvailable"
    ZONAL_CAPACITY = "ZonalAllocationFailed"
    CAPACITY = "AllocationFailed"
    THROTTLED = "Throttled"
    AUTH = "AuthorizationFailed"
    SUBNET = "SubnetTooSmall"
    TRANSIENT = "AzureUnavailable"
    BOOTSTRAP = "NodeBootstrapFailed"
    INVALID = "AgentPoolInvalid"
    NOT_FOUND = "ClusterNotFound"
    UNKNOWN = "ProvisioningFailed"
    TIMED_OUT = "NodesTimedOut"
    """Ours: the pool was made, and its GPUs did not show up by the deadline."""
    NAME_TAKEN = "AgentPoolNameTaken"
    """Ours: somebody else has a pool of the name that was computed."""


ADVICE: Mapping[Reason, str] = {
    Reason.SPOT_QUOTA: "ask for more low-priority vCPUs in the region, or set kaito-ray.io/spot to prefer or never",
    Reason.REGIONAL_QUOTA: "ask for more vCPUs in the region as a whole; another GPU size does not help",
    Reason.FAMILY_QUOTA: "ask for more vCPUs of this size's family (https://aka.ms/quotas), or name sizes of other"
    " families in kaito-ray.io/instance-types",
    Reason.IN_PROGRESS: "nothing to do, the cluster is busy with another operation",
    Reason.PREEMPTED: "nothing to do, another operation on the cluster came first",
    Reason.SKU_UNAVAILABLE: "choose a size that this region offers to your subscription"
    " (az vm list-skus --location <region> --size Standard_N)",
    Reason.ZONAL_CAPACITY: "nothing to do, other zones are tried; more sizes in kaito-ray.io/instance-types help",
    Reason.CAPACITY: "name more sizes in kaito-ray.io/instance-types, or wait until the region has GPUs again",
    Reason.THROTTLED: "nothing to do, Azure asked to wait",
    Reason.AUTH: "give the operator's identity its role on the cluster, and on the subnet where the cluster brings"
    " its own; see Azure set-up in the README",
    Reason.SUBNET: "the cluster's subnet has no addresses left for these nodes; enlarge it or ask for fewer nodes",
    Reason.TRANSIENT: "nothing to do, Azure did not answer as it should",
    Reason.BOOTSTRAP: "the machines started but did not join; if it happens twice look at the cluster's outbound"
    " network and node image",
    Reason.INVALID: "the request can never work as it is; change what Azure's text names",
    Reason.NOT_FOUND: "check KAITO_RAY_SUBSCRIPTION_ID, KAITO_RAY_RESOURCE_GROUP and KAITO_RAY_CLUSTER_NAME",
    Reason.UNKNOWN: "read Azure's text; it is tried again",
    Reason.TIMED_OUT: "look at the nodes and at the NVIDIA device plugin; if slow nodes are normal here, raise"
    " KAITO_RAY_NODE_TIMEOUT_MINUTES",
    Reason.NAME_TAKEN: "nothing to do, another name is tried",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """What Azure said, classified. `code` and `message` are its own words; `status` is that of HTTP, 0 without one."""

    reason: Reason
    code: str
    message: str
    status: int = 0
    retry_after_s: float | None = None
    """What Azure asked to wait, in seconds."""

    @property
    def sentence(self) -> str:
        """Code and text as a condition shows them."""
        return f"{self.code}: {self.message}" if self.code and self.code not in self.message else self.message


@dataclass(frozen=True, slots=True)
class _Rule:
    """Matches a pair when the whole code fits `code` and the message has `message` somewhere, both in any case."""

    reason: Reason
    code: str = ".*"
    message: str = ""

    def matches(self, code: str, message: str) -> bool:
        return bool(
            re.fullmatch(self.code, code, re.IGNORECASE | re.DOTALL) and re.search(self.message, message, re.IGNORECASE)
        )


# The first rule that fits any pair wins, so the special stands before the general: quota and "in progress" both come
# as OperationNotAllowed.
_RULES = (
    _Rule(Reason.SPOT_QUOTA, message="LowPriorityCores"),
    _Rule(Reason.REGIONAL_QUOTA, message="Total Regional Cores quota"),
    _Rule(Reason.FAMILY_QUOTA, code="ErrCode_InsufficientVCPUQuota|QuotaExceeded"),
    _Rule(Reason.FAMILY_QUOTA, message="Family Cores quota|Insufficient vcpu quota"),
    _Rule(Reason.IN_PROGRESS, code="AnotherOperationInProgress|Conflict"),
    _Rule(Reason.IN_PROGRESS, message="in progress|aks-pending-operation"),
    _Rule(Reason.PREEMPTED, code="OriginalEtagNotExpect|EtagMismatch|OperationPreempted|PreconditionFailed"),
    _Rule(Reason.PREEMPTED, message="preempted by|overridd?en and canceled"),
    _Rule(Reason.SKU_UNAVAILABLE, code="VMSizeNotSupported|SkuNotAvailable"),
    _Rule(Reason.SKU_UNAVAILABLE, code="BadRequest", message="is not supported for subscription"),
    _Rule(Reason.ZONAL_CAPACITY, code="ZonalAllocationFailed|OverconstrainedZonalAllocationRequest"),
    _Rule(Reason.CAPACITY, code="AllocationFailed|OverconstrainedAllocationRequest"),
    _Rule(Reason.THROTTLED, code="Throttled|TooManyRequests|SubscriptionRequestsThrottled"),
    _Rule(Reason.AUTH, code="AuthorizationFailed|LinkedAuthorizationFailed|InvalidAuthenticationToken"),
    _Rule(Reason.SUBNET, code="InsufficientSubnetSize"),
    _Rule(
        Reason.TRANSIENT,
        code=r"SetVNetOwnershipFailed|VirtualNetworkNotInSucceededState|Internal\w*Error|InternalServerError",
    ),
    _Rule(Reason.BOOTSTRAP, code=r"VMExtension.*|.*CSE.*"),
    _Rule(Reason.INVALID, code="InvalidParameter|BadRequest|OperationNotAllowed"),
)
_BY_STATUS = {
    401: Reason.AUTH,
    403: Reason.AUTH,
    404: Reason.NOT_FOUND,
    409: Reason.IN_PROGRESS,
    412: Reason.PREEMPTED,
    429: Reason.THROTTLED,
}
# Older resource providers put the cause as text into the message of another error.
_EMBEDDED = re.compile(r'Code="(\w+)"(?:\s+Message="([^"]*)")?')


def classify_error(error: Exception) -> Failure:
    """The failure behind an exception of the SDK or of azure-identity."""
    # No HTTP answer at all, or one that is no JSON (a proxy's page): nothing is known about the request.
    if isinstance(error, ServiceRequestError | ServiceResponseError | DecodeError | TimeoutError | OSError):
        return Failure(Reason.TRANSIENT, type(error).__name__, _cut(str(error)))
    if isinstance(error, ClientAuthenticationError) and error.response is None:
        return Failure(Reason.AUTH, type(error).__name__, _cut(str(error)))
    if not isinstance(error, HttpResponseError):
        raise error
    status = error.status_code or 0
    headers: Mapping[str, str] = getattr(error.response, "headers", {})
    return _classify(error.error, str(error.message), status, _seconds(headers.get("Retry-After")))


def classify_provisioning_error(detail: Any) -> Failure:
    """The failure of a pool in state Failed; `detail` is its `status.provisioning_error`, None where it has none."""
    return _classify(detail, "the agent pool failed and Azure gave no reason", 0, None)


def _classify(detail: Any, otherwise: str, status: int, retry_after_s: float | None) -> Failure:
    pairs = list(_pairs(detail)) or [("", otherwise)]
    for rule in _RULES:
        for code, message in pairs:
            if rule.matches(code, message):
                return Failure(rule.reason, code, _cut(message or otherwise), status, retry_after_s)
    reason = _BY_STATUS.get(status, Reason.TRANSIENT if status >= 500 else Reason.UNKNOWN)
    return Failure(reason, pairs[0][0], _cut(pairs[0][1] or otherwise), status, retry_after_s)


def _pairs(detail: Any) -> Iterator[tuple[str, str]]:
    """Every (code, message) of an error: itself, its details at any depth, and what stands inside its message.

    `detail` is what the SDK makes of an error body: an object with code, message and details, or a mapping.
    """
    if detail is None:
        return
    code, message, details = (_part(detail, name) for name in ("code", "message", "details"))
    if code or message:
        yield str(code or ""), str(message or "")
    for found in _EMBEDDED.finditer(str(message or "")):
        yield found[1], found[2] or str(message)
    for inner in details or ():
        yield from _pairs(inner)


def _part(detail: Any, name: str) -> Any:
    return detail.get(name) if isinstance(detail, Mapping) else getattr(detail, name, None)


def _seconds(text: str | None) -> float | None:
    """Retry-After in seconds; Azure sends no dates, and one is treated as absent."""
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:
        return None


def _cut(text: str) -> str:
    """One line that fits a condition."""
    line = " ".join(text.split())
    return line if len(line) <= MESSAGE_MAX else f"{line[: MESSAGE_MAX - 1]}…"
