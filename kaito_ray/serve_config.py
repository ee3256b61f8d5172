# SPDX-License-Identifier: Apache-2.0
"""ServePlan in; the Serve config and the environment of the Ray processes out.

The render dumps `serve_config` into `serveConfigV2` of a RayService and puts `serve_env` on its head and worker
pods; the local run PUTs the same config to its own Ray, started with `serve_env` and `local_env`. Pure, and equal
plans give equal output in equal order, because every difference in the environment costs KubeRay a new cluster.

What may change while the model serves stands in `deployments[]` (adapters and the queue limit in `user_config`,
replicas, limits); a change in `args` restarts replicas.

Ray reads these variables when its processes start, so they must be set for the raylet, hence on the pod or before
`ray.init`; a `runtime_env` is too late.
"""

from pathlib import Path
from typing import Any

from kaito_ray import names
from kaito_ray.plan import ServePlan

API_KEYS_DIR = "/etc/kaito-ray/api-keys"
"""Where the render mounts the Secret of annotation `kaito-ray.io/api-keys`, one file per key."""

SHUTDOWN_TIMEOUT_S = 120
"""How long a replica that leaves may finish its requests; pods need a longer grace period than this."""
FOLLOW_TAGS_S = 300
"""How often replicas look up the tags of adapters' images where that is asked for."""
HEALTH_PERIOD_S = 5
"""Serve replaces a replica after three failed checks, so a dead engine is noticed within about 15 s."""


