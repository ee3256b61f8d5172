# SPDX-License-Identifier: Apache-2.0
"""Agent pools as Azure keeps them: a state machine over a clock that tests turn.

An operation is begun by a request and ends by time alone, whether or not anybody polls it. Used by fake_arm.py.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

Json = Any
TRANSIENT = ("Creating", "Updating", "Scaling", "Deleting", "Canceling", "Upgrading")


class Clock:
    """Time that stands still until a test turns it."""

    def __init__(self, start: datetime = datetime(2026, 9, 1, 12, tzinfo=UTC)) -> None:
        self.now = start

    def __call__(self) -> datetime:
        return self.now

    def turn(self, seconds: float) -> datetime:
        """Let that much time pass."""
        self.now += timedelta(seconds=seconds)
        return self.now


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an operation on a pool goes: it ends after `takes_s` with `error`, or with `machines` of those asked for."""

    takes_s: float = 240.0
    error: Mapping[str, Json] | None = None
    machines: int | None = None


@dataclass(slots=True)
class Machine:
    """One virtual machine of a pool; a lost one no longer reports to the cluster."""

    name: str
    since: datetime
    lost_at: datetime | None = None


@dataclass(slots=True)
class FakePool:
    """One agent pool: what was asked for (`properties`, as on the wire), how far it is, and its machines."""

    name: str
    properties: dict[str, Json]
    state: str = "Succeeded"
    etag: int = 1
    error: Mapping[str, Json] | None = None
    ends_at: datetime | None = None
    outcome: Outcome = field(default_factory=Outcome)
    machines: list[Machine] = field(default_factory=list)
    born: int = 0

    @property
    def busy(self) -> bool:
        """Whether an operation is running."""
        return self.state in TRANSIENT

    def begin(self, state: str, now: datetime, outcome: Outcome) -> None:
        """Start an operation."""
        self.state, self.outcome, self.error = state, outcome, None
        self.ends_at = now + timedelta(seconds=outcome.takes_s)
        self.etag += 1

    def advance(self, now: datetime) -> bool:
        """End what has run its time; False when the pool is gone."""
        if self.ends_at is None or now < self.ends_at:
            return True
        ended, self.ends_at = self.ends_at, None
        if self.state == "Deleting":
            return False
        self.etag += 1
        if self.state == "Canceling":
            self.state = "Canceled"
        elif self.outcome.error is not None:
            self.state, self.error = "Failed", self.outcome.error
        else:
            self.state = "Succeeded"
            self._fill(ended)
        return True

    def _fill(self, now: datetime) -> None:
        wanted = int(self.properties["count"])
        if self.outcome.machines is not None:
            wanted = min(wanted, self.outcome.machines)
        del self.machines[wanted:]
        vmss = int(hashlib.sha256(self.name.encode()).hexdigest()[:7], 16) % 10**8
        while len(self.machines) < wanted:
            self.machines.append(Machine(f"aks-{self.name}-{vmss:08d}-vmss{self.born:06d}", now))
            self.born += 1

    def wire(self, base: str) -> dict[str, Json]:
        """The pool as a GET answers it; `base` is the id of the cluster."""
        properties = self.properties | {
            "provisioningState": self.state,
            "eTag": f"etag-{self.etag}",
            "powerState": {"code": "Running"},
            "currentOrchestratorVersion": "1.35.1",
        }
        if self.error is not None:
            properties["status"] = {"provisioningError": self.error}
        return {
            "id": f"{base}/agentPools/{self.name}",
            "name": self.name,
            "type": "Microsoft.ContainerService/managedClusters/agentPools",
            "properties": properties,
        }


Matcher = Callable[[Mapping[str, Json]], bool]
"""Decides by a pool's properties whether a script is meant for it."""


def anything(_: Mapping[str, Json]) -> bool:
    """Every pool."""
    return True


def size(*names: str, priority: str = "", zone: str | None = None) -> Matcher:
    """Pools of these sizes, and of this priority and zone where given; zone `` is a pool without one."""

    def matches(properties: Mapping[str, Json]) -> bool:
        zones = properties.get("availabilityZones") or [""]
        return (
            (not names or properties["vmSize"] in names)
            and (not priority or properties.get("scaleSetPriority", "Regular") == priority)
            and (zone is None or zones == [zone])
        )

    return matches
