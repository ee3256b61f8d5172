# SPDX-License-Identifier: Apache-2.0
"""One repository of an OCI registry over HTTP: manifests, blobs, logins. oci.py pulls and push.py pushes with it.

A thin client of our own on the guarded session, because the library for this, oras (0.2.43), is built on blocking
requests, checks no digest of what it downloads, cannot continue a broken download, reads a blob into memory to push
it, and sends its Authorization header to whatever host an upload's Location names.
"""

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from typing import Any, Self

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from kaito_ray.artifacts import manifest
from kaito_ray.artifacts.challenge import Challenge
from kaito_ray.artifacts.credential import Login
from kaito_ray.artifacts.download import Ask
from kaito_ray.artifacts.limits import Limits
from kaito_ray.artifacts.manifest import Body
from kaito_ray.artifacts.reason import Reason
from kaito_ray.artifacts.reference import Reference
from kaito_ray.artifacts.transport import Transport, exact_url, persist, read_whole, status_error
from kaito_ray.errors import ArtifactRefused, ArtifactUnavailable
from kaito_ray.urls import allows_host, refuse_address, refuse_url

# Registries commonly live in private networks, unlike what a URL may name. Link-local and metadata stay closed.
_PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
_LOOPBACK = ("127.0.0.0/8", "::1/128", "localhost")
_HUB_API = "registry-1.docker.io"
_DENIED = {401, 403}


