# SPDX-License-Identifier: Apache-2.0
"""An Azure Resource Manager for one AKS cluster over HTTP on loopback: what azure-mgmt-containerservice speaks.

Only this end is fake: the SDK, its pipeline and the provisioner are real. Operations take time on a clock that tests
turn; failures are scripted per test; every request is logged, and the request limits that AKS publishes are enforced.

    async with FakeArm(clock) as arm:
        arm.fail(QUOTA, when=size("Standard_NC24ads_A100_v4"))
        client = ContainerServiceClient(credential, arm.subscription, base_url=arm.url, ...)
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from cluster.fake_pool import Clock, FakePool, Matcher, Outcome, anything

Json = Any
API_VERSIONS = re.compile(r"20\d\d-\d\d-\d\d")
# Requests at once and refilled per second: per pool for PUT, per subscription and region for the others (AKS limits).
BURST = {"put pool": (20, 1 / 60), "get cluster": (60, 1.0), "operation": (200, 2.0), "other": (60, 1.0)}


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it came, and the status it was answered with."""

    method: str
    path: str
    """Behind the cluster's id, or the whole path for what is not of the cluster."""
    body: Json
    headers: Mapping[str, str]
    at: datetime
    status: int


@dataclass(slots=True)
class _Answer:
    method: str
    path: re.Pattern[str]
    status: int
    body: Json
    headers: Mapping[str, str]
    times: int | None


@dataclass(slots=True)
class _Script:
    when: Matcher
    outcome: Outcome
    times: int | None


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: datetime


