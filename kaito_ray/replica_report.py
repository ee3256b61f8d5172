# SPDX-License-Identifier: Apache-2.0
"""What the replicas of a Workspace say about themselves and their adapters, as `GET /adapters?replicas=all` answers it.

serve_apps/replica.py writes it, replica_watch.py reads it. Fields of another release are passed over.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from kaito_ray.plan import AdapterPlan


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class AdapterReport(_Part):
    """One adapter in one replica; `source` and `strength` are what the replica was asked for."""

    name: str
    source: dict[str, Any]
    strength: float
    digest: str = ""
    rank: int = 0
    size_bytes: int = 0
    state: str
    reason: str = ""
    error: str = ""
    loaded_at: str = ""

    def answers(self, wanted: AdapterPlan) -> bool:
        """Whether the replica was told of what is wanted now, at whatever digest."""
        return (self.name, self.strength) == (wanted.name, wanted.strength) and unpinned(self.source) == unpinned(
            wanted.source
        )


class ReplicaReport(_Part):
    """One replica."""

    replica: str
    adapters: tuple[AdapterReport, ...]
    engine_started_at: str = ""
    first_token_at: str = ""
    """When the engine made its first token, asked for before anybody was let in; empty when it makes none."""

    def adapter(self, wanted: AdapterPlan) -> AdapterReport | None:
        """What it says of an adapter; None when it has not heard of what is wanted."""
        return next((one for one in self.adapters if one.answers(wanted)), None)


_REPORTS = TypeAdapter(tuple[ReplicaReport, ...])


def parse_reports(body: bytes) -> tuple[ReplicaReport, ...]:
    """The replicas by their ids; raises ValueError with a sentence for anything else."""
    try:
        reports = _REPORTS.validate_json(body)
    except ValidationError as error:
        raise ValueError(f"the answer is not understood: {error.errors()[0]['msg']}") from None
    return tuple(sorted(reports, key=lambda one: one.replica))


def unpinned(source: Mapping[str, Any]) -> dict[str, Any]:
    """A source as the Workspace gives it, without the digest that was found there."""
    return {key: value for key, value in source.items() if key != "digest"}
