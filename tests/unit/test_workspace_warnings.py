# SPDX-License-Identifier: Apache-2.0
"""A valid Workspace in, remarks to its author out."""

from typing import Any

import pytest

from builders import a_document, a_workspace
from kaito_ray.workspace import parse_workspace
from kaito_ray.workspace_warnings import warnings

PRESET = {"name": "phi-3-mini-4k-instruct"}


def remarks(document: dict[str, Any]) -> dict[str, str]:
    return {problem.field: problem.message for problem in warnings(parse_workspace(document))}


def test_placeholders_are_named_plainly() -> None:
    document = a_document(
        tuning={
            "preset": PRESET,
            "method": "qlora",
            "input": {"urls": ["DATASET_URL_HERE"]},
            "output": {
                "image": "ACR_REPO_HERE.azurecr.io/IMAGE_NAME_HERE:0.0.1",
                "imagePushSecret": "ACR_REGISTRY_SECRET_HERE",
            },
        }
    )
    assert remarks(document) == {
        "tuning.input.urls[0]": "replace DATASET_URL_HERE with your own",
        "tuning.output.image": "replace ACR_REPO_HERE and IMAGE_NAME_HERE with your own",
        "tuning.output.imagePushSecret": "replace ACR_REGISTRY_SECRET_HERE with your own",
    }


def test_a_plain_workspace_needs_no_remark() -> None:
    assert warnings(a_workspace(apiVersion="kaito.sh/v1alpha1")) == []


@pytest.mark.parametrize(
    ("document", "field", "words"),
    [
        (
            a_document(annotations={"kaito-ray.io/after-tunning": "release"}),
            "metadata.annotations.kaito-ray.io/after-tunning",
            "did you mean kaito-ray.io/after-tuning?",
        ),
        (
            a_document(annotations={"kaito.sh/disable-benchmark": "true"}),
            "metadata.annotations.kaito.sh/disable-benchmark",
            "has no effect",
        ),
        (
            a_document(resource={"labelSelector": {"matchLabels": {"apps": "x", "kaito.sh/workspace": "y"}}}),
            "resource.labelSelector.matchLabels.kaito.sh/workspace",
            "selects nothing",
        ),
        (
            a_document(resource={"labelSelector": {"matchLabels": {"apps": "x"}}, "preferredNodes": ["n"]}),
            "resource.preferredNodes",
            "deprecated",
        ),
        (
            a_document(resource={"labelSelector": {"matchLabels": {"apps": "x"}}, "count": 2}),
            "resource.count",
            "follow from the model",
        ),
        (
            a_document(inference={"preset": PRESET | {"accessMode": "private"}}),
            "inference.preset.accessMode",
            "without presetOptions.image",
        ),
        (
            a_document(inference={"preset": PRESET | {"presetOptions": {"imagePullSecrets": ["registry"]}}}),
            "inference.preset.presetOptions.imagePullSecrets",
            "no effect without presetOptions.image",
        ),
        (
            a_document(
                inference={
                    "template": {"spec": {"containers": [{"name": "a"}]}},
                    "adapters": [{"source": {"name": "a", "image": "b"}}],
                }
            ),
            "inference.adapters",
            "not loaded",
        ),
        (
            a_document(
                apiVersion="kaito.sh/v1alpha1",
                inference={"preset": PRESET | {"presetOptions": {"modelAccessSecret": "hub"}}},
            ),
            "inference.preset.presetOptions.modelAccessSecret",
            "write apiVersion: kaito.sh/v1beta1",
        ),
    ],
)
def test_what_has_no_effect_is_said(document: dict[str, Any], field: str, words: str) -> None:
    (message,) = remarks(document).values()
    assert words in message
    assert field in remarks(document)


def test_annotations_of_others_are_left_alone() -> None:
    assert warnings(a_workspace(annotations={"kubectl.kubernetes.io/last-applied-configuration": "{}"})) == []