@dataclass(slots=True)
class FakeArm:
    """The server; see the module. `quotas` maps the name of a usage to (limit, in use)."""

    clock: Callable[[], datetime] = field(default_factory=Clock)
    subscription: str = "00000000-0000-0000-0000-000000000001"
    group: str = "rg"
    cluster: str = "aks"
    location: str = "eastus"
    pools: dict[str, FakePool] = field(default_factory=dict)
    cluster_state: str = "Succeeded"
    power: str = "Running"
    quotas: dict[str, tuple[int, int]] | None = None
    refuses_delete_while_creating: bool = False
    page: int = 100
    down: bool = False
    create_s: float = 240.0
    scale_s: float = 120.0
    delete_s: float = 180.0
    requests: list[Request] = field(default_factory=list)
    on_request: Callable[[int, str], None] | None = None
    """Called with the number of the request and `before` or `after` it took effect, to kill whoever sent it."""
    _answers: list[_Answer] = field(default_factory=list)
    _scripts: list[_Script] = field(default_factory=list)
    _buckets: dict[str, _Bucket] = field(default_factory=dict)
    _operations: dict[str, str] = field(default_factory=dict)
    _runner: web.AppRunner | None = None
    url: str = ""

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[self._handle])
        base = self.base.replace("{", "").replace("}", "")
        app.router.add_route("GET", base, self._get_cluster)
        app.router.add_route("GET", f"{base}/agentPools", self._list)
        app.router.add_route("GET", f"{base}/agentPools/{{pool}}", self._get)
        app.router.add_route("PUT", f"{base}/agentPools/{{pool}}", self._put)
        app.router.add_route("DELETE", f"{base}/agentPools/{{pool}}", self._delete)
        app.router.add_route("POST", f"{base}/agentPools/{{pool}}/abort", self._abort)
        app.router.add_route("POST", f"{base}/agentPools/{{pool}}/deleteMachines", self._delete_machines)
        provider = f"/subscriptions/{self.subscription}/providers"
        app.router.add_route(
            "GET", f"{provider}/Microsoft.ContainerService/locations/{{place}}/operations/{{id}}", self._operation
        )
        app.router.add_route("GET", f"{provider}/Microsoft.Compute/locations/{{place}}/usages", self._usages)
        self._runner = web.AppRunner(app, shutdown_timeout=0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    @property
    def base(self) -> str:
        """The id of the cluster."""
        return (
            f"/subscriptions/{self.subscription}/resourceGroups/{self.group}"
            f"/providers/Microsoft.ContainerService/managedClusters/{self.cluster}"
        )

    # What tests say beforehand.

    def fail(
        self, error: Mapping[str, Json], *, when: Matcher = anything, after_s: float = 60.0, times: int | None = None
    ) -> None:
        """Pools that match are accepted, then fail with this error and stay in state Failed."""
        self._scripts.append(_Script(when, Outcome(after_s, error), times))

    def make(
        self,
        *,
        when: Matcher = anything,
        takes_s: float = 240.0,
        machines: int | None = None,
        times: int | None = None,
    ) -> None:
        """Pools that match take this long and get so many machines."""
        self._scripts.append(_Script(when, Outcome(takes_s, None, machines), times))

    def answer(
        self,
        method: str,
        path: str,
        status: int,
        body: Json = None,
        *,
        headers: Mapping[str, str] | None = None,
        times: int | None = 1,
    ) -> None:
        """Requests whose path matches get this instead; `times` of None is for ever, and `forget` ends it."""
        self._answers.append(_Answer(method, re.compile(path), status, body, headers or {}, times))

    def forget(self) -> None:
        """Drop all that was scripted."""
        self._answers.clear()
        self._scripts.clear()

    def add_pool(self, name: str, **properties: Json) -> FakePool:
        """A pool that somebody else made."""
        defaults = {"count": 2, "vmSize": "Standard_D4s_v5", "mode": "System", "type": "VirtualMachineScaleSets"}
        pool = self.pools[name] = FakePool(name, defaults | properties)
        pool._fill(self.clock())
        return pool

    def evict(self, name: str) -> None:
        """Azure takes the machines of a spot pool back, and its count with them."""
        pool = self.pools[name]
        pool.machines.clear()
        pool.properties["count"] = 0
        pool.etag += 1

    # What tests look at afterwards.

    def advance(self) -> None:
        """Bring every pool to the time it is."""
        now = self.clock()
        for name, pool in list(self.pools.items()):
            if not pool.advance(now):
                del self.pools[name]

    def calls(self, method: str, path: str = "") -> list[Request]:
        """Requests so far by method and a pattern of the path."""
        return [one for one in self.requests if one.method == method and re.search(path, one.path)]

    @property
    def throttled(self) -> list[Request]:
        """Requests that went beyond a limit of AKS."""
        return [one for one in self.requests if one.status == 429]

    def counts(self) -> Counter[str]:
        """Requests by method."""
        return Counter(one.method for one in self.requests)

    # The server.

    @web.middleware
    async def _handle(self, request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
        number = len(self.requests)
        text = await request.text()
        if self.on_request:
            self.on_request(number, "before")
        path = request.path.removeprefix(self.base).lstrip("/") if request.path.startswith(self.base) else request.path
        body = json.loads(text) if text else None
        if self.down:
            assert request.transport is not None
            request.transport.abort()
            response: web.StreamResponse = web.Response(status=503)
        else:
            self.advance()
            response = self._refusal(request) or self._scripted(request) or await handler(request)
        self.requests.append(Request(request.method, path, body, dict(request.headers), self.clock(), response.status))
        if self.on_request:
            self.on_request(number, "after")
        return response

    def _refusal(self, request: web.Request) -> web.Response | None:
        if not request.headers.get("Authorization", "").startswith("Bearer "):
            return _error(401, "InvalidAuthenticationToken", "The access token is missing")
        if not API_VERSIONS.match(request.query.get("api-version", "")) and "/operations/" not in request.path:
            return _error(400, "MissingApiVersionParameter", "The api-version query parameter is required")
        kind = "other"
        if request.method == "PUT":
            kind = f"put pool {request.path}"
        elif request.path == self.base:
            kind = "get cluster"
        elif "/operations/" in request.path:
            kind = "operation"
        return self._throttle(kind)

    def _throttle(self, kind: str) -> web.Response | None:
        burst, per_s = BURST["put pool" if kind.startswith("put pool") else kind]
        now = self.clock()
        bucket = self._buckets.setdefault(kind, _Bucket(burst, now))
        bucket.tokens = min(burst, bucket.tokens + (now - bucket.at).total_seconds() * per_s)
        bucket.at = now
        if bucket.tokens < 1:
            return _error(429, "Throttled", "The request rate limit of the resource provider is reached", retry_s=60)
        bucket.tokens -= 1
        return None

    def _scripted(self, request: web.Request) -> web.Response | None:
        for answer in self._answers:
            if answer.method == request.method and answer.path.search(request.path):
                if answer.times is not None:
                    answer.times -= 1
                    if answer.times == 0:
                        self._answers.remove(answer)
                text = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
                return web.Response(
                    status=answer.status, text=text, headers=answer.headers, content_type="application/json"
                )
        return None

    def _outcome(self, properties: Mapping[str, Json], takes_s: float) -> Outcome:
        for script in self._scripts:
            if script.when(properties):
                if script.times is not None:
                    script.times -= 1
                    if script.times == 0:
                        self._scripts.remove(script)
                return script.outcome
        return Outcome(takes_s)

    async def _get_cluster(self, _: web.Request) -> web.Response:
        return web.json_response(
            {
                "id": self.base,
                "name": self.cluster,
                "location": self.location,
                "type": "Microsoft.ContainerService/managedClusters",
                "properties": {"provisioningState": self.cluster_state, "powerState": {"code": self.power}},
            }
        )

    async def _list(self, request: web.Request) -> web.Response:
        start = int(request.query.get("$skiptoken", "0"))
        pools = [pool.wire(self.base) for pool in self.pools.values()]
        page: dict[str, Json] = {"value": pools[start : start + self.page]}
        if len(pools) > start + self.page:
            page["nextLink"] = str(request.url.update_query({"$skiptoken": str(start + self.page)}))
        return web.json_response(page)

    async def _get(self, request: web.Request) -> web.Response:
        pool = self.pools.get(request.match_info["pool"])
        return web.json_response(pool.wire(self.base)) if pool else _not_found()

    async def _put(self, request: web.Request) -> web.Response:
        name, body = request.match_info["pool"], await request.json()
        pool = self.pools.get(name)
        if (refusal := self._cluster_refusal()) is not None:
            return refusal
        if pool and request.headers.get("If-None-Match") == "*":
            return _error(412, "PreconditionFailed", f"agent pool {name} exists already")
        expected = request.headers.get("If-Match", "").strip('"')
        if expected and (pool is None or expected != f"etag-{pool.etag}"):
            return _error(412, "EtagMismatch", "the agent pool was changed meanwhile")
        if not re.fullmatch(r"[a-z][a-z0-9]{0,11}", name):
            return _error(400, "InvalidParameter", f"agent pool name {name} is not valid")
        if pool and pool.busy:
            return _in_progress(pool)
        properties = body["properties"]
        if pool is None:
            pool = self.pools[name] = FakePool(name, properties)
            pool.begin("Creating", self.clock(), self._outcome(properties, self.create_s))
            status = 201
        else:
            scaled = {**pool.properties, "count": properties["count"]} == properties
            pool.properties = properties
            pool.begin("Scaling" if scaled else "Updating", self.clock(), self._outcome(properties, self.scale_s))
            status = 200
        return web.json_response(pool.wire(self.base), status=status, headers=self._begin(request, name))

    async def _delete(self, request: web.Request) -> web.Response:
        pool = self.pools.get(request.match_info["pool"])
        if pool is None:
            return web.Response(status=204)
        if (refusal := self._cluster_refusal()) is not None:
            return refusal
        if pool.state == "Creating" and not self.refuses_delete_while_creating:
            pool.state = "Succeeded"
        if pool.busy:
            return _in_progress(pool)
        pool.begin("Deleting", self.clock(), Outcome(self.delete_s))
        return web.Response(status=202, headers=self._begin(request, pool.name))

    async def _abort(self, request: web.Request) -> web.Response:
        pool = self.pools.get(request.match_info["pool"])
        if pool is None:
            return _not_found()
        if not pool.busy:
            return _error(409, "OperationNotAllowed", "there is no operation to abort")
        pool.begin("Canceling", self.clock(), Outcome(10))
        return web.Response(status=202, headers=self._begin(request, pool.name))

    async def _delete_machines(self, request: web.Request) -> web.Response:
        pool, body = self.pools.get(request.match_info["pool"]), await request.json()
        if pool is None:
            return _not_found()
        if (refusal := self._cluster_refusal()) is not None:
            return refusal
        if pool.busy:
            return _in_progress(pool)
        names = set(body["machineNames"])
        kept = [machine for machine in pool.machines if machine.name not in names]
        if len(kept) == len(pool.machines):
            return _error(400, "InvalidParameter", "Cannot find any valid machines to delete")
        pool.properties["count"] = int(pool.properties["count"]) - (len(pool.machines) - len(kept))
        pool.machines = kept
        pool.begin("Updating", self.clock(), Outcome(self.scale_s))
        return web.Response(status=202, headers=self._begin(request, pool.name))

    async def _operation(self, request: web.Request) -> web.Response:
        number = request.match_info["id"]
        pool = self.pools.get(self._operations[number])
        if pool is None or pool.state in ("Succeeded", "Canceled"):
            return web.json_response({"name": number, "status": "Succeeded"})
        if pool.state == "Failed":
            return web.json_response({"name": number, "status": "Failed", "error": pool.error})
        return web.json_response({"name": number, "status": "InProgress"})

    async def _usages(self, _: web.Request) -> web.Response:
        if self.quotas is None:
            return _error(403, "AuthorizationFailed", "no read on Microsoft.Compute/locations/usages")
        return web.json_response(
            {
                "value": [
                    {"unit": "Count", "limit": limit, "currentValue": used, "name": {"value": name}}
                    for name, (limit, used) in self.quotas.items()
                ]
            }
        )

    def _cluster_refusal(self) -> web.Response | None:
        if self.power == "Running" and self.cluster_state == "Succeeded":
            return None
        return _error(409, "OriginalEtagNotExpect", f"the cluster is {self.power} and {self.cluster_state}")

    def _begin(self, request: web.Request, pool: str) -> dict[str, str]:
        number = f"op-{len(self._operations)}"
        self._operations[number] = pool
        operations = (
            f"/subscriptions/{self.subscription}/providers/Microsoft.ContainerService/locations/{self.location}"
        )
        url = request.url.with_path(f"{operations}/operations/{number}").with_query({"api-version": "2017-08-31"})
        return {"Azure-AsyncOperation": str(url), "Location": str(url)}


def _error(status: int, code: str, message: str, *, retry_s: int | None = None) -> web.Response:
    headers = {"Retry-After": str(retry_s)} if retry_s is not None else {}
    return web.json_response({"error": {"code": code, "message": message}}, status=status, headers=headers)


def _not_found() -> web.Response:
    # The AKS resource provider does not wrap its errors.
    return web.json_response(
        {"code": "NotFound", "details": None, "message": "Agent Pool not found", "subcode": ""}, status=404
    )


def _in_progress(pool: FakePool) -> web.Response:
    message = f"Operation is not allowed: Another agentpool operation ({pool.name} - {pool.state}) is in progress"
    return web.json_response(
        {"code": "OperationNotAllowed", "details": None, "message": message, "subcode": ""}, status=409
    )
