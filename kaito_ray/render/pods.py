# SPDX-License-Identifier: Apache-2.0
"""The two pod templates of a Ray cluster: the head on a CPU node, workers on GPU nodes. Called by raycluster.py.

KubeRay completes them with the `ray start` command, its own environment and /dev/shm, and refuses none of what
stands here (ray-operator/controllers/ray/common/pod.go, v1.7). Env, mounts and labels are written in a fixed order:
any difference makes KubeRay start a second cluster.
"""

from collections.abc import Mapping, Sequence

from kaito_ray import names
from kaito_ray.plan import PodSize, Target
from kaito_ray.render.metadata import KubeObject, labels
from kaito_ray.render.volumes import CACHE, Mount
from kaito_ray.serve_config import SHUTDOWN_TIMEOUT_S
from kaito_ray.settings import PREFIX, Settings

# Ray drains itself on SIGTERM and must be through before the kubelet's SIGKILL; what it waits for, replicas that
# finish their requests, must be through before that.
DRAIN_TIMEOUT_S = SHUTDOWN_TIMEOUT_S + 20
GRACE_PERIOD_S = DRAIN_TIMEOUT_S + 20

USER = 1000
# torch asks for the name of the user, which a number without an entry in /etc/passwd does not have.
USER_NAME = "kaito-ray"
TOLERATIONS = (
    {"operator": "Equal", **names.TAINT_GPU},
    {"key": "nvidia.com/gpu", "operator": "Exists"},
    {"key": "kubernetes.azure.com/scalesetpriority", "operator": "Equal", "value": "spot", "effect": "NoSchedule"},
)
CONTAINER_SECURITY = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
# A volume that even root may not change, such as an export of NFS, is left to say so itself.
_TAKE_OVER = 'if [ "$(stat -c %u "$0")" = 0 ]; then chown "$1" "$0" || true; fi'
_POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
# No port is called "serve" here although the head has one: KubeRay would then put its own list of ports, in random
# order, into the Service in place of ours (common/service.go, BuildServeService).
_HEAD_PORTS = (
    ("gcs-server", names.PORT_GCS),
    ("dashboard", names.PORT_DASHBOARD),
    ("client", names.PORT_CLIENT),
    ("metrics", names.PORT_METRICS),
)


def head_template(target: Target, image: str, env: Mapping[str, str], *, autoscaler: bool = False) -> KubeObject:
    """The head: no Serve replica and no secret lives there, only Ray's control plane and dashboard.

    `autoscaler`: KubeRay adds its autoscaler to the pod, which is the one thing here that talks to the API server.
    """
    container = {
        **_container("ray-head", image, env, (CACHE,), _HEAD_PORTS),
        "resources": _resources(target.head),
        "livenessProbe": _ray_alive(failures=120),
        "readinessProbe": _ray_alive(failures=10),
    }
    return {
        "metadata": {"labels": labels(target)},
        "spec": {**pod_spec((CACHE,)), "automountServiceAccountToken": autoscaler, "containers": [container]},
    }


def worker_template(
    target: Target,
    image: str,
    env: Mapping[str, str],
    mounts: Sequence[Mount],
    *,
    serves: bool,
    private: Sequence[Mount] = (),
    before: Sequence[KubeObject] = (),
    pull_secrets: Sequence[str] = (),
) -> KubeObject:
    """A worker that takes a whole GPU node.

    `before` are containers that run one after the other before Ray starts, `private` volumes that only they see, and
    `pull_secrets` are the kubelet's.

    With `serves` the pod is ready when the Serve proxy on it answers. Pods that only carry a part of an engine have
    no proxy and stay unready: that keeps them out of the Service.
    """
    ports = [("metrics", names.PORT_METRICS)]
    if serves:
        ports += [("serve", names.PORT_SERVE), ("proxy-metrics", names.PORT_HAPROXY_METRICS)]
    everything = (CACHE, *mounts)
    container = _container("ray-worker", image, env, everything, ports)
    container |= {
        "resources": _resources(target.worker),
        "livenessProbe": _ray_alive(failures=120),
        "readinessProbe": _proxy_answers() if serves else _ray_alive(failures=10),
    }
    spec = pod_spec((*everything, *private))
    spec |= {"initContainers": list(before)} if before else {}
    spec |= {"imagePullSecrets": [{"name": name} for name in pull_secrets]} if pull_secrets else {}
    spec["nodeSelector"] |= dict(sorted(target.node_labels.items()))
    return {
        "metadata": {"labels": labels(target)},
        "spec": {
            **spec,
            "automountServiceAccountToken": False,
            "tolerations": [dict(toleration) for toleration in TOLERATIONS],
            "containers": [container],
        },
    }


