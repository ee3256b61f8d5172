# SPDX-License-Identifier: Apache-2.0
"""Custom resources on the test cluster: defaults, pruning, validation and CEL rules of their definition."""

import re
from collections.abc import Mapping
from typing import Any

import pytest

from cluster.client import Client, Refused, condition_of
from cluster.fixture import Cluster
from cluster.widget import DEFINITION, a_widget


def refusal(action: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        action()
    return caught.value


def test_defaults_fill_in_and_unknown_fields_are_pruned(widgets: Client, cluster: Cluster) -> None:
    widget = a_widget(
        namespace=cluster.namespace,
        size={"unit": "cm", "unknown": 1, "note": None},
        left={"anything": {"goes": [1]}},
        parts=[{"name": "x", "unknown": 2}],
    )
    made = widgets.create(widget)
    assert made["size"] == {"unit": "cm", "count": 1, "note": None}, "note may be null, so the null is kept"
    assert made["left"] == {"anything": {"goes": [1]}}
    assert made["parts"] == [{"name": "x", "color": "grey"}]


def test_nulls_of_fields_that_cannot_be_null_are_dropped(widgets: Client, cluster: Cluster) -> None:
    made = widgets.create(a_widget(namespace=cluster.namespace, tags=None, size={"unit": "cm", "count": None}))
    assert "tags" not in made
    assert made["size"]["count"] == 1


@pytest.mark.parametrize(
    ("parts", "message", "reason"),
    [
        ({"size": {}}, "size.unit: Required value", "FieldValueRequired"),
        (
            {"size": {"unit": "ell"}},
            'size.unit: Unsupported value: "ell": supported values: "cm", "inch"',
            "FieldValueNotSupported",
        ),
        (
            {"size": {"unit": "cm", "count": 10}},
            "size.count: Invalid value: 10: size.count in body should be less than or equal to 9",
            "FieldValueInvalid",
        ),
        (
            {"size": {"unit": "cm", "count": "1"}},
            'size.count: Invalid value: "string": size.count in body must be of type integer: "string"',
            "FieldValueTypeInvalid",
        ),
        (
            {"size": {"unit": "cm", "weight": []}},
            'size.weight in body must be of type integer,string: "array"',
            "FieldValueTypeInvalid",
        ),
        (
            {"size": {"unit": "cm", "note": "far too long"}},
            "size.note: Too long: may not be more than 8 bytes",
            "FieldValueTooLong",
        ),
        (
            {"left": None, "right": {"name": "A"}},
            "right.name: Invalid value: \"A\": right.name in body should match '^[a-z]+$'",
            "FieldValueInvalid",
        ),
        ({"parts": [{"name": "a"}, {"name": "a"}]}, 'parts[1]: Duplicate value: {"name":"a"}', "FieldValueDuplicate"),
        (
            {"parts": [{"name": str(n)} for n in range(5)]},
            "parts: Too many: 5: must have at most 4 items",
            "FieldValueTooMany",
        ),
        ({"tags": ["a", "a"]}, 'tags[1]: Duplicate value: "a"', "FieldValueDuplicate"),
    ],
)
def test_violations_are_refused_with_kubernetes_words(
    widgets: Client, cluster: Cluster, parts: Mapping[str, Any], message: str, reason: str
) -> None:
    seen = refusal(lambda: widgets.create(a_widget(namespace=cluster.namespace, **parts)))
    assert seen.code == 422
    assert seen.message.startswith('Widget.test.kaito-ray.io "w" is invalid: ')
    assert message in seen.message
    assert reason in [cause["reason"] for cause in seen.status["details"]["causes"]]


def test_all_violations_come_at_once(widgets: Client, cluster: Cluster) -> None:
    seen = refusal(lambda: widgets.create(a_widget(namespace=cluster.namespace, size={"unit": "ell", "count": 0})))
    fields = [cause["field"] for cause in seen.status["details"]["causes"]]
    assert sorted(fields) == ["<nil>", "size.count", "size.unit"]
    assert "some validation rules were not checked because the object was invalid" in seen.message


@pytest.mark.parametrize("sides", [{"left": {}, "right": {}}, {"left": None}])
def test_cel_rules_hold(widgets: Client, cluster: Cluster, sides: dict[str, Any]) -> None:
    seen = refusal(lambda: widgets.create(a_widget(namespace=cluster.namespace, **sides)))
    # Kubernetes up to 1.32 names the type of the value in between.
    assert seen.message.replace(' "object":', "") == (
        'Widget.test.kaito-ray.io "w" is invalid: <nil>: Invalid value: exactly one of left and right'
    )


def test_transition_rules_compare_with_the_old_object(widgets: Client, cluster: Cluster) -> None:
    made = widgets.create(a_widget(namespace=cluster.namespace))
    widgets.patch(made, {"size": {"count": 2}})
    unit = refusal(lambda: widgets.patch(made, {"size": {"unit": "inch"}}))
    assert re.search(r'size.unit: Invalid value: "(inch|string)": unit is immutable', unit.message)
    turned = refusal(lambda: widgets.patch(made, {"left": None, "right": {}}))
    assert "sides cannot be changed" in turned.message


def test_what_was_stored_under_a_laxer_schema_stays_editable(widgets: Client, cluster: Cluster) -> None:
    made = widgets.create(a_widget(namespace=cluster.namespace, size={"unit": "cm", "count": 9}))
    name = DEFINITION["metadata"]["name"]
    stored = widgets.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", name)
    for version in stored["spec"]["versions"]:
        version["schema"]["openAPIV3Schema"]["properties"]["size"]["properties"]["count"]["maximum"] = 5
    widgets.replace(stored)

    def tightened() -> int:
        try:
            widgets.create(a_widget("probe", cluster.namespace, size={"unit": "cm", "count": 6}), dryRun="All")
        except Refused as refused:
            return refused.code
        return 201

    widgets.wait(tightened, lambda code: code == 422)
    assert widgets.patch(made, {"tags": ["a"]})["tags"] == ["a"], "the bad count is old and unchanged"
    widgets.patch(made, {"status": {"state": "s"}}, subresource="status")
    assert refusal(lambda: widgets.patch(made, {"size": {"count": 8}})).code == 422


def test_unknown_fields_are_warned_of_or_refused_on_request(widgets: Client, cluster: Cluster) -> None:
    widget = a_widget(namespace=cluster.namespace, size={"unit": "cm", "cuont": 1})
    strict = refusal(lambda: widgets.create(widget, fieldValidation="Strict"))
    assert (strict.code, 'strict decoding error: unknown field "size.cuont"' in strict.message) == (400, True)
    assert "cuont" not in widgets.create(widget)["size"]


def test_a_definition_is_established_with_its_names(widgets: Client) -> None:
    found = widgets.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", DEFINITION["metadata"]["name"])
    assert (condition_of(found, "NamesAccepted"), condition_of(found, "Established")) == ("True", "True")
    assert found["status"]["acceptedNames"]["kind"] == "Widget"
    assert found["status"]["storedVersions"] == ["v1"]


def test_a_rule_that_does_not_compile_is_refused_with_the_definition(cluster: Cluster) -> None:
    broken = {**DEFINITION, "metadata": {"name": "broken.test.kaito-ray.io"}}
    broken["spec"] = {
        **DEFINITION["spec"],
        "names": {"plural": "broken", "kind": "Broken"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-validations": [{"rule": "self.("}]}},
            }
        ],
    }
    seen = refusal(lambda: cluster.client.create(broken))
    assert "x-kubernetes-validations[0].rule" in seen.message


def test_the_workspace_definition_of_the_project_is_served(ray_cluster: Cluster) -> None:
    workspace = {
        "apiVersion": "kaito.sh/v1alpha1",
        "kind": "Workspace",
        "metadata": {"name": "phi", "namespace": ray_cluster.namespace},
        "resource": {"instanceType": "Standard_NC6s_v3", "labelSelector": {"matchLabels": {"apps": "phi-3"}}},
        "inference": {"preset": {"name": "phi-3-mini-4k-instruct"}},
    }
    made = ray_cluster.client.create(workspace)
    assert ray_cluster.client.get("kaito.sh/v1beta1", "Workspace", "phi", ray_cluster.namespace)["resource"]
    tuning = {
        "preset": {"name": "phi-3-mini-4k-instruct"},
        "method": "qlora",
        "input": {"urls": ["https://data.example/train.parquet"]},
        "output": {"image": "registry.example/adapter:1"},
    }
    turned = refusal(lambda: ray_cluster.client.patch(made, {"inference": None, "tuning": tuning}))
    assert "inference cannot be turned into tuning or back" in turned.message
    both = {**workspace, "metadata": {"name": "both", "namespace": ray_cluster.namespace}, "tuning": tuning}
    refused = refusal(lambda: ray_cluster.client.create(both))
    assert "exactly one of inference and tuning must be given" in refused.message
