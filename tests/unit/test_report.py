# SPDX-License-Identifier: Apache-2.0
"""What is written of a status: only what changed, nothing that is gone left behind."""

from typing import Any

import pytest

from kaito_ray.report import merge_patch

Object = dict[str, Any]


@pytest.mark.parametrize(
    ("before", "after", "patch"),
    [
        ({}, {"state": "Ready"}, {"state": "Ready"}),
        ({"state": "Ready"}, {"state": "Ready"}, {}),
        ({"state": "Ready", "endpoint": "e"}, {"state": "Ready"}, {"endpoint": None}),
        (
            {"nodePool": {"name": "p", "message": "no quota"}},
            {"nodePool": {"name": "p"}},
            {"nodePool": {"message": None}},
        ),
        ({"nodePool": {"name": "p"}}, {"nodePool": {"name": "p"}}, {}),
        ({"conditions": [1]}, {"conditions": [1, 2]}, {"conditions": [1, 2]}),
        ({"nodePool": {"name": "p"}}, {}, {"nodePool": None}),
        ({}, {"nodePool": {}}, {"nodePool": {}}),
    ],
)
def test_merge_patch(before: Object, after: Object, patch: Object) -> None:
    assert merge_patch(before, after) == patch
    assert _applied(before, patch) == after


def _applied(document: Any, patch: Any) -> Any:
    """RFC 7386, section 2."""
    if not isinstance(patch, dict):
        return patch
    result = dict(document) if isinstance(document, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _applied(result.get(key), value)
    return result
