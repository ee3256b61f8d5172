# SPDX-License-Identifier: Apache-2.0
"""A real API server with the simulators acting on it, for tests that are run there and on TestCluster alike.

What only TestCluster can do skips the test. Needed are the API server and the controller manager, without scheduler
and without nodes that run pods; there KubeRay, scheduler and kubelets are simulated. Where KubeRay's own operator acts,
tests that would simulate it are skipped, and those of test_operator_real_kuberay*.py run.
"""

import os
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import pytest
import yaml

from cluster.answers import Answer, Answers, Question, Reply
from cluster.client import Client
from cluster.inside import Inside
from cluster.kuberay import kuberay_acts
from cluster.mirror import Mirror
from cluster.outside import Outside
from cluster.pod_simulator import Pods
from cluster.ray_dashboard import Dashboards
from cluster.replica_simulator import Replicas
from cluster.simulation import Pace, Simulation
from cluster.steered import Steered
from cluster.tidy import tidy, undefine

_CONFIGURATION = ("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration")


# The garbage collector hears of new kinds every 30 seconds.
_PATIENCE = 3.0
_PORTS_IN_USE = "the ports of Ray are in use on this machine"
_SIMULATED_ONLY = {
    "api": "it looks into the API server",
    "url": "it looks into the API server",
    "requests": "it looks at the requests that clients made",
    "fail": "it has the API server fail",
    "pause": "it has the API server fail",
    "resume": "it has the API server fail",
    "drop_watches": "it has the API server drop watches",
    "expire_watches": "it has the API server forget its history",
    "compact": "it has the API server forget its history",
}


def given_kubeconfig() -> Path | None:
    """The cluster that tests are to use instead of a simulated one."""
    given = os.environ.get("KAITO_RAY_TEST_KUBECONFIG")
    return Path(given) if given else None


class RealCluster(Steered):
    """A cluster that was given to the tests; used in a `with` it is emptied before and after."""

    is_simulated = False

    def __init__(self, kubeconfig: Path, folder: Path, namespace: str = "default") -> None:
        """`folder` is where kubeconfigs of service accounts go."""
        super().__init__()
        self.namespace = namespace
        self.kubeconfig = kubeconfig
        self.client = Client(kubeconfig, _PATIENCE)
        self._mirror = Mirror(self.client)
        self._answers: Answers | None = None
        self._pods: Pods | None = None
        self._folder = folder

    def __enter__(self) -> Self:
        tidy(self.client)
        self._begin_loop()
        self.run(self._mirror.start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._simulation is not None:
            self.call(self._simulation.stop)
        if self._pods is not None:
            self.call(self._pods.stop)
        if self._answers is not None:
            self.run(self._answers.stop())
        # Requests end before their session: closing it waits for the connections that are given back.
        self.run(self._end_tasks())
        self.run(self._mirror.close())
        self._end_loop()
        tidy(self.client)

    def inside(self, name: str) -> Inside:
        """What a simulator of that name reads and writes with."""
        return Outside(self._mirror, name)

    def _simulate(self, pace: Pace) -> Simulation:
        return Simulation(self.inside, pace, endpoints=False)

    def simulate(self, pace: Pace | None = None) -> Simulation:
        """Start scheduler, kubelets and KubeRay, and what answers for the pods."""
        self._needs_no_kuberay()
        simulation = super().simulate(pace)
        if self._answers is None:

            def answer(asked: Question) -> Reply | None:
                body = simulation.answer(asked.namespace, asked.service, asked.path, asked.query)
                return None if body is None else (200, body)

            self._listen(answer)
        return simulation

    def simulate_pods(self) -> Dashboards:
        """Start scheduler and kubelets beside KubeRay's own operator, and Ray in the pods as far as it answers.

        Skips where KubeRay could not reach it.
        """
        dashboards = Dashboards(self.inside("ray"))
        replicas = Replicas(self.inside("ray"), dashboards.submitted)

        def answer(asked: Question) -> Reply | None:
            body = replicas.answer(asked.namespace, asked.service, asked.path, asked.query)
            return dashboards.answer(asked) if body is None else (200, body)

        if not self._listen(answer).works:
            _simulated_only(_PORTS_IN_USE)
        self._pods = self.call(lambda: Pods(self.inside("kubelet")))
        return dashboards

    def _listen(self, answer: Answer) -> Answers:
        self._answers = Answers(answer)
        self.run(self._answers.start())
        return self._answers

    def set_adapter(
        self, namespace: str, service: str, adapter: str, *, replica: int | None = None, **said: Any
    ) -> None:
        """What a replica says of an adapter; skips where no replica can be heard."""
        if self._answers is None or not self._answers.works:
            _simulated_only(_PORTS_IN_USE)
        super().set_adapter(namespace, service, adapter, replica=replica, **said)

    def kubeconfig_of(self, namespace: str, service_account: str) -> Path:
        """A kubeconfig file with a token of a service account, which is there."""
        path = self.client.path("v1", "ServiceAccount", namespace, service_account, "token")
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        token = self.client.request("POST", path, request)["status"]["token"]
        config = yaml.safe_load(self.kubeconfig.read_text())
        (context,) = [one["context"] for one in config["contexts"] if one["name"] == config["current-context"]]
        context["namespace"] = namespace
        config["users"] = [{"name": context["user"], "user": {"token": token}}]
        file = self._folder / f"kubeconfig-{namespace}-{service_account}"
        file.write_text(yaml.safe_dump(config))
        file.chmod(0o600)
        return file

    def forget_kuberay(self) -> None:
        """Take KubeRay's CustomResourceDefinitions away."""
        self._needs_no_kuberay()
        undefine(self.client, "ray.io")

    def route_service(self, namespace: str, name: str, url: str) -> None:
        """Have webhooks that name a Service asked at a URL; nothing else can be routed here."""
        service = {"namespace": namespace, "name": name}
        for found in self.client.list(*_CONFIGURATION):
            hooks = found["webhooks"]
            routed = [hook for hook in hooks if service.items() <= hook["clientConfig"].get("service", {}).items()]
            for hook in routed:
                path = hook["clientConfig"].pop("service").get("path", "")
                hook["clientConfig"]["url"] = url + path
            if routed:
                self.client.replace(found)
                return
        _simulated_only("it routes a Service")

    def _needs_no_kuberay(self) -> None:
        if kuberay_acts(self.kubeconfig):
            pytest.skip("needs a cluster without KubeRay's own operator: it says how Ray fares")

    def __getattr__(self, name: str) -> Any:
        """Skip the test when it reaches for what TestCluster has and no real cluster can have."""
        if name in _SIMULATED_ONLY:
            _simulated_only(_SIMULATED_ONLY[name])
        raise AttributeError(name)


def _simulated_only(why: str) -> NoReturn:
    pytest.skip(f"needs the simulated cluster: {why}")
