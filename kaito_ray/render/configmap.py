# SPDX-License-Identifier: Apache-2.0
"""A TunePlan in, the ConfigMap with the finished arguments of its job out. Called by objects.py.

A file rather than a command line: arguments hold URLs and texts of any length, which no shell should read.
"""

import json

from kaito_ray import names
from kaito_ray.plan import TunePlan
from kaito_ray.render.metadata import KubeObject, metadata


def tune_arguments(plan: TunePlan, job: str) -> KubeObject:
    """The ConfigMap called like its job; mounted at `names.TUNE_DIR`."""
    document = {
        "name": job,
        "model": plan.model,
        "source": {"kind": plan.source.kind, "reference": plan.source.reference, "revision": plan.source.revision},
        "method": plan.method,
        "workers": plan.workers,
        "arguments": dict(plan.arguments),
        "input": dict(plan.input),
        "output": dict(plan.output),
        "config": plan.config,
    }
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(plan, job),
        "data": {names.TUNE_ARGUMENTS: text},
    }
