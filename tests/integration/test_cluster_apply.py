# SPDX-License-Identifier: Apache-2.0
"""Server-side apply on the test cluster: who owns what, what is taken away, and what is refused."""

from typing import Any

import pytest

from cluster.client import Client, Refused
from cluster.fixture import Cluster
from cluster.widget import a_widget


def owned(obj: dict[str, Any], manager: str, operation: str = "Apply") -> dict[str, Any]:
    """The FieldsV1 of a manager."""
    entries = [
        one for one in obj["metadata"]["managedFields"] if (one["manager"], one["operation"]) == (manager, operation)
    ]
    assert len(entries) == 1, obj["metadata"]["managedFields"]
    fields: dict[str, Any] = entries[0]["fieldsV1"]
    return fields


def test_apply_creates_and_owns_what_it_names(widgets: Client, cluster: Cluster) -> None:
    made = widgets.apply(a_widget(namespace=cluster.namespace, parts=[{"name": "x", "color": "red"}]), "one")
    assert made["size"] == {"unit": "cm", "count": 1}
    assert owned(made, "one") == {
        "f:size": {"f:unit": {}},
        "f:left": {},
        "f:parts": {'k:{"name":"x"}': {".": {}, "f:name": {}, "f:color": {}}},
    }
    entry = made["metadata"]["managedFields"][0]
    assert (entry["fieldsType"], entry["apiVersion"], "time" in entry) == ("FieldsV1", "test.kaito-ray.io/v1", True)


def test_applying_the_same_again_writes_nothing(widgets: Client, cluster: Cluster) -> None:
    widget = a_widget(namespace=cluster.namespace, tags=["a"], parts=[{"name": "x"}])
    first = widgets.apply(widget, "one")
    again = widgets.apply(widget, "one")
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


def test_a_conflict_names_manager_and_field(widgets: Client, cluster: Cluster) -> None:
    widgets.apply(a_widget(namespace=cluster.namespace, size={"unit": "cm", "count": 2, "note": "n"}), "one")
    with pytest.raises(Refused) as caught:
        widgets.apply(a_widget(namespace=cluster.namespace, size={"unit": "cm", "count": 3}), "two")
    assert caught.value.code == 409
    assert caught.value.message == 'Apply failed with 1 conflict: conflict with "one": .size.count'
    causes = [{"reason": "FieldManagerConflict", "message": 'conflict with "one"', "field": ".size.count"}]
    assert caught.value.status["details"]["causes"] == causes
    with pytest.raises(Refused) as caught:
        widgets.apply(a_widget(namespace=cluster.namespace, size={"unit": "cm", "count": 3, "note": "m"}), "two")
    assert caught.value.message == ('Apply failed with 2 conflicts: conflicts with "one":\n- .size.count\n- .size.note')


def test_a_conflict_with_an_update_names_version_and_time(widgets: Client, cluster: Cluster) -> None:
    widgets.create(a_widget(namespace=cluster.namespace, size={"unit": "cm", "count": 2}), fieldManager="maker")
    with pytest.raises(Refused) as caught:
        widgets.apply(a_widget(namespace=cluster.namespace, size={"unit": "cm", "count": 3}), "two")
    assert 'conflict with "maker" using test.kaito-ray.io/v1' in caught.value.message


def test_force_takes_the_field_over(widgets: Client, cluster: Cluster) -> None:
    widgets.apply(a_widget(namespace=cluster.namespace, size={"unit": "cm", "count": 2}), "one")
    taken = widgets.apply(a_widget(namespace=cluster.namespace, size={"unit": "cm", "count": 3}), "two", force=True)
    assert taken["size"]["count"] == 3
    assert "f:count" in owned(taken, "two")["f:size"]
    assert "f:count" not in owned(taken, "one")["f:size"]


