# SPDX-License-Identifier: Apache-2.0
"""Errors as Azure words them, for scripts of the fake ARM."""

from typing import Any


def an_error(code: str, message: str, *details: dict[str, Any]) -> dict[str, Any]:
    """The error object of an operation or of a failed pool."""
    return {"code": code, "message": message, "details": list(details)}


FAMILY_QUOTA = an_error(
    "OperationNotAllowed",
    "Operation could not be completed as it results in exceeding approved standardNCADSA100v4Family Cores quota."
    " Additional details - Location: eastus, Current Limit: 24, Current Usage: 24, Additional Required: 24.",
)
NO_FAMILY_QUOTA = an_error(
    "ErrCode_InsufficientVCPUQuota",
    "Insufficient vcpu quota requested 24, remaining 0 for family standardNCADSA100v4Family for region eastus."
    " Current Limit: 0.",
)
REGIONAL_QUOTA = an_error(
    "OperationNotAllowed", "It results in exceeding approved Total Regional Cores quota. Current Limit: 10."
)
SPOT_QUOTA = an_error("OperationNotAllowed", "It results in exceeding approved LowPriorityCores quota.")
SKU_UNAVAILABLE = an_error("SkuNotAvailable", "The requested size is currently not available in location 'eastus'.")
SIZE_UNSUPPORTED = an_error("VMSizeNotSupported", "The VM size is not supported in this location.")
CAPACITY = an_error(
    "CreateVMSSAgentPoolFailed",
    "Agent pool failed",
    an_error("AllocationFailed", "We do not have sufficient capacity for the requested VM size in this region."),
)
ZONAL_CAPACITY = an_error("ZonalAllocationFailed", "We do not have sufficient capacity in this zone.")
PREEMPTED = an_error("OriginalEtagNotExpect", "Operation is preempted by Updating operation.")
SUBNET = an_error("InsufficientSubnetSize", "Pre-allocated IPs 31 exceeds IPs available 3 in subnet.")
VNET_BUSY = an_error("SetVNetOwnershipFailed", "The virtual network is being changed by another operation.")
BOOTSTRAP = an_error("VMExtensionProvisioningError", "vmssCSE failed with exit status 50.")
INVALID = an_error("InvalidParameter", "The value of parameter agentPoolProfile.osDiskSizeGB is invalid.")
UNHEARD_OF = an_error("SomethingNew", "Nobody has seen this before.")
NO_ROLE = an_error("AuthorizationFailed", "The client does not have authorization to perform action 'agentPools/read'.")
BUSY = an_error("OperationNotAllowed", "Another agentpool operation (other - Creating) is in progress.")
THROTTLED = an_error("Throttled", "The request rate limit is reached.")
