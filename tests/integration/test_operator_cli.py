# SPDX-License-Identifier: Apache-2.0
"""`kaito-ray status` and `kaito-ray chat` against a cluster, as a person uses them."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cluster.fixture import Cluster
from operator_rig import running_operator
from workspace_rig import a_serving, simulated_cluster, wait_for, wait_until_ready

pytestmark = pytest.mark.timeout(120)


class Model(BaseHTTPRequestHandler):
    """What answers at the pods: the last question, word by word, and how many there were."""

    seen: ClassVar[list[dict[str, Any]]] = []
    keys: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append({"path": self.path, **body})
        if self.keys and self.headers.get("Authorization") not in self.keys:
            self.send_response(401)
            self.end_headers()
            return
        if body.get("model") == "unknown":
            self.send_response(404)
            self.end_headers()
            self.wfile.write(b'{"error": {"message": "no such model"}}')
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        words = ["you", " asked", f" {len(body['messages'])}:", f" {body['messages'][-1]['content']}"]
        for word in words:
            event = {"choices": [{"delta": {"content": word}}]}
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_: Any) -> None:
        """Tests need no access log."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with one Workspace that is Ready and one that waits for nodes."""
    folder = tmp_path_factory.mktemp("cluster")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with simulated_cluster(folder) as cluster, running_operator(cluster.kubeconfig, folder):
        cluster.add_node("gpu-1", gpus=1, labels={"apps": "phi"})
        cluster.client.create(a_serving("phi", "phi"))
        cluster.client.create(a_serving("waiting", "nowhere"))
        if cluster.is_simulated:
            cluster.route_service("default", "phi", f"http://127.0.0.1:{server.server_port}")
        wait_until_ready(cluster.client, "phi")
        wait_for(cluster.client, "waiting", "ResourceReady", "False")
        yield cluster
    server.shutdown()
    server.server_close()


@pytest.fixture
def answering(cluster: Cluster) -> Cluster:
    """The cluster, where something answers in the pods."""
    if not cluster.is_simulated:
        pytest.skip("needs the simulated cluster: it asks what runs in a pod")
    return cluster


def run(cluster: Cluster, *arguments: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).parent / "kaito-ray"), *arguments],
        input=stdin,
        env={"KUBECONFIG": str(cluster.kubeconfig), "PATH": "/usr/bin:/bin", "COLUMNS": "200", **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_status_of_a_workspace_that_serves(cluster: Cluster) -> None:
    done = run(cluster, "status", "phi")
    assert done.returncode == 0, done.stderr
    assert "default/phi: Ready" in done.stdout
    assert "http://phi.default.svc" in done.stdout
    assert "waits for" not in done.stdout
    for word in ("InferenceReady", "NodesReady", "gpu-1", "RayService phi"):
        assert word in done.stdout


def test_status_says_what_a_workspace_waits_for(cluster: Cluster) -> None:
    done = run(cluster, "status", "waiting", "-n", "default")
    assert done.returncode == 0
    assert "waits for" in done.stdout
    assert "apps=nowhere" in done.stdout


def test_status_as_json(cluster: Cluster) -> None:
    record = json.loads(run(cluster, "status", "phi", "-o", "json").stdout)
    assert record["state"] == "Ready"
    assert record["waitsFor"] == ""
    assert {"kind": "RayService", "name": "phi"} in record["objects"]
    assert {pod["phase"] for pod in record["pods"]} == {"Running"}


def test_status_of_nothing_is_a_sentence(cluster: Cluster) -> None:
    done = run(cluster, "status", "nothing")
    assert done.returncode == 1
    assert "there is no Workspace nothing in namespace default" in done.stderr
    assert "Traceback" not in done.stderr
    done = run(cluster, "status", "phi", KUBECONFIG="/nonexistent")
    assert done.returncode == 1
    assert "KUBECONFIG" in done.stderr


def test_one_question(answering: Cluster) -> None:
    done = run(answering, "chat", "phi", "--once", "What is Kubernetes?")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "you asked 1: What is Kubernetes?\n"


def test_a_conversation_remembers(answering: Cluster) -> None:
    Model.seen.clear()
    done = run(answering, "chat", "phi", "--model", "sql", stdin="first\n\nsecond\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "you asked 1: first\nyou asked 3: second\n"
    assert [one["model"] for one in Model.seen] == ["sql", "sql"]
    assert Model.seen[1]["messages"][1] == {"role": "assistant", "content": "you asked 1: first"}
    assert Model.seen[1]["path"] == "/v1/chat/completions"


def test_what_the_model_refuses_is_said(answering: Cluster) -> None:
    done = run(answering, "chat", "phi", "--model", "unknown", "--once", "hello")
    assert done.returncode == 1
    assert "no such model" in done.stderr


def test_keys_come_from_the_environment(answering: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "keys", ["Bearer secret"])
    done = run(answering, "chat", "phi", "--once", "hello")
    assert done.returncode == 1
    assert "KAITO_RAY_API_KEY" in done.stderr
    assert run(answering, "chat", "phi", "--once", "hello", KAITO_RAY_API_KEY="secret").returncode == 0


def test_a_workspace_without_pods_cannot_be_asked(cluster: Cluster) -> None:
    done = run(cluster, "chat", "waiting", "--once", "hello")
    assert done.returncode == 1
    assert "kaito-ray status waiting" in done.stderr
