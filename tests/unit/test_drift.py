# SPDX-License-Identifier: Apache-2.0
"""Which live objects already are what was rendered."""

import copy
from typing import Any

import pytest

from kaito_ray.drift import is_current, stamped, was_applied

OWNER = {"metadata": {"name": "phi", "uid": "u-1"}}
RENDERED: dict[str, Any] = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "phi", "namespace": "default", "labels": {"a": "b"}},
    "spec": {"podSelector": {}, "ingress": [{"ports": [{"port": 80}, {"port": 8000}]}], "deep": {"flag": False}},
}


def live(change: Any = None) -> dict[str, Any]:
    """The object as the API server hands it out after it was applied: defaults and fields of others added."""
    document = copy.deepcopy(stamped(RENDERED, OWNER))
    document["metadata"] |= {"resourceVersion": "7", "uid": "x"}
    document["metadata"]["labels"]["theirs"] = "kept"
    document["spec"]["policyTypes"] = ["Ingress"]
    for port in document["spec"]["ingress"][0]["ports"]:
        port["protocol"] = "TCP"
    if change:
        change(document)
    return document


def no_kind(document: dict[str, Any]) -> None:
    del document["kind"], document["apiVersion"]


def another_owner(document: dict[str, Any]) -> None:
    document["metadata"]["ownerReferences"].append({"kind": "Backup", "name": "b", "uid": "z"})


def zero_left_out(document: dict[str, Any]) -> None:
    del document["spec"]["deep"]["flag"], document["spec"]["podSelector"]


def port(document: dict[str, Any]) -> None:
    document["spec"]["ingress"][0]["ports"][0]["port"] = 81


def extra_entry(document: dict[str, Any]) -> None:
    document["spec"]["ingress"][0]["ports"].append({"port": 22})


def label(document: dict[str, Any]) -> None:
    document["metadata"]["labels"]["a"] = "c"


def removed(document: dict[str, Any]) -> None:
    del document["spec"]["ingress"]


def owner(document: dict[str, Any]) -> None:
    document["metadata"]["ownerReferences"] = []


@pytest.mark.parametrize("change", [None, no_kind, another_owner, zero_left_out])
def test_what_others_add_is_no_drift(change: Any) -> None:
    assert is_current(stamped(RENDERED, OWNER), live(change))


@pytest.mark.parametrize("change", [port, extra_entry, label, removed, owner])
def test_a_change_of_our_fields_is_drift(change: Any) -> None:
    assert not is_current(stamped(RENDERED, OWNER), live(change))
    assert was_applied(stamped(RENDERED, OWNER), live(change))


def test_a_field_no_longer_rendered_is_noticed() -> None:
    now = copy.deepcopy(RENDERED)
    del now["spec"]["deep"]
    assert not is_current(stamped(now, OWNER), live())
    assert not was_applied(stamped(now, OWNER), live())
