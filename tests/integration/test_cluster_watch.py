# SPDX-License-Identifier: Apache-2.0
"""Watches of the test cluster: what they send, when they end, and that no change is lost between list and watch."""

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from kubernetes import client as kubernetes_client
from kubernetes import config, watch

from cluster.client import Client
from cluster.fixture import Cluster
from cluster.server import TestCluster
from cluster.widget import a_widget


@contextlib.contextmanager
def stream(cluster: TestCluster, path: str, **query: Any) -> Iterator[Iterator[dict[str, Any]]]:
    """The events of a watch over plain HTTP, until the server ends it."""
    connection = http.client.HTTPConnection(urlsplit(cluster.url).netloc, timeout=10)
    connection.request("GET", f"{path}?{urlencode({'watch': 'true', **query})}")
    response = connection.getresponse()
    try:
        yield (json.loads(line) for line in response)
    finally:
        response.close()
        connection.close()


def all_of(cluster: TestCluster, path: str, **query: Any) -> list[dict[str, Any]]:
    """All events of a watch."""
    with stream(cluster, path, **query) as events:
        return list(events)


def names(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(one["type"], one["object"]["metadata"].get("name", "")) for one in events]


@pytest.fixture
def path(widgets: Client, simulated: TestCluster) -> str:
    del widgets
    return f"/apis/test.kaito-ray.io/v1/namespaces/{simulated.namespace}/widgets"


def test_the_official_client_watches_from_a_list_on(widgets: Client, cluster: Cluster) -> None:
    core: Any = kubernetes_client.CoreV1Api(config.new_client_from_config(str(cluster.kubeconfig)))  # type: ignore[no-untyped-call]
    before = core.list_namespaced_config_map(cluster.namespace)

    def change() -> None:
        obj = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "w", "namespace": cluster.namespace}}
        made = widgets.create(obj)
        widgets.patch(made, {"data": {"a": "1"}})
        widgets.delete(made)

    threading.Thread(target=change).start()
    seen = []
    stream_of: Any = watch.Watch()  # type: ignore[no-untyped-call]
    for event in stream_of.stream(
        core.list_namespaced_config_map,
        cluster.namespace,
        resource_version=before.metadata.resource_version,
        timeout_seconds=10,
        field_selector="metadata.name=w",
    ):
        seen.append(event["type"])
        if event["type"] == "DELETED":
            break
    assert seen == ["ADDED", "MODIFIED", "DELETED"]


async def test_the_async_client_watches_too(cluster: Cluster) -> None:
    from kubernetes.aio import client as aio
    from kubernetes.aio import config as aio_config
    from kubernetes.aio import watch as aio_watch

    settings = aio.Configuration()
    await aio_config.load_kube_config(str(cluster.kubeconfig), client_configuration=settings)  # type: ignore[no-untyped-call]
    async with aio.ApiClient(settings) as api:
        core: Any = aio.CoreV1Api(api)
        before = await core.list_namespaced_config_map(cluster.namespace)
        made = {"metadata": {"name": "w", "labels": {"watched": "yes"}}}
        await core.create_namespaced_config_map(cluster.namespace, made)
        await core.delete_namespaced_config_map("w", cluster.namespace)
        stream_of: Any = aio_watch.Watch()  # type: ignore[no-untyped-call]
        async with stream_of:
            events = stream_of.stream(
                core.list_namespaced_config_map,
                cluster.namespace,
                resource_version=before.metadata.resource_version,
                label_selector="watched=yes",
                timeout_seconds=1,
            )
            seen = [(event["type"], event["object"].metadata.name) async for event in events]
    assert seen == [("ADDED", "w"), ("DELETED", "w")]


def test_a_watch_without_a_version_starts_with_what_is_there(
    widgets: Client, simulated: TestCluster, path: str
) -> None:
    widgets.create(a_widget("a"))
    widgets.create(a_widget("b"))
    seen = all_of(simulated, path, timeoutSeconds=1)
    assert names(seen) == [("ADDED", "a"), ("ADDED", "b")]


def test_nothing_is_lost_between_list_and_watch(widgets: Client, simulated: TestCluster, path: str) -> None:
    widgets.create(a_widget("before"))
    version = widgets.request("GET", path)["metadata"]["resourceVersion"]
    made = widgets.create(a_widget("after"))
    widgets.patch(made, {"tags": ["x"]})
    seen = all_of(simulated, path, resourceVersion=version, timeoutSeconds=1)
    assert names(seen) == [("ADDED", "after"), ("MODIFIED", "after")]
    versions = [int(one["object"]["metadata"]["resourceVersion"]) for one in seen]
    assert versions == sorted(versions)


