# SPDX-License-Identifier: Apache-2.0
"""API keys from a mounted Secret: a folder with one file per key.

serve_apps/allow_list.py asks `ApiKeys.allow` for every request but `/health`. Only digests are kept, so that no
key can reach a log or a traceback. The operator reads `/adapters` with a key of its own (kaito_ray/operator_key.py).
"""

import hashlib
import hmac
import os
import time
from collections.abc import Iterable
from pathlib import Path

from kaito_ray.operator_key import HEADER

RECHECK_S = 1.0
"""How often the folder is looked at again; a kubelet needs far longer to bring a changed Secret."""


class ApiKeys:
    """The keys in `folder`; an empty or missing folder lets nobody in, but the operator where it has `operator_key`."""

    def __init__(self, folder: Path, *, operator_key: str = "") -> None:
        self._folder = folder
        self._operator = hashlib.sha256(operator_key.encode()).digest() if operator_key else None
        self._digests: list[bytes] = []
        self._stamp: object = None
        self._checked = float("-inf")

    def allow(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether `Authorization: Bearer` carries one of the keys. Compares with every key, in constant time."""
        header = next((value for name, value in headers if name == b"authorization"), b"")
        scheme, _, token = header.partition(b" ")
        if scheme.lower() != b"bearer" or not token:
            return False
        digest = hashlib.sha256(token.strip()).digest()
        found = False
        for known in self._current():
            found |= hmac.compare_digest(digest, known)
        return found

    def is_operator(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether the operator asks; allowed to read what is loaded, and nothing else."""
        given = next((value for name, value in headers if name == HEADER.encode()), b"")
        return self._operator is not None and hmac.compare_digest(hashlib.sha256(given).digest(), self._operator)

    def _current(self) -> list[bytes]:
        now = time.monotonic()
        if now - self._checked >= RECHECK_S:
            self._checked = now
            files = self._files()
            stamp = [(path, stat.st_mtime_ns, stat.st_size, stat.st_ino) for path, stat in files]
            if stamp != self._stamp:
                self._digests = [
                    hashlib.sha256(key).digest() for path, _ in files if (key := path.read_bytes().strip())
                ]
                self._stamp = stamp
        return self._digests

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        # A mounted Secret holds its files behind links into a hidden `..data` folder.
        try:
            paths = sorted(path for path in self._folder.iterdir() if not path.name.startswith("."))
            return [(path, path.stat()) for path in paths if path.is_file()]
        except OSError:
            return []
