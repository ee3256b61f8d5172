# SPDX-License-Identifier: Apache-2.0
"""One guarded HTTP session: every hop checked, credentials kept at home, answers turned into errors with reasons.

aiohttp, because its connector takes the resolver and the maker of sockets as arguments: the address is judged where
the connection is made (address.py), not once before. Called by url.py, registry.py and push.py.
"""

import asyncio
import contextlib
import email.utils
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from typing import Any, Self, TypeVar

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from kaito_ray.artifacts.address import AddressRefused, Gate
from kaito_ray.artifacts.limits import Limits, human_bytes
from kaito_ray.artifacts.reason import Reason
from kaito_ray.errors import ArtifactRefused, ArtifactUnavailable
from kaito_ray.urls import refuse_url

REDIRECTS = {301, 302, 303, 307, 308}
# What the reader holds is lost when the connection breaks, and each filling of it wakes the event loop once.
_READ_BYTES = 256 * 1024
_BACKOFF_S = 0.5
_BACKOFF_MAX_S = 20.0
T = TypeVar("T")
RefuseUrl = Callable[[str], str | None]


class Transport:
    """A session whose connections pass a Gate. Use as `async with Transport(...)`.

    `allowed` are hosts and networks that may be reached although they are private. `refuse` judges the URL of every
    hop by its text; it is refuse_url unless a caller needs another rule.
    """

    def __init__(
        self,
        limits: Limits,
        allowed: Collection[str] = (),
        *,
        refuse: RefuseUrl | None = None,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self.limits = limits
        self._allowed = tuple(allowed)
        self._refuse = refuse or (lambda url: refuse_url(url, self._allowed))
        self._resolver = resolver
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        gate = Gate(self._resolver or aiohttp.ThreadedResolver(), self._allowed)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=gate, socket_factory=gate.open_socket, limit=32),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=15, sock_read=self.limits.idle_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            # Files are stored as they travel, and a compressed answer would make Range and sizes meaningless.
            auto_decompress=False,
            headers={"User-Agent": "kaito-ray", "Accept-Encoding": "identity"},
            read_bufsize=_READ_BYTES,
            # A proxy would connect on our behalf and past the gate.
            trust_env=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    @contextlib.asynccontextmanager
    async def request(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, data: Any = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The final answer after redirects, whatever its status; raises ArtifactRefused or ArtifactUnavailable.

        A redirect is followed for GET and HEAD only. `Authorization` stays with the origin (scheme, host and port)
        it was meant for.
        """
        assert self._session is not None, "use the transport as a context manager"  # noqa: S101
        sent = dict(headers or {})
        here = self._judged(url)
        for _ in range(self.limits.redirects + 1):
            with translated(here):
                response = await self._session.request(method, here, headers=sent, data=data, allow_redirects=False)
            target = response.headers.get("Location", "")
            if response.status not in REDIRECTS or method not in {"GET", "HEAD"} or not target:
                break
            response.release()
            there = self._judged(target, here)
            if (there.scheme, there.host, there.port) != (here.scheme, here.host, here.port):
                sent.pop("Authorization", None)
            here = there
        else:
            raise ArtifactRefused(
                f"{shown(url)}: more than {self.limits.redirects} redirects",
                reason=Reason.TOO_MANY_REDIRECTS,
            )
        try:
            with translated(here):
                yield response
        finally:
            if response.content.at_eof():
                response.release()
            else:
                response.close()  # rather than drain what nobody wants

    def _judged(self, text: str, here: URL | None = None) -> URL:
        """The next hop, unless it must not be made; `here` is what a relative redirect starts from."""
        try:
            there = here.join(exact_url(text)) if here else exact_url(text)
        except ValueError:
            raise ArtifactRefused(f"{shown(here or '')}: leads to what is no URL", reason=Reason.URL_REFUSED) from None
        if problem := self._refuse(str(there)):
            raise ArtifactRefused(f"{shown(there)} {problem}", reason=Reason.URL_REFUSED)
        return there


def exact_url(text: str) -> URL:
    """The URL byte for byte when it is one already: requoting would break the signature of a storage link."""
    return URL(text, encoded=text.isascii() and " " not in text)


def shown(url: URL | str) -> str:
    """A URL as messages may carry it: without user, query or fragment, where secrets travel."""
    try:
        return str(URL(url).with_user(None).with_query(None).with_fragment(None)) or "the URL"
    except ValueError:
        return "the URL"


@contextlib.contextmanager
def translated(url: URL) -> Any:
    """Turn aiohttp's exceptions into ours; anything else passes."""
    where = shown(url)
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as error:
        raise ArtifactRefused(
            f"{where}: its certificate is not trusted: {error.certificate_error}", reason=Reason.CERTIFICATE_REFUSED
        ) from None
    except aiohttp.ClientSSLError as error:
        raise ArtifactRefused(f"{where}: TLS failed: {error.os_error}", reason=Reason.TLS_FAILED) from None
    except aiohttp.ClientConnectorError as error:
        if isinstance(error.os_error, AddressRefused):
            raise ArtifactRefused(f"{where} {error.os_error}", reason=Reason.URL_REFUSED) from None
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            raise ArtifactUnavailable(f"{where}: no such host", reason=Reason.HOST_NOT_FOUND) from None
        raise ArtifactUnavailable(f"{where}: {error.os_error}", reason=Reason.CONNECTION_FAILED) from None
    except aiohttp.ClientPayloadError:
        raise ArtifactUnavailable(f"{where}: the answer broke off", reason=Reason.TRUNCATED) from None
    except TimeoutError:
        raise ArtifactUnavailable(f"{where}: the server stopped answering", reason=Reason.TIMEOUT) from None
    except aiohttp.InvalidURL:
        raise ArtifactRefused(f"{where}: not a URL", reason=Reason.URL_REFUSED) from None
    except (aiohttp.ClientConnectionError, ConnectionError) as error:
        raise ArtifactUnavailable(f"{where}: {error or 'connection lost'}", reason=Reason.CONNECTION_FAILED) from None
    except aiohttp.ClientError as error:
        raise ArtifactUnavailable(f"{where}: {error}", reason=Reason.UNEXPECTED_ANSWER) from None


def status_error(response: aiohttp.ClientResponse, what: str) -> ArtifactRefused | ArtifactUnavailable:
    """The error an unwelcome status means, in words about `what`."""
    status = response.status
    refusals = {
        401: (Reason.UNAUTHORIZED, "needs credentials, or refused the ones it got (401)"),
        403: (Reason.FORBIDDEN, "forbids it (403)"),
        404: (Reason.NOT_FOUND, "does not have it (404)"),
        410: (Reason.NOT_FOUND, "does not have it any more (410)"),
    }
    host = response.url.host or "the server"
    if status in refusals:
        reason, words = refusals[status]
        return ArtifactRefused(f"{what}: {host} {words}", reason=reason)
    if status == 429:
        return ArtifactUnavailable(
            f"{what}: {host} limits the rate of requests (429)",
            reason=Reason.RATE_LIMITED,
            retry_after_s=retry_after(response.headers.get("Retry-After")),
        )
    if status >= 500 or status == 408:
        return ArtifactUnavailable(
            f"{what}: {host} answers {status}",
            reason=Reason.SERVER_ERROR,
            retry_after_s=retry_after(response.headers.get("Retry-After")),
        )
    return ArtifactRefused(f"{what}: {host} answers {status}", reason=Reason.UNEXPECTED_ANSWER)


async def read_whole(response: aiohttp.ClientResponse, limit: int, what: str) -> bytes:
    """A short body, at most `limit` bytes of it."""
    raw = b""
    with translated(response.url):
        async for chunk in response.content.iter_any():
            raw += chunk
            if len(raw) > limit:
                raise ArtifactRefused(
                    f"{what}: the answer is larger than {human_bytes(limit)}", reason=Reason.TOO_LARGE
                )
    return raw


def retry_after(value: str | None) -> float:
    """Seconds a server asked to wait, given as a number or an HTTP date; 0 when it did not say."""
    if not value:
        return 0.0
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


async def persist(
    attempt: Callable[[], Awaitable[T]],
    limits: Limits,
    *,
    what: str,
    progress: Callable[[], int] = lambda: 0,
    waiting: Callable[[ArtifactUnavailable], None] = lambda _: None,
) -> T:
    """Call `attempt` until it succeeds, is refused, or patience ends.

    Only ArtifactUnavailable is tried again, after what the server asked for or a doubling pause. Tries that brought
    something new (`progress` grew) are not counted; `limits.seconds` bounds the whole. `waiting` is told why it
    waits, before each pause.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limits.seconds
    failures, seen = 0, progress()
    last: ArtifactUnavailable | None = None
    try:
        async with asyncio.timeout_at(deadline):
            while True:
                try:
                    return await attempt()
                except ArtifactUnavailable as error:
                    last = error
                now = progress()
                failures = 1 if now > seen else failures + 1
                seen = now
                pause = max(last.retry_after_s, min(_BACKOFF_MAX_S, _BACKOFF_S * 2 ** (failures - 1)))
                if failures >= limits.attempts or loop.time() + pause > deadline:
                    raise last
                waiting(last)
                await asyncio.sleep(pause)
    except TimeoutError:
        if last is None:
            last = ArtifactUnavailable(f"{what}: not finished after {limits.seconds:g} s", reason=Reason.TIMEOUT)
        raise last from None
