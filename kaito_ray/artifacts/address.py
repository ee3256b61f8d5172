# SPDX-License-Identifier: Apache-2.0
"""Which addresses a download connects to, decided on the address itself when its socket is made.

`kaito_ray.urls` judges what a URL says; only the resolver knows where a name leads, and it may say something else a
second later (DNS rebinding). So `Gate` is both the resolver and the maker of sockets of a session: no connection
exists whose address it has not seen.
"""

import ipaddress
import socket
from collections.abc import Collection

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.connector import AddrInfoType

from kaito_ray.urls import allows_host, refuse_address


class AddressRefused(OSError):
    """A connection that must not be made; an OSError because that is what a connector expects to fail with."""


class Gate(AbstractResolver):
    """Resolver and socket factory of one session; `allowed` holds the hosts and networks excepted from the rule."""

    def __init__(self, resolver: AbstractResolver, allowed: Collection[str]) -> None:
        self._resolver = resolver
        self._allowed = allowed
        self._behind_allowed_hosts: set[str] = set()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Resolve, and refuse the name altogether when one of its addresses is off limits."""
        found = await self._resolver.resolve(host, port, family)
        addresses = {result["host"] for result in found}
        excepted = addresses if allows_host(host, self._allowed) else set()
        for address in addresses:
            self._check(address, excepted)
        self._behind_allowed_hosts |= excepted
        return found

    async def close(self) -> None:
        """Close the resolver underneath."""
        await self._resolver.close()

    def open_socket(self, info: AddrInfoType) -> socket.socket:
        """Make the socket for an address that passes; literal addresses, which skip the resolver, come here too."""
        family, kind, proto, _, sockaddr = info
        self._check(str(sockaddr[0]), self._behind_allowed_hosts)
        return socket.socket(family=family, type=kind, proto=proto)

    def _check(self, text: str, excepted: set[str]) -> None:
        address = ipaddress.ip_address(text.partition("%")[0])
        itself = (str(address),) if text in excepted else ()
        if problem := refuse_address(address, (*self._allowed, *itself)):
            raise AddressRefused(problem)
