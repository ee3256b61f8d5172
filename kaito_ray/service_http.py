# SPDX-License-Identifier: Apache-2.0
"""GET requests of the operator to what runs behind a Service: the replicas' server, Ray's dashboard.

In a cluster they go straight to the Service, as the NetworkPolicy of the Workspace lets the operator; no right of the
API server is needed. An operator outside the cluster goes through the API server's proxy, which keeps the header
`Authorization` to itself: send another one. Called by replica_watch.py.
"""

from collections.abc import Mapping

import aiohttp

from kaito_ray.cluster import Cluster
from kaito_ray.errors import ClusterUnavailable

_TIMEOUT = aiohttp.ClientTimeout(total=10, connect=5)
_MAX_BYTES = 4 * 1024 * 1024


async def get_from_service(
    cluster: Cluster, namespace: str, service: str, port: int, path: str, *, headers: Mapping[str, str]
) -> tuple[int, bytes]:
    """The status and the body, at most 4 MiB; raises ClusterUnavailable when nobody answers."""
    try:
        if not cluster.inside:
            return await _through_api(cluster, f"{namespace}/services/{service}:{port}/proxy{path}", headers)
        url = f"http://{service}.{namespace}.svc:{port}{path}"
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT) as session,
            session.get(url, headers=dict(headers), allow_redirects=False) as answer,
        ):
            return answer.status, await _body(answer)
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        why = str(error) or type(error).__name__
        raise ClusterUnavailable(f"Service {service} does not answer at port {port}: {why}") from None


async def _through_api(cluster: Cluster, path: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
    method, url, sent, body, _ = await cluster.api.param_serialize(
        "GET", f"/api/v1/namespaces/{path}", header_params={"Accept": "*/*", **headers}, auth_settings=["BearerToken"]
    )
    answer = await cluster.api.call_api(method, url, sent, body, _request_timeout=_TIMEOUT)
    try:
        return answer.response.status, await _body(answer.response)
    finally:
        answer.response.close()


async def _body(answer: aiohttp.ClientResponse) -> bytes:
    body = await answer.content.read(_MAX_BYTES)
    while len(body) < _MAX_BYTES and (more := await answer.content.read(_MAX_BYTES - len(body))):
        body += more
    return body
