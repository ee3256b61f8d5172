# SPDX-License-Identifier: Apache-2.0
"""Adapters of a Workspace from an edit to `status.adapters`, with the operator as a process and a test cluster."""

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.client import Client
from cluster.fixture import Cluster
from operator_rig import Operator, running_operator
from workspace_rig import (
    RAY,
    a_serving,
    condition,
    get,
    kubectl,
    quiet_writes,
    simulated_cluster,
    wait_for,
    wait_until_ready,
)

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).resolve().parents[2]
Object = dict[str, Any]
TWO_GPUS = "Standard_NC48ads_A100_v4"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with simulated_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def operator(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    with running_operator(cluster.kubeconfig, tmp_path_factory.mktemp("operator")) as operator:
        yield operator


@pytest.fixture
def client(cluster: Cluster, operator: Operator) -> Client:
    assert operator.running
    return cluster.client


def an_image(name: str, tag: str = "1") -> Object:
    return {"source": {"name": name, "image": f"registry.example.com/{name}:{tag}"}}


def two_replicas(cluster: Cluster, client: Client, name: str, *adapters: Object) -> Object:
    """A Workspace with a copy of the model on each of two GPUs, that is Ready."""
    cluster.add_node(f"gpu-{name}", gpus=2, labels={"apps": name}, instance_type=TWO_GPUS)
    workspace = a_serving(name, name, inference={"adapters": list(adapters)})
    workspace["resource"]["instanceType"] = TWO_GPUS
    client.create(workspace)
    return wait_until_ready(client, name)


def adapters(client: Client, name: str) -> dict[str, Object]:
    return {one["name"]: one for one in get(client, name)["status"].get("adapters", ())}


def events(client: Client, name: str) -> list[Object]:
    """Events of a Workspace from the first on."""
    found = [one for one in client.list("v1", "Event", "default") if one["involvedObject"]["name"] == name]
    ours = [one for one in found if one["involvedObject"]["kind"] == "Workspace"]
    return sorted(ours, key=lambda one: int(one["metadata"]["resourceVersion"]))


def wanted(client: Client, name: str) -> list[Object]:
    """What the replicas are told."""
    service = client.get(RAY, "RayService", name, "default")
    (deployment,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["deployments"]
    found: list[Object] = deployment["user_config"]["adapters"]
    return found


def status_lines(cluster: Cluster, name: str) -> dict[str, list[str]]:
    """What `kaito-ray status` prints in lines of a table, by their first word."""
    shown = run(cluster, "kaito-ray", "status", name)
    rows = (re.split(r"\s{2,}", line.strip()) for line in shown.splitlines() if line.strip())
    return {row[0]: row for row in rows}


def run(cluster: Cluster, program: str, *arguments: str) -> str:
    """What `kubectl` or `kaito-ray` prints."""
    if program == "kubectl":
        return kubectl(cluster.kubeconfig, *arguments)
    return subprocess.run(
        [str(Path(sys.executable).parent / program), *arguments],
        env={"KUBECONFIG": str(cluster.kubeconfig), "PATH": "/usr/bin:/bin", "COLUMNS": "250"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout


def test_an_edit_reaches_every_replica_and_the_status(cluster: Cluster, client: Client) -> None:
    workspace = two_replicas(cluster, client, "edited")
    assert condition(workspace, "AdaptersReady") == {}
    before = client.get(RAY, "RayService", "edited", "default")
    client.patch(workspace, {"inference": {"adapters": [an_image("sql"), an_image("law")]}})
    workspace = wait_for(client, "edited", "AdaptersReady")
    assert condition(workspace, "AdaptersReady")["message"] == "2 adapters are loaded on 2 replicas"
    sql = adapters(client, "edited")["sql"]
    assert sql == {
        "name": "sql",
        "source": "registry.example.com/sql:1",
        "digest": sql["digest"],
        "strength": "1",
        "rank": 16,
        "sizeBytes": 1 << 20,
        "loaded": 2,
        "replicas": 2,
        "state": "Loaded",
        "loadedAt": "2026-01-01T00:00:00+00:00",
    }
    after = client.get(RAY, "RayService", "edited", "default")
    assert {**after["spec"], "serveConfigV2": ""} == {**before["spec"], "serveConfigV2": ""}
    columns, row = kubectl(cluster.kubeconfig, "get", "workspace", "edited", "-o", "wide").splitlines()
    assert row[columns.index("ADAPTERS") :].split() == ["2/2"]
    # The model was ready all the time.
    assert [event["reason"] for event in events(client, "edited")] == ["WorkspaceReady", "AdaptersLoaded"]
    # The last one that goes takes the condition along.
    client.patch(get(client, "edited"), {"inference": {"adapters": []}})
    client.wait(lambda: get(client, "edited"), lambda one: condition(one, "AdaptersReady") == {})
    assert "adapters" not in get(client, "edited")["status"]


def test_only_all_replicas_together_are_ready(cluster: Cluster, client: Client) -> None:
    cluster.set_adapter("default", "partly", "sql", replica=1, state="Failed", reason="RankTooHigh",
                        error="its rank is 128, the maximum is 64")  # fmt: skip
    two_replicas(cluster, client, "partly", an_image("sql"), an_image("law"))
    workspace = wait_for(client, "partly", "AdaptersReady", "False", reason="RankTooHigh")
    text = "adapter sql: its rank is 128, the maximum is 64 (1 of 2 replicas)"
    assert condition(workspace, "AdaptersReady")["message"] == text
    assert condition(workspace, "WorkspaceReady")["status"] == "True"  # the base and the others answer
    client.wait(
        lambda: {name: (one["state"], one["loaded"]) for name, one in adapters(client, "partly").items()},
        lambda found: found == {"sql": ("Failed", 1), "law": ("Loaded", 2)},
    )
    assert get(client, "partly")["status"]["adaptersLoaded"] == "1/2"
    rows = status_lines(cluster, "partly")
    assert rows["law"][:4] == ["law", "Loaded", "2/2", "1"]
    assert rows["sql"][:4] == ["sql", "Failed", "1/2", "1"]
    assert rows["sql"][-1].endswith("its rank is 128, the maximum is 64 (1 of 2 replicas)")
    cluster.set_adapter("default", "partly", "sql")
    client.patch(get(client, "partly"), {"inference": {"adapters": [an_image("sql", "2"), an_image("law")]}})
    wait_for(client, "partly", "AdaptersReady")


def test_a_slow_one_is_pending(cluster: Cluster, client: Client) -> None:
    cluster.set_adapter("default", "slow", "sql", replica=0, state="Loading", digest="")
    two_replicas(cluster, client, "slow", an_image("sql"))
    workspace = wait_for(client, "slow", "AdaptersReady", "False", reason="AdaptersPending")
    client.wait(
        lambda: condition(get(client, "slow"), "AdaptersReady")["message"],
        lambda text: text == "adapter sql: loaded on 1 of 2 replicas",
    )
    cluster.set_adapter("default", "slow", "sql")
    workspace = wait_for(client, "slow", "AdaptersReady")
    assert workspace["status"]["adaptersLoaded"] == "1/1"


def test_a_tag_stays_what_it_was(cluster: Cluster, client: Client) -> None:
    two_replicas(cluster, client, "pinned", an_image("sql"))
    wait_for(client, "pinned", "AdaptersReady")
    digest = adapters(client, "pinned")["sql"]["digest"]
    client.wait(lambda: wanted(client, "pinned"), lambda found: found[0]["source"].get("digest") == digest)
    # A copy that starts later and finds another image behind the tag is told which one is meant.
    assert adapters(client, "pinned")["sql"]["state"] == "Loaded"
    assert condition(get(client, "pinned"), "AdaptersReady")["status"] == "True"
    # Another tag is looked up anew.
    client.patch(get(client, "pinned"), {"inference": {"adapters": [an_image("sql", "2")]}})
    client.wait(lambda: adapters(client, "pinned")["sql"].get("digest"), lambda found: found not in (None, digest))


def test_replicas_that_found_different_images_are_brought_together(cluster: Cluster, client: Client) -> None:
    cluster.set_adapter("default", "differ", "sql", replica=1, digest="sha256:other")
    two_replicas(cluster, client, "differ", an_image("sql"))
    workspace = wait_for(client, "differ", "AdaptersReady", "False", reason="AdaptersPending")
    client.wait(lambda: wanted(client, "differ")[0]["source"].get("digest"), bool)
    cluster.set_adapter("default", "differ", "sql")
    workspace = wait_for(client, "differ", "AdaptersReady")
    assert workspace["status"]["adapters"][0]["digest"] == wanted(client, "differ")[0]["source"]["digest"]


def test_once_loaded_nobody_asks_or_writes(cluster: Cluster, client: Client) -> None:
    two_replicas(cluster, client, "quiet", an_image("sql"))
    wait_for(client, "quiet", "AdaptersReady")
    time.sleep(1)  # the digest is pinned and the disruption budget made
    asked = cluster.simulate().replicas.asked
    count = asked["default", "quiet"]
    assert quiet_writes(cluster) == []
    assert asked["default", "quiet"] == count
    # A pod that comes back is reason to ask.
    pod = next(one for one in client.list("v1", "Pod", "default", labelSelector="kaito.sh/workspace=quiet")
               if one["metadata"]["labels"]["ray.io/node-type"] == "worker")  # fmt: skip
    client.delete(pod)
    client.wait(lambda: asked["default", "quiet"], lambda now: now > count)
    wait_until_ready(client, "quiet")


def test_the_readme_tells_what_is_seen(cluster: Cluster, client: Client) -> None:
    section = (ROOT / "README.md").read_text().partition("## Adapters come and go\n")[2].partition("\n## ")[0]
    edit, console = re.findall(r"```\w+\n(.*?)```", section, re.DOTALL)
    name = "workspace-phi-3-mini"
    cluster.set_adapter("default", name, "sql", replica=0, state="Loading", digest="")
    workspace = two_replicas(cluster, client, name)
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "acr", "namespace": "default"}, "data": {}}
    client.create({**secret, "type": "Opaque"})
    client.patch(workspace, {"inference": yaml.safe_load(edit)})
    client.wait(lambda: adapters(client, name).get("sql", {}).get("loaded"), lambda count: count == 1)
    for number, part in enumerate(console.split("$ ")[1:]):
        command, *shown = part.splitlines()
        if number == 2:
            cluster.set_adapter("default", name, "sql")
        said = {comparable(line) for line in run(cluster, *shlex.split(command)).splitlines()}
        for line in shown:
            assert line == "..." or comparable(line) in said, f"{command}: {line} is not in {sorted(said)}"


def comparable(line: str) -> str:
    """A line as words, without times and digests."""
    return " ".join(word for word in line.split() if not re.fullmatch(r"\d+[smh]|[0-9a-f]{12}", word))
