# SPDX-License-Identifier: Apache-2.0
"""How the operator shows a Workspace's pods that it is the operator, where API keys are asked for.

Both sides know the token of the Workspace's Ray clusters (names.token_secret_name). It runs code for whoever has it, so
it is never sent to the port that serves requests: a key made from it is, which only opens `GET /adapters`. Called by
replica_watch.py and serve_apps/replica.py.
"""

import hashlib
import hmac

HEADER = "x-kaito-ray-operator"


def operator_key(ray_token: str) -> str:
    """The key; the token cannot be told from it."""
    return hmac.new(ray_token.encode(), b"kaito-ray: GET /adapters", hashlib.sha256).hexdigest()
