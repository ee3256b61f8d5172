# SPDX-License-Identifier: Apache-2.0
"""How a registry wants to be asked: its WWW-Authenticate header in its parts, and the token that answers it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from yarl import URL

from kaito_ray.artifacts.credential import Login
from kaito_ray.artifacts.reason import Reason
from kaito_ray.artifacts.transport import Transport, exact_url, read_whole, shown, status_error
from kaito_ray.errors import ArtifactRefused

_PARAMETER = re.compile(r'(\w+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_TOKEN_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Challenge:
    """`Basic`, or `Bearer` with where to get a token and for what."""

    scheme: str
    realm: str = ""
    service: str = ""
    scope: str = ""

    @classmethod
    def parse(cls, headers: Iterable[str]) -> "Challenge | None":
        """The first challenge we can answer; None when there is none."""
        for header in headers:
            scheme, _, rest = header.strip().partition(" ")
            values = {match[1].lower(): match[2] or match[3] or "" for match in _PARAMETER.finditer(rest)}
            if scheme.lower() == "bearer" and values.get("realm"):
                return cls("Bearer", values["realm"], values.get("service", ""), values.get("scope", ""))
            if scheme.lower() == "basic":
                return cls("Basic")
        return None

    async def answer(self, transport: Transport, login: Login | None) -> str | None:
        """The value of an Authorization header for this login, None when the login is not accepted.

        Without a login a token is asked for anonymously, as public repositories give.
        """
        if self.scheme == "Basic":
            return login.basic() if login and login.user else None
        query = {name: value for name, value in (("service", self.service), ("scope", self.scope)) if value}
        if login and login.refresh_token:
            form = query | {
                "grant_type": "refresh_token",
                "refresh_token": login.refresh_token,
                "client_id": "kaito-ray",
            }
            return await self._token(transport, "POST", exact_url(self.realm), {}, form)
        headers = {"Authorization": login.basic()} if login else {}
        return await self._token(transport, "GET", exact_url(self.realm).update_query(query), headers, None)

    async def _token(
        self, transport: Transport, method: str, url: URL, headers: dict[str, str], form: dict[str, str] | None
    ) -> str | None:
        async with transport.request(method, str(url), headers=headers, data=form) as response:
            if response.status in {400, 401, 403}:
                return None
            if response.status != 200:
                raise status_error(response, f"token of {shown(url)}")
            raw = await read_whole(response, _TOKEN_BYTES, shown(url))
        match = re.search(rb'"(?:access_)?token"\s*:\s*"([^"\\]+)"', raw)
        if match is None:
            raise ArtifactRefused(f"{shown(url)}: no token in the answer", reason=Reason.UNEXPECTED_ANSWER)
        return f"Bearer {match[1].decode()}"
