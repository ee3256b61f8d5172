# SPDX-License-Identifier: Apache-2.0
"""The operator's Prometheus metrics, in one registry that `/metrics` serves (probe.py).

Labels never hold names of Workspaces' objects beyond the preset, so that the number of series stays bounded.
"""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

API_REQUESTS = Counter(
    "kaito_ray_api_requests_total",
    "Requests to the Kubernetes API by verb, kind and status code.",
    ("method", "kind", "code"),
    registry=REGISTRY,
)
RECONCILES = Histogram(
    "kaito_ray_reconcile_seconds",
    "Time of one reconcile of one Workspace.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    registry=REGISTRY,
)
RECONCILE_ERRORS = Counter(
    "kaito_ray_reconcile_errors_total",
    "Reconciles that did not get through, by reason.",
    ("reason",),
    registry=REGISTRY,
)
TIME_TO_READY = Histogram(
    "kaito_ray_time_to_ready_seconds",
    "Time from the creation of a Workspace until it was Ready for the first time.",
    buckets=(1, 5, 15, 30, 60, 120, 300, 600, 900, 1200, 1800, 3600, 7200),
    registry=REGISTRY,
)
LEADER = Gauge("kaito_ray_leader", "1 while this replica leads, else 0.", registry=REGISTRY)
QUEUE_LENGTH = Gauge("kaito_ray_queue_length", "Workspaces that wait for a reconcile.", registry=REGISTRY)


class WorkspaceCollector(Collector):
    """Counts Workspaces by state and preset when it is scraped, from the documents that `documents` yields."""

    def __init__(self, documents: Callable[[], Iterable[dict[str, object]]]) -> None:
        self._documents = documents

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One gauge with a series per combination that exists."""
        counts: dict[tuple[str, str], int] = {}
        for document in self._documents():
            key = _state(document), _preset(document)
            counts[key] = counts.get(key, 0) + 1
        gauge = GaugeMetricFamily("kaito_ray_workspaces", "Workspaces by state and preset.", labels=("state", "preset"))
        for key, count in sorted(counts.items()):
            gauge.add_metric(key, count)
        yield gauge


def _state(document: dict[str, object]) -> str:
    status = document.get("status")
    return str(status.get("state") or "Pending") if isinstance(status, dict) else "Pending"


def _preset(document: dict[str, object]) -> str:
    for work in ("inference", "tuning"):
        part = document.get(work)
        preset = part.get("preset") if isinstance(part, dict) else None
        if isinstance(preset, dict):
            return str(preset.get("name", ""))
    return ""