def serve_env(plan: ServePlan) -> dict[str, str]:
    """The variables every Ray process of a RayService needs, sorted by name."""
    cpus = int(plan.worker.cpus)
    env = {
        "DO_NOT_TRACK": "1",
        **({"HF_HUB_OFFLINE": "1"} if _is_whole(plan) else {}),
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        # Serve takes a replica out of rotation while it takes up another user_config, for some tenths of a second each:
        # HAProxy waits until all have, and finds the same replicas as before. At Serve's 0.1 s it is reloaded again and
        # again, with half of two replicas' capacity meanwhile.
        "RAY_SERVE_HAPROXY_BROADCAST_COALESCE_S": "1",
        # A replica whose engine died has nothing to drain, and holds the GPU that its successor needs.
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
        # Replicas count requests themselves, which costs less than parsing a line that HAProxy logs for each.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        # One thread per two cores and at most Serve's four: with more, proxy threads take the engine's cores.
        "RAY_SERVE_HAPROXY_NBTHREAD": str(max(1, min(4, cpus // 2))),
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve_apps.front:middlewares",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray would run the engine at nice 15, last in line behind everything else on the node.
        "RAY_worker_niceness": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if plan.gpus_per_node == 0:
        # Without this, vLLM's CPU platform turns executor `uni` into `mp`: one more process with the model, and both
        # it and the scheduler spin on shared memory while requests run, on the cores that the model needs. The
        # engine keeps a process of its own either way. It computes with OMP_NUM_THREADS threads, which Ray sets to
        # the whole CPUs of the replica.
        env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        if plan.engine.get("enable-lora"):
            # vLLM never compiles a model that takes adapters on a CPU. Its sampler it does: seconds and a C++ compiler,
            # without which the engine dies, for what takes microseconds either way.
            env["TORCH_COMPILE_DISABLE"] = "1"
    return dict(sorted(env.items()))


def serve_config(
    plan: ServePlan,
    *,
    port: int = names.PORT_SERVE,
    api_keys_dir: str | None = None,
    registry_auth_dir: str | None = None,
    model_folder: str | None = None,
) -> dict[str, Any]:
    """What `PUT /api/serve/applications/` takes, and `serveConfigV2` holds.

    `port` is where HAProxy listens on every node. `api_keys_dir`, `registry_auth_dir` and `model_folder` are where the
    keys, the logins of registries and the model are when it is not where the render mounts them.
    """
    if plan.api_keys_secret and api_keys_dir is None:
        api_keys_dir = API_KEYS_DIR
    return {
        "applications": [
            {
                "name": names.SERVE_APPLICATION,
                "route_prefix": "/",
                "import_path": names.SERVE_IMPORT_PATH,
                "args": _arguments(plan, api_keys_dir, model_folder or plan.source.folder)
                | ({"registry_auth_dir": registry_auth_dir} if registry_auth_dir else {}),
                "deployments": [_deployment(plan)],
            }
        ],
        # HAProxy reaches replicas on other nodes only through all interfaces.
        "http_options": {"host": "0.0.0.0", "port": port},  # noqa: S104
        "proxy_location": "EveryNode",
    }


def local_env(
    folder: Path, *, metrics_port: int, stats_port: int, first_replica_port: int, last_replica_port: int
) -> dict[str, str]:
    """What a Ray of this machine needs beside `serve_env`, so that two of them can run side by side.

    HAProxy's files go below `folder` (its path must stay short: a socket's path has at most 107 characters), its
    two extra ports are given, and so are those that replicas choose from.
    """
    proxy = folder / "haproxy"
    env = {
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(last_replica_port),
        # Only HAProxy needs time to forget a replica, not a load balancer before it.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first_replica_port),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(proxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(proxy / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(proxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(proxy / "server-state"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(proxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
    }
    return dict(sorted(env.items()))


def _is_whole(plan: ServePlan) -> bool:
    """Whether the folder of the model has all there is; code that a model brings may name other repositories."""
    return plan.source.folder is not None and not plan.engine.get("trust-remote-code")


def _arguments(plan: ServePlan, api_keys_dir: str | None, folder: str | None) -> dict[str, Any]:
    """The `args` of serve_apps.chat:build, as serve_apps/arguments.py reads them."""
    source = plan.source
    model: dict[str, Any] = {"kind": source.kind, "reference": source.reference, "revision": source.revision}
    if folder:
        model = {
            "architecture": source.architecture,
            "kind": "path",
            "names": list(source.names),
            "reference": folder,
        }
    return {
        "api_keys_dir": api_keys_dir,
        "engine": dict(sorted(plan.engine.items())),
        "model": model,
        "served_model_name": plan.served_model_name,
    }


def _deployment(plan: ServePlan) -> dict[str, Any]:
    placement = plan.placement
    options: dict[str, Any] = {
        "name": names.SERVE_DEPLOYMENT,
        "graceful_shutdown_timeout_s": SHUTDOWN_TIMEOUT_S,
        "graceful_shutdown_wait_loop_s": 1,
        "health_check_period_s": HEALTH_PERIOD_S,
        "health_check_timeout_s": 3 * HEALTH_PERIOD_S,
        "logging_config": {"enable_access_log": False},
        "max_ongoing_requests": plan.max_ongoing_requests,
        "ray_actor_options": {"num_cpus": placement.actor_cpus, "num_gpus": placement.actor_gpus},
        "user_config": {
            "adapters": [
                {"name": adapter.name, "source": dict(sorted(adapter.source.items())), "strength": adapter.strength}
                for adapter in sorted(plan.adapters, key=lambda adapter: adapter.name)
            ],
            **({"default_adapter": plan.default_adapter} if plan.default_adapter else {}),
            **({"follow_tags_s": FOLLOW_TAGS_S} if plan.follow_tags and plan.adapters else {}),
            "max_queued_requests": plan.max_queued_requests,
        },
    }
    if plan.autoscaling:
        options["autoscaling_config"] = {
            "max_replicas": plan.autoscaling.max_replicas,
            "min_replicas": plan.autoscaling.min_replicas,
            "target_ongoing_requests": plan.autoscaling.target_ongoing_requests,
        }
    else:
        options["num_replicas"] = plan.replicas
    if placement.bundles:
        options["placement_group_bundles"] = [dict(sorted(bundle.items())) for bundle in placement.bundles]
        options["placement_group_strategy"] = placement.strategy
    return options
