# SPDX-License-Identifier: Apache-2.0
"""All that acts by itself in a simulated cluster beside the API server: scheduler, kubelets, endpoints, KubeRay.

Made in the loop that it acts in; what tests steer is on Steered.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cluster.endpoint_simulator import Endpoints
from cluster.inside import Inside
from cluster.node_simulator import Nodes
from cluster.pod_simulator import Pods
from cluster.ray_cluster_simulator import RayClusters
from cluster.ray_job_simulator import RayJobs
from cluster.ray_service_simulator import RayServices
from cluster.replica_simulator import Replicas


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things take in a simulated cluster, in seconds."""

    start_s: float = 0.02
    stop_s: float = 0.02
    backoff_s: float = 0.3
    deploy_s: float = 0.02
    deletion_delay_s: float = 0.2


class Simulation:
    """The simulators of one cluster."""

    def __init__(self, inside: Callable[[str], Inside], pace: Pace, *, endpoints: bool = True) -> None:
        """`inside` gives every simulator its client; `endpoints` False where the controller of slices runs itself."""
        self.nodes = Nodes(inside("kubelet"))
        self.pods = Pods(inside("kubelet"), start_s=pace.start_s, stop_s=pace.stop_s, backoff_s=pace.backoff_s)
        self.endpoints = Endpoints(inside("endpointslice-controller")) if endpoints else None
        kuberay = inside("kuberay-operator")
        self.clusters = RayClusters(kuberay)
        self.services = RayServices(kuberay, deploy_s=pace.deploy_s, deletion_delay_s=pace.deletion_delay_s)
        self.jobs = RayJobs(kuberay)
        self.replicas = Replicas(inside("ray"), self.services.submitted)

    def answer(self, namespace: str, service: str, path: str, query: Mapping[str, str]) -> bytes | None:
        """What runs behind a Service says."""
        answer = self.replicas.answer(namespace, service, path, query)
        return self.jobs.answer(namespace, service, path, query) if answer is None else answer

    def stop(self) -> None:
        """Stop acting."""
        for one in (self.pods, self.endpoints, self.clusters, self.services, self.jobs):
            if one is not None:
                one.stop()
