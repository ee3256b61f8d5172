# SPDX-License-Identifier: Apache-2.0
"""What a Kubernetes server refuses in the built-in kinds kaito-ray writes, beyond types and metadata."""

from cluster.failure import Problem
from cluster.resource import Object, Resource


def builtin_problems(resource: Resource, obj: Object, old: Object | None, subresource: str) -> list[Problem]:
    """What is wrong with an object of a built-in kind, and with its change from `old`."""
    del resource, obj, old, subresource
    return []
