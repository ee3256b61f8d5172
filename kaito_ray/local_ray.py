# SPDX-License-Identifier: Apache-2.0
"""A Ray of this machine for one local run: started, given a Serve config, watched, and gone without a trace.

Used by local.py. It has its own folder, ports and token, so that it disturbs no other Ray of this machine, and
applies Serve configs over the same REST route that KubeRay uses on a cluster.
"""

import contextlib
import ctypes
import errno
import functools
import logging
import os
import random
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil

from kaito_ray import names
from kaito_ray.errors import CannotRun
from kaito_ray.serve_message import sentence

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_OBJECT_STORE_BYTES = 100 * 1024**2  # requests do not pass through it; the default is 30 % of the memory
_STOP_S = 4.0
_POLL_S = 0.25
_REST_TIMEOUT_S = 30.0
_AGENT_PORT = 52365  # ray._private.ray_constants.DEFAULT_DASHBOARD_AGENT_LISTEN_PORT, among those the kernel gives out
_REPLICA_PORTS = 99
_RANGES = range(20000, 30000, _REPLICA_PORTS + 1)


def free_ports(count: int) -> list[int]:
    """`count` different TCP ports of 127.0.0.1 that nobody listens on now and that Ray does not want for itself."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # where another Ray has it, nobody else is given it either
            stack.enter_context(socket.socket()).bind(("127.0.0.1", _AGENT_PORT))
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


@functools.cache
def _process_token() -> str:
    """Ray's library reads its token once per process, so every run of a process has the same."""
    return secrets.token_hex(16)


def reserve_replica_ports(starts: range = _RANGES) -> socket.socket:
    """A socket that stands for the 99 ports after its own, which are for replicas: no other run gets them meanwhile.

    `starts` are the ports to choose from, outside the ranges from which the kernel and Ray's workers take theirs.
    Raises CannotRun when none is left.
    """
    for first in random.sample(starts, len(starts)):
        with contextlib.ExitStack() as stack:
            try:
                sockets = [stack.enter_context(socket.socket()) for _ in range(_REPLICA_PORTS + 1)]
                for port, each in enumerate(sockets, first):
                    each.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            for each in sockets[1:]:
                each.close()
            stack.pop_all()
            return sockets[0]
    raise CannotRun(f"no {_REPLICA_PORTS} free ports in a row between {starts.start} and {starts.stop - 1}")


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose parent dies, so that `stop` finds them all.

    Ray's raylet and vLLM's engine start processes of their own; one whose parent was killed would otherwise
    belong to init and outlive the run. Linux only; elsewhere nothing happens.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


Environment = Callable[[Path, Mapping[str, int]], Mapping[str, str]]


class LocalRay:
    """Ray and Serve on this machine; `stop` must be called however the run ends."""

    def __init__(self, env: Environment, *, cpus: float, gpus: int) -> None:
        """Start it; `cpus` and `gpus` are what Ray may hand out.

        `env` makes the variables of every Ray process from the run's folder and its free ports, which have the
        names that `serve_config.local_env` takes.
        """
        self.folder = Path(tempfile.mkdtemp(prefix="kr-", dir="/tmp"))  # short, because a socket's path must be
        self.token = _process_token()
        adopt_orphans()
        self._others = {each.pid for each in psutil.Process().children(recursive=True)}
        self._environ = dict(os.environ)
        dashboard_port, metrics_port, stats_port = free_ports(3)
        self._reserved = reserve_replica_ports()
        self.dashboard_url = f"http://127.0.0.1:{dashboard_port}"
        self._http = httpx.Client(
            base_url=self.dashboard_url,
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=_REST_TIMEOUT_S,
            trust_env=False,
        )
        first = self._reserved.getsockname()[1] + 1
        ports = {"metrics_port": metrics_port, "stats_port": stats_port}
        ports |= {"first_replica_port": first, "last_replica_port": first + _REPLICA_PORTS - 1}
        os.environ.update(env(self.folder, ports))
        os.environ.update(
            RAY_AUTH_MODE="token",
            RAY_AUTH_TOKEN=self.token,
            # Idle workers started in advance would only take the cores from the one that loads the engine.
            RAY_enable_worker_prestart="0",
            RAY_prestart_worker_first_driver="0",
        )
        os.environ.pop("RAY_ADDRESS", None)
        import ray

        try:
            ray.init(
                address="local",
                num_cpus=max(1, round(cpus)),
                num_gpus=gpus,
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                dashboard_port=dashboard_port,
                object_store_memory=_OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                _temp_dir=str(self.folder),
                _node_ip_address="127.0.0.1",
            )
        except KeyboardInterrupt:
            self.stop()
            raise
        except Exception as error:
            self.stop(keep_logs=True)
            raise CannotRun(
                f"Ray did not start on this machine: {_last_line(str(error))}; logs: {self.logs}"
            ) from error

    @property
    def address(self) -> str:
        """What RAY_ADDRESS must be for another process to join this Ray."""
        import ray

        return str(ray.get_runtime_context().gcs_address)

    def deploy(self, config: Mapping[str, Any]) -> None:
        """Apply a Serve config, as KubeRay does with `serveConfigV2`."""
        answer = self._http.put("/api/serve/applications/", json=config)
        if answer.is_error:
            raise CannotRun(f"Ray Serve refused the configuration: {_last_line(answer.text)}")

    def application(self) -> tuple[str, str]:
        """Status (such as DEPLOYING, RUNNING, DEPLOY_FAILED) and message of the application and its deployment."""
        answer = self._http.get("/api/serve/applications/")
        answer.raise_for_status()
        application = answer.json().get("applications", {}).get(names.SERVE_APPLICATION, {})
        messages = [str(application.get("message") or "")]
        messages += [str(each.get("message") or "") for each in application.get("deployments", {}).values()]
        return str(application.get("status", "NOT_STARTED")), "\n".join(filter(None, messages))

    def wait_until_running(self, note: Callable[[str], None]) -> None:
        """Return when the application runs; raises CannotRun with the engine's own words when it will not."""
        while True:
            status, message = self.application()
            if status == "RUNNING":
                return
            if status in {"DEPLOY_FAILED", "UNHEALTHY"}:
                raise CannotRun(f"the engine did not start: {sentence(message) or 'no reason was given'}")
            note(status.lower().replace("_", " "))
            time.sleep(_POLL_S)

    @property
    def logs(self) -> Path:
        """Where Ray and the replicas write their logs."""
        return self.folder / "session_latest" / "logs"

    def stop(self, *, keep_logs: bool = False) -> None:
        """End every process that this run started, within seconds, and remove its folder.

        Nothing drains: whoever stops a local run wants it gone, and Serve's own shutdown waits for idle clients.
        """
        import ray

        self._http.close()
        self._reserved.close()
        mine = self._children()
        # Without this Ray's library ends this process a minute after its control plane is gone.
        with contextlib.suppress(Exception):
            ray.shutdown()
        for process in mine:
            # Replicas and engines first get the chance to remove their shared memory.
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(mine, timeout=_STOP_S / 2)
        deadline = time.monotonic() + _STOP_S / 2
        while alive and time.monotonic() < deadline:
            for process in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(alive, timeout=1)
            alive = self._children()
        os.environ.clear()
        os.environ.update(self._environ)
        if not keep_logs:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _children(self) -> list[psutil.Process]:
        """What this process has started since, and what that has started."""
        return [each for each in psutil.Process().children(recursive=True) if each.pid not in self._others]


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason was given"
