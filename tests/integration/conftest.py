# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the integration tests."""

from cluster.fixture import cluster, kubectl, ray_cluster, simulated, widgets

__all__ = ["cluster", "kubectl", "ray_cluster", "simulated", "widgets"]
