# SPDX-License-Identifier: Apache-2.0
"""What the replicas of serving Workspaces say about themselves, kept current by asking; a watch they do not have.

A reconcile says whom to ask (`see`) and gets what was heard last, without waiting. Whatever is heard anew wakes the
Workspace. Replicas are asked at once when a pod or an adapter changed, every few seconds while something is under way,
and every few minutes otherwise, in case a replica was replaced unseen. One answer tells of all replicas
(serve_apps/chat.py), so it is one request however many there are, and none goes to the API server (service_http.py).
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

from kaito_ray.adapter_status import FAILED, LOADED, adapter_statuses
from kaito_ray.cluster import Cluster
from kaito_ray.errors import KaitoRayError
from kaito_ray.informer import Key
from kaito_ray.operator_key import HEADER, operator_key
from kaito_ray.plan import ServePlan
from kaito_ray.pod import Pod
from kaito_ray.replica_report import ReplicaReport, parse_reports
from kaito_ray.service_http import get_from_service

logger = logging.getLogger(__name__)

PATH = "/adapters?replicas=all"
_PENDING_MIN_S, _PENDING_MAX_S = 0.5, 5.0
_FAILED_S = 30.0
_SETTLED_S = 300.0
_TOGETHER = 16
# One answer that is missed, while a pod is replaced, is no news.
_SILENT = 3


@dataclass(frozen=True, slots=True)
class Question:
    """Whom to ask, and what makes the last answer an old one."""

    service: str
    port: int
    ray_token: str
    plan: ServePlan
    pods: frozenset[Pod]


@dataclass(frozen=True, slots=True)
class Heard:
    """What the replicas said last; `silence` is why nothing newer is known, empty when that is current."""

    reports: tuple[ReplicaReport, ...] = ()
    silence: str = ""


NOTHING = Heard()


class ReplicaWatch:
    """Asks the replicas of Workspaces; `wake(key)` is called for each Workspace that something new is known of."""

    def __init__(self, cluster: Cluster, wake: Callable[[Key], None]) -> None:
        self._cluster = cluster
        self._wake = wake
        self._questions: dict[Key, Question] = {}
        self._news: dict[Key, asyncio.Event] = {}
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._heard: dict[Key, Heard] = {}
        self._turn = asyncio.Semaphore(_TOGETHER)

    def see(self, key: Key, question: Question | None) -> Heard:
        """Ask from now on, or no longer; what was heard so far."""
        if question is None:
            self.forget(key)
            return NOTHING
        if self._questions.get(key) != question:
            self._questions[key] = question
            self._news.setdefault(key, asyncio.Event()).set()
        if key not in self._tasks:
            self._tasks[key] = asyncio.create_task(self._follow(key), name=f"replicas of {key[0]}/{key[1]}")
        return self._heard.get(key, NOTHING)

    def forget(self, key: Key) -> None:
        """Ask no longer."""
        if task := self._tasks.pop(key, None):
            task.cancel()
        for known in (self._questions, self._news, self._heard):
            known.pop(key, None)

    def stop(self) -> None:
        """Ask nobody any more."""
        for key in list(self._tasks):
            self.forget(key)

    async def _follow(self, key: Key) -> None:
        wait_s, silent = 0.0, 0
        while True:
            if self._news[key].is_set():
                self._news[key].clear()
                wait_s = 0.0
            question = self._questions[key]
            heard = await self._ask(key, question)
            silent = silent + 1 if heard.silence else 0
            known = self._heard.get(key)
            if heard != known and (known is None or silent not in range(1, _SILENT)):
                self._heard[key] = heard
                self._wake(key)
            wait_s = _wait_s(question, heard, wait_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._news[key].wait()

    async def _ask(self, key: Key, question: Question) -> Heard:
        before = self._heard.get(key, NOTHING)
        headers = {HEADER: operator_key(question.ray_token)}
        try:
            async with self._turn:
                status, body = await get_from_service(
                    self._cluster, key[0], question.service, question.port, PATH, headers=headers
                )
            if status != 200:
                return Heard(before.reports, f"the replicas cannot be asked: they answer {status}")
            return Heard(parse_reports(body))
        except (KaitoRayError, ValueError) as error:
            return Heard(before.reports, f"the replicas cannot be asked: {error}")
        except Exception:
            logger.exception("this is a bug")
            return Heard(before.reports, "the replicas cannot be asked")


def _wait_s(question: Question, heard: Heard, before_s: float) -> float:
    """How long what was heard will do."""
    if heard.silence and not question.plan.adapters:
        return min(_SETTLED_S, max(_PENDING_MAX_S, 2 * before_s))  # nothing but the timeline waits for it
    said = [report.adapter(one) for report in heard.reports for one in question.plan.adapters]
    loading = any(one is None or one.state == "Loading" for one in said)
    states = {one.state for one in adapter_statuses(question.plan, heard.reports)}
    if heard.silence or loading or not states <= {LOADED, FAILED}:
        return min(_PENDING_MAX_S, max(_PENDING_MIN_S, 1.5 * before_s))
    return _FAILED_S if FAILED in states else _SETTLED_S
