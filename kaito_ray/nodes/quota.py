# SPDX-License-Identifier: Apache-2.0
"""How many vCPUs the region still has for a subscription in; which offers can be spared asking for out. Pure.

Nine of ten failed pools fail on quota (Karpenter's provider for Azure measured it over a month), and the region's
usages tell so in milliseconds. Where they cannot be read nothing is blocked: this check may only ever save time.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from kaito_ray.nodes.block import QUOTA_REASONS, Block, Offer
from kaito_ray.nodes.candidate import Priority
from kaito_ray.nodes.failure import Reason

Json = Any

FRESH = timedelta(minutes=10)
_REGIONAL = "cores"
_SPOT = "lowprioritycores"


@dataclass(frozen=True, slots=True)
class Usages:
    """Limit and use of each kind of vCPU in the region, by the kind's name without spaces and in lower case."""

    at: datetime
    region: str
    kinds: Mapping[str, tuple[int, int]]

    def shortage(self, offer: Offer) -> tuple[Reason, str] | None:
        """What keeps the offer from being granted, with its numbers; None when nothing is known to."""
        spot = offer.candidate.priority is Priority.SPOT
        checks = (
            [(Reason.SPOT_QUOTA, _SPOT, "low-priority vCPUs")]
            if spot
            else [
                (Reason.FAMILY_QUOTA, _plain(offer.sku.quota_family), f"vCPUs of {offer.sku.quota_family}"),
                (Reason.REGIONAL_QUOTA, _REGIONAL, "vCPUs in all"),
            ]
        )
        for reason, kind, noun in checks:
            limit, used = self.kinds.get(kind, (0, 0))
            if kind in self.kinds and limit - used < offer.vcpus:
                nodes = f"{offer.nodes} x {offer.candidate.instance_type}"
                return reason, (
                    f"{nodes} needs {offer.vcpus} {noun} in {self.region}, of which {used} of {limit} are in use"
                    f" (Current Limit: {limit})"
                )
        return None


def parse_usages(document: Mapping[str, Json], region: str, at: datetime) -> Usages:
    """The answer of Microsoft.Compute's usages."""
    return Usages(
        at,
        region,
        {
            _plain(item["name"]["value"]): (int(item["limit"]), int(item["currentValue"]))
            for item in document.get("value") or ()
        },
    )


def quota_blocks(offers: Iterable[Offer], usages: Usages) -> Iterator[Block]:
    """A block for each offer that the region has no room for, until the usages are read anew."""
    for offer in offers:
        shortage = usages.shortage(offer)
        if shortage:
            reason, message = shortage
            yield Block(
                reason=reason,
                message=message,
                at=usages.at,
                until=usages.at + FRESH,
                priority=offer.candidate.priority,
                size=offer.candidate.instance_type,
                vcpus=offer.vcpus,
            )


def without_lifted(blocks: Iterable[Block], offers: Iterable[Offer], usages: Usages) -> Iterator[Block]:
    """The blocks that still hold: a quota that was raised since shows in usages read later."""
    offers = tuple(offers)
    for block in blocks:
        about = [offer for offer in offers if block.covers(offer)]
        lifted = block.reason in QUOTA_REASONS and usages.at > block.at and _all_fit(about, usages)
        if not lifted:
            yield block


def _all_fit(offers: Iterable[Offer], usages: Usages) -> bool:
    known = [offer for offer in offers if _kind(offer) in usages.kinds]
    return bool(known) and not any(usages.shortage(offer) for offer in known)


def _kind(offer: Offer) -> str:
    return _SPOT if offer.candidate.priority is Priority.SPOT else _plain(offer.sku.quota_family)


def _plain(name: str) -> str:
    # The same family is spelled with other capitals and spaces from page to page.
    return name.replace(" ", "").lower()
