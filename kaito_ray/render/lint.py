# SPDX-License-Identifier: Apache-2.0
"""A TunePlan in, out the pod that judges its data before nodes are bought, with its arguments. Called by children.py.

It runs the job's own judging code (tune_jobs/lint.py) on a node without GPUs and says what came of it in its
termination message, so that it needs no rights in the cluster and the operator reads no log (kaito_ray/lint.py).
"""

from dataclasses import replace

from kaito_ray import names
from kaito_ray.plan import PodSize, TunePlan
from kaito_ray.render.configmap import tune_arguments_map
from kaito_ray.render.metadata import KubeObject, metadata
from kaito_ray.render.pods import USER_NAME, fetch_env, hub_token, init_container, pod_spec
from kaito_ray.render.volumes import CACHE, Mount, tune_mounts
from kaito_ray.settings import Settings
from kaito_ray.tune_arguments import TuneFolders

DEADLINE_S = 600
# Data is read row by row, but a row group of a parquet file is held as a whole, and so is torch.
_SIZE = PodSize(0.5, 4)
_DISK = "32Gi"
_NEEDED = {"arguments", "registry", "data"}


def lint_objects(plan: TunePlan, job: str, attempt: int, settings: Settings) -> tuple[KubeObject, KubeObject]:
    """The ConfigMap and the pod of that attempt."""
    name = names.lint_name(job, attempt)
    folders = TuneFolders(output=f"{names.CACHE_DIR}/lint")
    return tune_arguments_map(_without_weights(plan), job, name, folders), _pod(plan, job, attempt, settings)


def _without_weights(plan: TunePlan) -> TunePlan:
    """The tokenizer of a model of the hub comes from there; what is in an image or a volume is not at hand."""
    if plan.source.kind != "hub":
        return plan
    return replace(plan, source=replace(plan.source, volume=None))


def _pod(plan: TunePlan, job: str, attempt: int, settings: Settings) -> KubeObject:
    name = names.lint_name(job, attempt)
    # The kubelet ends a pod that writes more, before the node has no room for others.
    cache = replace(CACHE, source={"emptyDir": {"sizeLimit": _DISK}})
    mounts: list[Mount] = [cache, *(mount for mount in tune_mounts(plan, name, None) if mount.name in _NEEDED)]
    env = {"HOME": names.CACHE_DIR, **fetch_env(settings), "USER": USER_NAME}
    container = init_container(names.PART_LINT, settings.tune_image, env, mounts, _SIZE)
    container["command"] = ["python", "-m", names.TUNE_LINT_MODULE, f"{names.TUNE_DIR}/{names.TUNE_ARGUMENTS}"]
    container["env"] = [*container["env"], *hub_token(plan.hf_token_secret)]
    container["terminationMessagePolicy"] = "FallbackToLogsOnError"
    described = metadata(plan, name)
    described["labels"] |= {
        names.LABEL_PART: names.PART_LINT,
        names.LABEL_JOB: job,
        names.LABEL_ATTEMPT: str(attempt),
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": described,
        "spec": {
            **pod_spec(mounts),
            "automountServiceAccountToken": False,
            "restartPolicy": "Never",
            "activeDeadlineSeconds": DEADLINE_S,
            "terminationGracePeriodSeconds": 5,
            "containers": [container],
        },
    }
