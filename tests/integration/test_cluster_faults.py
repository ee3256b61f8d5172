# SPDX-License-Identifier: Apache-2.0
"""Faults that the test cluster injects on demand, and its log of requests."""

import threading
import time
from typing import Any

import pytest

from cluster.client import Client, Refused
from cluster.server import TestCluster
from cluster.widget import a_widget


def refusal(action: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        action()
    return caught.value


def test_the_next_requests_fail_and_then_pass(widgets: Client, simulated: TestCluster) -> None:
    fault = simulated.fail(503, verb="create", resource="widgets", times=2)
    for _ in range(2):
        seen = refusal(lambda: widgets.create(a_widget()))
        assert (seen.code, seen.status["reason"]) == (503, "ServiceUnavailable")
    widgets.create(a_widget())
    assert fault.hits == 2


def test_too_many_requests_carries_retry_after(widgets: Client, simulated: TestCluster) -> None:
    fault = simulated.fail(429, resource="widgets", retry_after_s=3)
    seen = refusal(lambda: widgets.create(a_widget()))
    assert (seen.code, seen.status["details"]["retryAfterSeconds"]) == (429, 3)
    fault.clear()
    widgets.create(a_widget())


def test_a_fault_can_pick_one_object_or_one_client(widgets: Client, simulated: TestCluster) -> None:
    made = widgets.create(a_widget("a"))
    widgets.create(a_widget("b"))
    simulated.fail(500, name="a", subresource="status")
    simulated.fail(500, user_agent="somebody-else")
    widgets.patch(made, {"tags": ["x"]})
    assert refusal(lambda: widgets.patch(made, {"status": {"state": "s"}}, subresource="status")).code == 500
    widgets.patch(a_widget("b"), {"status": {"state": "s"}}, subresource="status")


def test_connections_can_be_broken(widgets: Client, simulated: TestCluster) -> None:
    simulated.fail(verb="get", resource="widgets", drop=True)
    path = widgets.path("test.kaito-ray.io/v1", "Widget", "default", "w")
    with pytest.raises(Exception, match=r"(?i)connection|aborted|remote end|max retries"):
        widgets.request("GET", path)


def test_requests_can_be_late_and_the_server_can_pause(widgets: Client, simulated: TestCluster) -> None:
    late = simulated.fail(verb="list", resource="widgets", delay_s=0.3, times=1)
    started = time.monotonic()
    widgets.list("test.kaito-ray.io/v1", "Widget")
    assert time.monotonic() - started >= 0.3
    assert late.hits == 1
    simulated.pause()
    answered = threading.Event()

    def ask() -> None:
        widgets.list("test.kaito-ray.io/v1", "Widget")
        answered.set()

    thread = threading.Thread(target=ask)
    thread.start()
    assert not answered.wait(0.3)
    simulated.resume()
    assert answered.wait(5)
    thread.join()


def test_the_log_tells_verb_resource_manager_and_outcome(widgets: Client, simulated: TestCluster) -> None:
    simulated.requests.clear()
    made = widgets.apply(a_widget(), "somebody")
    widgets.patch(made, {"status": {"state": "s"}}, subresource="status", fieldManager="other")
    widgets.apply(a_widget(tags=["a"]), "somebody", dryRun="All")
    refusal(lambda: widgets.create(a_widget()))
    log = simulated.requests
    assert [(one.verb, one.subresource, one.manager, one.code, one.dry_run) for one in log] == [
        ("apply", "", "somebody", 201, False),
        ("patch", "status", "other", 200, False),
        ("apply", "", "somebody", 200, True),
        ("create", "", "test-client", 409, False),
    ]
    assert [one.verb for one in log.writes(user_agent="test-client")] == ["apply", "patch", "create"]
    assert log.counts()["apply", "widgets.test.kaito-ray.io"] == 2
    assert len(log.select(resource="widgets", name="w", verb="patch")) == 1
