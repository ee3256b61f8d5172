# SPDX-License-Identifier: Apache-2.0
"""Ways through the test cluster to what runs in it: service proxy, port forwarding, eviction, leases."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from kubernetes import client as kubernetes_client
from kubernetes import config
from kubernetes.stream import portforward

from cluster.client import Client, Refused
from cluster.fixture import Cluster
from cluster.server import TestCluster


@pytest.fixture
def backend() -> Iterator[str]:
    """An HTTP server that answers with the path it was asked for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f"you asked for {self.path}".encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def served(simulated: TestCluster, backend: str) -> Client:
    """A Service `web` with a pod `web-0` behind it, routed to the backend."""
    client = simulated.client
    simulated.simulate()
    simulated.add_node("n")
    labels = {"app": "web"}
    pod_spec = {"containers": [{"name": "c", "image": "i:1", "ports": [{"containerPort": 80}]}]}
    metadata = {"name": "web-0", "namespace": "default", "labels": labels}
    client.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod_spec})
    spec = {"selector": labels, "ports": [{"port": 80}]}
    metadata = {"name": "web", "namespace": "default"}
    client.create({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
    simulated.route_service("default", "web", backend)
    client.wait(lambda: client.get("v1", "Pod", "web-0", "default"), lambda pod: pod["status"]["phase"] == "Running")
    return client


def test_the_service_proxy_reaches_the_backend(served: Client) -> None:
    path = "/api/v1/namespaces/default/services/web:80/proxy/v1/models"
    assert served.request("GET", path) == "you asked for /v1/models"
    with pytest.raises(Refused) as caught:
        served.request("GET", path.replace("web:80", "none:80"))
    assert caught.value.code == 404


def test_ports_of_a_pod_are_forwarded(served: Client, simulated: TestCluster) -> None:
    del served
    core: Any = kubernetes_client.CoreV1Api(config.new_client_from_config(str(simulated.kubeconfig)))  # type: ignore[no-untyped-call]
    forwarded = portforward(core.connect_get_namespaced_pod_portforward, "web-0", "default", ports="80")
    channel = forwarded.socket(80)
    channel.setblocking(True)
    channel.sendall(b"GET /health HTTP/1.0\r\n\r\n")
    answer = b""
    while part := channel.recv(1024):
        answer += part
    forwarded.close()
    forwarded.websocket.shutdown()
    assert answer.endswith(b"you asked for /health")


def test_a_service_has_a_slice_with_its_ready_pods(served: Client) -> None:
    def slices() -> list[dict[str, Any]]:
        return served.list(
            "discovery.k8s.io/v1", "EndpointSlice", "default", labelSelector="kubernetes.io/service-name=web"
        )

    (found,) = served.wait(slices, lambda parts: bool(parts) and bool(parts[0]["endpoints"]))
    assert found["endpoints"][0]["conditions"] == {"ready": True, "serving": True, "terminating": False}
    assert found["endpoints"][0]["targetRef"]["name"] == "web-0"


def test_a_disruption_budget_forbids_evictions(served: Client) -> None:
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "b", "namespace": "default"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}},
    }
    served.create(budget)
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "web-0", "namespace": "default"}}
    path = served.path("v1", "Pod", "default", "web-0", "eviction")
    with pytest.raises(Refused) as caught:
        served.request("POST", path, eviction)
    assert caught.value.code == 429
    assert "would violate the pod's disruption budget" in caught.value.message
    served.delete(budget)
    served.request("POST", path, eviction)
    served.wait(lambda: served.find("v1", "Pod", "web-0", "default"), lambda found: found is None)


def test_of_two_candidates_for_a_lease_one_wins(cluster: Cluster) -> None:
    client = cluster.client
    metadata = {"name": "leader", "namespace": cluster.namespace}
    spec = {"holderIdentity": "nobody", "leaseDurationSeconds": 15, "renewTime": "2026-01-01T00:00:00.000000Z"}
    lease = client.create({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec})
    outcomes: list[str] = []

    def take(identity: str) -> None:
        try:
            client.replace({**lease, "spec": {**spec, "holderIdentity": identity}})
            outcomes.append(identity)
        except Refused as refused:
            outcomes.append("too late" if refused.code == 409 else str(refused))

    threads = [threading.Thread(target=take, args=(f"replica-{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("too late") == 3
    holder = client.get("coordination.k8s.io/v1", "Lease", "leader", cluster.namespace)["spec"]["holderIdentity"]
    assert holder in outcomes
    with pytest.raises(Refused, match="leaseDurationSeconds: Invalid value: 0: must be greater than 0"):
        client.patch(lease, {"spec": {"leaseDurationSeconds": 0}})
