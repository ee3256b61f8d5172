# SPDX-License-Identifier: Apache-2.0
"""What the replicas of a local run say of their adapters in, a line about each out. Called by local.py.

A change of the Serve config is taken up at once and its adapters are fetched behind it, so that only `GET /adapters`
knows what became of them.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

State = Mapping[str, Any]

_WAIT_S = 20.0
_POLL_S = 0.25


def adapter_lines(wanted: Sequence[Mapping[str, Any]], port: int, key: str | None) -> dict[str, tuple[bool, str]]:
    """By name whether an adapter is as it should be, and what there is to say of it.

    `wanted` are those of `user_config`. Returns when every replica has tried all of them, at the latest after 20 s.
    """
    import httpx

    deadline = time.monotonic() + _WAIT_S
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=_WAIT_S, trust_env=False) as client:
        while True:
            answer = client.get("/adapters", params={"replicas": "all"})
            reports = [report["adapters"] for report in answer.json()] if answer.is_success else []
            tried = [list(_tried(one, reports)) for one in wanted]
            if reports and all(len(states) == len(reports) for states in tried):
                break
            if time.monotonic() >= deadline:
                break
            time.sleep(_POLL_S)
    return {one["name"]: _line(states, len(reports)) for one, states in zip(wanted, tried, strict=True)}


def _tried(wanted: Mapping[str, Any], reports: Sequence[Sequence[State]]) -> Iterator[State]:
    """What the replicas say that have tried this very version."""
    asked = {key: wanted[key] for key in ("name", "source", "strength")}
    for states in reports:
        for state in states:
            if state["state"] != "Loading" and {key: state[key] for key in asked} == asked:
                yield state


def _line(states: Sequence[State], replicas: int) -> tuple[bool, str]:
    for state in states:
        if state["error"]:
            return False, ("is loaded, but " if state["state"] == "Ready" else "is not loaded: ") + state["error"]
    if not states or len(states) < replicas:
        return False, "is still on its way; GET /adapters tells when it is there"
    return True, f"is live, rank {states[0]['rank']}, {states[0]['digest'][:19]}"
