# SPDX-License-Identifier: Apache-2.0
"""The CustomResourceDefinition: that it is the one checked in, that an API server takes it, what its rules refuse."""

import copy
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from builders import a_document
from cluster.schema import node_of
from cluster.structural import fill, prune
from cluster.validation import MISSING, validate
from kaito_ray.crd import crd, crd_yaml

ROOT = Path(__file__).parents[2]
USER_MANIFESTS = sorted((ROOT.parent / "shared" / "user-manifests").glob("*.yaml"))
CRD = crd()
VERSIONS = {version["name"]: version for version in CRD["spec"]["versions"]}
# What apiextensions.k8s.io/v1 knows of JSON schema and this CRD may use.
KEYWORDS = {
    "additionalProperties", "default", "description", "enum", "format", "items", "maximum", "maxItems", "maxLength",
    "maxProperties", "minimum", "minLength", "pattern", "properties", "required", "type",
    "x-kubernetes-list-map-keys", "x-kubernetes-list-type", "x-kubernetes-map-type",
    "x-kubernetes-preserve-unknown-fields", "x-kubernetes-validations",
}  # fmt: skip

PRESET: dict[str, Any] = {"name": "phi-3-mini-4k-instruct"}
TUNING: dict[str, Any] = {
    "preset": PRESET,
    "method": "qlora",
    "input": {"urls": ["https://example.com/train.parquet"]},
    "output": {"image": "registry.example/a:1", "imagePushSecret": "push"},
}
SELECTOR = {"matchLabels": {"apps": "phi-3"}}
ADAPTER = {"source": {"name": "a", "image": "registry.example/a:1"}}


def schema(version: str = "v1beta1") -> dict[str, Any]:
    found: dict[str, Any] = VERSIONS[version]["schema"]["openAPIV3Schema"]
    return found


