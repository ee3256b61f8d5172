# SPDX-License-Identifier: Apache-2.0
"""Port forwarding over a websocket, in the v4 channel protocol that Kubernetes' Python client speaks.

A pod has no port of its own here; what it is forwarded to is where a Service that selects it was routed
(`TestCluster.route_service`). kubectl's own port-forward tunnels SPDY and is not understood.
"""

import asyncio
from urllib.parse import urlsplit

from aiohttp import WSMsgType, web

from cluster.api import Api
from cluster.call import Call
from cluster.failure import Failure
from cluster.store import Key
from cluster.target import Target

PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
_ERROR_CHANNEL = 1


def backend_of(api: Api, key: Key) -> tuple[str, int]:
    """Host and port behind a pod. Raises Failure (404, 503)."""
    entry = api.store.get("pods", *key)
    if entry is None:
        raise Failure("NotFound", f'pods "{key[1]}" not found')
    labels = entry.object["metadata"].get("labels") or {}
    for (namespace, name), url in api.subresources.backends.items():
        service = api.store.get("services", namespace, name)
        selector = (service.object["spec"].get("selector") or {}) if service else {}
        if namespace == key[0] and selector and selector.items() <= labels.items():
            place = urlsplit(url)
            return place.hostname or "127.0.0.1", place.port or 80
    raise Failure("ServiceUnavailable", f'nothing listens behind pod "{key[1]}"')


def check_access(api: Api, target: Target, user: tuple[str, tuple[str, ...]]) -> None:
    """Raise Failure (403) unless the user may forward ports of the pod."""
    call = Call("get", target.resource, target.namespace, target.name, target.subresource)
    call.user, call.groups = user
    api.access.check(call)


async def forward(incoming: web.BaseRequest, host: str, port: int) -> web.WebSocketResponse:
    """Carry bytes between the websocket's first channel and a TCP connection until either ends."""
    socket = web.WebSocketResponse(protocols=PROTOCOLS)
    await socket.prepare(incoming)
    asked = int(incoming.query.get("ports", "0").split(",")[0])
    for channel in (0, _ERROR_CHANNEL):
        await socket.send_bytes(bytes([channel]) + asked.to_bytes(2, "little"))
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError as error:
        await socket.send_bytes(bytes([_ERROR_CHANNEL]) + str(error).encode())
        await socket.close()
        return socket

    async def answers() -> None:
        while data := await reader.read(65_536):
            await socket.send_bytes(b"\x00" + data)
        await socket.close()

    back = asyncio.create_task(answers())
    try:
        async for message in socket:
            if message.type is WSMsgType.BINARY and message.data[:1] == b"\x00":
                writer.write(message.data[1:])
                await writer.drain()
    finally:
        back.cancel()
        writer.close()
    return socket
