# SPDX-License-Identifier: Apache-2.0
"""A Kubernetes API server for tests: `with TestCluster() as cluster:` and it answers at `cluster.url`.

It runs in a thread with a loop of its own, so that kopf, synchronous clients and kubectl can all use it at once.
What a real server has and this one has not: exec, attach and kubectl's port-forward; protobuf bodies but for a few
kinds (protobuf.py); the cost limits of CEL rules; quotas; the controllers of Deployments, StatefulSets, DaemonSets and
Jobs. Watches, conflicts, validation and refusals are meant to be the same to the word; where one is found that is not,
that is a bug here.
"""

import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from cluster.access import service_account_token
from cluster.api import Api
from cluster.builtin import builtin_resources
from cluster.call import Call
from cluster.client import Client
from cluster.faults import Fault
from cluster.furniture import furniture
from cluster.inside import Inside
from cluster.listener import Listener
from cluster.request_log import RequestLog
from cluster.resource import Registry
from cluster.simulation import Pace, Simulation
from cluster.steered import Steered

TOKEN = "test-cluster-admin"


class TestCluster(Steered):
    """An API server of our own, with switches that no real one has."""

    __test__ = False
    is_simulated = True
    namespace = "default"

    def __init__(self, *, port: int = 0, bookmark_s: float = 10.0, crd_delay_s: float = 0.02) -> None:
        super().__init__()
        self._port = port
        self._bookmark_s = bookmark_s
        self._crd_delay_s = crd_delay_s
        self._folder = tempfile.TemporaryDirectory(prefix="test-cluster-")
        self._client: Client | None = None
        self.api: Api
        self.url = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start serving."""
        self._begin_loop()
        self.run(self._start())

    def stop(self) -> None:
        """Stop serving and end the thread."""
        self.run(self._stop())
        self._end_loop()
        self._folder.cleanup()

    async def _start(self) -> None:
        registry = Registry()
        for resource in builtin_resources():
            registry.add(resource)
        self.api = Api(registry, TOKEN, bookmark_s=self._bookmark_s, crd_delay_s=self._crd_delay_s)
        for name in ("default", "kube-system", "kube-public", "kube-node-lease"):
            await self.api.verbs.create(_admin_call(self.api, "namespaces"), {"metadata": {"name": name}})
        for table, obj in furniture():
            namespace = obj["metadata"].get("namespace", "")
            await self.api.verbs.create(_admin_call(self.api, table, namespace), obj)
        self._listener = Listener(self.api, self._port)
        await self._listener.start()
        self.url = self._listener.url

    async def _stop(self) -> None:
        if self._simulation is not None:
            self._simulation.stop()
        await self._listener.stop()
        await self.api.admission.caller.close()
        await self._end_tasks()

    @property
    def kubeconfig(self) -> Path:
        """A kubeconfig file for this server."""
        path = Path(self._folder.name) / "kubeconfig"
        if not path.exists():
            write_kubeconfig(path, self.url, TOKEN)
        return path

    @property
    def requests(self) -> RequestLog:
        """What clients asked for so far."""
        return self.api.requests

    @property
    def client(self) -> Client:
        """A client with all rights."""
        if self._client is None:
            self._client = Client(self.kubeconfig)
        return self._client

    def kubeconfig_of(self, namespace: str, service_account: str) -> Path:
        """A kubeconfig file with the token of a service account, whose rights are those its roles give."""
        path = Path(self._folder.name) / f"kubeconfig-{namespace}-{service_account}"
        write_kubeconfig(path, self.url, service_account_token(namespace, service_account), namespace)
        return path

    def inside(self, name: str) -> Inside:
        """What a simulator of that name reads and writes with."""
        return Inside(self.api, name)

    def _simulate(self, pace: Pace) -> Simulation:
        simulation = Simulation(self.inside, pace)
        self.api.subresources.simulated = simulation.answer
        return simulation

    def route_service(self, namespace: str, name: str, url: str) -> None:
        """Where a Service really answers: for webhooks that name it, and for the API's service proxy."""
        self.api.admission.caller.routes[namespace, name] = url
        self.api.subresources.backends[namespace, name] = url

    def fail(self, code: int = 0, **fits: Any) -> Fault:
        """Make requests fail: `fail(503, verb="patch", resource="rayservices", times=3)`. See faults.Fault."""
        return self.api.faults.add(Fault(code, **fits))

    def pause(self) -> None:
        """Answer nothing until `resume`; open watches stay silent only as far as nothing changes."""
        self.api.faults.paused = True

    def resume(self) -> None:
        """Answer again."""
        self.api.faults.paused = False

    def drop_watches(self, resource: str | None = None, *, abort: bool = False) -> int:
        """End open watches, cleanly or by breaking their connections; answers how many."""
        return self.call(lambda: self._end_watches(resource, None, abort))

    def expire_watches(self, resource: str | None = None) -> int:
        """End open watches with 410 Gone and forget the history, so that clients have to list again."""
        from cluster.failure import expired

        def expire() -> int:
            self.api.store.compact()
            self.api.listing.forget()
            status = expired("The resourceVersion for the provided watch is too old.").status
            return self._end_watches(resource, status, abort=False)

        return self.call(expire)

    def compact(self) -> None:
        """Forget all history: older resourceVersions and continue tokens answer 410 from now on."""

        def compact() -> None:
            self.api.store.compact()
            self.api.listing.forget()

        self.call(compact)

    def _end_watches(self, resource: str | None, status: Any, abort: bool) -> int:
        def wanted(call: Call) -> bool:
            return resource in (None, call.resource.plural, call.resource.qualified)

        watches = self.api.watching.select(wanted)
        for watch in watches:
            watch.stop(status, abort=abort)
        return len(watches)


def _admin_call(api: Api, qualified: str, namespace: str = "") -> Call:
    return Call("create", api.registry.named(qualified), namespace, user_agent="kube-apiserver")


def write_kubeconfig(path: Path, url: str, token: str, namespace: str = "default") -> None:
    """A kubeconfig with one cluster, user and context."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": url}}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}],
        "current-context": "test",
    }
    path.write_text(yaml.safe_dump(config))
    path.chmod(0o600)
