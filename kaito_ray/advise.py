# SPDX-License-Identifier: Apache-2.0
"""A model and all sizes in; the sizes that hold it out, the cheapest first.

Called by serve_sizing.py, for a Workspace without an instance type and for the sentence that says what would do
instead, and by `kaito-ray plan --advise` and `kaito-ray presets NAME`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from kaito_ray.errors import DoesNotFit
from kaito_ray.preset import Preset
from kaito_ray.sizing import Demand, Sizing, size_model
from kaito_ray.sku import Sku


@dataclass(frozen=True, slots=True)
class Offer:
    """One size on which a model runs; the price is for all nodes together, None where none is public."""

    sku: Sku
    sizing: Sizing
    hourly_usd: float | None


def hourly_usd(sku: Sku, nodes: int) -> float | None:
    """The list price of `nodes` nodes."""
    return None if sku.usd_per_hour is None else round(nodes * sku.usd_per_hour, 3)


def offers(
    preset: Preset, sizes: Iterable[Sku], demand: Demand, *, max_nodes: int, max_hourly_usd: float | None = None
) -> list[Offer]:
    """Every size that holds the model within the caps, by price; those without a price come last."""
    found = []
    for sku in sizes:
        if sku.refusal or sku.status == "retired":
            continue
        try:
            sizing = size_model(preset, sku, demand, max_nodes=max_nodes)
        except DoesNotFit:
            continue
        price = hourly_usd(sku, sizing.nodes)
        if max_hourly_usd is None or (price is not None and price <= max_hourly_usd):
            found.append(Offer(sku, sizing, price))
    return sorted(found, key=_rank)


def cheapest(
    preset: Preset, sizes: Iterable[Sku], demand: Demand, *, max_nodes: int, max_hourly_usd: float | None = None
) -> Offer | None:
    """The cheapest size that kaito-ray may pick by itself; None when there is none.

    One node is preferred to several: a pipeline over cheap nodes costs little, and answers slowly.
    """
    candidates = [sku for sku in sizes if sku.suggested and sku.usd_per_hour is not None]
    for nodes in dict.fromkeys((1, max_nodes)):
        found = offers(preset, candidates, demand, max_nodes=nodes, max_hourly_usd=max_hourly_usd)
        if found:
            return found[0]
    return None


def _rank(offer: Offer) -> tuple[bool, float, int, str]:
    return (offer.hourly_usd is None, offer.hourly_usd or 0.0, offer.sizing.nodes, offer.sku.name)
