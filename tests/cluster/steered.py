# SPDX-License-Identifier: Apache-2.0
"""What tests steer in a cluster, simulated or real, whose nodes, pods and KubeRay are played by simulators.

The simulators run in a thread with a loop of its own; tests are synchronous.
"""

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from cluster.container_state import Script
from cluster.inside import Inside
from cluster.node_simulator import Nodes
from cluster.ray_job_simulator import Running
from cluster.ray_service_simulator import Serving
from cluster.simulation import Pace, Simulation

T = TypeVar("T")


class Steered(ABC):
    """A loop in a thread, and the simulators in it."""

    def __init__(self) -> None:
        self._simulation: Simulation | None = None
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread

    def _begin_loop(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="test-cluster", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the loop and wait for its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def call(self, function: Callable[[], T]) -> T:
        """Call a function in the loop and wait for its result."""

        async def inside() -> T:
            return function()

        return self.run(inside())

    @abstractmethod
    def inside(self, name: str) -> Inside:
        """What a simulator of that name reads and writes with."""

    @abstractmethod
    def _simulate(self, pace: Pace) -> Simulation:
        """Start the simulators, in the loop."""

    def simulate(self, pace: Pace | None = None) -> Simulation:
        """Start scheduler, kubelets, endpoints and KubeRay."""
        if self._simulation is None:
            self._simulation = self.call(lambda: self._simulate(pace or Pace()))
        return self._simulation

    def add_node(self, name: str, **options: Any) -> None:
        """Add a node; see Nodes.add."""
        self.run(self._nodes().add(name, **options))

    def remove_node(self, name: str) -> None:
        """Remove a node and its pods."""
        self.run(self._nodes().remove(name))

    def set_node(self, name: str, *, ready: bool | None = None, gpus: int | None = None) -> None:
        """Change what the kubelet of a node reports."""
        nodes = self._nodes()
        if ready is not None:
            self.run(nodes.set_ready(name, ready))
        if gpus is not None:
            self.run(nodes.set_gpus(name, gpus))

    def _nodes(self) -> Nodes:
        return Nodes(self.inside("kubelet"))

    def script(self, script: Script) -> None:
        """Have pods behave as a script says, present ones included."""
        pods = self.simulate().pods
        self.call(lambda: pods.add(script))

    def unscript(self, script: Script) -> None:
        """End a script."""
        pods = self.simulate().pods
        self.call(lambda: pods.remove(script))

    def set_serving(self, namespace: str, name: str, serving: Serving | None) -> None:
        """How the Serve applications of a RayService fare."""
        services = self.simulate().services
        self.call(lambda: services.set_serving(namespace, name, serving))

    def set_running(self, namespace: str, name: str, running: Running) -> None:
        """How a RayJob goes."""
        jobs = self.simulate().jobs
        self.call(lambda: jobs.set_running(namespace, name, running))

    def set_adapter(
        self, namespace: str, service: str, adapter: str, *, replica: int | None = None, **said: Any
    ) -> None:
        """What a replica (by default all) says of an adapter, such as `state="Failed"`; nothing given ends it."""
        replicas = self.simulate().replicas
        self.call(lambda: replicas.set_adapter(namespace, service, adapter, replica, said or None))

    async def _end_tasks(self) -> None:
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        # Closed transports let go of their sockets in later turns of the loop.
        await asyncio.sleep(0.02)

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