def init_container(name: str, image: str, env: Mapping[str, str], mounts: Sequence[Mount], size: PodSize) -> KubeObject:
    """A container that runs before Ray; its command is the caller's to add."""
    container = _container(name, image, env, mounts, ())
    del container["ports"]
    return {**container, "resources": _resources(size)}


def take_over(name: str, image: str, mount: Mount) -> KubeObject:
    """An init container that makes a folder of the node writable for the pod's user.

    The kubelet makes such folders as root's own, and `fsGroup` does not reach them. One that belongs to somebody else
    already stays as it is.
    """
    container = init_container(name, image, {}, (mount,), PodSize(0.1, 0.125))
    container["command"] = ["/bin/sh", "-c", _TAKE_OVER, mount.path, f"{USER}:{USER}"]
    container["securityContext"] = {
        **CONTAINER_SECURITY,
        "capabilities": {"drop": ["ALL"], "add": ["CHOWN"]},
        "runAsUser": 0,
        "runAsNonRoot": False,
    }
    return container


def pod_spec(mounts: Sequence[Mount]) -> KubeObject:
    """What the specs of all our pods have in common."""
    return {
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "securityContext": dict(_POD_SECURITY),
        # A Service called `vllm` or `ray` would otherwise put variables such as VLLM_PORT into every pod.
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_PERIOD_S,
        "volumes": [mount.as_volume() for mount in mounts],
    }


def pod_env(env: Mapping[str, str]) -> dict[str, str]:
    """`env` and what every Ray pod needs whatever it does, sorted by name."""
    always = {
        "HOME": names.CACHE_DIR,
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(DRAIN_TIMEOUT_S),
        "USER": USER_NAME,
    }
    return dict(sorted({**always, **env}.items()))


def fetch_env(settings: Settings) -> dict[str, str]:
    """The operator's word on which private addresses may be fetched, for what fetches in the pods."""
    return {f"{PREFIX}ALLOW_PRIVATE_URLS": ",".join(settings.allow_private_urls)} if settings.allow_private_urls else {}


def hub_token(secret: str | None) -> list[KubeObject]:
    """The entry of `env` with the hub's token; the Secret may come later or lack the key, as in KAITO."""
    if not secret:
        return []
    return [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": secret, "key": "HF_TOKEN", "optional": True}}}]


def _container(
    name: str, image: str, env: Mapping[str, str], mounts: Sequence[Mount], ports: Sequence[tuple[str, int]]
) -> KubeObject:
    return {
        "name": name,
        "image": image,
        "env": [{"name": key, "value": value} for key, value in env.items()],
        "ports": [{"name": port, "containerPort": number} for port, number in ports],
        "securityContext": dict(CONTAINER_SECURITY),
        "volumeMounts": [mount.as_mount() for mount in mounts],
    }


def _resources(size: PodSize) -> KubeObject:
    """CPU is requested, not limited: a limit would throttle the engine while cores idle. Ray counts the request."""
    limits: KubeObject = {"memory": _memory(size.memory_gib)}
    if size.gpus:
        limits[size.gpu_resource] = str(size.gpus)
    return {"requests": {"cpu": _cpu(size.cpus), **limits}, "limits": limits}


def _cpu(cpus: float) -> str:
    return str(int(cpus)) if cpus == int(cpus) else f"{round(cpus * 1000)}m"


def _memory(gib: float) -> str:
    return f"{int(gib)}Gi" if gib == int(gib) else f"{round(gib * 1024)}Mi"


def _ray_alive(*, failures: int) -> KubeObject:
    """Asks Ray's agent on the pod; open without a token."""
    return _http_probe("/api/healthz", names.PORT_AGENT, failures)


def _proxy_answers() -> KubeObject:
    """Asks the Serve proxy on the pod; KubeRay's own probe needs wget and grep in the image."""
    return _http_probe("/-/healthz", names.PORT_SERVE, 2)


def _http_probe(path: str, port: int, failures: int) -> KubeObject:
    return {
        "httpGet": {"path": path, "port": port},
        "initialDelaySeconds": 10,
        "periodSeconds": 5,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }
