# SPDX-License-Identifier: Apache-2.0
"""What was learned from failures of all Workspaces in, what one of them should ask for out. Used by aks.py.

Blocks are shared, so that fifty Workspaces do not learn the same thing fifty times. They are kept in memory alone:
every failure stands in the status of its Workspace, so after a restart the first passes bring them back.
"""

from collections.abc import Awaitable, Callable
from datetime import datetime

from kaito_ray.errors import UnknownSize, UserError
from kaito_ray.nodes.attempt import Blocked, choose
from kaito_ray.nodes.block import Block, Offer, block_after
from kaito_ray.nodes.candidate import candidates_of, spot_of, wanted_sizes
from kaito_ray.nodes.quota import Usages, quota_blocks, without_lifted
from kaito_ray.nodes.record import Attempt, PoolRecord
from kaito_ray.plan import Plan
from kaito_ray.settings import Settings
from kaito_ray.sku import Sizes
from kaito_ray.workspace import Workspace

Planner = Callable[[Workspace, str], Awaitable[Plan]]
"""A Workspace and the name of a size in, its plan on that size out; raises a UserError when it cannot run there."""


class Chooser:
    """The memory of one operator about one region."""

    def __init__(
        self,
        usages: Callable[[], Awaitable[Usages | None]],
        sizes: Sizes,
        planner: Planner,
        settings: Settings,
    ) -> None:
        self._usages = usages
        self._sizes = sizes
        self._planner = planner
        self._policy = settings.node_timeout_policy
        self._zones = tuple(zone for zone in settings.zones if zone != "none")
        self._blocks: list[Block] = []
        # Failures that this process saw and that the status, read from a cache, may not show yet.
        self._seen: dict[str, tuple[Attempt, ...]] = {}

    async def choose(
        self, plan: Plan, workspace: Workspace, record: PoolRecord, now: datetime
    ) -> tuple[Offer | Blocked, list[str]]:
        """What to ask for now, or what to wait for; and a sentence for each size that cannot be asked for."""
        offers, refused = await self._offers(plan, workspace)
        blocks: list[Block] = [block for block in self._blocks if block.until > now]
        if (usages := await self._usages()) is not None:
            blocks = [*without_lifted(blocks, offers, usages), *quota_blocks(offers, usages)]
        return choose(offers, self._attempts(workspace, record), blocks, now, self._policy), refused

    def next_number(self, workspace: Workspace, record: PoolRecord) -> int:
        """The number of the next attempt, never one that was used before."""
        return max([record.attempt, *(attempt.number for attempt in self._attempts(workspace, record))]) + 1

    def learn(self, workspace: Workspace, record: PoolRecord, now: datetime) -> None:
        """Take up the failures of a Workspace, those of before a restart too, for all Workspaces."""
        attempts = self._attempts(workspace, record)
        if attempts:
            self._seen[workspace.metadata.uid] = attempts
        found = (block for attempt in attempts if (block := self._block(attempt)) is not None)
        self._blocks = [block for block in dict.fromkeys((*self._blocks, *found)) if block.until > now]

    def forget(self, uid: str) -> None:
        """Drop the failures of a Workspace that is ready, or gone."""
        self._seen.pop(uid, None)

    async def _offers(self, plan: Plan, workspace: Workspace) -> tuple[list[Offer], list[str]]:
        """What can be asked for in the order of preference, and a sentence for each size that cannot."""
        refused: list[str] = []
        nodes = {plan.instance_type: plan.nodes}
        usable: list[str] = []
        for name in wanted_sizes(workspace, plan.instance_type):
            try:
                size = self._sizes.get(name).name
                if size not in nodes:
                    nodes[size] = (await self._planner(workspace, size)).nodes
                usable.append(size)
            except UserError as error:
                refused.append(f"{name}: {error}")
        candidates = candidates_of(usable or [plan.instance_type], spot_of(workspace), self._zones)
        offers = [Offer(one, self._sizes.get(one.instance_type), nodes[one.instance_type]) for one in candidates]
        return offers, refused

    def _attempts(self, workspace: Workspace, record: PoolRecord) -> tuple[Attempt, ...]:
        known = {attempt.number: attempt for attempt in self._seen.get(workspace.metadata.uid, ())}
        known |= {attempt.number: attempt for attempt in record.attempts}
        return tuple(known[number] for number in sorted(known))

    def _block(self, attempt: Attempt) -> Block | None:
        try:
            return block_after(attempt, self._sizes.get(attempt.candidate.instance_type))
        except UnknownSize:
            return None  # a size that an older release knew
