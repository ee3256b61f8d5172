# SPDX-License-Identifier: Apache-2.0
"""kopf in this process against the test cluster: handlers, status, finalizers, resumption and lost watches."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import kopf
import pytest

from cluster.client import Client
from cluster.fixture import Cluster
from cluster.server import TestCluster
from cluster.widget import a_widget

Seen = list[tuple[Any, ...]]


def a_registry(seen: Seen) -> kopf.OperatorRegistry:
    """An operator that notes what happens to widgets and reports a state."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    def login(**arguments: Any) -> Any:
        return kopf.login_with_kubeconfig(**arguments)

    @kopf.on.startup(registry=registry)
    def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = True
        settings.networking.error_backoffs = [0.1, 0.1, 0.2, 0.2, 0.5, 0.5]
        settings.watching.reconnect_backoff = 0.1

    @kopf.on.create("test.kaito-ray.io", "v1", "widgets", registry=registry)
    def created(name: str, body: kopf.Body, patch: kopf.Patch, **_: Any) -> None:
        seen.append(("create", name))
        patch.status["state"] = "made"
        kopf.info(body, reason="Made", message="a widget was made")

    @kopf.on.update("test.kaito-ray.io", "v1", "widgets", field="size.count", registry=registry)
    def updated(name: str, old: Any, new: Any, patch: kopf.Patch, **_: Any) -> None:
        seen.append(("update", name, old, new))
        patch.status["state"] = f"count {new}"

    @kopf.on.delete("test.kaito-ray.io", "v1", "widgets", registry=registry)
    def deleted(name: str, **_: Any) -> None:
        seen.append(("delete", name))

    @kopf.on.resume("test.kaito-ray.io", "v1", "widgets", registry=registry)
    def resumed(name: str, **_: Any) -> None:
        seen.append(("resume", name))

    return registry


@contextlib.contextmanager
def operator(cluster: Cluster, seen: Seen, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The operator, running in a thread."""
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    stop, ready = threading.Event(), threading.Event()
    registry = a_registry(seen)

    def run() -> None:
        asyncio.run(
            kopf.operator(
                registry=registry, namespaces=[cluster.namespace], stop_flag=stop, ready_flag=ready, standalone=True
            )
        )

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(10)
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=20)
    assert not thread.is_alive()


def state(client: Client, namespace: str, name: str = "w") -> Any:
    found = client.find("test.kaito-ray.io/v1", "Widget", name, namespace) or {}
    return (found.get("status") or {}).get("state")


def test_handlers_fire_once_and_status_arrives(
    widgets: Client, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: Seen = []
    namespace = cluster.namespace
    with operator(cluster, seen, monkeypatch):
        made = widgets.create(a_widget(namespace=namespace))
        widgets.wait(lambda: state(widgets, namespace), lambda found: found == "made")
        widgets.patch(made, {"size": {"count": 3}})
        widgets.wait(lambda: state(widgets, namespace), lambda found: found == "count 3")
        widgets.delete(made)
        widgets.wait(lambda: widgets.find(made["apiVersion"], "Widget", "w", namespace), lambda found: found is None)
        events = widgets.wait(
            lambda: widgets.list("v1", "Event", namespace), lambda found: any(one["reason"] == "Made" for one in found)
        )
    assert seen == [("create", "w"), ("update", "w", 1, 3), ("delete", "w")]
    assert any(one["involvedObject"]["name"] == "w" for one in events)


def test_an_operator_resumes_what_it_finds(widgets: Client, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Seen = []
    with operator(cluster, seen, monkeypatch):
        widgets.create(a_widget(namespace=cluster.namespace))
        widgets.wait(lambda: state(widgets, cluster.namespace), lambda found: found == "made")
    widgets.patch(a_widget(namespace=cluster.namespace), {"size": {"count": 4}})
    with operator(cluster, seen, monkeypatch):
        widgets.wait(lambda: state(widgets, cluster.namespace), lambda found: found == "count 4")
        widgets.wait(lambda: list(seen), lambda found: ("resume", "w") in found)
    assert ("update", "w", 1, 4) in seen
    assert seen.count(("create", "w")) == 1


def test_no_change_is_lost_when_watches_end(
    widgets: Client, simulated: TestCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: Seen = []
    with operator(simulated, seen, monkeypatch):
        widgets.create(a_widget("before"))
        widgets.wait(lambda: state(widgets, "default", "before"), lambda found: found == "made")
        simulated.expire_watches()
        widgets.create(a_widget("expired"))
        widgets.wait(lambda: state(widgets, "default", "expired"), lambda found: found == "made")
        simulated.drop_watches(abort=True)
        widgets.create(a_widget("dropped"))
        widgets.wait(lambda: state(widgets, "default", "dropped"), lambda found: found == "made")
    assert sorted(name for _, name in seen) == ["before", "dropped", "expired"]


@pytest.mark.parametrize("code", [429, 500, 503])
def test_failing_requests_are_tried_again(
    widgets: Client, simulated: TestCluster, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    seen: Seen = []
    with operator(simulated, seen, monkeypatch):
        fault = simulated.fail(code, verb="patch", resource="widgets", user_agent="kopf", times=3)
        widgets.create(a_widget())
        widgets.wait(lambda: state(widgets, "default"), lambda found: found == "made", 20)
    assert fault.hits == 3
    assert seen == [("create", "w")]
