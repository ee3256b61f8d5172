# SPDX-License-Identifier: Apache-2.0
"""The operator as a process of its own, as it runs in a cluster: `with running_operator(kubeconfig) as operator:`."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from waiting import free_port

ROOT = Path(__file__).resolve().parents[1]
_START_S = 60.0


class Operator:
    """One replica. `log` is what it wrote so far."""

    def __init__(
        self,
        kubeconfig: Path,
        folder: Path,
        *,
        namespace: str = "default",
        scope: Sequence[str] = ("--all-namespaces",),
        environment: Mapping[str, str] = MappingProxyType({}),
        **settings: str,
    ) -> None:
        self.health_port = free_port()
        self.name = f"operator-{self.health_port}"
        self._file = folder / f"operator-{self.health_port}.log"
        variables = {
            "KUBECONFIG": str(kubeconfig),
            "POD_NAMESPACE": namespace,
            "POD_NAME": self.name,
            "KAITO_RAY_PROVISIONER": "byo",
            "KAITO_RAY_HEALTH_PORT": str(self.health_port),
            "KAITO_RAY_WEBHOOK_PORT": "0",
            **{f"KAITO_RAY_{name.upper()}": value for name, value in settings.items()},
            **environment,
        }
        with self._file.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "kopf", "run", "operator/main.py", *scope],
                cwd=ROOT,
                env={**{key: value for key, value in os.environ.items() if key in {"PATH", "HOME"}}, **variables},
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    @property
    def log(self) -> str:
        """Everything it wrote."""
        return self._file.read_text(errors="replace")

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process.poll() is None

    @property
    def peak_memory_mb(self) -> float:
        """The most memory it ever held, in MiB."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024

    @property
    def cpu_s(self) -> float:
        """The processor time it took so far, in seconds."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def wait_until_ready(self, timeout_s: float = _START_S) -> Self:
        """Wait until /readyz says so."""
        self.until(lambda: self.probe("readyz")[0] == 200, timeout_s, "is not ready")
        return self

    def wait_until_stopped(self, timeout_s: float = _START_S) -> None:
        """Wait until it has ended by itself."""
        deadline = time.monotonic() + timeout_s
        while self.running:
            assert time.monotonic() < deadline, f"the operator still runs:\n{self.log[-8000:]}"
            time.sleep(0.05)

    def wait_until_leading(self, timeout_s: float = _START_S) -> Self:
        """Wait until this replica leads."""
        self.until(lambda: "kaito_ray_leader 1.0" in self.probe("metrics")[1], timeout_s, "does not lead")
        return self

    def until(self, condition: Callable[[], Any], timeout_s: float, complaint: str) -> None:
        """Wait for a condition; fail with the log when the operator dies or time is up."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if not self.running or time.monotonic() > deadline:
                raise AssertionError(f"the operator {complaint}:\n{self.log[-8000:]}")
            time.sleep(0.05)

    def probe(self, path: str) -> tuple[int, str]:
        """Ask one of its HTTP paths; 0 when nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health_port}/{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def kill(self) -> None:
        """End it as a lost node would."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)

    def freeze(self) -> None:
        """Stop its clock as an overloaded machine would, until `thaw`."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> int:
        """Ask it to end, and wait; answers its exit code."""
        if self.running:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
            raise AssertionError(f"the operator did not stop:\n{self.log[-8000:]}") from None


@contextmanager
def running_operator(
    kubeconfig: Path,
    folder: Path,
    *,
    namespace: str = "default",
    scope: Sequence[str] = ("--all-namespaces",),
    environment: Mapping[str, str] = MappingProxyType({}),
    **settings: str,
) -> Iterator[Operator]:
    """A replica that leads; its settings are given as `provisioner="byo"`, `scope` goes to `kopf run`."""
    operator = Operator(kubeconfig, folder, namespace=namespace, scope=scope, environment=environment, **settings)
    try:
        yield operator.wait_until_ready().wait_until_leading()
    finally:
        operator.stop()
