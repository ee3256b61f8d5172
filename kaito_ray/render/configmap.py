# SPDX-License-Identifier: Apache-2.0
"""A TunePlan in, the ConfigMap with the finished arguments of its job out. Called by objects.py and lint.py.

A file rather than a command line: arguments hold URLs and texts of any length, which no shell should read.
"""

from kaito_ray import names
from kaito_ray.plan import TunePlan
from kaito_ray.render.metadata import KubeObject, metadata
from kaito_ray.tune_arguments import TuneFolders, tune_arguments_text


def tune_arguments_map(plan: TunePlan, job: str, name: str, folders: TuneFolders | None = None) -> KubeObject:
    """The ConfigMap called `name`, for whoever runs the job called `job`; mounted at `names.TUNE_DIR`."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(plan, name),
        "data": {names.TUNE_ARGUMENTS: tune_arguments_text(plan, job, folders)},
    }
