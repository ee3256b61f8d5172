# SPDX-License-Identifier: Apache-2.0
"""Which size, how the model is cut over it, and how many copies within the caps. Called by plan_serve.py.

Where the answer is no, the sentence names the cheapest size that would do.
"""

import math
from dataclasses import dataclass

from kaito_ray.advise import cheapest, hourly_usd
from kaito_ray.cpu_sizing import size_on_cpu
from kaito_ray.errors import DoesNotFit
from kaito_ray.plan import Autoscaling
from kaito_ray.plan_target import require_usable
from kaito_ray.preset import Preset
from kaito_ray.settings import Settings
from kaito_ray.sizing import Demand, Sizing, size_model, size_unchecked
from kaito_ray.sku import Sizes, Sku, partitioned
from kaito_ray.workspace import AutoscalingBounds, Resource


@dataclass(frozen=True, slots=True)
class Decision:
    """The size, one copy's sizing on it, and the nodes and copies altogether."""

    sku: Sku
    sizing: Sizing
    nodes: int
    replicas: int
    autoscaling: Autoscaling | None
    warnings: tuple[str, ...]

    @property
    def hourly_usd(self) -> float | None:
        """List price of all nodes."""
        return hourly_usd(self.sku, self.nodes)


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be placed, and within which bounds."""

    preset: Preset
    demand: Demand
    resource: Resource
    autoscaling: AutoscalingBounds | None
    settings: Settings
    sizes: Sizes | None
    """All sizes, to choose from and to suggest; None where only the size at hand is of interest."""
    bypass_checks: bool = False


def decide(question: Question, sku: Sku | None) -> Decision:
    """The arrangement on `sku`, or on the cheapest size when it is None; raises DoesNotFit."""
    warnings: list[str] = []
    if sku is None:
        sku = _cheapest(question)
        price = f", ${sku.usd_per_hour:.2f} an hour each" if sku.usd_per_hour else ""
        warnings.append(f"resource.instanceType is empty, so the cheapest size that fits was taken: {sku.name}{price}")
    partition = question.resource.partition
    if partition is not None:
        sku = partitioned(sku, mode=partition.mode, profile=partition.profile, count=partition.count)
    require_usable(sku)
    sizing = _sizing(question, sku, warnings)
    if question.resource.count > 1 and sku.gpus and question.resource.count != sizing.nodes:
        warnings.append(
            f"resource.count {question.resource.count} is not used: a copy of the model takes {sizing.nodes} node(s); "
            "for more copies set inference.autoscaling"
        )
    nodes, replicas, autoscaling = _copies(question, sku, sizing)
    decision = Decision(sku, sizing, nodes, replicas, autoscaling, tuple(warnings))
    _hold_to_caps(question, decision)
    return decision


def _sizing(question: Question, sku: Sku, warnings: list[str]) -> Sizing:
    preset, demand = question.preset, question.demand
    if not sku.gpus:
        return size_on_cpu(preset, sku, demand)
    try:
        return size_model(preset, sku, demand, max_nodes=question.settings.max_nodes)
    except DoesNotFit as error:
        if question.bypass_checks:
            warnings.append(f"the memory check is bypassed, and it says: {error}")
            return size_unchecked(preset, sku, demand, nodes=question.resource.count)
        raise DoesNotFit(f"{error}{_instead(question)}", reason=error.reason) from None


def _copies(question: Question, sku: Sku, sizing: Sizing) -> tuple[int, int, Autoscaling | None]:
    """Nodes, copies, and the bounds of their number; nodes are for the most copies there can be."""
    bounds = question.autoscaling
    if bounds is None or not sku.gpus:
        return sizing.nodes, sizing.replicas, None
    nodes = math.ceil(bounds.max_replicas / sizing.replicas) * sizing.nodes
    target = bounds.target_ongoing_requests or max(sizing.load.sequences // 2, 1)
    return nodes, max(bounds.min_replicas, 1), Autoscaling(bounds.min_replicas, bounds.max_replicas, target)


def _hold_to_caps(question: Question, decision: Decision) -> None:
    settings, sku = question.settings, decision.sku
    copies = question.autoscaling.max_replicas if decision.autoscaling and question.autoscaling else decision.replicas
    wish = f"{copies} {'copy' if copies == 1 else 'copies'} of {question.preset.name} on {decision.nodes} x {sku.name}"
    if sku.gpus and decision.nodes > settings.max_nodes:
        raise DoesNotFit(f"{wish} is more than the {settings.max_nodes} nodes that are allowed")
    cap, price = settings.max_hourly_usd, decision.hourly_usd
    if cap is not None and price is not None and price > cap:
        raise DoesNotFit(
            f"{wish} costs ${price:.2f} an hour, and at most ${cap:.2f} is allowed{_instead(question)}",
            reason="TooExpensive",
        )


def _cheapest(question: Question) -> Sku:
    settings = question.settings
    offer = cheapest(
        question.preset,
        question.sizes or (),
        question.demand,
        max_nodes=settings.max_nodes,
        max_hourly_usd=settings.max_hourly_usd,
    )
    if offer is None:
        cap = f" and ${settings.max_hourly_usd:.2f} an hour" if settings.max_hourly_usd else ""
        context = f" with {question.demand.context} tokens of context" if question.demand.context else ""
        raise DoesNotFit(
            f"no size that kaito-ray may choose holds {question.preset.name}{context} on at most {settings.max_nodes} "
            f"nodes{cap}; name one in resource.instanceType"
        )
    return offer.sku


def _instead(question: Question) -> str:
    settings = question.settings
    offer = cheapest(
        question.preset,
        question.sizes or (),
        question.demand,
        max_nodes=settings.max_nodes,
        max_hourly_usd=settings.max_hourly_usd,
    )
    if offer is None:
        return ""
    return (
        f"; the cheapest size that holds it is {offer.sku.name} ({offer.sizing.nodes} "
        f"node{'s' if offer.sizing.nodes > 1 else ''}, ${offer.hourly_usd:.2f} an hour)"
    )
