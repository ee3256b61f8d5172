# SPDX-License-Identifier: Apache-2.0
"""The commands of the README's section "On a cluster", word by word, from nothing to a Ready Workspace."""

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster.fixture import Cluster
from operator_rig import running_operator
from workspace_rig import RAY, ray_crds, simulated_cluster, wait_until_ready

pytestmark = pytest.mark.timeout(180)

ROOT = Path(__file__).resolve().parents[2]
_CRD = ("apiextensions.k8s.io/v1", "CustomResourceDefinition")
# Asks what runs in a pod, and nothing runs in the pods of a real server without nodes.
_CHAT = "kaito-ray chat"


class _Model(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        event = {"choices": [{"delta": {"content": "Kubernetes is a system that runs containers."}}]}
        self.wfile.write(f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n".encode())

    def log_message(self, *_: Any) -> None:
        """Tests need no access log."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """An empty cluster where KubeRay is installed and one node has a GPU."""
    with simulated_cluster(tmp_path, kuberay=False) as cluster:
        client = cluster.client
        client.delete(_definition())
        client.wait(lambda: client.find(*_CRD, "workspaces.kaito.sh"), lambda found: found is None)
        cluster.client.install(ray_crds())
        cluster.add_node("gpu-0", gpus=1, instance_type="Standard_NV36ads_A10_v5")
        yield cluster


def test_from_nothing_to_ready(cluster: Cluster, tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    section = text.partition("## On a cluster\n")[2].partition("\n## ")[0]
    commands = [line.removeprefix("$ ") for line in section.splitlines() if line.startswith("$ ")]
    assert len(commands) > 5
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Model)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    applied = next(number for number, command in enumerate(commands) if "samples" in command)
    try:
        said = [_run(cluster, command) for command in commands[:applied]]
        deployment = cluster.client.get("apps/v1", "Deployment", "kaito-ray", "kaito-ray")
        container = deployment["spec"]["template"]["spec"]["containers"][0]
        environ = {one["name"]: one.get("value", "") for one in container["env"]}
        assert environ["KAITO_RAY_PROVISIONER"] == "byo"
        # Nothing runs in the pods of a simulated cluster, so the operator runs here, as its Deployment says.
        kubeconfig = cluster.kubeconfig_of("kaito-ray", "kaito-ray")
        with running_operator(
            kubeconfig, tmp_path, namespace="kaito-ray", provisioner=environ["KAITO_RAY_PROVISIONER"]
        ):
            said.append(_run(cluster, commands[applied]))
            wait_until_ready(cluster.client, "workspace-phi-3-mini", 60)
            if cluster.is_simulated:
                cluster.route_service("default", "workspace-phi-3-mini", f"http://127.0.0.1:{server.server_port}")
            rest = [one for one in commands[applied + 1 :] if cluster.is_simulated or not one.startswith(_CHAT)]
            said += [_run(cluster, command) for command in rest]
    finally:
        server.shutdown()
        server.server_close()
    table = next(output for output in said if "INFERENCEREADY" in output)
    shown = section.partition("INFERENCEREADY")[2].splitlines()[1].split()
    assert table.splitlines()[1].split()[:5] == shown[:5]
    if cluster.is_simulated:
        assert said[-1] == "Kubernetes is a system that runs containers.\n"
    assert cluster.client.find(RAY, "RayService", "workspace-phi-3-mini", "default") is not None


def _run(cluster: Cluster, command: str) -> str:
    environ = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig)}
    environ["PATH"] = f"{Path(sys.executable).parent}:{environ['PATH']}"
    words = shlex.split(command)
    done = subprocess.run(words, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode and re.search("kubectl.*(not found|No such file)", done.stderr):
        pytest.skip("needs kubectl")
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def _definition() -> dict[str, Any]:
    api_version, kind = _CRD
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {"name": "workspaces.kaito.sh"},
    }