def test_an_object_that_leaves_the_selector_is_deleted_for_the_watch(
    widgets: Client, simulated: TestCluster, path: str
) -> None:
    widget = a_widget("a")
    widget["metadata"]["labels"] = {"app": "x"}
    made = widgets.create(widget)
    version = made["metadata"]["resourceVersion"]
    widgets.patch(made, {"metadata": {"labels": {"app": "y"}}})
    widgets.patch(made, {"tags": ["unseen"]})
    widgets.patch(made, {"metadata": {"labels": {"app": "x"}}})
    seen = all_of(simulated, path, resourceVersion=version, labelSelector="app=x", timeoutSeconds=1)
    assert names(seen) == [("DELETED", "a"), ("ADDED", "a")]
    assert seen[0]["object"]["metadata"]["labels"] == {"app": "x"}, "the last state the watch knew"


def test_bookmarks_come_when_allowed_and_carry_only_a_version(
    widgets: Client, simulated: TestCluster, path: str
) -> None:
    made = widgets.create(a_widget("a"))
    version = made["metadata"]["resourceVersion"]
    plain = all_of(simulated, path, resourceVersion=version, timeoutSeconds=1)
    assert plain == []
    other = widgets.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "namespace": "default"}})
    query = {"resourceVersion": version, "timeoutSeconds": 1, "allowWatchBookmarks": "true"}
    marked = all_of(simulated, path, **query)
    assert [one["type"] for one in marked] == ["BOOKMARK"]
    assert int(marked[0]["object"]["metadata"]["resourceVersion"]) >= int(other["metadata"]["resourceVersion"])


def test_initial_events_end_with_a_bookmark_on_request(widgets: Client, simulated: TestCluster, path: str) -> None:
    widgets.create(a_widget("a"))
    query = {
        "sendInitialEvents": "true",
        "allowWatchBookmarks": "true",
        "resourceVersionMatch": "NotOlderThan",
        "timeoutSeconds": 1,
    }
    seen = all_of(simulated, path, **query)
    assert [one["type"] for one in seen[:2]] == ["ADDED", "BOOKMARK"]
    assert seen[1]["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


def test_compacted_history_answers_410(widgets: Client, simulated: TestCluster, path: str) -> None:
    version = widgets.create(a_widget("a"))["metadata"]["resourceVersion"]
    widgets.create(a_widget("b"))
    simulated.compact()
    seen = all_of(simulated, path, resourceVersion=version, timeoutSeconds=5)
    assert [one["type"] for one in seen] == ["ERROR"]
    assert (seen[0]["object"]["code"], seen[0]["object"]["reason"]) == (410, "Expired")


def test_open_watches_can_be_dropped_and_expired(widgets: Client, simulated: TestCluster, path: str) -> None:
    widgets.create(a_widget("a"))
    with stream(simulated, path) as events:
        assert next(events)["type"] == "ADDED"
        assert simulated.drop_watches("widgets") == 1
        assert list(events) == []
    with stream(simulated, path) as events:
        next(events)
        simulated.expire_watches("widgets")
        assert [one["object"]["code"] for one in events] == [410]


def test_a_watch_can_be_broken_in_the_middle(widgets: Client, simulated: TestCluster, path: str) -> None:
    widgets.create(a_widget("a"))
    connection = http.client.HTTPConnection(urlsplit(simulated.url).netloc, timeout=10)
    connection.request("GET", f"{path}?watch=true")
    response = connection.getresponse()
    assert json.loads(response.readline())["type"] == "ADDED"
    simulated.drop_watches("widgets", abort=True)
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        response.read()
    response.close()
    connection.close()


def test_a_watch_of_all_namespaces_sees_them_all(widgets: Client, simulated: TestCluster) -> None:
    widgets.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other"}})
    widgets.create(a_widget("a"))
    widgets.create(a_widget("b", "other"))
    seen = all_of(simulated, "/apis/test.kaito-ray.io/v1/widgets", timeoutSeconds=1)
    assert names(seen) == [("ADDED", "a"), ("ADDED", "b")]


def test_hundreds_of_changes_arrive_in_order(widgets: Client, simulated: TestCluster, path: str) -> None:
    made = widgets.create(a_widget("a"))
    seen: list[int] = []

    def follow() -> None:
        with stream(simulated, path, resourceVersion=made["metadata"]["resourceVersion"], timeoutSeconds=20) as events:
            for event in events:
                seen.append(event["object"]["size"]["count"])
                if event["object"].get("tags") == ["end"]:
                    return

    thread = threading.Thread(target=follow)
    thread.start()
    for number in range(200):
        widgets.patch(made, {"size": {"count": (number + 1) % 9 + 1}})
    widgets.patch(made, {"tags": ["end"]})
    thread.join(timeout=20)
    assert not thread.is_alive()
    assert seen[:-1] == [(number + 1) % 9 + 1 for number in range(200)]


def test_a_list_from_the_future_times_out(simulated: TestCluster, path: str) -> None:
    started = time.monotonic()
    connection = http.client.HTTPConnection(urlsplit(simulated.url).netloc, timeout=10)
    connection.request("GET", f"{path}?resourceVersion=999999999")
    answer = connection.getresponse()
    body = json.loads(answer.read())
    connection.close()
    assert (answer.status, body["reason"]) == (504, "Timeout")
    assert "Too large resource version" in body["message"]
    assert time.monotonic() - started < 8
