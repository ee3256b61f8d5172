# SPDX-License-Identifier: Apache-2.0
"""A simulated cluster to try things on, until Ctrl-C:

    cd tests && python -m cluster --kubeconfig /tmp/kubeconfig --gpu-node 'gpu-0 apps=phi-3' --crds ../manifests/crds

then `KUBECONFIG=/tmp/kubeconfig kubectl get nodes`. `GET /_cluster/requests` counts the API calls by client and verb.
"""

import argparse
import signal
import threading
from pathlib import Path

from cluster.server import TestCluster
from cluster.simulation import Pace


def main() -> None:
    """Start, say where, and wait."""
    layout = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m cluster", description=__doc__, formatter_class=layout)
    parser.add_argument("--kubeconfig", type=Path, required=True, help="file to write")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--crds", type=Path, action="append", default=[], help="file or folder of definitions")
    parser.add_argument("--node", action="append", default=[], metavar="'NAME [KEY=VALUE...]'")
    parser.add_argument("--gpu-node", action="append", default=[], metavar="'NAME [KEY=VALUE...]'")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs of each GPU node")
    parser.add_argument("--instance-type", default="Standard_NC24ads_A100_v4", help="of each GPU node")
    parser.add_argument("--big", action="store_true", help="nodes without limits, for benchmarks")
    parser.add_argument("--start-s", type=float, default=0.5, help="what a container needs to start")
    parser.add_argument(
        "--route", action="append", default=[], metavar="NAMESPACE/SERVICE=URL", help="where it answers"
    )
    parser.add_argument("--bare", action="store_true", help="no scheduler, kubelets or KubeRay: objects just stay")
    given = parser.parse_args()
    size = {"cpu": "1M", "memory": "1Pi", "pods": 1_000_000} if given.big else {}
    with TestCluster(port=given.port) as cluster:
        cluster.client.install(_definitions(given.crds))
        if not given.bare:
            cluster.simulate(Pace(start_s=given.start_s, deploy_s=given.start_s))
        for text in given.node:
            name, *labels = text.split()
            cluster.add_node(name, labels=dict(one.split("=", 1) for one in labels), **size)
        for text in given.gpu_node:
            name, *labels = text.split()
            carried = dict(one.split("=", 1) for one in labels)
            cluster.add_node(name, labels=carried, gpus=given.gpus, instance_type=given.instance_type, **size)
        for text in given.route:
            place, _, url = text.partition("=")
            namespace, _, name = place.partition("/")
            cluster.route_service(namespace, name, url)
        given.kubeconfig.write_text(cluster.kubeconfig.read_text())
        print(f"serving at {cluster.url}, kubeconfig in {given.kubeconfig}", flush=True)
        done = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: done.set())
        done.wait()


def _definitions(paths: list[Path]) -> list[Path]:
    return [
        one
        for path in paths
        for one in (sorted(path.glob("*.yaml")) + sorted(path.glob("*.json")) if path.is_dir() else [path])
    ]


if __name__ == "__main__":
    main()
