# SPDX-License-Identifier: Apache-2.0
"""Whether a Workspace has been without requests for so long that its nodes can go. Pure.

Opt-in by the annotation `kaito-ray.io/idle-after: 30m`, and only where traffic can be seen: somebody (a gateway, a
metric rule, a person) writes the time of the newest request as `kaito-ray.io/last-request`. A newer time brings the
nodes back. Without that second annotation nothing is ever scaled down.
"""

from datetime import datetime, timedelta

from kaito_ray import names
from kaito_ray.nodes.moment import parse_duration, parse_moment
from kaito_ray.workspace import Workspace

# Below this the nodes would be gone again before the first of them has started.
SHORTEST = timedelta(minutes=15)


def is_idle(workspace: Workspace, ready_at: datetime | None, now: datetime) -> bool:
    """Whether the nodes should be scaled to zero. `ready_at` is when they last became ready."""
    annotations = workspace.metadata.annotations
    after = parse_duration(annotations.get(names.ANNOTATION_IDLE_AFTER, ""))
    last = parse_moment(annotations.get(names.ANNOTATION_LAST_REQUEST))
    if after is None or last is None or ready_at is None:
        return False
    return now - max(last, ready_at) >= max(after, SHORTEST)
