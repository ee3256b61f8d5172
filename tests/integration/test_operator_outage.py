# SPDX-License-Identifier: Apache-2.0
"""An API server that has a bad minute: it refuses, fails, does not answer and drops watches, in turn and mixed."""

import functools
import itertools
import json
import time
from collections import Counter
from pathlib import Path

import pytest

from cluster.fixture import Cluster
from cluster.request_log import Record
from operator_rig import running_operator
from workspace_rig import (
    API,
    RAY,
    Object,
    a_serving,
    condition,
    get,
    simulated_cluster,
    wait_until_gone,
    wait_until_ready,
)

pytestmark = pytest.mark.timeout(240)

_OUTAGE_S = 60.0
_AGENTS = ("kaito-ray", "kopf")
# No client asks for the same thing more often than this while it is refused, in requests per second.
_RATE = 1.0


def test_a_minute_of_everything(tmp_path: Path) -> None:
    with simulated_cluster(tmp_path) as cluster, running_operator(cluster.kubeconfig, tmp_path) as operator:
        client = cluster.client
        for name in ("stays", "goes", "changes"):
            cluster.add_node(f"gpu-{name}", gpus=1, labels={"apps": name})
            client.create(a_serving(name, name))
        for name in ("stays", "goes", "changes"):
            wait_until_ready(client, name)
        cluster.requests.clear()
        began = time.monotonic()
        _go_wrong(cluster, began)
        # All that happens while nobody hears of it, in the middle of the outage.
        client.delete(get(client, "goes"))
        client.delete(client.get("networking.k8s.io/v1", "NetworkPolicy", "stays", "default"))
        adapter = {"source": {"name": "sql", "image": "registry.example.com/sql:1"}}
        client.patch(get(client, "changes"), {"inference": {"adapters": [adapter]}})
        cluster.add_node("gpu-comes", gpus=1, labels={"apps": "comes"})
        client.create(a_serving("comes", "comes"))
        cluster.compact()
        _go_on(cluster, began)
        asked = [one for one in cluster.requests if one.user_agent.startswith(_AGENTS)]
        ended = time.monotonic()
        # What is owned may outlive its Workspace until the operator is back, never the other way round.
        wait_until_ready(client, "comes", 60)
        wait_until_gone(client, API, "Workspace", "goes", 60)
        wait_until_gone(client, RAY, "RayService", "goes", 60)
        client.wait(lambda: client.find("networking.k8s.io/v1", "NetworkPolicy", "stays", "default"), bool, 60)
        client.wait(
            lambda: json.dumps(client.get(RAY, "RayService", "changes", "default")), lambda it: "sql:1" in it, 60
        )
        for name in ("stays", "changes"):
            client.wait(functools.partial(get, client, name), _is_ready_as_it_is_now, 60)
        assert time.monotonic() - ended < 60
        assert operator.running
        assert "this is a bug" not in operator.log
        assert _storms(asked, ended - began) == {}


def _is_ready_as_it_is_now(workspace: Object) -> bool:
    ready = condition(workspace, "WorkspaceReady")
    return (ready["status"], ready["observedGeneration"]) == ("True", workspace["metadata"]["generation"])


def _go_wrong(cluster: Cluster, began: float) -> None:
    """The first half: each kind of failure for some seconds."""
    for code in (429, 500):
        faults = [cluster.fail(code, user_agent=agent) for agent in _AGENTS]
        cluster.drop_watches(abort=code == 500)
        time.sleep(10)  # the outage itself
        for fault in faults:
            fault.clear()
    cluster.pause()
    time.sleep(max(0.0, _OUTAGE_S / 2 - (time.monotonic() - began)))
    cluster.resume()


def _go_on(cluster: Cluster, began: float) -> None:
    """The second half: everything at once, request by request."""
    deadline = began + _OUTAGE_S
    for code in itertools.cycle((429, 500, 503, 0)):
        faults = [
            cluster.fail(code, user_agent=agent, drop=code == 0, delay_s=0.2 if code == 503 else 0.0)
            for agent in _AGENTS
        ]
        cluster.drop_watches(abort=code == 0)
        time.sleep(0.5)
        for fault in faults:
            fault.clear()
        if time.monotonic() > deadline:
            return


def _storms(asked: list[Record], lasted_s: float) -> dict[tuple[str, str, str, str], int]:
    """What was asked for too often."""
    counts = Counter((one.user_agent.split()[0], one.verb, one.resource, one.name) for one in asked)
    return {what: count for what, count in counts.items() if count > _RATE * lasted_s}
