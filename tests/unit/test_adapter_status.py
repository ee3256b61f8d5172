# SPDX-License-Identifier: Apache-2.0
"""What is asked for and what replicas say in; status.adapters, AdaptersReady and pinned digests out."""

from dataclasses import replace
from typing import Any

import pytest

from builders import a_serve_plan
from kaito_ray.adapter_status import adapter_statuses, adapters_ready, loaded_count, pin
from kaito_ray.plan import AdapterPlan, Autoscaling, ServePlan
from kaito_ray.replica_report import ReplicaReport, parse_reports

ONE, TWO = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"
SQL = AdapterPlan("sql", {"image": "registry.example/sql:1"}, 1.0)
LAW = AdapterPlan("law", {"urls": ["https://host/a.json", "https://host/a.safetensors"]}, 0.5)


def plan(*adapters: AdapterPlan, replicas: int = 2) -> ServePlan:
    return replace(a_serve_plan(), adapters=adapters, replicas=replicas)


def says(adapter: AdapterPlan, state: str = "Ready", **more: Any) -> dict[str, Any]:
    ready = {"digest": ONE, "rank": 8, "size_bytes": 4096, "loaded_at": "2026-01-01T00:00:00+00:00"}
    known = ready if state == "Ready" else {}
    return {
        "name": adapter.name,
        "source": dict(adapter.source),
        "strength": adapter.strength,
        "state": state,
        **known,
        **more,
    }


def replicas(*each: list[dict[str, Any]]) -> tuple[ReplicaReport, ...]:
    return tuple(
        ReplicaReport.model_validate({"replica": f"r{number}", "adapters": adapters})
        for number, adapters in enumerate(each)
    )


HALF = "AdaptersPending: adapter sql: loaded on 1 of 2 replicas"
FAILS = {"reason": "RankTooHigh", "error": "its rank is 128, the maximum is 64"}


@pytest.mark.parametrize(
    ("reports", "state", "loaded", "digest", "ready"),
    [
        (replicas([says(SQL)], [says(SQL)]), "Loaded", 2, ONE, "AdaptersLoaded: 1 adapter is loaded on 2 replicas"),
        (replicas([says(SQL)], [says(SQL, "Loading")]), "Pending", 1, "", HALF),
        # A replica that has not heard of it, one that does not answer, and none that was asked.
        (replicas([says(SQL)], []), "Pending", 1, "", HALF),
        (replicas([says(SQL)]), "Pending", 1, "", HALF),
        ((), "Pending", 0, "", "AdaptersPending: adapter sql: loaded on 0 of 2 replicas"),
        # What they have is another version of it.
        (
            replicas([says(SQL)], [says(SQL, strength=0.3)]),
            "Pending", 1, "", HALF,
        ),
        (
            replicas([says(SQL)], [says(SQL, source={"image": "registry.example/sql:2"})]),
            "Pending", 1, "", HALF,
        ),
        (
            replicas([says(SQL)], [says(SQL, "Failed", **FAILS)]),
            "Failed", 1, "", "RankTooHigh: adapter sql: its rank is 128, the maximum is 64 (1 of 2 replicas)",
        ),
        (
            replicas([says(SQL, "Failed", **FAILS)], [says(SQL, "Failed", **FAILS)]),
            "Failed", 0, "", "RankTooHigh: adapter sql: its rank is 128, the maximum is 64",
        ),
        (
            replicas([says(SQL)], [says(SQL, digest=TWO)], [says(SQL)]),
            "Pending", 3, ONE,
            f"AdaptersPending: adapter sql: its tag moved while it was loaded; replicas have {ONE} on 2 and {TWO} on 1",
        ),
        # Loaded, and of no use.
        (
            replicas([says(SQL, reason="ChangesNothing", error="changes nothing")], [says(SQL)]),
            "Loaded", 2, ONE, "AdaptersLoaded: 1 adapter is loaded on 2 replicas; sql: changes nothing",
        ),
    ],
)  # fmt: skip
def test_an_adapter_is_what_all_replicas_say(
    reports: tuple[ReplicaReport, ...], state: str, loaded: int, digest: str, ready: str
) -> None:
    [one] = adapter_statuses(plan(SQL), reports)
    assert (one.state, one.loaded, one.digest) == (state, loaded, digest)
    verdict = adapters_ready([one], "")
    assert f"{verdict.reason}: {verdict.message}" == ready
    assert verdict.holds == (state == "Loaded")


def test_of_several_the_refused_one_is_named_first() -> None:
    reports = replicas([says(SQL, "Loading"), says(LAW, "Failed", **FAILS)])
    found = adapter_statuses(plan(SQL, LAW, replicas=1), reports)
    assert [(one.name, one.source, one.strength) for one in found] == [
        ("sql", "registry.example/sql:1", "1"),
        ("law", "https://host/a.json and 1 more", "0.5"),
    ]
    assert loaded_count(found) == "0/2"
    assert adapters_ready(found, "").message == "adapter law: its rank is 128, the maximum is 64"


def test_nothing_is_ready_that_cannot_be_asked() -> None:
    found = adapter_statuses(plan(SQL), replicas([says(SQL)], [says(SQL)]))
    verdict = adapters_ready(found, "the replicas cannot be asked: they answer 500")
    assert (verdict.holds, verdict.message) == (False, "the replicas cannot be asked: they answer 500")


def test_with_autoscaling_there_are_as_many_as_answer() -> None:
    scaled = replace(plan(SQL, replicas=4), autoscaling=Autoscaling(1, 4, 8))
    [one] = adapter_statuses(scaled, replicas([says(SQL)], [says(SQL)]))
    assert (one.state, one.loaded, one.replicas) == ("Loaded", 2, 2)


def test_digests_of_images_are_pinned_once_all_have_them() -> None:
    both = plan(SQL, LAW)
    reports = replicas(*[[says(SQL), says(LAW)]] * 2)
    status = {"adapters": [one.model_dump(by_alias=True) for one in adapter_statuses(both, reports)]}
    pinned = pin(both, status)
    assert isinstance(pinned, ServePlan)
    assert [adapter.source.get("digest") for adapter in pinned.adapters] == [ONE, None]
    # Whether replicas know of the pin yet makes no difference, and a gap in what is known does not lose it.
    for known in (reports, ()):
        assert adapter_statuses(pinned, known)[0].digest == ONE
    assert adapter_statuses(pinned, reports)[0].state == "Loaded"
    # A replica with something else behind the tag is not there yet; another tag is a new beginning.
    [moved, _] = adapter_statuses(pinned, replicas([says(SQL, digest=TWO)], [says(SQL)]))
    assert (moved.state, moved.loaded) == ("Pending", 1)
    renamed = plan(replace(SQL, source={"image": "registry.example/sql:2"}))
    assert pin(renamed, status) == renamed
    following = replace(both, follow_tags=True)
    assert pin(following, status) == following


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"<html>", b'[{"adapters": []}]', b'[{"replica": "a", "adapters": [{}]}]']
)
def test_answers_that_are_none(body: bytes) -> None:
    with pytest.raises(ValueError, match="the answer is not understood"):
        parse_reports(body)
