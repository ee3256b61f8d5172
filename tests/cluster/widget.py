# SPDX-License-Identifier: Apache-2.0
"""A small custom resource with a bit of everything, for tests of the server itself."""

from typing import Any

from cluster.client import Client
from cluster.resource import Object

API = "test.kaito-ray.io/v1"
KIND = "Widget"

_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "A widget of the tests.",
    "required": ["size"],
    "x-kubernetes-validations": [
        {"rule": "has(self.left) != has(self.right)", "message": "exactly one of left and right"},
        {"rule": "has(self.left) == has(oldSelf.left)", "message": "sides cannot be changed"},
    ],
    "properties": {
        "size": {
            "type": "object",
            "description": "How big it is.",
            "required": ["unit"],
            "properties": {
                "count": {"type": "integer", "minimum": 1, "maximum": 9, "default": 1, "description": "How many."},
                "unit": {
                    "type": "string",
                    "enum": ["cm", "inch"],
                    "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "unit is immutable"}],
                },
                "weight": {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]},
                "note": {"type": "string", "nullable": True, "maxLength": 8},
            },
        },
        "left": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        "right": {"type": "object", "properties": {"name": {"type": "string", "pattern": "^[a-z]+$"}}},
        "parts": {
            "type": "array",
            "maxItems": 4,
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string"},
                    "color": {"type": "string", "default": "grey"},
                    "holes": {"type": "array", "items": {"type": "integer"}},
                },
            },
        },
        "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "status": {
            "type": "object",
            "properties": {
                "state": {"type": "string"},
                "conditions": {
                    "type": "array",
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["type"],
                    "items": {
                        "type": "object",
                        "required": ["type", "status"],
                        "properties": {
                            "type": {"type": "string"},
                            "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
                            "reason": {"type": "string"},
                            "message": {"type": "string"},
                        },
                    },
                },
            },
        },
    },
}

DEFINITION: Object = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "widgets.test.kaito-ray.io"},
    "spec": {
        "group": "test.kaito-ray.io",
        "scope": "Namespaced",
        "names": {"plural": "widgets", "kind": KIND, "shortNames": ["wg"]},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": _SCHEMA},
                "additionalPrinterColumns": [
                    {"name": "Unit", "type": "string", "jsonPath": ".size.unit"},
                    {"name": "Count", "type": "integer", "jsonPath": ".size.count"},
                    {"name": "Ready", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].status'},
                    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
                    {"name": "State", "type": "string", "jsonPath": ".status.state", "priority": 1},
                ],
            },
            {
                "name": "v1alpha1",
                "served": True,
                "storage": False,
                "deprecated": True,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": _SCHEMA},
            },
        ],
    },
}


def install_widgets(client: Client) -> None:
    """Have the cluster serve widgets."""
    client.define([DEFINITION])


def remove_widgets(client: Client) -> None:
    """Have the cluster forget them, so that the next test gets the definition as it stands here."""
    name = DEFINITION["metadata"]["name"]
    found = client.find(DEFINITION["apiVersion"], DEFINITION["kind"], name)
    if found is not None:
        # Operators of tests are gone by now and take no finalizer away any more.
        for left in client.list(API, KIND):
            client.patch(left, {"metadata": {"finalizers": None}})
        client.delete(found)
        client.wait(
            lambda: client.find(DEFINITION["apiVersion"], DEFINITION["kind"], name), lambda one: one is None, 60
        )


def a_widget(name: str = "w", namespace: str = "default", **parts: Any) -> Object:
    """A valid widget; `parts` replace or add top-level fields."""
    return {
        "apiVersion": API,
        "kind": KIND,
        "metadata": {"name": name, "namespace": namespace},
        "size": {"unit": "cm"},
        "left": {},
        **parts,
    }