def test_equal_values_are_owned_together(widgets: Client, cluster: Cluster) -> None:
    widget = a_widget(namespace=cluster.namespace, size={"unit": "cm", "count": 2})
    widgets.apply(widget, "one")
    shared = widgets.apply(widget, "two")
    assert "f:count" in owned(shared, "one")["f:size"]
    assert "f:count" in owned(shared, "two")["f:size"]
    left = widgets.apply(a_widget(namespace=cluster.namespace), "one")
    assert left["size"]["count"] == 2, "the other manager still wants it"
    left = widgets.apply(a_widget(namespace=cluster.namespace), "two")
    assert left["size"]["count"] == 1, "nobody wants it any more, so the default is back"


def test_fields_no_longer_applied_are_removed_and_others_stay(widgets: Client, cluster: Cluster) -> None:
    widgets.apply(a_widget(namespace=cluster.namespace, tags=["a", "b"], parts=[{"name": "x"}, {"name": "y"}]), "one")
    made = widgets.apply(
        a_widget(namespace=cluster.namespace, size={"unit": "cm"}, tags=["c"], parts=[{"name": "z"}]), "two"
    )
    assert [part["name"] for part in made["parts"]] == ["x", "y", "z"]
    slim = widgets.apply(a_widget(namespace=cluster.namespace, tags=["b"], parts=[{"name": "y"}]), "one")
    assert sorted(slim["tags"]) == ["b", "c"]
    assert [part["name"] for part in slim["parts"]] == ["y", "z"]
    assert [part["color"] for part in slim["parts"]] == ["grey", "grey"]


def test_labels_and_annotations_of_others_are_left_alone(widgets: Client, cluster: Cluster) -> None:
    widget = a_widget(namespace=cluster.namespace)
    widget["metadata"]["labels"] = {"ours": "1", "gone": "1"}
    made = widgets.apply(widget, "one")
    widgets.patch(made, {"metadata": {"labels": {"theirs": "2"}, "annotations": {"theirs": "2"}}})
    del widget["metadata"]["labels"]["gone"]
    after = widgets.apply(widget, "one")
    assert after["metadata"]["labels"] == {"ours": "1", "theirs": "2"}
    assert after["metadata"]["annotations"] == {"theirs": "2"}
    del widget["metadata"]["labels"]
    assert widgets.apply(widget, "one")["metadata"]["labels"] == {"theirs": "2"}


def test_a_plain_update_moves_ownership_and_the_next_apply_conflicts(widgets: Client, cluster: Cluster) -> None:
    made = widgets.apply(a_widget(namespace=cluster.namespace, size={"unit": "cm", "count": 2}), "one")
    edited = widgets.patch(made, {"size": {"count": 5}}, fieldManager="kubectl-edit")
    assert owned(edited, "kubectl-edit", "Update") == {"f:size": {"f:count": {}}}
    assert "f:count" not in owned(edited, "one")["f:size"]
    with pytest.raises(Refused) as caught:
        widgets.apply(a_widget(namespace=cluster.namespace, size={"unit": "cm", "count": 2}), "one")
    assert "kubectl-edit" in caught.value.message


def test_status_is_owned_apart(widgets: Client, cluster: Cluster) -> None:
    widget = a_widget(namespace=cluster.namespace)
    widgets.apply(widget, "one")
    conditions = [{"type": "Ready", "status": "True"}]
    status = {key: widget[key] for key in ("apiVersion", "kind", "metadata")} | {"status": {"conditions": conditions}}
    made = widgets.apply(status, "one", subresource="status")
    assert made["status"]["conditions"] == conditions
    entries = {(one["manager"], one.get("subresource", "")) for one in made["metadata"]["managedFields"]}
    assert entries == {("one", ""), ("one", "status")}
    again = widgets.apply(widget, "one")
    assert again["status"]["conditions"] == conditions


def test_apply_without_a_manager_is_refused(widgets: Client, cluster: Cluster) -> None:
    with pytest.raises(Refused) as caught:
        widgets.apply(a_widget(namespace=cluster.namespace), "")
    assert caught.value.code == 422
    assert "fieldManager: Required value: is required for apply patch" in caught.value.message


