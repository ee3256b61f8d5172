# SPDX-License-Identifier: Apache-2.0
"""A Workspace's wishes in, the sizes, priorities and zones its nodes may have out, in the order to try them. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from kaito_ray import names
from kaito_ray.workspace import Workspace


class Priority(StrEnum):
    """How a virtual machine is paid for, in Azure's words."""

    REGULAR = "Regular"
    SPOT = "Spot"


class Spot(StrEnum):
    """What `kaito-ray.io/spot` may say."""

    PREFER = "prefer"
    """Spot first, and on demand when there is none."""
    REQUIRE = "require"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to get nodes. An empty `zone` leaves the choice to Azure, where GPUs are found more often."""

    instance_type: str
    priority: Priority = Priority.REGULAR
    zone: str = ""

    def __str__(self) -> str:
        extras = [*(["spot"] if self.priority is Priority.SPOT else []), *([f"zone {self.zone}"] if self.zone else [])]
        return f"{self.instance_type} ({', '.join(extras)})" if extras else self.instance_type


def wanted_sizes(workspace: Workspace, planned: str) -> tuple[str, ...]:
    """The sizes to try: the one asked for or planned, then those of `kaito-ray.io/instance-types`."""
    listed = workspace.metadata.annotations.get(names.ANNOTATION_INSTANCE_TYPES, "").split(",")
    first = workspace.resource.instance_type
    unique: dict[str, str] = {}
    for size in [size.strip() for size in (first, *listed) if size.strip()] or [planned]:
        unique.setdefault(size.lower(), size)
    return tuple(unique.values())


def candidates_of(sizes: Sequence[str], spot: Spot, zones: Sequence[str]) -> tuple[Candidate, ...]:
    """Every candidate in the order of preference.

    All sizes come without a zone before any comes with one: a GPU pool that names a zone fails where the region as a
    whole still has machines. Spot comes before the same size on demand.
    """
    priorities = {
        Spot.PREFER: (Priority.SPOT, Priority.REGULAR),
        Spot.REQUIRE: (Priority.SPOT,),
        Spot.NEVER: (Priority.REGULAR,),
    }[spot]
    regional = [Candidate(size, priority) for size in sizes for priority in priorities]
    return (
        *regional,
        *(Candidate(one.instance_type, one.priority, zone) for one in regional for zone in zones),
    )


def spot_of(workspace: Workspace) -> Spot:
    """What the Workspace says about spot machines; `never` when it says nothing."""
    return Spot(workspace.metadata.annotations.get(names.ANNOTATION_SPOT, Spot.NEVER))


def size_in_use(workspace: Workspace) -> str:
    """The size the nodes have or get: what a fallback decided, else what the Workspace asks for; may be empty.

    The planner is called with it, so that what runs fits the nodes that are there.
    """
    pool = workspace.status.get("nodePool") or {}
    return str(pool.get("instanceType") or workspace.resource.instance_type)
