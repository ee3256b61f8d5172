# SPDX-License-Identifier: Apache-2.0
"""Why a pod's port could not be forwarded, in one line."""

import pytest

from kaito_ray.port_forward import refusal

_HANDSHAKE = (
    "(0)\nReason: Handshake status 500 Internal Server Error -+-+- {'content-type': 'application/json'} -+-+- "
    r'{"kind":"Status","status":"Failure","message":"error dialing \"backend\": connection refused","code":500}'
)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (_HANDSHAKE, 'error dialing "backend": connection refused'),
        ("(0)\nReason: [Errno 111] Connection refused\n", "(0) Reason: [Errno 111] Connection refused"),
    ],
)
def test_the_servers_own_sentence(said: str, expected: str) -> None:
    assert refusal(RuntimeError(said)) == expected
