# SPDX-License-Identifier: Apache-2.0
"""A TunePlan in, the RayJob out. Called by objects.py.

A RayJob runs once: KubeRay ignores later changes of its spec. So its name carries a digest of what the user asked for
(model, method, data, destination, what the ConfigMap says), and a changed wish is another object, while a newer
kaito-ray with other defaults leaves a finished job alone.
"""

import hashlib
import json

from kaito_ray import names
from kaito_ray.plan import TunePlan
from kaito_ray.render.metadata import KubeObject, metadata
from kaito_ray.render.pods import fetch_env, take_over
from kaito_ray.render.raycluster import ray_cluster
from kaito_ray.render.volumes import OUTPUT, tune_mounts
from kaito_ray.settings import Settings
from kaito_ray.tuning_retry import RETRIES

_START_TIMEOUT_S = 3600
_KEEP_S, _KEEP_FAILED_S = 300, 1800
_ENV = {
    # Ray's own print wrapper doubles every line.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # Ray waits a minute for all workers by default; an image that is still being pulled takes longer.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1800",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Twice as long as the operator takes to look at the job: time to keep KubeRay from trying it again.
    names.ENV_LINGER_S: "20",
}


def ray_job_name(plan: TunePlan) -> str:
    """The same for the same wish of the same Workspace object."""
    wish = [plan.uid, plan.model, plan.method, plan.input, plan.output, plan.config_digest or None]
    text = json.dumps(wish, sort_keys=True, default=dict)
    return names.job_name(plan.name, hashlib.sha256(text.encode()).hexdigest()[:8])


def ray_job(plan: TunePlan, name: str, claim: str | None, settings: Settings) -> KubeObject:
    """The RayJob called `name`, with its checkpoints on `claim`."""
    mounts = tune_mounts(plan, name, claim)
    on_node = [mount for mount in mounts if mount.name == OUTPUT and "hostPath" in mount.source]
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": metadata(plan, name),
        "spec": {
            "entrypoint": f"{names.TUNE_ENTRYPOINT} {names.TUNE_DIR}/{names.TUNE_ARGUMENTS}",
            # The driver keeps the run's state on the volume that only GPU nodes mount; the head has no CPUs.
            "entrypointNumCpus": 1,
            "jobId": name,
            # KubeRay posts the job itself: no third pod has to pull the image and reach the dashboard, and a job
            # that a restarted head has forgotten is posted again and resumes.
            "submissionMode": "HTTPMode",
            "backoffLimit": RETRIES,
            "preRunningDeadlineSeconds": _START_TIMEOUT_S,
            "deletionStrategy": {
                "deletionRules": [
                    # The operator deletes the cluster as soon as it has read the result from its log, and this does
                    # when nobody comes; a failed cluster stays for its logs.
                    {"policy": "DeleteCluster", "condition": {"jobStatus": "SUCCEEDED", "ttlSeconds": _KEEP_S}},
                    {
                        "policy": "DeleteCluster",
                        "condition": {"jobDeploymentStatus": "Failed", "ttlSeconds": _KEEP_FAILED_S},
                    },
                ]
            },
            "rayClusterSpec": ray_cluster(
                plan,
                settings.tune_image,
                {**_ENV, **fetch_env(settings)},
                mounts,
                groups=(plan.nodes, plan.nodes),
                hub_secret=plan.hf_token_secret,
                before=[take_over("prepare-output", settings.tune_image, mount) for mount in on_node],
                settings=settings,
            ),
        },
    }