class Registry:
    """The repository of one reference. Use as `async with Registry(...)`.

    Logins are tried in their order after going without one. Plain http is spoken only to this machine and to hosts
    in `allowed`, and to those only when they do not speak TLS.
    """

    def __init__(
        self,
        reference: Reference,
        limits: Limits,
        *,
        logins: Sequence[Login] = (),
        allowed: Collection[str] = (),
        resolver: AbstractResolver | None = None,
    ) -> None:
        self.reference = reference
        self.limits = limits
        self._allowed = allowed
        self._logins: tuple[Login | None, ...] = (None, *logins)
        self._login = 0
        self._scheme_found = False
        self._challenge: Challenge | None = None
        self._header: str | None = None
        self._authorizing = asyncio.Lock()
        local = _LOOPBACK if _is_local(reference.hostname) else ()
        self._reachable = (*allowed, *_PRIVATE, *local)
        self._base = URL(f"https://{_HUB_API if reference.host == 'docker.io' else reference.host}/v2/")
        self._transport = Transport(limits, self._reachable, refuse=self._refuse, resolver=resolver)

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(self, *details: object) -> None:
        await self._transport.__aexit__(*details)

    def _refuse(self, url: str) -> str | None:
        """Why a hop is refused: plain http where it must not be spoken, or what is no place for a registry."""
        target = URL(url)
        host = target.host or ""
        if target.scheme == "http" and not may_speak_http(host, self._allowed):
            return "must begin with https://; only this machine and hosts an administrator allows may go without TLS"
        return refuse_url(url, (*self._reachable, host))

    async def find_scheme(self) -> None:
        """Fall back to plain http where that is permitted and the host does not speak TLS."""
        if self._scheme_found or not may_speak_http(self.reference.hostname, self._allowed):
            return
        try:
            async with self._transport.request("GET", str(self._base)):
                self._scheme_found = True
                return
        except ArtifactRefused as error:
            if error.reason != Reason.TLS_FAILED:
                raise
        except ArtifactUnavailable as error:
            if error.reason != Reason.CONNECTION_FAILED:
                raise
        plain = self._base.with_scheme("http")
        async with self._transport.request("GET", str(plain)):
            self._base, self._scheme_found = plain, True

    def url(self, path: str) -> str:
        """The URL of `manifests/latest`, `blobs/sha256:...` or `blobs/uploads/` of this repository."""
        return f"{self._base}{self.reference.repository}/{path}"

    async def get_manifest(self, wanted: str) -> Body:
        """A manifest or index by tag or digest; the bytes are checked against a digest that was asked for."""
        what = f"{self.reference.host}/{self.reference.repository}{'@' if ':' in wanted else ':'}{wanted}"

        async def attempt() -> Body:
            await self.find_scheme()
            url = self.url(f"manifests/{wanted}")
            async with self.request("GET", url, headers={"Accept": manifest.ACCEPT}) as response:
                if response.status != 200:
                    raise self.error(response, what)
                raw = await read_whole(response, manifest.MAX_BYTES, what)
                body = Body.parse(raw, response.headers.get("Content-Type", ""), what)
            claimed = wanted if ":" in wanted else response.headers.get("Docker-Content-Digest", body.digest)
            if claimed.startswith("sha256:") and claimed != body.digest:
                raise ArtifactRefused(
                    f"{what}: the manifest has the digest {body.digest}, not {claimed}", reason=Reason.DIGEST_MISMATCH
                )
            return body

        return await persist(attempt, self.limits, what=what)

    def error(self, response: aiohttp.ClientResponse, what: str) -> ArtifactRefused | ArtifactUnavailable:
        """The error of an answer; a denial says which logins were tried."""
        if response.status not in _DENIED:
            return status_error(response, what)
        origins = ", ".join(dict.fromkeys(login.origin for login in self._logins if login))
        tried = f"refused the login of {origins}" if origins else "needs a login, and no pull secret has one for it"
        reason = Reason.UNAUTHORIZED if response.status == 401 else Reason.FORBIDDEN
        return ArtifactRefused(f"{what}: {self.reference.host} {tried} ({response.status})", reason=reason)

    def blob(self, digest: str) -> Ask:
        """How to ask for a blob; every try begins at the registry, whose links to a blob store expire."""

        @contextlib.asynccontextmanager
        async def ask(headers: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
            async with self.request("GET", self.url(f"blobs/{digest}"), headers=headers) as response:
                if response.status in _DENIED:
                    raise self.error(response, f"{self.reference}: {digest[:19]}")
                yield response

        return ask

    @contextlib.asynccontextmanager
    async def request(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, data: Callable[[], Any] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer with the best login there is; `data` makes the body anew for each try.

        The login goes to the registry alone, also when an upload's Location names another host.
        """
        own = exact_url(url).origin() == self._base.origin()
        async with contextlib.AsyncExitStack() as stack:

            async def send(header: str | None) -> aiohttp.ClientResponse:
                await stack.aclose()
                sent = dict(headers or {}) | ({"Authorization": header} if header and own else {})
                body = data() if data else None
                return await stack.enter_async_context(self._transport.request(method, url, headers=sent, data=body))

            used = self._header
            response = await send(used)
            if response.status in _DENIED and own:
                async with self._authorizing:
                    if self._header != used:  # another request logged in meanwhile
                        response = await send(self._header)
                    if response.status in _DENIED:
                        response = await self._log_in(response, send)
            yield response

    async def _log_in(
        self, response: aiohttp.ClientResponse, send: Callable[[str | None], Any]
    ) -> aiohttp.ClientResponse:
        """Answer the challenge with one login after the other, from the present one on: its token may have expired."""
        for index in range(self._login, len(self._logins)):
            # Some registries leave the challenge out once they got a token.
            self._challenge = Challenge.parse(response.headers.getall("WWW-Authenticate", [])) or self._challenge
            if self._challenge is None:
                break
            header = await self._challenge.answer(self._transport, self._logins[index])
            if header is None:
                continue
            response = await send(header)
            if response.status not in _DENIED:
                self._login, self._header = index, header
                break
        return response


def may_speak_http(host: str, allowed: Collection[str]) -> bool:
    """Whether a host may be spoken to without TLS: this machine, or one that an administrator named."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host == "localhost" or allows_host(host, allowed)
    return address.is_loopback or (refuse_address(address) is not None and refuse_address(address, allowed) is None)


def _is_local(host: str) -> bool:
    return may_speak_http(host, ())
