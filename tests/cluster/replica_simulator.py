# SPDX-License-Identifier: Apache-2.0
"""The copies of models behind the Services of RayServices, simulated as far as they tell of themselves and of adapters.

Each adapter of the submitted Serve config is loaded once `load_s` is over, on every replica, unless a test says
otherwise for it. The API server's proxy of Services brings the questions.
"""

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import yaml

from cluster.inside import Inside
from cluster.resource import Object

Submitted = Callable[[Object], tuple[str, float] | None]
"""From a RayService: the Serve config of its active cluster, and when in the loop's time it came."""


class Replicas:
    """Answers `GET /adapters?replicas=all`; `asked` counts how often, by namespace and Service."""

    def __init__(self, inside: Inside, submitted: Submitted, *, load_s: float = 0.1) -> None:
        self._inside = inside
        self._submitted = submitted
        self._load_s = load_s
        self._since: dict[tuple[str, str], dict[str, float]] = {}
        self._said: dict[tuple[str, str, str], tuple[Mapping[str, Any], int | None]] = {}
        self.asked: dict[tuple[str, str], int] = {}

    def set_adapter(self, namespace: str, service: str, adapter: str, replica: int | None, said: Any) -> None:
        """What one replica (None: all) says of an adapter from now on; `said` None for nothing special."""
        if said is None:
            self._said.pop((namespace, service, adapter), None)
        else:
            self._said[namespace, service, adapter] = said, replica

    def answer(self, namespace: str, service: str, path: str, query: Mapping[str, str]) -> bytes | None:
        """The body of the answer; None when no such server is simulated."""
        found = self._inside.get("services", namespace, service)
        owners = (found or {}).get("metadata", {}).get("ownerReferences") or ()
        owner = next((one["name"] for one in owners if one["kind"] == "RayService"), "")
        ray_service = self._inside.get("rayservices.ray.io", namespace, owner) if owner else None
        submitted = self._submitted(ray_service) if ray_service is not None else None
        if submitted is None or path != "adapters" or query.get("replicas") != "all":
            return None
        self.asked[namespace, service] = self.asked.get((namespace, service), 0) + 1
        config, at = submitted
        [application] = yaml.load(config, yaml.CSafeLoader)["applications"]
        [deployment] = application["deployments"]
        wanted = deployment["user_config"]["adapters"]
        # What was loaded already is not loaded again because something else changed.
        known = self._since.get((namespace, service), {})
        since = self._since[namespace, service] = {_identity(one): known.get(_identity(one), at) for one in wanted}
        age_s = asyncio.get_running_loop().time() - at
        started = (datetime.now(UTC) - timedelta(seconds=age_s)).isoformat(timespec="seconds")
        reports = [
            {
                "replica": f"r{number}",
                "engine_started_at": started,
                "first_token_at": started,
                "adapters": [self._adapter(namespace, service, one, number, since[_identity(one)]) for one in wanted],
            }
            for number in range(deployment.get("num_replicas", 1))
        ]
        return json.dumps(reports).encode()

    def _adapter(self, namespace: str, service: str, wanted: Object, number: int, since: float) -> Object:
        source = wanted["source"]
        digest = source.get("digest") or f"sha256:{hashlib.sha256(json.dumps(source).encode()).hexdigest()}"
        loading = asyncio.get_running_loop().time() < since + self._load_s
        said, replica = self._said.get((namespace, service, wanted["name"]), ({}, None))
        loaded: Object = {"digest": digest, "rank": 16, "size_bytes": 1 << 20, "loaded_at": "2026-01-01T00:00:00+00:00"}
        return {
            **wanted,
            **({} if loading else loaded),
            "state": "Loading" if loading else "Ready",
            "reason": "",
            "error": "",
            **(said if replica in (None, number) else {}),
        }


def _identity(adapter: Object) -> str:
    """An adapter, at whatever digest."""
    source = {key: value for key, value in adapter["source"].items() if key != "digest"}
    return json.dumps({**adapter, "source": source}, sort_keys=True)
