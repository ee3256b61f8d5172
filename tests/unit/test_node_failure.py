# SPDX-License-Identifier: Apache-2.0
"""What Azure answers, as bodies of its errors, and the reason a user sees for each."""

import json
from typing import Any

import pytest
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.mgmt.containerservice.models import AgentPool

from kaito_ray.nodes.failure import ADVICE, MESSAGE_MAX, Reason, classify_error, classify_provisioning_error


class _Response:
    """As much of an HTTP response as the SDK's exceptions read."""

    reason = ""
    request: Any = None

    def __init__(self, status: int, body: Any, headers: dict[str, str]) -> None:
        self.status_code, self.headers = status, headers
        self._body = body if isinstance(body, str) else json.dumps(body)

    def text(self) -> str:
        return self._body


def _answer(
    status: int, body: Any, error: type[HttpResponseError] = HttpResponseError, headers: dict[str, str] | None = None
) -> Exception:
    """The exception that the SDK raises for an answer with this status and body."""
    return error(response=_Response(status, body, headers or {}))


def _body(code: str, message: str, **rest: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, **rest}}


FAMILY = (
    "Operation could not be completed as it results in exceeding approved standardNCADSA100v4Family Cores quota. "
    "Additional details - Deployment Model: Resource Manager, Location: eastus, Current Limit: 0, Current Usage: 0, "
    "Additional Required: 24, (Minimum) New Limit Required: 24."
)


@pytest.mark.parametrize(
    ("status", "body", "reason", "code"),
    [
        (409, _body("OperationNotAllowed", FAMILY), Reason.FAMILY_QUOTA, "OperationNotAllowed"),
        (
            400,
            {
                "code": "ErrCode_InsufficientVCPUQuota",
                "message": "Insufficient vcpu quota requested 24, remaining 0 for family standardNCADSA100v4Family for"
                " region eastus. Surge nodes would also consume vcpu quota",
                "details": None,
                "subcode": "",
            },
            Reason.FAMILY_QUOTA,
            "ErrCode_InsufficientVCPUQuota",
        ),
        (
            400,
            _body("InvalidTemplateDeployment", "see details", details=[{"code": "QuotaExceeded", "message": "no"}]),
            Reason.FAMILY_QUOTA,
            "QuotaExceeded",
        ),
        (
            409,
            _body("OperationNotAllowed", "It results in exceeding approved Total Regional Cores quota of 10"),
            Reason.REGIONAL_QUOTA,
            "OperationNotAllowed",
        ),
        (
            409,
            _body("OperationNotAllowed", "results in exceeding approved LowPriorityCores quota, Current Limit: 3"),
            Reason.SPOT_QUOTA,
            "OperationNotAllowed",
        ),
        (
            409,
            {
                "code": "OperationNotAllowed",
                "details": None,
                "message": "Operation is not allowed: Another agentpool operation (gpu1 - Creating) is in progress",
                "subcode": "",
            },
            Reason.IN_PROGRESS,
            "OperationNotAllowed",
        ),
        (409, _body("AnotherOperationInProgress", "wait"), Reason.IN_PROGRESS, "AnotherOperationInProgress"),
        (409, _body("Conflict", "the virtual network is being changed"), Reason.IN_PROGRESS, "Conflict"),
        (409, _body("OriginalEtagNotExpect", "the cluster moved on"), Reason.PREEMPTED, "OriginalEtagNotExpect"),
        (
            400,
            _body("OperationAborted", "the operation was overridden and canceled by a later operation"),
            Reason.PREEMPTED,
            "OperationAborted",
        ),
        (412, _body("EtagMismatch", "etag"), Reason.PREEMPTED, "EtagMismatch"),
        (400, _body("VMSizeNotSupported", "Standard_NC6s_v3"), Reason.SKU_UNAVAILABLE, "VMSizeNotSupported"),
        (409, _body("SkuNotAvailable", "in location eastus"), Reason.SKU_UNAVAILABLE, "SkuNotAvailable"),
        (
            400,
            _body(
                "BadRequest", "The VM size of Standard_NC24ads_A100_v4 is not supported for subscription 1 in eastus"
            ),
            Reason.SKU_UNAVAILABLE,
            "BadRequest",
        ),
        (409, _body("ZonalAllocationFailed", "zone 2"), Reason.ZONAL_CAPACITY, "ZonalAllocationFailed"),
        (409, _body("AllocationFailed", "not enough capacity"), Reason.CAPACITY, "AllocationFailed"),
        (
            400,
            _body("ReconcileVMSSAgentPoolFailed", 'failed: Code="OverconstrainedAllocationRequest" Message="full"'),
            Reason.CAPACITY,
            "OverconstrainedAllocationRequest",
        ),
        (429, _body("Throttled", "slow down"), Reason.THROTTLED, "Throttled"),
        (429, _body("SubscriptionRequestsThrottled", "x"), Reason.THROTTLED, "SubscriptionRequestsThrottled"),
        (403, _body("AuthorizationFailed", "the client has no write on it"), Reason.AUTH, "AuthorizationFailed"),
        (403, _body("LinkedAuthorizationFailed", "subnets/join"), Reason.AUTH, "LinkedAuthorizationFailed"),
        (403, _body("SomethingNew", "no"), Reason.AUTH, "SomethingNew"),
        (400, _body("InsufficientSubnetSize", "needs 31 addresses"), Reason.SUBNET, "InsufficientSubnetSize"),
        (409, _body("SetVNetOwnershipFailed", "busy"), Reason.TRANSIENT, "SetVNetOwnershipFailed"),
        (500, _body("InternalOperationError", "x"), Reason.TRANSIENT, "InternalOperationError"),
        (503, "<html>no</html>", Reason.TRANSIENT, ""),
        (200, _body("VMExtensionProvisioningError", "exit 50"), Reason.BOOTSTRAP, "VMExtensionProvisioningError"),
        (400, _body("VMASAgentCSEFailed", "exit code 124"), Reason.BOOTSTRAP, "VMASAgentCSEFailed"),
        (400, _body("InvalidParameter", "agentPoolProfile.count"), Reason.INVALID, "InvalidParameter"),
        (409, _body("OperationNotAllowed", "changing vmSize"), Reason.INVALID, "OperationNotAllowed"),
        (404, {"code": "NotFound", "message": "Agent Pool not found"}, Reason.NOT_FOUND, "NotFound"),
        (409, _body("Newer", "?"), Reason.IN_PROGRESS, "Newer"),
        (418, _body("Teapot", "?"), Reason.UNKNOWN, "Teapot"),
    ],
)
def test_answers_of_azure(status: int, body: Any, reason: Reason, code: str) -> None:
    failure = classify_error(_answer(status, body, ResourceExistsError if status == 409 else HttpResponseError))
    assert (failure.reason, failure.code, failure.status) == (reason, code, status)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ServiceRequestError("Cannot connect to host"), Reason.TRANSIENT),
        (ServiceResponseError("connection reset"), Reason.TRANSIENT),
        (TimeoutError(), Reason.TRANSIENT),
        (ClientAuthenticationError("AADSTS700213: no matching federated identity record"), Reason.AUTH),
    ],
)
def test_no_answer_at_all(error: Exception, reason: Reason) -> None:
    assert classify_error(error).reason is reason


