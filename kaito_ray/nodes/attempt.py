# SPDX-License-Identifier: Apache-2.0
"""Offers, past failures and blocks in; the offer to try next, or why to wait and until when, out. Pure.

Called by aks.py when a Workspace has no pool. All it needs survives a restart: the Workspace's own failures stand in
its status (record.py), and blocks follow from failures (block.py).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from kaito_ray.nodes.block import Block, Offer
from kaito_ray.nodes.failure import ADVICE, Reason
from kaito_ray.nodes.moment import render_moment
from kaito_ray.nodes.record import Attempt
from kaito_ray.settings import NodeTimeoutPolicy

BACKOFF_FIRST = timedelta(minutes=1)
BACKOFF_LAST = timedelta(minutes=15)
# Nothing of these is cured by another size, so all candidates wait together.
_NOT_ABOUT_SIZE = frozenset(
    {Reason.IN_PROGRESS, Reason.PREEMPTED, Reason.THROTTLED, Reason.TRANSIENT, Reason.AUTH, Reason.SUBNET}
)
# Nothing but another candidate may help; quota and capacity, which come back, are the matter of blocks.
_ITS_OWN = frozenset({Reason.UNKNOWN, Reason.TIMED_OUT, Reason.INVALID})
# Somebody has to change something first; a look now and then is enough to notice.
_SLOW = frozenset({Reason.INVALID, Reason.SUBNET, Reason.AUTH})
_NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Blocked:
    """Nothing can be tried before `until`; None is never, unless somebody changes something."""

    reason: Reason
    message: str
    until: datetime | None


@dataclass(frozen=True, slots=True)
class _Obstacle:
    reason: Reason
    message: str
    until: datetime


def choose(
    offers: Sequence[Offer],
    attempts: Sequence[Attempt],
    blocks: Iterable[Block],
    now: datetime,
    policy: NodeTimeoutPolicy = NodeTimeoutPolicy.RETRY,
) -> Offer | Blocked:
    """The first offer in the order of preference that nothing speaks against, or what to wait for.

    A candidate with a zone counts only after the same without one failed for lack of capacity. One that failed for
    reasons of its own comes after those that did not.
    """
    live = [block for block in blocks if block.until > now]
    obstacles: list[tuple[Offer, _Obstacle]] = []
    for offer in sorted(offers, key=lambda offer: _own_failures(offer, attempts)):
        if offer.candidate.zone and not _region_is_full(offer, live):
            continue
        obstacle = _obstacle(offer, attempts, live, now, policy)
        if obstacle is None:
            return offer
        obstacles.append((offer, obstacle))
    return _blocked(obstacles)


def backoff(failures: int) -> timedelta:
    """How long to wait after so many failures in a row: 1, 2, 4, 8 minutes, then 15."""
    doublings = max(0, min(failures - 1, 10))
    return min(BACKOFF_LAST, BACKOFF_FIRST * (1 << doublings))


def _obstacle(
    offer: Offer, attempts: Sequence[Attempt], blocks: Iterable[Block], now: datetime, policy: NodeTimeoutPolicy
) -> _Obstacle | None:
    found = [_Obstacle(block.reason, block.message, block.until) for block in blocks if block.covers(offer)]
    own = [one for one in attempts if one.candidate == offer.candidate or one.reason in _NOT_ABOUT_SIZE]
    if own:
        last = own[-1]
        found.append(_Obstacle(last.reason, last.message, last.at + _delay(last.reason, len(own))))
    if policy is NodeTimeoutPolicy.STOP:
        size = offer.candidate.instance_type.lower()
        found += [
            _Obstacle(one.reason, one.message, _NEVER)
            for one in attempts
            if one.reason is Reason.TIMED_OUT and one.candidate.instance_type.lower() == size
        ]
    return max((one for one in found if one.until > now), key=lambda one: one.until, default=None)


def _own_failures(offer: Offer, attempts: Sequence[Attempt]) -> int:
    reasons = [one.reason for one in attempts if one.candidate == offer.candidate]
    return sum(reason in _ITS_OWN for reason in reasons) + max(0, reasons.count(Reason.BOOTSTRAP) - 1)


def _delay(reason: Reason, failures: int) -> timedelta:
    # A machine that did not start well once deserves a second try at once; another name costs nothing to try.
    if (reason is Reason.BOOTSTRAP and failures == 1) or reason is Reason.NAME_TAKEN:
        return timedelta(0)
    return BACKOFF_LAST if reason in _SLOW or reason is Reason.BOOTSTRAP else backoff(failures)


def _region_is_full(offer: Offer, blocks: Iterable[Block]) -> bool:
    """Whether asking without a zone is known to fail for lack of capacity."""
    return any(
        block.reason in (Reason.CAPACITY, Reason.ZONAL_CAPACITY)
        and block.zone == ""
        and block.priority is offer.candidate.priority
        and block.family.lower() == offer.sku.quota_family.lower()
        and offer.vcpus >= block.vcpus
        for block in blocks
    )


def _blocked(obstacles: Sequence[tuple[Offer, _Obstacle]]) -> Blocked:
    """The preferred candidate's obstacle with Azure's text, then what is the matter with the others."""
    until = min(one.until for _, one in obstacles)
    (first, main), *rest = obstacles
    sentences = [f"{first.candidate}: {main.message}"]
    sentences += [f"{offer.candidate}: {one.reason}" for offer, one in rest if not offer.candidate.zone]
    if until == _NEVER:
        sentences.append(
            "nothing more is tried because KAITO_RAY_NODE_TIMEOUT_POLICY is stop: name another size in"
            " kaito-ray.io/instance-types, or delete the Workspace and make it again"
        )
        return Blocked(main.reason, "; ".join(sentences), None)
    sentences += [f"what to do: {ADVICE[main.reason]}", f"tried again at {render_moment(until)}"]
    return Blocked(main.reason, "; ".join(sentences), until)
