# SPDX-License-Identifier: Apache-2.0
"""All agent pools of the operator in; whether more nodes would pass a cap on their number or price out. Pure."""

from collections.abc import Iterable

from kaito_ray.errors import NotReadyYet, UnknownSize
from kaito_ray.nodes.pool import Pool
from kaito_ray.settings import Settings
from kaito_ray.sku import Sizes

_RETRY_S = 60.0


def hourly_usd(sizes: Sizes, size: str, nodes: int) -> float:
    """List price of so many nodes; 0 for a size whose price is not known."""
    try:
        return round((sizes.get(size).usd_per_hour or 0.0) * nodes, 3)
    except UnknownSize:
        return 0.0


def require_budget(pools: Iterable[Pool], size: str, more: int, sizes: Sizes, settings: Settings) -> None:
    """Raise NotReadyYet with the numbers when `more` nodes of a size would pass a cap; fewer nodes always may.

    Pools that are being deleted count until they are gone, because so long they are paid for.
    """
    if more <= 0:
        return
    ours = [pool for pool in pools if pool.uid]
    count, most = sum(pool.count for pool in ours), settings.max_total_nodes
    if most is not None and count + more > most:
        raise NotReadyYet(
            f"{count} GPU nodes exist and {more} more would pass the cap of {most} (KAITO_RAY_MAX_TOTAL_NODES)",
            reason="NodeCapReached",
            delay_s=_RETRY_S,
        )
    cap = settings.max_total_hourly_usd
    spent = sum(hourly_usd(sizes, pool.candidate.instance_type, pool.count) for pool in ours)
    price = hourly_usd(sizes, size, more)
    if cap is not None and spent + price > cap:
        raise NotReadyYet(
            f"agent pools cost ${spent:.2f} an hour and ${price:.2f} more would pass the cap of ${cap:.2f}"
            " (KAITO_RAY_MAX_TOTAL_HOURLY_USD)",
            reason="CostCapReached",
            delay_s=_RETRY_S,
        )
