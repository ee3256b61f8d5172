# SPDX-License-Identifier: Apache-2.0
"""A pod's port through the API server, as `kubectl port-forward` does it: HTTP requests to a pod from anywhere.

Called by chat_command.py. No port is opened on this machine: `kubernetes.stream` gives a socket, and http.client is
happy with one.
"""

import json
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any

from kubernetes.client import ApiClient, CoreV1Api
from kubernetes.stream import portforward

from kaito_ray.errors import CannotRun

_TIMEOUT_S = 600.0


class _Forwarded(HTTPConnection):
    """An HTTP connection over a socket that is there already."""

    def __init__(self, channel: socket.socket) -> None:
        super().__init__("localhost")
        self.sock = channel

    def connect(self) -> None:
        raise CannotRun("the connection to the pod was lost; ask again")


@contextmanager
def post(
    api: ApiClient, namespace: str, pod: str, port: int, path: str, body: Mapping[str, Any], headers: Mapping[str, str]
) -> Iterator[HTTPResponse]:
    """POST JSON to a pod and give the answer while the block runs; raises CannotRun when it cannot be reached."""
    core = CoreV1Api(api)
    try:
        forwarded = portforward(core.connect_get_namespaced_pod_portforward, pod, namespace, ports=str(port))
    except Exception as error:
        # The websocket layer raises ApiException with status 0, or errors of its own library.
        raise CannotRun(f"port {port} of pod {pod} cannot be forwarded: {refusal(error)}") from None
    channel = forwarded.socket(port)
    channel.setblocking(True)
    channel.settimeout(_TIMEOUT_S)
    connection = _Forwarded(channel)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json", **headers})
        yield connection.getresponse()
    except (OSError, HTTPException) as error:
        raise CannotRun(f"pod {pod} did not answer: {forwarded.error(port) or error!r}") from None
    finally:
        connection.close()
        forwarded.close()


def refusal(error: Exception) -> str:
    """The API server's sentence, which the websocket layer wraps in all headers of its answer."""
    found = re.search(r'"message":("(?:[^"\\]|\\.)*")', str(error))
    return str(json.loads(found[1])) if found else " ".join(str(error).split())