def test_a_bug_is_not_a_failure_of_azure() -> None:
    with pytest.raises(KeyError):
        classify_error(KeyError("count"))


def test_the_wait_that_azure_asks_for() -> None:
    body = _body("Throttled", "later")
    assert classify_error(_answer(429, body, headers={"Retry-After": "60"})).retry_after_s == 60
    assert (
        classify_error(_answer(429, body, headers={"Retry-After": "Fri, 21 Nov 2026 07:28:00 GMT"})).retry_after_s
        is None
    )
    assert classify_error(_answer(429, body)).retry_after_s is None


def test_azures_own_words_are_kept_on_one_line_that_fits_a_condition() -> None:
    failure = classify_error(_answer(409, _body("AllocationFailed", "no\n  capacity " + "x" * 5000)))
    assert failure.sentence.startswith("AllocationFailed: no capacity x")
    assert len(failure.message) == MESSAGE_MAX


def test_the_cause_that_a_failed_pool_keeps() -> None:
    detail = {"code": "CreateVMSSAgentPoolFailed", "message": "see", "details": [{"code": "AllocationFailed"}]}
    pool = AgentPool({"properties": {"status": {"provisioningError": detail}}})
    assert pool.status is not None
    assert classify_provisioning_error(pool.status.provisioning_error).reason is Reason.CAPACITY
    assert classify_provisioning_error(detail).reason is Reason.CAPACITY
    assert classify_provisioning_error(None).reason is Reason.UNKNOWN


def test_every_reason_has_advice() -> None:
    assert set(ADVICE) == set(Reason)
