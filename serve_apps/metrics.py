# SPDX-License-Identifier: Apache-2.0
"""vLLM's metrics, handed to the exporter that Ray runs on every node.

`GET /metrics` of the Service shows one replica, whichever answers. What scrapes Ray's exporters (port 8080 of every
pod) sees all replicas, each with its name in a label. `vllm:num_requests_running` is `ray_vllm_num_requests_running`
there, `vllm:generation_tokens_total` is `ray_vllm_generation_tokens_total`. Everything is a gauge, histograms as their
buckets, sums and counts; `rate` and `histogram_quantile` do not mind. vLLM's own way (RayPrometheusStatLogger) hands
over dozens of values at every step of the engine; this one is busy for milliseconds, every ten seconds.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any, Protocol

logger = logging.getLogger(__name__)

PERIOD_S = 10.0
"""Ray's own exporter is fed as often."""
_OURS = ("vllm:", "kaito_")


class Gauge(Protocol):
    """What ray.serve.metrics.Gauge is."""

    def set(self, value: float, tags: dict[str, str]) -> Any:
        """Take a value."""


MakeGauge = Callable[[str, str, tuple[str, ...]], Gauge]
"""From name, description and label names."""


class Publisher:
    """Copies samples of Prometheus metrics into gauges, made as they are met."""

    def __init__(self, make_gauge: MakeGauge) -> None:
        self._make_gauge = make_gauge
        self._gauges: dict[str, Gauge] = {}

    def publish(self, metrics: Iterable[Any]) -> None:
        """`metrics` is what a registry of prometheus_client collects."""
        for metric in metrics:
            if not metric.name.startswith(_OURS):
                continue
            for sample in metric.samples:
                if sample.name.endswith("_created"):
                    continue
                name = sample.name.replace(":", "_")
                if name not in self._gauges:
                    self._gauges[name] = self._make_gauge(name, metric.documentation, tuple(sample.labels))
                self._gauges[name].set(sample.value, dict(sample.labels))


async def publish_forever() -> None:
    """Runs in a replica of Ray Serve for as long as it lives."""
    from ray.serve.metrics import Gauge as ServeGauge
    from vllm.v1.metrics.prometheus import get_prometheus_registry

    def make_gauge(name: str, description: str, labels: tuple[str, ...]) -> Gauge:
        return ServeGauge(name, description, labels)  # type: ignore[arg-type]

    publisher = Publisher(make_gauge)
    registry = get_prometheus_registry()
    while True:
        await asyncio.sleep(PERIOD_S)
        try:
            await asyncio.to_thread(lambda: publisher.publish(registry.collect()))
        except Exception:
            # Metrics are worth no request.
            logger.exception("vLLM's metrics did not reach Ray")
