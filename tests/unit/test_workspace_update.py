# SPDX-License-Identifier: Apache-2.0
"""A Workspace as it was and as it is to be in, what cannot be changed out."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from builders import a_workspace
from kaito_ray.workspace import Workspace, parse_workspace
from kaito_ray.workspace_update import validate_update

USER_MANIFESTS = Path(__file__).parents[3] / "shared" / "user-manifests"

PRESET = {"name": "phi-3-mini-4k-instruct"}
TUNING: dict[str, Any] = {
    "preset": PRESET,
    "method": "qlora",
    "input": {"name": "data", "urls": ["https://example.com/train.parquet"]},
    "output": {"image": "registry.example/a:1", "imagePushSecret": "push"},
}
SELECTOR = {"matchLabels": {"apps": "phi-3"}}


def serving(**inference: Any) -> Workspace:
    return a_workspace(inference={"preset": PRESET} | inference)


def on(**resource: Any) -> Workspace:
    return a_workspace(resource={"instanceType": "Standard_NC24ads_A100_v4", "labelSelector": SELECTOR} | resource)


def tuning(**changes: Any) -> Workspace:
    return a_workspace(tuning=TUNING | changes)


CUSTOM = a_workspace(inference={"template": {"spec": {"containers": [{"name": "a"}]}}})


@pytest.mark.parametrize(
    ("old", "new", "field", "words"),
    [
        (serving(), tuning(), "tuning", "which exists already and does inference"),
        (tuning(), serving(), "inference", "which exists already and does tuning"),
        (serving(), serving(preset={"name": "phi-4"}), "inference.preset.name", 'to "phi-4"'),
        (
            serving(),
            serving(preset=PRESET | {"presetOptions": {"modelAccessSecret": "hub"}}),
            "inference.preset.presetOptions",
            "cannot be changed",
        ),
        (serving(), CUSTOM, "inference", "from a preset to a template"),
        (CUSTOM, serving(), "inference", "from a template to a preset"),
        (tuning(), tuning(preset={"name": "phi-4"}), "tuning.preset.name", 'to "phi-4"'),
        (tuning(), tuning(method="lora"), "tuning.method", 'from "qlora" to "lora"'),
        (tuning(), tuning(input=TUNING["input"] | {"name": "other"}), "tuning.input.name", 'to "other"'),
        (on(), on(instanceType="Standard_NC96ads_A100_v4"), "resource.instanceType", "Standard_NC96ads_A100_v4"),
        (on(), on(instanceType=""), "resource.instanceType", 'to ""'),
        (on(), on(count=2), "resource.count", "from 1 to 2"),
        (on(), on(labelSelector={"matchLabels": {"app": "phi-3"}}), "resource.labelSelector", 'to "app=phi-3"'),
        (on(), on(partition={"mode": "accelerator", "count": 1}), "resource.partition", "cannot be changed"),
    ],
)
def test_what_cannot_be_changed_is_named_with_a_way_out(old: Workspace, new: Workspace, field: str, words: str) -> None:
    (problem,) = validate_update(old, new)
    assert problem.field == field
    assert words in problem.message
    assert "delete" in problem.message
    assert "kubectl delete workspace workspace-phi-3-mini -n default" in problem.message


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (serving(), serving(config="flags", autoscaling={"maxReplicas": 2})),
        (serving(), serving(adapters=[{"source": {"name": "a", "image": "b"}, "strength": "0.5"}])),
        (tuning(), tuning(method="QLoRA", config="params", output={"volumeSource": {"emptyDir": {}}})),
        (tuning(), tuning(input=TUNING["input"] | {"urls": ["https://example.com/other.parquet"]})),
        (CUSTOM, a_workspace(inference={"template": {"spec": {"containers": [{"name": "b"}]}}})),
        (on(instanceType=""), on()),
        (on(), on(preferredNodes=["n1"])),
        (
            on(),
            on(labelSelector={"matchExpressions": [{"key": "apps", "operator": "In", "values": ["phi-3"]}]}),
        ),
        (on(), a_workspace(apiVersion="kaito.sh/v1alpha1", annotations={"kaito.sh/enablelb": "True"})),
    ],
)
def test_what_can_be_changed_passes(old: Workspace, new: Workspace) -> None:
    assert validate_update(old, new) == []


def test_size_may_be_cleared_where_nodes_are_brought_along() -> None:
    assert validate_update(on(), on(instanceType=""), byo=True) == []


def test_every_change_is_reported() -> None:
    problems = validate_update(on(), on(count=2, instanceType="Standard_NC96ads_A100_v4"))
    assert [problem.field for problem in problems] == ["resource.instanceType", "resource.count"]


@pytest.mark.skipif(not USER_MANIFESTS.is_dir(), reason="the manifests of users are not beside this checkout")
@pytest.mark.parametrize(("first", "second"), [("01", "02"), ("03", "04")])
def test_second_manifest_of_a_name_says_what_to_do(first: str, second: str) -> None:
    old, new = (
        parse_workspace(yaml.safe_load(next(USER_MANIFESTS.glob(f"{number}-*")).read_text()))
        for number in (first, second)
    )
    (problem,) = validate_update(old, new)
    assert old.metadata.name == new.metadata.name
    assert "change metadata.name, or delete the old one first" in problem.message