def test_unknown_fields_are_refused(widgets: Client, cluster: Cluster) -> None:
    with pytest.raises(Refused) as caught:
        widgets.apply(a_widget(namespace=cluster.namespace, size={"unit": "cm", "cuont": 1}), "one")
    assert caught.value.code == 500
    assert ".size.cuont: field not declared in schema" in caught.value.message


def test_a_dry_run_shows_the_result_and_keeps_the_object(widgets: Client, cluster: Cluster) -> None:
    made = widgets.apply(a_widget(namespace=cluster.namespace), "one")
    shown = widgets.apply(a_widget(namespace=cluster.namespace, tags=["a"]), "one", dryRun="All")
    assert shown["tags"] == ["a"]
    assert widgets.get(made["apiVersion"], made["kind"], "w", cluster.namespace) == made


def test_core_kinds_merge_by_their_keys(cluster: Cluster) -> None:
    def a_service(*ports: dict[str, Any], **spec: Any) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "s", "namespace": cluster.namespace},
            "spec": {"ports": list(ports), **spec},
        }

    cluster.client.apply(a_service({"name": "a", "port": 80}, selector={"app": "x"}), "one")
    both = cluster.client.apply(a_service({"name": "b", "port": 81}), "two")
    assert [port["port"] for port in both["spec"]["ports"]] == [80, 81]
    assert owned(both, "two")["f:spec"]["f:ports"] == {
        'k:{"port":81,"protocol":"TCP"}': {".": {}, "f:name": {}, "f:port": {}}
    }
    assert owned(both, "one")["f:spec"]["f:selector"] == {}, "a selector is one value, not a map of owned keys"
    left = cluster.client.apply(a_service({"name": "b2", "port": 81}), "two")
    assert [port["name"] for port in left["spec"]["ports"]] == ["a", "b2"]


def test_quantities_in_other_spellings_do_not_count_as_changes(cluster: Cluster) -> None:
    container = {"name": "c", "image": "i:1", "resources": {"limits": {"cpu": "0.5", "memory": "1024Mi"}}}
    labels = {"app": "d"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "d", "namespace": cluster.namespace},
        "spec": {"selector": {"matchLabels": labels}, "template": template},
    }
    first = cluster.client.apply(deployment, "one")
    again = cluster.client.apply(deployment, "one")
    assert again["metadata"]["generation"] == first["metadata"]["generation"] == 1
    (stored,) = again["spec"]["template"]["spec"]["containers"]
    assert stored["resources"]["limits"] == {"cpu": "500m", "memory": "1Gi"}


def test_managed_fields_can_be_cleared(widgets: Client, cluster: Cluster) -> None:
    made = widgets.apply(a_widget(namespace=cluster.namespace), "one")
    cleared = widgets.patch(made, {"metadata": {"managedFields": [{}]}, "tags": ["a"]}, fieldManager="two")
    assert "managedFields" not in cleared["metadata"]
    updated = widgets.patch(made, {"tags": ["b"]}, fieldManager="two")
    assert "managedFields" not in updated["metadata"], "nothing is kept until the first apply"
    applied = widgets.apply(a_widget(namespace=cluster.namespace), "three")
    assert [one["manager"] for one in applied["metadata"]["managedFields"]] == ["three", "before-first-apply"]


def test_an_apply_names_the_object_it_means(widgets: Client, cluster: Cluster) -> None:
    named = a_widget(namespace=cluster.namespace)
    named["metadata"]["uid"] = "another"
    with pytest.raises(Refused) as absent:
        widgets.apply(named, "one")
    assert (absent.value.code, "uid mismatch" in absent.value.message) == (409, True)
    widgets.create(a_widget(namespace=cluster.namespace))
    with pytest.raises(Refused, match=r"metadata\.uid: Invalid value: .*another.*: field is immutable"):
        widgets.apply(named, "one")
    status = {**named, "status": {"state": "s"}}
    assert widgets.apply(status, "one", subresource="status")["status"] == {"state": "s"}, "metadata is not looked at"
