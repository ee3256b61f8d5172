# SPDX-License-Identifier: Apache-2.0
"""A Workspace document in; the Workspace, or every problem with its field, out."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builders import a_document, a_workspace
from kaito_ray.errors import InvalidManifest
from kaito_ray.workspace import Workspace, parse_workspace

USER_MANIFESTS = sorted((Path(__file__).parents[3] / "shared" / "user-manifests").glob("*.yaml"))

PRESET = {"name": "phi-3-mini-4k-instruct"}
INPUT = {"urls": ["https://example.com/train.parquet?download=true"]}
OUTPUT = {"image": "registry.example.com/adapters/phi-3:0.0.1", "imagePushSecret": "registry-push"}
TUNING = {"preset": PRESET, "method": "qlora", "input": INPUT, "output": OUTPUT}
SIZE = "Standard_NC24ads_A100_v4"
SELECTOR = {"matchLabels": {"apps": "phi-3"}}


def found(document: Any, **options: Any) -> dict[str, str]:
    """The problems of a document by field, empty when it is a Workspace."""
    try:
        parse_workspace(document, **options)
    except InvalidManifest as invalid:
        return {problem.field: problem.message for problem in invalid.problems}
    return {}


def serving(**inference: Any) -> dict[str, Any]:
    return a_document(inference={"preset": PRESET, **inference})


def with_adapter(source: Any, **adapter: Any) -> dict[str, Any]:
    return serving(adapters=[{"source": source, **adapter}])


def with_resource(**resource: Any) -> dict[str, Any]:
    return a_document(resource={"instanceType": SIZE, "labelSelector": SELECTOR, **resource})


def tuning(**changes: Any) -> dict[str, Any]:
    return a_document(tuning=TUNING | changes)


def without(document: dict[str, Any], *path: str) -> dict[str, Any]:
    part = document
    for key in path[:-1]:
        part[key] = dict(part[key])
        part = part[key]
    del part[path[-1]]
    return document


@pytest.mark.parametrize("path", USER_MANIFESTS, ids=lambda path: path.stem)
def test_manifests_of_users_parse(path: Path) -> None:
    workspace = parse_workspace(yaml.safe_load(path.read_text()))
    assert workspace.api_version == "kaito.sh/v1alpha1"
    assert (workspace.inference is None) != (workspace.tuning is None)
    assert workspace.resource.instance_type == "Standard_NC6s_v3"
    assert workspace.metadata.namespace == "default"


def test_inference_is_read_field_by_field() -> None:
    workspace = a_workspace(
        namespace="ml",
        uid="6a7b",
        annotations={"kaito.sh/enablelb": "True"},
        inference={
            "preset": {"name": "meta-llama/Llama-3.1-8B-Instruct", "presetOptions": {"modelAccessSecret": "hub"}},
            "config": "flags",
            "adapters": [
                {
                    "source": {"name": "sql", "image": "r.example/a:1", "imagePullSecrets": ["pull"]},
                    "strength": "0.5",
                },
                {"source": {"name": "fresh", "workspace": "my-tuning"}},
                {"source": {"name": "file", "volumeSource": {"hostPath": {"path": "/data"}}}},
            ],
            "autoscaling": {"maxReplicas": 4},
        },
    )
    assert workspace.metadata.namespace == "ml"
    inference = workspace.inference
    assert inference is not None
    assert inference.preset is not None
    assert inference.preset.preset_options.model_access_secret == "hub"
    assert inference.config == "flags"
    sql, fresh, file = inference.adapters
    assert (sql.source.name, sql.source.image, sql.source.image_pull_secrets) == ("sql", "r.example/a:1", ("pull",))
    assert (sql.strength, fresh.strength) == ("0.5", None)
    assert fresh.source.workspace == "my-tuning"
    assert file.source.volume_source == {"hostPath": {"path": "/data"}}
    assert inference.autoscaling is not None
    assert (inference.autoscaling.min_replicas, inference.autoscaling.max_replicas) == (1, 4)
    assert inference.autoscaling.target_ongoing_requests is None


def test_tuning_is_read_field_by_field() -> None:
    workspace = a_workspace(tuning=TUNING | {"method": "QLoRA", "config": "params"})
    assert workspace.tuning is not None
    assert workspace.tuning.method == "qlora"
    assert workspace.tuning.config == "params"
    assert workspace.tuning.input.urls == ("https://example.com/train.parquet?download=true",)
    assert workspace.tuning.output.image_push_secret == "registry-push"


@pytest.mark.parametrize(("version", "instance_type"), [("v1alpha1", SIZE), ("v1beta1", "")])
def test_only_v1alpha1_has_a_default_size(version: str, instance_type: str) -> None:
    workspace = a_workspace(apiVersion=f"kaito.sh/{version}", resource={"labelSelector": SELECTOR})
    assert workspace.resource.instance_type == instance_type
    assert workspace.resource.count == 1


def test_single_valued_expressions_are_labels() -> None:
    selector = {
        "matchLabels": {"apps": "phi-3", "kaito.sh/workspace": "other"},
        "matchExpressions": [{"key": "pool", "operator": "In", "values": ["a100"]}],
    }
    labels = a_workspace(resource={"labelSelector": selector}).resource.label_selector
    assert labels.match_labels == {"apps": "phi-3", "pool": "a100"}
    assert labels.ignored_keys == ("kaito.sh/workspace",)


def test_what_an_api_server_adds_is_no_problem() -> None:
    document = a_document(uid="6a7b", labels={"team": "a"}) | {"status": {"conditions": [{"type": "Ready"}], "x": 1}}
    document["metadata"] |= {
        "generation": 3,
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "managedFields": [{"manager": "kubectl"}],
        "finalizers": ["kaito-ray.io/workspace"],
    }
    workspace = parse_workspace(document)
    assert workspace.metadata.generation == 3
    assert workspace.status["x"] == 1


def test_nulls_are_as_good_as_absent() -> None:
    assert found(serving(config=None, adapters=None) | {"tuning": None}) == {}


# Broken documents: the field that is named, and words that its sentence must hold.
BROKEN: dict[str, tuple[Any, str, str]] = {
    # shape
    "no mapping": ([1], "", "must be a mapping"),
    "a spec": (a_document() | {"spec": {}}, "spec", "has no spec"),
    "api version": (a_document(apiVersion="kaito.sh/v1"), "apiVersion", 'kaito.sh/v1alpha1, got "kaito.sh/v1"'),
    "no name": (without(a_document(), "metadata", "name"), "metadata.name", "is missing"),
    "no resource": (without(a_document(), "resource"), "resource", "is missing"),
    "no selector": (without(with_resource(), "resource", "labelSelector"), "resource.labelSelector", "is missing"),
    "misspelled": (serving(adaptors=[]), "inference.adaptors", "did you mean adapters?"),
    "other case": (with_resource(instancetype=SIZE), "resource.instancetype", "did you mean instanceType?"),
    "elsewhere": (serving(instanceType=SIZE), "inference.instanceType", "did you mean resource.instanceType?"),
    "volume of the docs": (
        with_adapter({"name": "a", "volume": {}}),
        "inference.adapters[0].source.volume",
        "volumeSource?",
    ),
    "workspace as input": (
        tuning(input=INPUT | {"workspace": "x"}),
        "tuning.input.workspace",
        "did you mean inference.adapters[].source.workspace?",
    ),
    "number for text": (
        with_adapter({"name": "a", "image": "b"}, strength=1.0),
        "inference.adapters[0].strength",
        'write "1.0" in quotes',
    ),
    "text for number": (with_resource(count="2"), "resource.count", 'must be a whole number, got "2"'),
    "bool for number": (with_resource(count=True), "resource.count", "must be a whole number, got true"),
    "bool for annotation": (
        a_document(annotations={"kaito.sh/enablelb": True}),
        "metadata.annotations.kaito.sh/enablelb",
        'write "true" in quotes',
    ),
    "no nodes": (with_resource(count=0), "resource.count", "must be at least 1, got 0"),
    "mapping for list": (serving(adapters={}), "inference.adapters", "must be a list, got a mapping"),
    "list for mapping": (serving(preset=[]), "inference.preset", "must be a mapping, got a list"),
    "enum": (serving(preset=PRESET | {"accessMode": "secret"}), "inference.preset.accessMode", "public, private"),
    "eleven adapters": (
        serving(adapters=[{"source": {"name": f"a{index}", "image": "b"}} for index in range(11)]),
        "inference.adapters",
        "at most 10 entries, got 11",
    ),
    "empty name": (serving(preset={"name": ""}), "inference.preset.name", "must not be empty"),
    "not finite": (with_resource(count=float("nan")), "resource.count", "finite"),
    # the object
    "upper case name": (a_document(name="Phi"), "metadata.name", 'got "Phi"'),
    "dotted name": (a_document(name="phi.3"), "metadata.name", "lower-case"),
    "long name": (a_document(name="a" * 64), "metadata.name", "1 to 63"),
    "unicode name": (a_document(name="φ"), "metadata.name", "lower-case"),
    "both": (serving() | {"tuning": TUNING}, "", "both inference and tuning"),
    "neither": (without(a_document(), "inference"), "", "neither inference nor tuning"),
    "image family": (
        a_document(annotations={"kaito.sh/node-image-family": "windows"}),
        "metadata.annotations.kaito.sh/node-image-family",
        "azurelinux, ubuntu",
    ),
    "performance mode": (
        a_document(annotations={"kaito.sh/performance-mode": "fast"}),
        "metadata.annotations.kaito.sh/performance-mode",
        "balanced, interactivity, throughput",
    ),
    "keys' secret": (
        a_document(annotations={"kaito-ray.io/api-keys": "My Keys"}),
        "metadata.annotations.kaito-ray.io/api-keys",
        'got "My Keys"',
    ),
    "after tuning": (
        a_document(annotations={"kaito-ray.io/after-tuning": "drop"}),
        "metadata.annotations.kaito-ray.io/after-tuning",
        "serve, release",
    ),
    # nodes
    "empty selector": (with_resource(labelSelector={}), "resource.labelSelector", "at least one label"),
    "only reserved": (
        with_resource(labelSelector={"matchLabels": {"kaito.sh/workspace": "x"}}),
        "resource.labelSelector",
        "do not count",
    ),
    "label key": (
        with_resource(labelSelector={"matchLabels": {"a b": "c"}}),
        "resource.labelSelector.matchLabels.a b",
        "not a label key",
    ),
    "label value": (
        with_resource(labelSelector={"matchLabels": {"a": "c d"}}),
        "resource.labelSelector.matchLabels.a",
        'got "c d"',
    ),
    "expression": (
        with_resource(labelSelector={"matchExpressions": [{"key": "a", "operator": "Exists"}]}),
        "resource.labelSelector.matchExpressions[0].operator",
        "must be In",
    ),
    "two values": (
        with_resource(labelSelector={"matchExpressions": [{"key": "a", "operator": "In", "values": ["b", "c"]}]}),
        "resource.labelSelector.matchExpressions[0].values",
        "exactly one value, got 2",
    ),
    "contradiction": (
        with_resource(
            labelSelector=SELECTOR | {"matchExpressions": [{"key": "apps", "operator": "In", "values": ["other"]}]}
        ),
        "resource.labelSelector.matchExpressions[0].key",
        "another value",
    ),
    "mig profile": (with_resource(partition={"mode": "mig"}), "resource.partition.profile", "1g.10gb"),
    "mig count": (
        with_resource(partition={"mode": "mig", "profile": "1g.10gb", "count": 1}),
        "resource.partition.count",
        "cannot be set with mode mig",
    ),
    "accelerators": (with_resource(partition={"mode": "accelerator"}), "resource.partition.count", "is missing"),
    "partition of tuning": (
        tuning() | {"resource": {"labelSelector": SELECTOR, "partition": {"mode": "accelerator", "count": 1}}},
        "resource.partition",
        "cannot be used with tuning",
    ),
    # inference
    "preset and template": (
        serving(template={"spec": {"containers": [{"name": "a"}]}}),
        "inference",
        "both preset and template",
    ),
    "no preset": (a_document(inference={}), "inference", "neither preset nor template"),
    "no container": (a_document(inference={"template": {}}), "inference.template", "at least one container"),
    "preset name": (serving(preset={"name": "a/b/c"}), "inference.preset.name", "org/model"),
    "private in v1alpha1": (
        serving(preset=PRESET | {"accessMode": "private"}) | {"apiVersion": "kaito.sh/v1alpha1"},
        "inference.preset.presetOptions.image",
        "accessMode private needs it",
    ),
    "config name": (serving(config="My_Config"), "inference.config", 'got "My_Config"'),
    "strength": (
        with_adapter({"name": "a", "image": "b"}, strength="1.5"),
        "inference.adapters[0].strength",
        'between "0" and "1", got "1.5"',
    ),
    "strength of nothing": (
        with_adapter({"name": "a", "image": "b"}, strength="nan"),
        "inference.adapters[0].strength",
        "between",
    ),
    "strength with a new line": (
        with_adapter({"name": "a", "image": "b"}, strength="1.0\n"),
        "inference.adapters[0].strength",
        "between",
    ),
    "no source": (serving(adapters=[{"strength": "1"}]), "inference.adapters[0].source", "is missing"),
    "nameless adapter": (with_adapter({"image": "b"}), "inference.adapters[0].source.name", "is missing"),
    "adapter name": (
        with_adapter({"name": "My Adapter", "image": "b"}),
        "inference.adapters[0].source.name",
        'got "My Adapter"',
    ),
    "same name twice": (
        serving(adapters=[{"source": {"name": "a", "image": "b"}}, {"source": {"name": "a", "image": "c"}}]),
        "inference.adapters[1].source.name",
        "also the name of adapters[0]",
    ),
    "no place": (with_adapter({"name": "a"}), "inference.adapters[0].source", "got none"),
    "two places": (
        with_adapter({"name": "a", "image": "b", "workspace": "c"}),
        "inference.adapters[0].source",
        "got image and workspace",
    ),
    "image": (with_adapter({"name": "a", "image": "R/A:1"}), "inference.adapters[0].source.image", 'got "R/A:1"'),
    "workspace name": (
        with_adapter({"name": "a", "workspace": "A_B"}),
        "inference.adapters[0].source.workspace",
        "name of a tuning Workspace",
    ),
    "volume kind": (
        with_adapter({"name": "a", "volumeSource": {"hostpath": {}}}),
        "inference.adapters[0].source.volumeSource.hostpath",
        "did you mean hostPath?",
    ),
    "no claim": (
        with_adapter({"name": "a", "volumeSource": {"persistentVolumeClaim": {}}}),
        "inference.adapters[0].source.volumeSource.persistentVolumeClaim.claimName",
        "is missing",
    ),
    "two volumes": (
        with_adapter({"name": "a", "volumeSource": {"emptyDir": {}, "nfs": {}}}),
        "inference.adapters[0].source.volumeSource",
        "exactly one kind",
    ),
    "replicas": (
        serving(autoscaling={"minReplicas": 3, "maxReplicas": 2}),
        "inference.autoscaling.minReplicas",
        "at most maxReplicas, which is 2, got 3",
    ),
    # tuning
    "method": (tuning(method="dora"), "tuning.method", 'must be one of lora, qlora, dpo, got "dora"'),
    "no method": (without(tuning(), "tuning", "method"), "tuning.method", "is missing"),
    "no input": (without(tuning(), "tuning", "input"), "tuning.input", "is missing"),
    "no output": (without(tuning(), "tuning", "output"), "tuning.output", "is missing"),
    "empty input": (tuning(input={"urls": []}), "tuning.input", "exactly one of urls, image and volumeSource"),
    "two outputs": (
        tuning(output=OUTPUT | {"volumeSource": {"emptyDir": {}}}),
        "tuning.output",
        "got image and volumeSource",
    ),
    "no push secret": (tuning(output={"image": "r.example/a"}), "tuning.output.imagePushSecret", "is missing"),
    "private data": (tuning(input={"urls": ["http://10.0.0.1/x"]}), "tuning.input.urls[0]", "a private address"),
    "password in a URL": (tuning(input={"urls": ["https://me:pw@x.example/"]}), "tuning.input.urls[0]", "password"),
}  # fmt: skip


@pytest.mark.parametrize(("document", "field", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_documents_name_the_field(document: Any, field: str, words: str) -> None:
    problems = found(document)
    assert field in problems
    assert words in problems[field]


def test_all_problems_are_reported_at_once() -> None:
    document = serving(preset={"name": "a b"}, adapters=[{"source": {"name": "a"}, "strength": "2"}], config=5)
    document["metadata"] = {"name": "A"}
    document["resource"] = {"labelSelector": {}, "cuont": 2}
    assert set(found(document)) == {
        "metadata.name",
        "resource.cuont",
        "resource.labelSelector",
        "inference.preset.name",
        "inference.config",
        "inference.adapters[0].strength",
        "inference.adapters[0].source",
    }


@pytest.mark.parametrize("strength", ["0", "1", "1.0", "0.5", ".25", "0."])
def test_strengths_between_nought_and_one_are_taken(strength: str) -> None:
    assert found(with_adapter({"name": "a", "image": "b"}, strength=strength)) == {}


@pytest.mark.parametrize(
    "image",
    [
        "a",
        "registry.example:5000/team/adapter_x:1.0-rc",
        f"a.b/c@sha256:{'0' * 64}",
        "ACR_REPO_HERE.azurecr.io/A_HERE:1",
    ],
)
def test_images_and_placeholders_are_taken(image: str) -> None:
    assert found(with_adapter({"name": "a", "image": image})) == {}


@pytest.mark.parametrize("key", ["kaito.sh/node-image-family"])
def test_image_family_may_be_written_in_any_way(key: str) -> None:
    assert found(a_document(annotations={key: "Azure Linux"})) == {}


def test_private_urls_can_be_allowed() -> None:
    document = tuning(input={"urls": ["http://minio.data.svc/x.json"]})
    assert "tuning.input.urls[0]" in found(document)
    assert found(document, allow_private_urls=["minio.data.svc"]) == {}


def test_values_below_a_wrong_field_are_not_repeated() -> None:
    problems = found(tuning(output={"image": "r.example/a", "imagePushSecret": {"password": "hunter2"}}))
    assert problems == {"tuning.output.imagePushSecret": "must be a string, got a mapping"}


def test_depth_is_bounded() -> None:
    template: Any = {}
    for _ in range(5000):
        template = {"a": template}
    assert any("nested deeper" in message for message in found(a_document(inference={"template": template})).values())


TEXT = st.text("aZ09-_./:{}<>é \n", max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
# How fast examples are drawn says nothing about what is tested, and depends on what else the machine does.
RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
SCHEMA = Workspace.model_json_schema()
FIELDS = st.sampled_from(
    sorted({name for model in (SCHEMA, *SCHEMA["$defs"].values()) for name in model["properties"]})
)
PARTS = st.recursive(
    JSON | st.sampled_from(["kaito.sh/v1alpha1", "Workspace", "qlora", "mig", "In", "http://x", "A_HERE"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=4),
    max_leaves=15,
)


@RELAXED
@given(st.dictionaries(FIELDS, PARTS, max_size=6))
def test_any_document_is_read_or_refused(document: dict[str, Any]) -> None:
    for problem in found(document).values():
        assert problem


@RELAXED
@given(
    st.sampled_from([serving(adapters=[{"source": {"name": "a", "image": "b"}}], autoscaling={}), tuning()]),
    st.data(),
)
def test_any_value_in_any_place_is_read_or_refused(document: dict[str, Any], data: st.DataObject) -> None:
    found(_mutated(document, data))


def _mutated(value: Any, data: st.DataObject) -> Any:
    """A copy with one part, anywhere, replaced by anything."""
    if isinstance(value, dict) and value and data.draw(st.integers(0, 4)):
        key = data.draw(st.sampled_from(sorted(value)))
        return value | {key: _mutated(value[key], data)}
    if isinstance(value, list) and value and data.draw(st.integers(0, 4)):
        return [_mutated(value[0], data), *value[1:]]
    return data.draw(PARTS)
