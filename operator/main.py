# SPDX-License-Identifier: Apache-2.0
"""The operator: everything kopf calls, and nothing else; the work is done by kaito_ray.

    kopf run operator/main.py --all-namespaces
    python operator/main.py --help

The second form lists the settings, which are read from the environment. `KUBECONFIG` or the account of the pod gives
the cluster, `POD_NAMESPACE` the place of the Lease. kopf watches Workspaces and brings admission requests; handlers
only pass on what they are told, so kopf itself never writes to a Workspace, and replicas that do not lead can run
beside the leader.
"""

import argparse
import asyncio
import functools
import logging
import os
import signal
import socket
import uuid
from collections.abc import Iterator
from typing import Any

import kopf
from kubernetes.aio.config import ConfigException

from kaito_ray.admission import review
from kaito_ray.cluster import Cluster, connect, in_cluster
from kaito_ray.controller import CURRENT, Controller, MakeProvisioner
from kaito_ray.errors import KaitoRayError
from kaito_ray.kinds import WORKSPACE
from kaito_ray.lease import Lease
from kaito_ray.nodes.choice import choose_provisioner
from kaito_ray.preset import load_catalogue
from kaito_ray.probe import serve_probes
from kaito_ray.settings import Settings, describe_settings
from kaito_ray.sku import load_sizes
from kaito_ray.webhook import WebhookCertificates
from kaito_ray.wish import Planner

logger = logging.getLogger("kaito_ray.operator")

_WORKSPACES = (WORKSPACE.group, WORKSPACE.version, WORKSPACE.plural)


class _Forever:
    """Delays between attempts to reach the API server: kopf gives up where they end, so they never do."""

    def __iter__(self) -> Iterator[float]:
        yield from (0.5, 1, 1, 2, 3, 5, 8)
        while True:
            yield 13


@functools.cache
def _parts() -> tuple[Planner, MakeProvisioner]:
    """What the settings ask for; where they are wrong the process ends with a sentence.

    Called when this file is loaded: from a handler, kopf would show a traceback.
    """
    try:
        ours = Settings.from_env(os.environ)
        planner = Planner(load_catalogue(ours.presets_dir), load_sizes(ours.presets_dir), ours)
        return planner, choose_provisioner(planner, os.environ)
    except KaitoRayError as error:
        raise SystemExit(f"the operator cannot start: {error}") from None


@kopf.on.startup()
async def start(settings: kopf.OperatorSettings, memo: Any, **_: Any) -> None:
    """Connect, and start everything that runs beside kopf."""
    planner, make_provisioner = _parts()
    ours = planner.settings
    _name_workspaces_in_logs()
    # kopf reports every event it hands over.
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    # Azure's SDK reports every request, header by header.
    logging.getLogger("azure").setLevel(logging.WARNING)
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.networking.error_backoffs = _Forever()
    settings.networking.request_timeout = 30
    settings.watching.connect_timeout = 10

    identity = _identity()
    try:
        api = await connect(os.environ, user=identity)
    except (ConfigException, OSError) as error:
        raise SystemExit(f"the operator cannot start: there is no way to a cluster: {error}") from None
    namespace = os.environ.get("POD_NAMESPACE", ours.operator_namespace)
    memo.lease = Lease(api, namespace, identity)
    memo.cluster = Cluster(api, fence=memo.lease.seconds_left, inside=in_cluster(os.environ))
    memo.controller = Controller(memo.cluster, memo.lease, planner, make_provisioner)
    memo.planner = planner
    memo.probes = await serve_probes(ours.health_port, lambda: memo.controller.waits_for)
    certificates = WebhookCertificates(memo.cluster, namespace, ours, lambda: memo.lease.seconds_left() > 0)
    await certificates.prepare(Cluster(api))
    settings.admission.server = kopf.WebhookServer(
        port=ours.webhook_port, certfile=certificates.certificate, pkeyfile=certificates.key
    )
    memo.running = [
        asyncio.create_task(memo.controller.run(), name="controller"),
        asyncio.create_task(certificates.keep(), name="certificates"),
    ]
    for task in memo.running:
        task.add_done_callback(_stop_if_broken)


@kopf.on.cleanup()
async def stop(memo: Any, **_: Any) -> None:
    """Finish what is under way, and hand the Lease over so that another replica need not wait for it."""
    for task in memo.running:
        task.cancel()
    await asyncio.wait(memo.running)
    await memo.lease.release()
    await memo.controller.provisioner.close()
    await memo.probes.cleanup()
    await memo.cluster.close()


@kopf.on.event(*_WORKSPACES)
async def workspace_event(event: kopf.RawEvent, memo: Any, **_: Any) -> None:
    """Wake the Workspace that was made, changed or deleted."""
    if event["type"] == "DELETED":
        memo.controller.lost(event["object"])
    else:
        memo.controller.saw(event["object"])


@kopf.on.validate(WORKSPACE.group, "v1alpha1", WORKSPACE.plural, id="validate", operations=["CREATE", "UPDATE"])
@kopf.on.validate(*_WORKSPACES, id="validate", operations=["CREATE", "UPDATE"])
async def validate(body: kopf.Body, warnings: list[str], memo: Any, old: Any = None, **_: Any) -> None:
    """Refuse a Workspace that cannot work, with everything that is wrong with it."""
    judged = review(old, body, memo.planner)
    warnings += judged.warnings
    if judged.problems:
        raise kopf.AdmissionError(judged.message, code=422)


def _name_workspaces_in_logs() -> None:
    """Give what is logged during a reconcile the reference that kopf's formatters print, as text and as JSON."""
    make = logging.getLogRecordFactory()

    def named(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        key = CURRENT.get()
        if key is not None:
            record.k8s_ref = {"apiVersion": WORKSPACE.api_version, "kind": WORKSPACE.kind} | dict(
                zip(("namespace", "name"), key, strict=True)
            )
        return record

    logging.setLogRecordFactory(named)


def _identity() -> str:
    """Who holds the Lease: the pod, and which life of it."""
    return f"{os.environ.get('POD_NAME') or socket.gethostname()}_{uuid.uuid4().hex[:8]}"


def _stop_if_broken(task: asyncio.Task[None]) -> None:
    """An operator whose controller ended is of no use: stop it, Kubernetes starts another."""
    if not task.cancelled() and task.exception() is not None:
        logger.critical("the controller ended by an error", exc_info=task.exception())
        signal.raise_signal(signal.SIGTERM)


if __name__ == "__main__":
    argparse.ArgumentParser(
        description="The operator of kaito-ray; `kopf run operator/main.py` takes more options.",
        epilog=f"Settings, from the environment:\n\n{describe_settings()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
_parts()
if __name__ == "__main__":
    kopf.configure()
    kopf.run(clusterwide=True)
