# SPDX-License-Identifier: Apache-2.0
"""`status.nodePool`, both ways: what a Workspace remembers of its agent pool between passes and across restarts. Pure.

Azure shows the pool there is; only this says which attempts failed before it, and whether it was ever ready. A failed
pool is deleted only once its failure is written here, so a crash can lose neither the count nor the reason.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Self

from kaito_ray.nodes.candidate import Candidate, Priority
from kaito_ray.nodes.failure import Reason
from kaito_ray.nodes.moment import parse_moment, render_moment

Json = Any

KEPT_ATTEMPTS = 12


@dataclass(frozen=True, slots=True)
class Attempt:
    """One pool that failed, or that Azure refused to make; `message` is Azure's own text."""

    number: int
    candidate: Candidate
    nodes: int
    reason: Reason
    message: str
    at: datetime

    def render(self) -> dict[str, Json]:
        """As `status.nodePool.attempts[]` has it."""
        return {
            "number": self.number,
            **_render_candidate(self.candidate),
            "nodes": self.nodes,
            "reason": str(self.reason),
            "message": self.message,
            "time": render_moment(self.at),
        }


@dataclass(frozen=True, slots=True)
class PoolRecord:
    """The agent pool of a Workspace as its status shows it."""

    name: str = ""
    attempt: int = 0
    """The number of the newest attempt; the pool's name follows from it."""
    candidate: Candidate | None = None
    state: str = ""
    ready: int = 0
    wanted: int = 0
    hourly_usd: float | None = None
    message: str = ""
    created_at: datetime | None = None
    ready_at: datetime | None = None
    """When all nodes of this pool were last seen to become ready; None until the first time."""
    lost_at: datetime | None = None
    """Since when a pool that was ready lacks nodes."""
    repaired_at: datetime | None = None
    next_attempt_at: datetime | None = None
    attempts: tuple[Attempt, ...] = ()

    def with_attempt(self, attempt: Attempt) -> Self:
        """The record with one more failure, or with that failure told anew."""
        others = tuple(one for one in self.attempts if one.number != attempt.number)
        kept = (*others, attempt)[-KEPT_ATTEMPTS:]
        return replace(self, attempts=kept, attempt=max(self.attempt, attempt.number))

    def failure_of(self, number: int) -> Attempt | None:
        """The failure of the attempt with that number, where it had one."""
        return next((one for one in self.attempts if one.number == number), None)

    def render(self) -> dict[str, Json]:
        """As `status.nodePool`; what is not known is left out."""
        moments = {
            "createdAt": self.created_at,
            "readyAt": self.ready_at,
            "lostAt": self.lost_at,
            "repairedAt": self.repaired_at,
            "nextAttemptAt": self.next_attempt_at,
        }
        status: dict[str, Json] = {
            "provisioner": "aks",
            "name": self.name,
            "attempt": self.attempt,
            **(_render_candidate(self.candidate) if self.candidate else {}),
            "state": self.state,
            "ready": self.ready,
            "wanted": self.wanted,
            "hourlyUsd": self.hourly_usd,
            "message": self.message,
            **{key: render_moment(moment) for key, moment in moments.items() if moment},
            "attempts": [attempt.render() for attempt in self.attempts],
        }
        return {key: value for key, value in status.items() if value not in ("", None, [])}


def parse_record(status: Mapping[str, Json] | None) -> PoolRecord:
    """What `render` wrote; whatever cannot be read counts as not there."""
    status = status or {}
    return PoolRecord(
        name=str(status.get("name") or ""),
        attempt=_number(status.get("attempt")),
        candidate=_parse_candidate(status) if status.get("instanceType") else None,
        state=str(status.get("state") or ""),
        ready=_number(status.get("ready")),
        wanted=_number(status.get("wanted")),
        hourly_usd=status.get("hourlyUsd"),
        message=str(status.get("message") or ""),
        created_at=parse_moment(status.get("createdAt")),
        ready_at=parse_moment(status.get("readyAt")),
        lost_at=parse_moment(status.get("lostAt")),
        repaired_at=parse_moment(status.get("repairedAt")),
        next_attempt_at=parse_moment(status.get("nextAttemptAt")),
        attempts=tuple(attempt for item in status.get("attempts") or () if (attempt := _parse_attempt(item))),
    )


def _parse_attempt(item: Mapping[str, Json]) -> Attempt | None:
    at = parse_moment(item.get("time"))
    if at is None or item.get("reason") not in set(Reason):
        return None
    return Attempt(
        number=_number(item.get("number")),
        candidate=_parse_candidate(item),
        nodes=_number(item.get("nodes")),
        reason=Reason(item["reason"]),
        message=str(item.get("message") or ""),
        at=at,
    )


def _render_candidate(candidate: Candidate) -> dict[str, Json]:
    zone = {"zone": candidate.zone} if candidate.zone else {}
    return {"instanceType": candidate.instance_type, "priority": str(candidate.priority), **zone}


def _parse_candidate(item: Mapping[str, Json]) -> Candidate:
    spot = item.get("priority") == Priority.SPOT
    return Candidate(
        str(item.get("instanceType") or ""), Priority.SPOT if spot else Priority.REGULAR, str(item.get("zone") or "")
    )


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0
