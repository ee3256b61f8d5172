# SPDX-License-Identifier: Apache-2.0
"""An operator that lost the Lease in the middle of a write to Azure: it writes no more, and the pool is made once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from azure_rig import azure_of, azure_settings
from cluster.fake_arm import FakeArm
from cluster.fixture import Cluster
from operator_rig import Operator
from waiting import until
from workspace_rig import a_serving, get, simulated_cluster

pytestmark = pytest.mark.timeout(180)

_TAKEOVER_S = 20.0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with simulated_cluster(tmp_path) as cluster:
        yield cluster


@pytest.fixture
def arm(cluster: Cluster) -> Iterator[FakeArm]:
    """Azure whose machines never join."""
    with azure_of(cluster, joins=False) as arm:
        yield arm


def a_replica(cluster: Cluster, arm: FakeArm, folder: Path, name: str) -> Operator:
    """A replica whose requests to Azure carry its name."""
    return Operator(cluster.kubeconfig, folder, environment={"AZURE_HTTP_USER_AGENT": name}, **azure_settings(arm))


def writers(arm: FakeArm) -> list[tuple[str, str, str]]:
    """Who wrote what to Azure."""
    writes = [one for method in ("PUT", "POST", "DELETE") for one in arm.calls(method)]
    return [(one.headers["User-Agent"].split()[-1], one.method, one.path) for one in writes]


def test_a_leader_that_froze_before_its_write_sends_it_no_more(cluster: Cluster, arm: FakeArm, tmp_path: Path) -> None:
    leader = a_replica(cluster, arm, tmp_path, "first").wait_until_ready().wait_until_leading()
    standby = a_replica(cluster, arm, tmp_path, "second").wait_until_ready()
    frozen: list[bool] = []

    def freeze(_: int, when: str) -> None:
        # The state of the cluster is the last that is asked before a write: what comes next is the write itself.
        if when == "after" and not frozen and arm.requests[-1].path == "":
            leader.freeze()
            frozen.append(True)

    arm.on_request = freeze
    try:
        cluster.client.create(a_serving("phi", "phi"))
        until(lambda: bool(frozen), 30)
        standby.wait_until_leading(_TAKEOVER_S)
        until(lambda: len(arm.calls("PUT")) == 1, 30)
        cluster.requests.clear()
        leader.thaw()
        leader.until(lambda: "leads no more" in leader.log, 20, "has not noticed that it lost the Lease")
        cluster.client.delete(get(cluster.client, "phi"))
        until(lambda: arm.pools.keys() == {"system"}, 60)
    finally:
        assert [one.stop() for one in (leader, standby)] == [0, 0]
    assert {who for who, _, _ in writers(arm)} == {"second"}
    assert [method for _, method, _ in writers(arm)] == ["PUT", "DELETE"]
    written = {one.user_agent for one in cluster.requests.writes("kaito-ray") if not one.resource.startswith("leases")}
    assert [agent for agent in written if leader.name in agent] == []
    assert "Traceback" not in leader.log
