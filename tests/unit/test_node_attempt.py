# SPDX-License-Identifier: Apache-2.0
"""Which nodes are asked for next: wishes, failures, blocks and quotas in, an offer or a wait out."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from builders import a_workspace
from kaito_ray.errors import InvalidManifest
from kaito_ray.nodes.attempt import Blocked, backoff, choose
from kaito_ray.nodes.block import Block, Offer, block_after
from kaito_ray.nodes.candidate import Candidate, Priority, Spot, candidates_of, size_in_use, spot_of, wanted_sizes
from kaito_ray.nodes.failure import Reason
from kaito_ray.nodes.quota import parse_usages, quota_blocks, without_lifted
from kaito_ray.nodes.record import Attempt, PoolRecord, parse_record
from kaito_ray.settings import NodeTimeoutPolicy
from kaito_ray.sku import load_sizes

NOW = datetime(2026, 9, 1, 12, tzinfo=UTC)
SIZES = load_sizes()
A100, A100_TWICE, H100 = "Standard_NC24ads_A100_v4", "Standard_NC48ads_A100_v4", "Standard_NC40ads_H100_v5"


def ago(minutes: float) -> datetime:
    return NOW - timedelta(minutes=minutes)


ON_DEMAND, SPOT = Candidate(A100), Candidate(A100, Priority.SPOT)


def an_attempt(reason: Reason, candidate: Candidate = ON_DEMAND, *, minutes: float = 0.1, **more: Any) -> Attempt:
    values: dict[str, Any] = {"number": 1, "nodes": 1, "message": "Azure's words", "at": ago(minutes)} | more
    return Attempt(candidate=candidate, reason=reason, **values)


def offers_of(*sizes: str, spot: Spot = Spot.NEVER, zones: tuple[str, ...] = ("1", "2"), nodes: int = 1) -> list[Offer]:
    return [Offer(one, SIZES.get(one.instance_type), nodes) for one in candidates_of(sizes, spot, zones)]


def chosen(offers: list[Offer], *attempts: Attempt, policy: NodeTimeoutPolicy = NodeTimeoutPolicy.RETRY) -> str:
    blocks = [block for one in attempts if (block := block_after(one, SIZES.get(one.candidate.instance_type)))]
    choice = choose(offers, attempts, blocks, NOW, policy)
    if isinstance(choice, Blocked):
        if choice.until is None:
            return f"{choice.reason} for ever"
        return f"{choice.reason} for {(choice.until - NOW).total_seconds() / 60:g} min"
    return str(choice.candidate)


@pytest.mark.parametrize(
    ("annotations", "sizes"),
    [
        ({}, (A100,)),
        ({"kaito-ray.io/instance-types": f"{H100}, {A100.upper()} ,,{A100_TWICE}"}, (A100, H100, A100_TWICE)),
    ],
)
def test_sizes_in_the_order_of_the_wish(annotations: dict[str, str], sizes: tuple[str, ...]) -> None:
    assert wanted_sizes(a_workspace(annotations=annotations), "Standard_Planned") == sizes


def test_without_a_wish_the_planned_size_is_asked_for() -> None:
    workspace = a_workspace(resource={"labelSelector": {"matchLabels": {"a": "b"}}})
    assert wanted_sizes(workspace, A100) == (A100,)
    assert size_in_use(workspace) == ""
    assert size_in_use(a_workspace(status={"nodePool": {"instanceType": H100}})) == H100


def test_every_candidate_in_its_order() -> None:
    assert [str(one) for one in candidates_of([A100, H100], Spot.PREFER, ["1"])] == [
        f"{A100} (spot)",
        A100,
        f"{H100} (spot)",
        H100,
        f"{A100} (spot, zone 1)",
        f"{A100} (zone 1)",
        f"{H100} (spot, zone 1)",
        f"{H100} (zone 1)",
    ]


@pytest.mark.parametrize(("value", "spot"), [("prefer", Spot.PREFER), ("require", Spot.REQUIRE), ("never", Spot.NEVER)])
def test_what_is_said_about_spot(value: str, spot: Spot) -> None:
    assert spot_of(a_workspace(annotations={"kaito-ray.io/spot": value})) is spot


def test_spot_takes_no_other_word() -> None:
    with pytest.raises(InvalidManifest, match="must be one of prefer, require, never, got"):
        a_workspace(annotations={"kaito-ray.io/spot": "true"})


@pytest.mark.parametrize(
    ("offers", "attempts", "choice"),
    [
        (offers_of(A100), [], A100),
        # Quota: the family is blocked from the size that failed upwards, other families and spot are not.
        (offers_of(A100, H100), [an_attempt(Reason.FAMILY_QUOTA)], H100),
        (offers_of(A100), [an_attempt(Reason.FAMILY_QUOTA)], "SkuFamilyQuotaExceeded for 9.9 min"),
        (
            offers_of(A100),
            [an_attempt(Reason.FAMILY_QUOTA, message="Current Limit: 0")],
            "SkuFamilyQuotaExceeded for 59.9 min",
        ),
        (offers_of(A100), [an_attempt(Reason.FAMILY_QUOTA, minutes=11)], A100),
        (offers_of(A100_TWICE), [an_attempt(Reason.FAMILY_QUOTA)], "SkuFamilyQuotaExceeded for 9.9 min"),
        (offers_of(A100), [an_attempt(Reason.FAMILY_QUOTA, Candidate(A100_TWICE))], A100),
        (offers_of(A100), [an_attempt(Reason.FAMILY_QUOTA, nodes=2)], "SkuFamilyQuotaExceeded for 0.9 min"),
        (offers_of(A100, spot=Spot.PREFER), [an_attempt(Reason.SPOT_QUOTA, SPOT)], A100),
        (
            offers_of(A100, H100, spot=Spot.REQUIRE),
            [an_attempt(Reason.SPOT_QUOTA, SPOT)],
            "SpotQuotaExceeded for 59.9 min",
        ),
        (offers_of(A100, H100), [an_attempt(Reason.REGIONAL_QUOTA)], "RegionalQuotaExceeded for 14.9 min"),
        # A size that is not offered: a day on demand, an hour as spot, where it only means that there is none left.
        (offers_of(A100), [an_attempt(Reason.SKU_UNAVAILABLE)], "SkuNotAvailable for 1379.9 min"),
        (offers_of(A100_TWICE), [an_attempt(Reason.SKU_UNAVAILABLE)], A100_TWICE),
        (
            offers_of(A100, spot=Spot.REQUIRE),
            [an_attempt(Reason.SKU_UNAVAILABLE, SPOT)],
            "SkuNotAvailable for 59.9 min",
        ),
        # Capacity: all sizes of the region first, then one zone after the other.
        (offers_of(A100, H100), [an_attempt(Reason.CAPACITY)], H100),
        (offers_of(A100), [an_attempt(Reason.CAPACITY)], f"{A100} (zone 1)"),
        (offers_of(A100, zones=()), [an_attempt(Reason.CAPACITY)], "AllocationFailed for 59.9 min"),
        (
            offers_of(A100),
            [an_attempt(Reason.CAPACITY), an_attempt(Reason.ZONAL_CAPACITY, Candidate(A100, zone="1"), number=2)],
            f"{A100} (zone 2)",
        ),
        (offers_of(A100), [an_attempt(Reason.FAMILY_QUOTA, minutes=1)], "SkuFamilyQuotaExceeded for 9 min"),
        # What another size does not cure.
        (offers_of(A100, H100), [an_attempt(Reason.SUBNET)], "SubnetTooSmall for 14.9 min"),
        (offers_of(A100, H100), [an_attempt(Reason.PREEMPTED)], "OperationPreempted for 0.9 min"),
        (offers_of(A100, H100), [an_attempt(Reason.TRANSIENT)], "AzureUnavailable for 0.9 min"),
        # Machines that do not start: once more at once, then slowly.
        (offers_of(A100, H100), [an_attempt(Reason.BOOTSTRAP)], A100),
        (
            offers_of(A100),
            [an_attempt(Reason.BOOTSTRAP), an_attempt(Reason.BOOTSTRAP)],
            "NodeBootstrapFailed for 14.9 min",
        ),
        # Failures of one candidate alone: the others first, then the same with a growing pause.
        (offers_of(A100, H100), [an_attempt(Reason.UNKNOWN, minutes=30)], H100),
        (offers_of(A100, H100), [an_attempt(Reason.TIMED_OUT, minutes=30)], H100),
        (offers_of(A100), [an_attempt(Reason.UNKNOWN)] * 3, "ProvisioningFailed for 3.9 min"),
        (offers_of(A100), [an_attempt(Reason.INVALID)], "AgentPoolInvalid for 14.9 min"),
        (offers_of(A100), [an_attempt(Reason.NAME_TAKEN)], A100),
    ],
)
def test_what_is_tried_next(offers: list[Offer], attempts: list[Attempt], choice: str) -> None:
    assert chosen(offers, *attempts) == choice


def test_stop_after_a_timeout_means_that_size_in_any_form() -> None:
    stop = NodeTimeoutPolicy.STOP
    timed_out = an_attempt(Reason.TIMED_OUT, minutes=1000)
    assert chosen(offers_of(A100, spot=Spot.PREFER), timed_out, policy=stop) == "NodesTimedOut for ever"
    assert chosen(offers_of(A100, H100), timed_out, policy=stop) == H100
    assert chosen(offers_of(A100), timed_out) == A100


def test_a_wait_tells_azures_words_what_to_do_and_when() -> None:
    offers = offers_of(A100, H100)
    attempts = [
        an_attempt(Reason.FAMILY_QUOTA, message="Azure says no"),
        an_attempt(Reason.SKU_UNAVAILABLE, Candidate(H100), number=2),
    ]
    blocks = [block for one in attempts if (block := block_after(one, SIZES.get(one.candidate.instance_type)))]
    choice = choose(offers, attempts, blocks, NOW)
    assert isinstance(choice, Blocked)
    assert choice.message == (
        f"{A100}: Azure says no; {H100}: SkuNotAvailable; what to do: ask for more vCPUs of this size's family"
        " (https://aka.ms/quotas), or name sizes of other families in kaito-ray.io/instance-types;"
        " tried again at 2026-09-01T12:09:54Z"
    )


@pytest.mark.parametrize(("failures", "minutes"), [(1, 1), (2, 2), (3, 4), (4, 8), (5, 15), (50, 15)])
def test_backoff_grows_to_a_quarter_of_an_hour(failures: int, minutes: int) -> None:
    assert backoff(failures) == timedelta(minutes=minutes)


USAGES = parse_usages(
    {
        "value": [
            {"name": {"value": "standardNCADSA100v4Family"}, "limit": 48, "currentValue": 24},
            {"name": {"value": "Standard NCadsH100v5 Family"}, "limit": 0, "currentValue": 0},
            {"name": {"value": "cores"}, "limit": 1000, "currentValue": 10},
            {"name": {"value": "lowPriorityCores"}, "limit": 3, "currentValue": 0},
        ]
    },
    "eastus",
    NOW,
)


@pytest.mark.parametrize(
    ("offer", "shortage"),
    [
        (offers_of(A100)[0], None),
        (offers_of(A100, nodes=2)[0], Reason.FAMILY_QUOTA),
        (offers_of(H100)[0], Reason.FAMILY_QUOTA),
        (offers_of(A100, spot=Spot.REQUIRE)[0], Reason.SPOT_QUOTA),
        (offers_of("Standard_NV36ads_A10_v5", nodes=40)[0], Reason.REGIONAL_QUOTA),
        (offers_of("Standard_NV36ads_A10_v5")[0], None),  # a family that is not listed may well be granted
    ],
)
def test_what_the_regions_quota_leaves_room_for(offer: Offer, shortage: Reason | None) -> None:
    blocks = list(quota_blocks([offer], USAGES))
    assert [block.reason for block in blocks] == ([shortage] if shortage else [])


def test_the_numbers_of_a_shortage() -> None:
    (block,) = quota_blocks(offers_of(A100, nodes=2, zones=()), USAGES)
    assert block.message == (
        f"2 x {A100} needs 48 vCPUs of StandardNCADSA100v4Family in eastus, of which 24 of 48 are in use"
        " (Current Limit: 48)"
    )


@pytest.mark.parametrize(("learned", "holds"), [(5, False), (-5, True)])
def test_a_block_ends_when_the_quota_read_later_has_room(learned: int, holds: bool) -> None:
    attempt = an_attempt(Reason.FAMILY_QUOTA, at=NOW - timedelta(minutes=learned))
    block = block_after(attempt, SIZES.get(A100))
    assert block is not None
    assert (list(without_lifted([block], offers_of(A100), USAGES)) == [block]) is holds
    capacity = block_after(an_attempt(Reason.CAPACITY, minutes=5), SIZES.get(A100))
    assert isinstance(capacity, Block)
    assert list(without_lifted([capacity], offers_of(A100), USAGES)) == [capacity]


def test_what_the_status_remembers_comes_back_as_it_was() -> None:
    record = PoolRecord(
        name="kabc",
        attempt=3,
        candidate=Candidate(A100, Priority.SPOT, "2"),
        state="Creating",
        ready=1,
        wanted=2,
        hourly_usd=7.346,
        message="on its way",
        created_at=ago(5),
        ready_at=ago(3),
        lost_at=ago(2),
        repaired_at=ago(1),
        next_attempt_at=NOW,
        attempts=(an_attempt(Reason.CAPACITY, SPOT, at=ago(9)),),
    )
    assert parse_record(record.render()) == record
    assert parse_record(None) == PoolRecord()
    assert parse_record({"attempt": "x", "attempts": [{"reason": "Newer", "time": "2026"}, {}]}) == PoolRecord()


def test_only_the_newest_attempts_are_kept() -> None:
    record = PoolRecord()
    for number in range(1, 21):
        record = record.with_attempt(an_attempt(Reason.UNKNOWN, number=number))
    assert [one.number for one in record.attempts] == list(range(9, 21))
    assert record.attempt == 20
