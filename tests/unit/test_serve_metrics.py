# SPDX-License-Identifier: Apache-2.0
"""Metrics of a Prometheus registry in, gauges with Ray's kind of names out."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from serve_apps.metrics import Publisher


class Seen:
    """A gauge that remembers."""

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = labels
        self.values: dict[tuple[str, ...], float] = {}

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == set(self.labels)
        self.values[tuple(tags[label] for label in self.labels)] = value


def test_every_sample_of_the_engine_and_no_other() -> None:
    registry = CollectorRegistry()
    running = Gauge("vllm:num_requests_running", "running", ["model_name"], registry=registry)
    tokens = Counter("vllm:generation_tokens", "tokens", ["model_name"], registry=registry)
    ttft = Histogram("vllm:time_to_first_token_seconds", "ttft", ["model_name"], buckets=(0.1, 1), registry=registry)
    rejected = Counter("kaito_ratelimit_rejected", "429", registry=registry)
    Counter("python_gc_objects_collected", "not ours", registry=registry).inc()
    gauges: dict[str, Seen] = {}

    def make(name: str, description: str, labels: tuple[str, ...]) -> Seen:
        assert name not in gauges, "made twice"
        assert description
        return gauges.setdefault(name, Seen(labels))

    publisher = Publisher(make)
    running.labels("m").set(3)
    tokens.labels("m").inc(5)
    ttft.labels("m").observe(0.5)
    rejected.inc()
    publisher.publish(registry.collect())
    tokens.labels("m").inc(2)
    publisher.publish(registry.collect())
    assert {name: gauge.values for name, gauge in gauges.items()} == {
        "vllm_num_requests_running": {("m",): 3},
        "vllm_generation_tokens_total": {("m",): 7},
        "vllm_time_to_first_token_seconds_bucket": {("m", "0.1"): 0, ("m", "1.0"): 1, ("m", "+Inf"): 1},
        "vllm_time_to_first_token_seconds_count": {("m",): 1},
        "vllm_time_to_first_token_seconds_sum": {("m",): 0.5},
        "kaito_ratelimit_rejected_total": {(): 1},
    }