def nodes(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for name, below in node.get("properties", {}).items():
        yield from nodes(below, f"{path}.{name}".removeprefix("."))
    if "items" in node:
        yield from nodes(node["items"], f"{path}[]")
    if "additionalProperties" in node:
        yield from nodes(node["additionalProperties"], f"{path}.*")


EVERY_NODE = list(nodes(schema()))


def test_checked_in_file_is_the_generated_one() -> None:
    assert (ROOT / "manifests" / "crds" / "kaito.sh_workspaces.yaml").read_text() == crd_yaml()
    assert yaml.safe_load(crd_yaml()) == CRD


@pytest.mark.parametrize("seed", ["0", "1"])
def test_same_bytes_whatever_the_hash_seed(seed: str) -> None:
    command = [sys.executable, "-c", "from kaito_ray.crd import crd_yaml; print(crd_yaml(), end='')"]
    environment = {"PYTHONHASHSEED": seed}
    made = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert made.stdout == crd_yaml()


def test_names_and_versions() -> None:
    assert CRD["metadata"]["name"] == "workspaces.kaito.sh"
    assert CRD["spec"]["names"]["shortNames"] == ["wk", "wks"]
    assert CRD["spec"]["scope"] == "Namespaced"
    assert [(name, one["served"], one["storage"]) for name, one in VERSIONS.items()] == [
        ("v1beta1", True, True),
        ("v1alpha1", True, False),
    ]
    assert all(version["subresources"] == {"status": {}} for version in VERSIONS.values())


@pytest.mark.parametrize("version", VERSIONS)
def test_columns_are_those_of_the_documents_users_follow(version: str) -> None:
    columns = VERSIONS[version]["additionalPrinterColumns"]
    shown = [column["name"].upper() for column in columns if not column.get("priority")]
    wide = [column["name"].upper() for column in columns if column.get("priority")]
    assert ["NAME", *shown] == ["NAME", "INSTANCE", "RESOURCEREADY", "INFERENCEREADY", "WORKSPACEREADY", "AGE"]
    assert wide == ["STATE", "JOBSTARTED", "WORKSPACESUCCEEDED", "NODES", "ENDPOINT", "ADAPTERS"]


def test_versions_differ_in_one_default_only() -> None:
    old, new = copy.deepcopy(schema("v1alpha1")), schema("v1beta1")
    assert old["properties"]["resource"]["properties"]["instanceType"].pop("default") == "Standard_NC24ads_A100_v4"
    assert old == new


def test_schema_is_structural() -> None:
    for path, node in EVERY_NODE:
        assert set(node) <= KEYWORDS, path
        assert node["type"] in {"object", "array", "string", "integer", "number", "boolean"}, path
        assert not ("properties" in node and "additionalProperties" in node), path
        assert set(node.get("required", ())) <= set(node.get("properties", ())), path
        if "default" in node:
            plain = {key: value for key, value in node.items() if not key.startswith("x-")}
            jsonschema.validate(node["default"], plain)
        if "pattern" in node:
            re.compile(node["pattern"])
        for key in node.get("x-kubernetes-list-map-keys", ()):
            assert key in node["items"]["required"], path


def test_nothing_is_pruned_and_everything_explained() -> None:
    for path, node in EVERY_NODE:
        if path.startswith("metadata"):
            continue
        if node["type"] == "object":
            free = node.get("x-kubernetes-preserve-unknown-fields")
            assert free or "properties" in node or "additionalProperties" in node, path
        if not path.endswith(("[]", ".*")):
            assert node["description"].endswith("."), f"kubectl explain has nothing to say about {path}"


def test_what_rules_look_into_is_bounded() -> None:
    """The API server refuses a rule whose cost it cannot bound."""
    for path, node in EVERY_NODE:
        if not path.startswith(("resource", "inference", "tuning")):
            continue
        if node["type"] == "string":
            assert "enum" in node or node["maxLength"] <= 4096, path
        if node["type"] == "array":
            assert node["maxItems"] <= 256, path
        if "additionalProperties" in node:
            assert node["maxProperties"] <= 32, path


def test_rules_guard_what_may_be_absent() -> None:
    rules = [(path, node, rule) for path, node in EVERY_NODE for rule in node.get("x-kubernetes-validations", ())]
    assert len(rules) > 15
    for path, node, rule in rules:
        assert rule["message"], path
        assert "\n" not in rule["message"] + rule["rule"], path
        fields = node.get("properties", {})
        always = {*node.get("required", ()), *(name for name, below in fields.items() if "default" in below)}
        for whole, field in re.findall(r"((?:self|oldSelf)\.([a-zA-Z]+))(?!\w*\()", rule["rule"]):
            assert field in fields, f"{path} has no {field}"
            assert field in always or f"has({whole})" in rule["rule"], f"{path}: {whole}"


@pytest.mark.parametrize("manifest", USER_MANIFESTS, ids=lambda path: path.stem)
def test_manifests_of_users_pass_the_schema(manifest: Path) -> None:
    document = yaml.safe_load(manifest.read_text())
    before = copy.deepcopy(document)
    node = node_of(schema("v1alpha1"))
    assert prune(node, document) == []
    assert document == before
    fill(node, document)
    assert [str(problem) for problem in validate(node, document)] == []


def complaints(new: dict[str, Any], old: dict[str, Any] | None = None) -> str:
    """What an API server without our webhook says, all in one."""
    node = node_of(schema())
    new, old = copy.deepcopy(new), copy.deepcopy(old)
    fill(node, new)
    fill(node, old)
    return "\n".join(str(problem) for problem in validate(node, new, MISSING if old is None else old))


def with_resource(**resource: Any) -> dict[str, Any]:
    return a_document(resource={"instanceType": "Standard_NC24ads_A100_v4", "labelSelector": SELECTOR} | resource)


def serving(**inference: Any) -> dict[str, Any]:
    return a_document(inference={"preset": PRESET} | inference)


def tuning(**changes: Any) -> dict[str, Any]:
    return a_document(tuning=TUNING | changes)


@pytest.mark.parametrize(
    "document",
    [
        serving(),
        serving(adapters=[ADAPTER]),
        tuning(),
        tuning(method="LoRA"),
        tuning(method="DPO"),
        with_resource(partition={"mode": "mig", "profile": "1g.10gb"}),
    ],
)
def test_good_documents_pass_and_may_be_applied_again(document: dict[str, Any]) -> None:
    assert complaints(document) == ""
    assert complaints(document, document) == ""


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (serving() | {"tuning": TUNING}, "exactly one of inference and tuning"),
        ({key: value for key, value in serving().items() if key != "inference"}, "exactly one of inference and tuning"),
        (serving(template={"spec": {}}), "exactly one of preset and template"),
        (serving(adapters=[ADAPTER, ADAPTER]), "names of adapters must be unique"),
        (serving(adapters=[{"source": {"name": "a"}}]), "exactly one of image, urls, volumeSource and workspace"),
        (serving(adapters=[ADAPTER | {"strength": "2"}]), "strength in body should match"),
        (serving(adapters=[{"source": {"image": "a"}}]), "source.name: Required value"),
        (serving(adapters=[{"source": {"name": f"a{index}", "image": "b"}} for index in range(11)]), "at most 10"),
        (serving(autoscaling={"minReplicas": 2, "maxReplicas": 1}), "minReplicas must be at most maxReplicas"),
        (tuning(input={"name": "x"}), "exactly one of urls, image and volumeSource"),
        (tuning(output={}), "exactly one of image and volumeSource"),
        (tuning(output={"image": "a"}), "image needs imagePushSecret"),
        (tuning(method="dora"), "tuning.method in body should match"),
        (with_resource(labelSelector={}), "must name at least one label"),
        (
            with_resource(labelSelector={"matchExpressions": [{"key": "a", "operator": "Exists"}]}),
            "operator In with exactly one value",
        ),
        (with_resource(partition={"mode": "mig"}), "mode mig needs profile"),
        (with_resource(partition={"mode": "accelerator"}), "mode accelerator needs count"),
        (with_resource(count=0), "greater than or equal to 1"),
        (a_document(name="a.b"), "metadata.name in body should match"),
    ],
)
def test_bad_documents_are_refused_without_a_webhook(document: dict[str, Any], words: str) -> None:
    assert words in complaints(document)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (serving(), tuning(), "inference cannot be turned into tuning or back"),
        (tuning(), serving(), "inference cannot be turned into tuning or back"),
        (serving(), serving(preset={"name": "phi-4"}), "preset cannot be changed"),
        (serving(), a_document(inference={"template": {"spec": {}}}), "preset and template cannot be exchanged"),
        (tuning(), tuning(preset={"name": "phi-4"}), "preset cannot be changed"),
        (tuning(), tuning(method="lora"), "method cannot be changed"),
        (tuning(), tuning(input=TUNING["input"] | {"name": "other"}), "name of the input cannot be changed"),
        (serving(), with_resource(instanceType="Standard_NC96ads_A100_v4"), "instanceType cannot be changed"),
        (serving(), with_resource(count=2), "count cannot be changed"),
        (serving(), with_resource(labelSelector={"matchLabels": {"app": "x"}}), "labelSelector cannot be changed"),
        (serving(), with_resource(partition={"mode": "accelerator", "count": 1}), "partition cannot be changed"),
    ],
)
def test_what_cannot_be_changed_is_refused_without_a_webhook(
    old: dict[str, Any], new: dict[str, Any], words: str
) -> None:
    assert words in complaints(new, old)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (serving(), serving(adapters=[ADAPTER], config="flags", autoscaling={"maxReplicas": 2})),
        (tuning(), tuning(method="QLoRA")),
        (tuning(), tuning(config="params", output={"volumeSource": {"emptyDir": {}}})),
        (with_resource(instanceType=""), with_resource()),
        (serving(), serving() | {"status": {"state": "Ready", "targetNodeCount": 1}}),
    ],
)
def test_what_can_be_changed_passes(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert complaints(new, old) == ""
