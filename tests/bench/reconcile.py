# SPDX-License-Identifier: Apache-2.0
"""How the operator grows with the number of Workspaces: one process of it against the test cluster on this machine.

    python tests/bench/reconcile.py [100 300 1000] [-o json]

For each number: seconds until every Workspace has a status and a RayService, and from there until all are Ready; API
writes per Workspace until Ready and its timeline complete, reads and writes of a resync in which nothing changed, the
operator's memory and processor time. The test cluster takes a core of its own. It begins to play KubeRay, scheduler
and kubelets only once the first figure is taken, because in a real cluster these do not share the API server's core.
(Not called operator.py: a script's folder comes first on sys.path, and that name is the standard library's.)
"""

import argparse
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from cluster.resource import Object  # noqa: E402
from cluster.server import TestCluster  # noqa: E402
from operator_rig import Operator, running_operator  # noqa: E402
from workspace_rig import a_serving, bare_cluster, condition  # noqa: E402

_LABEL = "bench"
_RESYNC_S = 20


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured with one number of Workspaces; `writes` and `events` are per Workspace until Ready."""

    workspaces: int
    first_status_s: float
    ready_s: float
    writes: float
    events: float
    resync_writes: int
    resync_reads: int
    memory_mb: float
    cpu_s: float


def measure(count: int) -> Result:
    """Create `count` Workspaces at once and watch."""
    with (
        tempfile.TemporaryDirectory() as folder,
        _cluster(Path(folder), count) as cluster,
        running_operator(cluster.kubeconfig, Path(folder), resync_s=str(_RESYNC_S)) as operator,
    ):
        return _watch(cluster, operator, count)


@contextmanager
def _cluster(folder: Path, count: int) -> Iterator[TestCluster]:
    with bare_cluster(folder) as cluster:
        if not isinstance(cluster, TestCluster):
            sys.exit("the benchmark counts what the simulated API server is asked; unset KAITO_RAY_TEST_KUBECONFIG")
        # One more than needed, because a round thousand would be written as 1k.
        for name, gpus in (("gpu-1", count + 1), ("cpu-2", 0)):
            _node(cluster, name, cpu=100 * count, memory=f"{count}Ti", pods=10 * count, gpus=gpus)
        yield cluster


def _node(cluster: TestCluster, name: str, *, cpu: int, memory: str, pods: int, gpus: int) -> None:
    """A node large enough for everything."""
    labels = {"apps": _LABEL, "kubernetes.io/os": "linux"}
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "spec": {}}
    cluster.client.create(node)
    room = {"cpu": str(cpu), "memory": memory, "pods": str(pods), "nvidia.com/gpu": str(gpus)}
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "ready"}
    status = {"capacity": room, "allocatable": room, "conditions": [ready]}
    cluster.client.patch(node, {"status": status}, subresource="status")


def _watch(cluster: TestCluster, operator: Operator, count: int) -> Result:
    cluster.requests.clear()
    started = time.monotonic()
    for number in range(count):
        cluster.client.create(a_serving(f"phi-{number}", _LABEL))
    _until(lambda: _seen(cluster) >= count)
    first_s = time.monotonic() - started
    cluster.simulate()
    started = time.monotonic()
    for number in range(count):
        cluster.set_serving("default", f"phi-{number}", None)  # has the simulator look at what was there before it
    _until(lambda: _ready(cluster) >= count)
    ready_s = time.monotonic() - started
    _until(lambda: _told(cluster) >= count)
    writes = _writes(cluster)
    budgets = writes.pop("poddisruptionbudgets.policy", 0)
    _until(lambda: budgets >= 0 and _writes(cluster)["poddisruptionbudgets.policy"] >= 2 * count)
    events = writes.pop("events", 0)
    time.sleep(2)  # what is still on its way
    cluster.requests.clear()
    passes = _reconciles(operator)
    _until(lambda: _reconciles(operator) - passes >= count, timeout_s=3 * _RESYNC_S)
    quiet = _writes(cluster)
    reads = sum(1 for one in cluster.requests.select("get", user_agent="kaito-ray") if _of_workspaces(one.resource))
    return Result(
        workspaces=count,
        first_status_s=round(first_s, 1),
        ready_s=round(ready_s, 1),
        writes=round(sum(writes.values()) / count, 2),
        events=round(events / count, 2),
        resync_writes=sum(quiet.values()),
        resync_reads=reads,
        memory_mb=round(operator.peak_memory_mb, 1),
        cpu_s=round(operator.cpu_s, 1),
    )


def _until(condition: Callable[[], bool], timeout_s: float = 600.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s} s")
        time.sleep(0.5)


def _stored(cluster: TestCluster, table: str) -> list[Object]:
    """The objects of a kind as the server has them, without the cost of a list over HTTP."""
    return cluster.call(lambda: [entry.object for entry in cluster.api.store.table(table).entries.values()])


def _seen(cluster: TestCluster) -> int:
    """How many Workspaces have a status and a RayService."""
    services = {one["metadata"]["name"] for one in _stored(cluster, "rayservices.ray.io")}
    workspaces = _stored(cluster, "workspaces.kaito.sh")
    return sum(bool(one.get("status")) and one["metadata"]["name"] in services for one in workspaces)


def _ready(cluster: TestCluster) -> int:
    found = _stored(cluster, "workspaces.kaito.sh")
    return sum(condition(one, "WorkspaceReady").get("status") == "True" for one in found)


def _told(cluster: TestCluster) -> int:
    """How many know when their model made its first token, which is the last that is written of one that is Ready."""
    timelines = [(one.get("status") or {}).get("timeline") or () for one in _stored(cluster, "workspaces.kaito.sh")]
    return sum(any(entry["stage"] == "FirstToken" for entry in timeline) for timeline in timelines)


def _of_workspaces(resource: str) -> bool:
    """The Lease and the webhook's Secret are looked after whatever happens."""
    return not resource.startswith(("leases", "secrets", "validatingwebhook"))


def _writes(cluster: TestCluster) -> Counter[str]:
    return Counter(
        one.resource for one in cluster.requests.writes("kaito-ray") if not one.resource.startswith("leases")
    )


def _reconciles(operator: Operator) -> int:
    found = re.search(r"kaito_ray_reconcile_seconds_count (\S+)", operator.probe("metrics")[1])
    return int(float(found[1])) if found else 0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("counts", nargs="*", type=int, default=[100, 300, 1000], help="numbers of Workspaces")
    parser.add_argument("-o", "--output", choices=["table", "json"], default="table")
    arguments = parser.parse_args()
    results = []
    header = "Workspaces  first status + RayService  then Ready  writes each  events each  resync W/R  memory  CPU"
    if arguments.output == "table":
        print(header)
    for count in arguments.counts:
        result = measure(count)
        results.append(asdict(result))
        if arguments.output == "table":
            print(
                f"{count:10}  {result.first_status_s:20.1f} s  {result.ready_s:8.1f} s  {result.writes:11.2f}"
                f"  {result.events:11.2f}  {result.resync_writes:6}/{result.resync_reads:<3}"
                f"  {result.memory_mb:3.0f} MB  {result.cpu_s:.0f} s",
                flush=True,
            )
    if arguments.output == "json":
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
