# SPDX-License-Identifier: Apache-2.0
"""A Notice about a Workspace in, the Event that `kubectl describe` shows out. Pure; called by reconcile.py."""

from datetime import datetime

from kaito_ray import names
from kaito_ray.cluster import KubeObject
from kaito_ray.kinds import WORKSPACE
from kaito_ray.nodes.provisioner import Notice
from kaito_ray.timeline import timestamp

# The API server refuses longer ones.
_MESSAGE_MAX = 1024


def event_of(workspace: KubeObject, notice: Notice, now: datetime) -> KubeObject:
    """The Event; its name is left to the API server, since the same thing may happen twice."""
    metadata = workspace["metadata"]
    message = notice.message if len(notice.message) <= _MESSAGE_MAX else f"{notice.message[: _MESSAGE_MAX - 3]}..."
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{metadata['name']}.", "namespace": metadata["namespace"]},
        "involvedObject": {
            "apiVersion": WORKSPACE.api_version,
            "kind": WORKSPACE.kind,
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
            "resourceVersion": metadata.get("resourceVersion", ""),
        },
        "type": notice.type,
        "reason": notice.reason,
        "message": message,
        "source": {"component": names.FIELD_MANAGER},
        "reportingComponent": names.FIELD_MANAGER,
        "firstTimestamp": timestamp(now),
        "lastTimestamp": timestamp(now),
        "count": 1,
    }
