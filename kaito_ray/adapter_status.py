# SPDX-License-Identifier: Apache-2.0
"""The adapters that a plan asks for and what the replicas say of them in; `status.adapters` and AdaptersReady out.

Pure; called by status.py. An adapter is Loaded when every replica says so and all have the same digest.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from kaito_ray.artifacts.reason import Reason
from kaito_ray.plan import AdapterPlan, Plan, ServePlan
from kaito_ray.replica_report import AdapterReport, ReplicaReport
from kaito_ray.verdict import Verdict
from kaito_ray.workspace_status import AdapterStatus

PENDING, LOADED, FAILED = "Pending", "Loaded", "Failed"
ADAPTERS_PENDING = "AdaptersPending"


def adapter_statuses(plan: Plan | None, reports: tuple[ReplicaReport, ...]) -> tuple[AdapterStatus, ...]:
    """Every adapter of the plan, in the plan's order."""
    if not isinstance(plan, ServePlan):
        return ()
    # A replica that is silent counts; with autoscaling nobody else knows how many there are.
    replicas = max(len(reports), 0 if plan.autoscaling else plan.replicas)
    return tuple(_adapter(one, reports, replicas) for one in plan.adapters)


def adapters_ready(adapters: Iterable[AdapterStatus], silence: str) -> Verdict:
    """All are loaded on all replicas; `silence` is why the replicas could not be asked, empty when they could."""
    adapters = tuple(adapters)
    for state in (FAILED, PENDING):
        found = [one for one in adapters if one.state == state]
        if found:
            rest = f"; and {len(found) - 1} more" if len(found) > 1 else ""
            reason = found[0].reason or "AdapterFailed" if state == FAILED else ADAPTERS_PENDING
            text = found[0].error or silence or _progress(found[0])
            return Verdict(False, reason, f"adapter {found[0].name}: {text}{rest}")
    if silence:
        return Verdict(False, ADAPTERS_PENDING, silence)
    count = f"{len(adapters)} adapters are" if len(adapters) != 1 else "1 adapter is"
    where = f"{adapters[0].replicas} replicas" if adapters and adapters[0].replicas != 1 else "1 replica"
    remarks = "".join(f"; {one.name}: {one.error}" for one in adapters if one.error)
    return Verdict(True, "AdaptersLoaded", f"{count} loaded on {where}{remarks}")


def loaded_count(adapters: Iterable[AdapterStatus]) -> str:
    """As a column shows it, `2/3`; empty when there are none."""
    states = [one.state == LOADED for one in adapters]
    return f"{sum(states)}/{len(states)}" if states else ""


def pin(plan: Plan, status: Mapping[str, Any]) -> Plan:
    """The plan with images at the digest that all replicas once loaded, so that none gets another later.

    `status` is the Workspace's. A tag is looked up anew when the Workspace names another one, and when the adapter is
    removed and added again; with `follow_tags` nothing is pinned.
    """
    if not isinstance(plan, ServePlan) or plan.follow_tags:
        return plan
    known = {
        (one.get("name"), one.get("source")): one["digest"] for one in status.get("adapters") or () if one.get("digest")
    }
    return replace(plan, adapters=tuple(_pinned(one, known) for one in plan.adapters))


def _pinned(adapter: AdapterPlan, known: Mapping[Any, str]) -> AdapterPlan:
    digest = known.get((adapter.name, _shown(adapter.source)))
    if digest is None or not adapter.source.get("image") or adapter.source.get("digest"):
        return adapter
    return replace(adapter, source={**adapter.source, "digest": digest})


def _adapter(wanted: AdapterPlan, reports: tuple[ReplicaReport, ...], replicas: int) -> AdapterStatus:
    told = [found for report in reports if (found := report.adapter(wanted)) is not None]
    pin = str(wanted.source.get("digest", ""))
    ready = [one for one in told if one.state == "Ready" and pin in ("", one.digest)]
    failed = [one for one in told if one.state == "Failed"]
    digests = Counter(one.digest for one in ready).most_common()
    shown = next((one for one in ready if one.digest == digests[0][0]), None)
    if wanted.waits_for:
        state, reason, error = PENDING, str(Reason.NOT_TUNED), wanted.waits_for
    else:
        state, reason, error = _judge(ready, failed, digests, replicas)
    return AdapterStatus(
        name=wanted.name,
        source=_shown(wanted.source),
        # The one that all replicas have or had: pin() relies on it.
        digest=pin or (shown.digest if shown and len(ready) == replicas else ""),
        strength=f"{wanted.strength:g}",
        rank=(shown.rank or None) if shown else None,
        size_bytes=(shown.size_bytes or None) if shown else None,
        loaded=len(ready),
        replicas=replicas,
        state=state,
        reason=reason,
        error=error,
        loaded_at=max((one.loaded_at for one in ready), default="") or None,
    )


def _judge(
    ready: list[AdapterReport], failed: list[AdapterReport], digests: list[tuple[str, int]], replicas: int
) -> tuple[str, str, str]:
    """State, reason and error of one adapter."""
    if failed:
        some = f" ({len(failed)} of {replicas} replicas)" if len(failed) < replicas else ""
        return FAILED, failed[0].reason, f"{failed[0].error}{some}"
    if len(ready) < replicas or not ready:
        return PENDING, "", ""
    if len(digests) > 1:
        found = " and ".join(f"{digest} on {count}" for digest, count in digests)
        return PENDING, "DigestsDiffer", f"its tag moved while it was loaded; replicas have {found}"
    # Loaded, and yet something to say: it changes nothing.
    return LOADED, ready[0].reason, ready[0].error


def _progress(adapter: AdapterStatus) -> str:
    return f"loaded on {adapter.loaded} of {adapter.replicas} replicas"


def _shown(source: Mapping[str, Any]) -> str:
    """Where an adapter comes from, in one line."""
    if urls := source.get("urls"):
        return f"{urls[0]} and {len(urls) - 1} more" if len(urls) > 1 else str(urls[0])
    if source.get("workspace"):
        return f"Workspace {source['workspace']}"
    return str(source.get("image") or source.get("path") or source.get("hub") or "")
