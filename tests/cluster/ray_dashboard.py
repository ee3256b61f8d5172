# SPDX-License-Identifier: Apache-2.0
"""Ray's dashboards in the head pods of clusters that KubeRay's own operator runs: what it submits, and how that fares.

KubeRay asks them through the API server, where it was started with `--use-kubernetes-proxy`. As Ray 2.60 does they
refuse who does not know the token of the cluster.
"""

import asyncio
import base64
import json
import time
from dataclasses import dataclass, field

from cluster.answers import Question, Reply
from cluster.inside import Inside
from cluster.ray_cluster_simulator import CLUSTERS
from cluster.ray_job_simulator import Running
from cluster.ray_service_spec import parsed_config
from cluster.resource import Object
from cluster.store import Key

_SERVE, _JOBS, _LOG = "api/serve/applications/", "api/jobs/", "api/v0/logs/file"


@dataclass(slots=True)
class _Job:
    """A job that was submitted to one cluster."""

    name: str
    running: Running
    stopped: bool = False
    since: float = field(default_factory=time.time)

    def info(self) -> Object:
        """What Ray says of it; times are in milliseconds."""
        over = self.running.run_s is not None and time.time() >= self.since + self.running.run_s
        status = "STOPPED" if self.stopped else self.running.status if over else "RUNNING"
        said = self.running.message or ("Job finished successfully." if over else "Job is currently running.")
        ended = {"end_time": int(time.time() * 1000)} if over else {}
        return {
            "submission_id": self.name,
            "status": status,
            "message": said,
            "start_time": int(self.since * 1000),
            **ended,
        }


class Dashboards:
    """Answers for every head; Serve applications run once `deploy_s` is over, jobs go as a test says."""

    def __init__(self, inside: Inside, *, deploy_s: float = 0.02) -> None:
        self._inside = inside
        self._deploy_s = deploy_s
        self._serving: dict[Key, tuple[str, float]] = {}
        self._jobs: dict[tuple[Key, str], _Job] = {}
        self._running = Running()

    def set_running(self, running: Running) -> None:
        """How jobs go from now on, those that were submitted already included; `failures` says nothing here."""
        self._running = running
        for job in self._jobs.values():
            if not job.stopped:
                job.running = running

    def stopped(self) -> set[str]:
        """The names of the jobs that somebody who knew the token of their cluster has stopped."""
        return {job.name for job in self._jobs.values() if job.stopped}

    def submitted(self, service: Object) -> tuple[str, float] | None:
        """The Serve config that the active cluster of a RayService was given, and when."""
        active = ((service.get("status") or {}).get("activeServiceStatus") or {}).get("rayClusterName", "")
        return self._serving.get((service["metadata"]["namespace"], active))

    def answer(self, question: Question) -> Reply | None:
        """What the dashboard behind a Service says; None where it is no dashboard's."""
        service = self._inside.get("services", question.namespace, question.service)
        name = ((service or {}).get("spec", {}).get("selector") or {}).get("ray.io/cluster", "")
        cluster = self._inside.get(CLUSTERS, question.namespace, name)
        if cluster is None or not question.path.startswith("api/"):
            return None
        if question.token != self._token(cluster):
            return 401, b"Unauthorized: Missing or invalid authentication token"
        key = (question.namespace, name)
        if question.path == _SERVE:
            return self._serve(key, question)
        if question.path == _LOG:
            job = self._jobs.get((key, question.query.get("submission_id", "")))
            return (200, job.running.log.encode()) if job else (500, b"")
        return self._job(key, question)

    def _serve(self, key: Key, question: Question) -> Reply:
        if question.method == "PUT":
            self._serving[key] = question.body.decode(), asyncio.get_running_loop().time()
            return 200, b""
        config, at = self._serving.get(key, ("", 0.0))
        deploying = asyncio.get_running_loop().time() < at + self._deploy_s
        status, of_parts = ("DEPLOYING", "UPDATING") if deploying else ("RUNNING", "HEALTHY")
        found = {
            name: {"status": status, "deployments": {one: {"name": one, "status": of_parts} for one in deployments}}
            for name, deployments in parsed_config(config)[1]
        }
        return 200, json.dumps({"applications": found}).encode()

    def _job(self, key: Key, question: Question) -> Reply:
        if question.method == "POST" and question.path == _JOBS:
            name = json.loads(question.body)["submission_id"]
            self._jobs[key, name] = _Job(name, self._running)
            return 200, json.dumps({"job_id": name, "submission_id": name}).encode()
        name, _, action = question.path.removeprefix(_JOBS).partition("/")
        job = self._jobs.get((key, name))
        if job is None:
            return 404, f"Job {name} does not exist".encode()
        if action == "stop":
            job.stopped = True
            return 200, b'{"stopped": true}'
        return 200, json.dumps(job.info()).encode()

    def _token(self, cluster: Object) -> str:
        """What `Authorization` has to say; nothing where the cluster asks for no token."""
        name = (cluster["spec"].get("authOptions") or {}).get("secretName")
        if not name:
            return ""
        secret = self._inside.get("secrets", cluster["metadata"]["namespace"], name)
        data = (secret or {}).get("data") or {}
        return f"Bearer {base64.b64decode(data.get('auth_token', '')).decode()}"
