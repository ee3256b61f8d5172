# SPDX-License-Identifier: Apache-2.0
"""Local runs side by side: whose replicas listen where."""

import socket

import pytest

from kaito_ray.errors import CannotRun
from kaito_ray.local_ray import free_ports, reserve_replica_ports


def test_no_two_runs_get_the_same_ports() -> None:
    runs = [reserve_replica_ports() for _ in range(20)]
    try:
        assert len({run.getsockname()[1] for run in runs}) == 20
    finally:
        for run in runs:
            run.close()


def test_a_range_in_which_somebody_listens_is_passed_over() -> None:
    with reserve_replica_ports() as found:
        first = found.getsockname()[1]
    only = range(first, first + 100, 100)
    with socket.create_server(("127.0.0.1", first + 50)), pytest.raises(CannotRun, match="no 99 free ports in a row"):
        reserve_replica_ports(only)
    reserve_replica_ports(only).close()


def test_no_run_takes_the_port_of_rays_own_agent() -> None:
    """Ray refuses to start then. The kernel gives each odd port of some 14,000 in no order."""
    from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT

    assert all(DEFAULT_DASHBOARD_AGENT_LISTEN_PORT not in free_ports(100) for _ in range(1000))
