# SPDX-License-Identifier: Apache-2.0
"""Several replicas: one leads, another takes over when it is gone, and never do two of them write."""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.fixture import Cluster
from operator_rig import Operator
from workspace_rig import RAY, a_serving, get, simulated_cluster, wait_until_ready

pytestmark = pytest.mark.timeout(180)

_TAKEOVER_S = 20.0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with simulated_cluster(tmp_path) as cluster:
        yield cluster


@pytest.fixture
def replicas(cluster: Cluster, tmp_path: Path) -> Iterator[tuple[Operator, Operator]]:
    """The leader, and one that waits."""
    leader = Operator(cluster.kubeconfig, tmp_path)
    standby = Operator(cluster.kubeconfig, tmp_path)
    try:
        leader.wait_until_ready()
        standby.wait_until_ready()
        if "kaito_ray_leader 1.0" not in leader.probe("metrics")[1]:
            leader, standby = standby, leader
        leader.wait_until_leading()
        yield leader, standby
    finally:
        for one in (leader, standby):
            one.stop()


def test_the_leader_is_killed_in_the_middle_of_its_work(cluster: Cluster, replicas: tuple[Operator, Operator]) -> None:
    leader, standby = replicas
    names = [f"phi-{number}" for number in range(12)]
    for name in names:
        cluster.add_node(f"gpu-{name}", gpus=1, labels={"apps": name})
    for name in names:
        cluster.client.create(a_serving(name, name))
    # In the middle: some RayServices are there, not all.
    cluster.client.wait(lambda: cluster.client.list(RAY, "RayService", "default"), bool)
    leader.kill()
    killed = time.monotonic()
    standby.wait_until_leading(_TAKEOVER_S)
    assert time.monotonic() - killed < _TAKEOVER_S
    for name in names:
        wait_until_ready(cluster.client, name)
    if cluster.is_simulated:
        made = Counter(
            (one.resource, one.name) for one in cluster.requests.select("apply", user_agent="kaito-ray", code=201)
        )
        assert {key: count for key, count in made.items() if count > 1} == {}
    assert len(cluster.client.list(RAY, "RayService", "default")) == len(names)


def test_a_leader_that_froze_writes_no_more(cluster: Cluster, replicas: tuple[Operator, Operator]) -> None:
    leader, standby = replicas
    cluster.add_node("gpu-1", gpus=1, labels={"apps": "phi"})
    cluster.client.create(a_serving("phi", "phi"))
    wait_until_ready(cluster.client, "phi")
    leader.freeze()
    standby.wait_until_leading(_TAKEOVER_S)
    # The frozen one wakes up to work that it believes to be its own.
    for number in range(3):
        cluster.add_node(f"gpu-new-{number}", gpus=1, labels={"apps": f"new-{number}"})
        cluster.client.create(a_serving(f"new-{number}", f"new-{number}"))
    if cluster.is_simulated:
        cluster.requests.clear()
    leader.thaw()
    service = cluster.client.get(RAY, "RayService", "phi", "default")
    cluster.client.patch(service, {"spec": {"serveConfigV2": "applications: []\n"}})
    for number in range(3):
        wait_until_ready(cluster.client, f"new-{number}")
    cluster.client.wait(
        lambda: cluster.client.get(RAY, "RayService", "phi", "default")["spec"]["serveConfigV2"],
        lambda config: config == service["spec"]["serveConfigV2"],
    )
    leader.until(lambda: "leads no more" in leader.log, 20, "has not noticed that it lost the Lease")
    if not cluster.is_simulated:
        return
    writers = {one.user_agent for one in cluster.requests.writes("kaito-ray") if not one.resource.startswith("leases")}
    assert [writer for writer in writers if leader.name in writer] == []
    assert [writer for writer in writers if standby.name in writer] != []


def test_a_leader_that_is_stopped_hands_over_at_once(cluster: Cluster, replicas: tuple[Operator, Operator]) -> None:
    leader, standby = replicas
    assert leader.stop() == 0
    stopped = time.monotonic()
    standby.wait_until_leading(_TAKEOVER_S)
    assert time.monotonic() - stopped < 5
    cluster.add_node("gpu-1", gpus=1, labels={"apps": "phi"})
    cluster.client.create(a_serving("phi", "phi"))
    wait_until_ready(cluster.client, "phi")
    assert get(cluster.client, "phi")["status"]["state"] == "Ready"
    assert "Traceback" not in leader.log
