# SPDX-License-Identifier: Apache-2.0
"""A failed attempt in, what it says about other attempts out: which sizes not to ask for, and until when. Pure.

Blocks about quota, offers and capacity hold for every Workspace of the region, so fifty of them do not learn the same
thing fifty times. How long each holds follows Azure's Karpenter provider (its common error handlers).
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from kaito_ray.nodes.candidate import Candidate, Priority
from kaito_ray.nodes.failure import Reason
from kaito_ray.nodes.record import Attempt
from kaito_ray.sku import Sku

QUOTA_REASONS = frozenset({Reason.FAMILY_QUOTA, Reason.REGIONAL_QUOTA, Reason.SPOT_QUOTA})
# A family without any quota does not get one within minutes.
_NO_QUOTA = "Current Limit: 0"


@dataclass(frozen=True, slots=True)
class Offer:
    """A candidate with what it takes: nodes as planned for that size, vCPUs of all of them, list price."""

    candidate: Candidate
    sku: Sku
    nodes: int

    @property
    def vcpus(self) -> int:
        """All nodes together, which is what quotas count."""
        return self.sku.vcpus * self.nodes

    @property
    def hourly_usd(self) -> float | None:
        """List price on demand of all nodes, also for spot, whose price is at most that."""
        return None if self.sku.usd_per_hour is None else round(self.sku.usd_per_hour * self.nodes, 3)


@dataclass(frozen=True, slots=True)
class Block:
    """What not to ask for until a time. Empty `family`, `size` and `zone` of None mean any."""

    reason: Reason
    message: str
    at: datetime
    until: datetime
    priority: Priority
    family: str = ""
    size: str = ""
    zone: str | None = None
    vcpus: int = 0
    """Only offers of at least so many vCPUs: less may still be had."""

    def covers(self, offer: Offer) -> bool:
        """Whether the offer would run into the same."""
        candidate = offer.candidate
        return (
            candidate.priority is self.priority
            and self.family.lower() in ("", offer.sku.quota_family.lower())
            and self.size.lower() in ("", candidate.instance_type.lower())
            and self.zone in (None, candidate.zone)
            and offer.vcpus >= self.vcpus
        )


def block_after(attempt: Attempt, sku: Sku) -> Block | None:
    """What the attempt's failure says about the region; None when it speaks of that one Workspace."""
    candidate, spot = attempt.candidate, attempt.candidate.priority is Priority.SPOT
    vcpus = sku.vcpus * attempt.nodes
    hour = timedelta(hours=1)

    def block(lasts: timedelta, *, family: str = "", size: str = "", zone: str | None = None, vcpus: int = 0) -> Block:
        return Block(
            reason=attempt.reason,
            message=attempt.message,
            at=attempt.at,
            until=attempt.at + lasts,
            priority=candidate.priority,
            family=family,
            size=size,
            zone=zone,
            vcpus=vcpus,
        )

    match attempt.reason:
        case Reason.FAMILY_QUOTA:
            lasts = hour if _NO_QUOTA in attempt.message else timedelta(minutes=10)
            return block(lasts, family=sku.quota_family, vcpus=vcpus)
        case Reason.REGIONAL_QUOTA:
            return block(timedelta(minutes=15), vcpus=vcpus)
        case Reason.SPOT_QUOTA:
            return block(hour, vcpus=vcpus)
        case Reason.SKU_UNAVAILABLE:
            # For spot this is how Azure says that there is no capacity left.
            return block(hour if spot else timedelta(hours=23), size=candidate.instance_type)
        case Reason.ZONAL_CAPACITY | Reason.CAPACITY:
            return block(hour, family=sku.quota_family, zone=candidate.zone, vcpus=vcpus)
        case _:
            return None
