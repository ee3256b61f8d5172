# SPDX-License-Identifier: Apache-2.0
"""One leader among several operators, by a Lease in the cluster, and the fence around writes that follows from it.

`kubernetes.aio.leaderelection` does the election. What it leaves open is closed here: a call that hangs or breaks off
counts as a failed renewal, and the right to write ends by our own clock, counted from before the renewal was sent,
well before another operator may take over. kopf has no election of its own, only peering, which freezes equals.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import aiohttp
from kubernetes.aio.client import ApiClient, V1Lease, V1ObjectMeta
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

from kaito_ray.metrics import LEADER

logger = logging.getLogger(__name__)

NAME = "kaito-ray"
# Another operator takes over when it has seen no renewal for DURATION_S, looking every RETRY_S.
DURATION_S = 12
RENEW_S = 8
RETRY_S = 2
# The right to write ends this long before another operator may have it; no write outlasts it.
_MARGIN_S = 2.0


class Lease:
    """The Lease of one operator; `seconds_left` is the fence that cluster.py asks before each write."""

    def __init__(self, api: ApiClient, namespace: str, identity: str) -> None:
        self._lock = _Lock(NAME, namespace, identity, api)

    def seconds_left(self) -> float:
        """For how long this process may still write; 0 when it does not lead."""
        return max(0.0, self._lock.renewed_at + DURATION_S - _MARGIN_S - time.monotonic())

    async def run(self, lead: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Take part in the election for ever; run `lead` while elected, cancelled when that ends.

        What `lead` raises is raised here: an operator that cannot work must not keep the Lease.
        """
        while True:
            elected = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                election = group.create_task(self._elect(elected))
                await elected.wait()
                work = group.create_task(lead())
                await election
                work.cancel()

    async def _elect(self, elected: asyncio.Event) -> None:
        """Wait to be elected, then renew until that fails."""

        async def started() -> None:
            LEADER.set(1)
            logger.info("this operator leads now")
            elected.set()

        async def stopped() -> None:
            self._lock.renewed_at = float("-inf")
            LEADER.set(0)
            logger.warning("this operator leads no more: it could not renew its Lease")

        await LeaderElection(Config(self._lock, DURATION_S, RENEW_S, RETRY_S, started, stopped)).run()

    async def release(self) -> None:
        """Hand the Lease back, so that another operator need not wait for it to run out."""
        if self.seconds_left() > 0:
            self._lock.renewed_at = float("-inf")
            LEADER.set(0)
            await self._lock.give_up()


class _Lock(LeaseLock):
    """A lock that remembers when it was last renewed, and to which a broken connection is a failure like others."""

    def __init__(self, name: str, namespace: str, identity: str, api: ApiClient) -> None:
        super().__init__(name, namespace, identity, api)
        self.renewed_at = float("-inf")

    async def get(self, name: str, namespace: str) -> Any:
        try:
            async with asyncio.timeout(RETRY_S):
                return await super().get(name, namespace)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            return False, ApiException(status=0, reason=repr(error))

    async def create(self, name: str, namespace: str, election_record: LeaderElectionRecord) -> bool:
        return await self._renewing(self._create(name, namespace, election_record))

    async def _create(self, name: str, namespace: str, election_record: LeaderElectionRecord) -> bool:
        """The library's own `create` passes `pretty=True`, which its client refuses: it wants a string."""
        lease = V1Lease(metadata=V1ObjectMeta(name=name), spec=self.update_lease(election_record))
        try:
            await self.api_instance.create_namespaced_lease(namespace, lease)
        except ApiException as error:
            logger.info("the Lease was not created: %s", error.reason)
            return False
        return True

    async def update(self, name: str, namespace: str, updated_record: LeaderElectionRecord) -> bool:
        return await self._renewing(super().update(name, namespace, updated_record))

    async def give_up(self) -> None:
        """Write a Lease without a holder, which anybody may take at once."""
        with contextlib.suppress(TimeoutError, aiohttp.ClientError, OSError, ApiException):
            async with asyncio.timeout(RETRY_S):
                lease = await self.api_instance.read_namespaced_lease(self.name, self.namespace)
                if lease.spec is not None and lease.spec.holder_identity == self.identity:
                    lease.spec.holder_identity = None
                    await self.api_instance.replace_namespaced_lease(self.name, self.namespace, lease)

    async def _renewing(self, write: Awaitable[bool]) -> bool:
        started = time.monotonic()
        try:
            async with asyncio.timeout(RETRY_S):
                written = await write
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            logger.warning("the Lease could not be written: %r", error)
            return False
        if written:
            self.renewed_at = started
        return written
