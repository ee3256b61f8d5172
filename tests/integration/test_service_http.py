# SPDX-License-Identifier: Apache-2.0
"""What is behind a Service, asked from inside a cluster."""

import socket
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client import ApiClient

from kaito_ray.cluster import Cluster
from kaito_ray.errors import ClusterUnavailable
from kaito_ray.service_http import get_from_service
from waiting import free_port
from web import serving


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that were looked up; all of them are this machine, as a cluster's DNS would have it."""
    names: list[str] = []
    look_up = socket.getaddrinfo

    def lookup(host: Any, port: Any, *rest: Any, **more: Any) -> Any:
        names.append(str(host))
        return look_up("127.0.0.1", port, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return names


@pytest.fixture
async def cluster() -> Any:
    """A cluster seen from one of its pods; its API server is not needed for this."""
    cluster = Cluster(ApiClient(), inside=True)
    yield cluster
    await cluster.close()


async def test_it_goes_straight_to_the_service(cluster: Cluster, asked: list[str]) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=418, text=f"{request.path_qs} {request.headers['X-Ray-Authorization']}")

    async with serving(answer) as url:
        port = int(url.rpartition(":")[2])
        headers = {"X-Ray-Authorization": "Bearer t"}
        status, body = await get_from_service(cluster, "team", "phi", port, "/adapters?replicas=all", headers=headers)
    assert (status, body.decode()) == (418, "/adapters?replicas=all Bearer t")
    assert asked == ["phi.team.svc"]


async def test_nobody_there_is_said(cluster: Cluster, asked: list[str]) -> None:
    with pytest.raises(ClusterUnavailable, match="Service phi does not answer at port"):
        await get_from_service(cluster, "team", "phi", free_port(), "/", headers={})
    assert asked


async def test_redirects_are_not_followed(cluster: Cluster, asked: list[str]) -> None:
    async def away(_: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": "http://169.254.169.254/"})

    async with serving(away) as url:
        status, _ = await get_from_service(cluster, "team", "phi", int(url.rpartition(":")[2]), "/", headers={})
    assert status == 302
    assert asked == ["phi.team.svc"]
