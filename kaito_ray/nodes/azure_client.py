# SPDX-License-Identifier: Apache-2.0
"""Settings and the environment in, a client of Azure Resource Manager out; called once, by operator/main.py.

In a cluster the operator signs in by workload identity: the webhook of AKS puts AZURE_CLIENT_ID, AZURE_TENANT_ID and
AZURE_FEDERATED_TOKEN_FILE into its pod. A service principal works by AZURE_CLIENT_SECRET or
AZURE_CLIENT_CERTIFICATE_PATH in place of the last. Nothing else is tried: falling back to the identity of the node
would hide a mistake until the first write.
"""

import ipaddress
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, urlsplit

from azure.core.credentials import AccessToken
from azure.core.credentials_async import AsyncTokenCredential
from azure.core.pipeline import PipelineRequest
from azure.core.pipeline.policies import SansIOHTTPPolicy
from azure.identity.aio import EnvironmentCredential, WorkloadIdentityCredential
from azure.mgmt.containerservice.aio import ContainerServiceClient

from kaito_ray.errors import InvalidManifest, Problem
from kaito_ray.settings import PREFIX, Settings

PUBLIC_CLOUD = "https://management.azure.com"
_FAKE = "fake"
_CONNECT_S = 10
_READ_S = 30


def azure_client(settings: Settings, environ: Mapping[str, str]) -> ContainerServiceClient:
    """The client; raises InvalidManifest naming every setting that is missing or wrong."""
    problems = [*_missing_settings(settings), *_endpoint_problems(settings), *_credential_problems(settings, environ)]
    if problems:
        raise InvalidManifest(problems)
    endpoint = settings.arm_endpoint.rstrip("/") or PUBLIC_CLOUD
    plain = urlsplit(endpoint).scheme == "http"
    return _Client(
        _credential(settings, environ),
        settings.subscription_id,
        base_url=endpoint,
        credential_scopes=[f"{endpoint}/.default"],
        # A request that is throttled or conflicts comes back by requeue, where others can see the wait; the SDK would
        # sleep inside the call.
        retry_total=0,
        connection_timeout=_CONNECT_S,
        read_timeout=_READ_S,
        per_call_policies=[_AllowHttp()] if plain else [],
    )


class _Client(ContainerServiceClient):
    """The SDK's client, which takes its credential along when it is closed."""

    def __init__(self, credential: AsyncTokenCredential, *arguments: Any, **options: Any) -> None:
        super().__init__(credential, *arguments, **options)
        self._credential = credential

    async def close(self) -> None:
        await super().close()
        await self._credential.close()

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _AllowHttp(SansIOHTTPPolicy[Any, Any]):
    """Lets the bearer-token policy send its token to a loopback address without TLS."""

    def on_request(self, request: PipelineRequest[Any]) -> None:
        request.context.options["enforce_https"] = False


class _FakeCredential:
    """A token that opens nothing, for a server of tests on loopback."""

    async def get_token(self, *scopes: str, **_: Any) -> AccessToken:  # noqa: ARG002
        return AccessToken(_FAKE, int(time.time()) + 3600)

    async def close(self) -> None:
        """There is nothing to close."""

    async def __aenter__(self) -> "_FakeCredential":
        return self

    async def __aexit__(self, *_: object) -> None:
        return None


def _credential(settings: Settings, environ: Mapping[str, str]) -> AsyncTokenCredential:
    if settings.azure_credential == _FAKE:
        return _FakeCredential()
    if environ.get("AZURE_FEDERATED_TOKEN_FILE"):
        return WorkloadIdentityCredential()
    return EnvironmentCredential()


def _missing_settings(settings: Settings) -> list[Problem]:
    wanted = ("subscription_id", "resource_group", "cluster_name", "location")
    return [
        Problem((f"{PREFIX}{name.upper()}",), "is not set, and agent pools of AKS need it")
        for name in wanted
        if not getattr(settings, name)
    ]


def _endpoint_problems(settings: Settings) -> list[Problem]:
    if not settings.arm_endpoint:
        return []
    url = urlsplit(settings.arm_endpoint)
    if url.scheme == "https" and url.hostname:
        return []
    if url.scheme == "http" and _is_loopback(url):
        return []
    text = f'is "{settings.arm_endpoint}"; it must be https, and may be http only on a loopback address'
    return [Problem((f"{PREFIX}ARM_ENDPOINT",), text)]


def _credential_problems(settings: Settings, environ: Mapping[str, str]) -> list[Problem]:
    kind = settings.azure_credential
    field = f"{PREFIX}AZURE_CREDENTIAL"
    if kind == _FAKE:
        if settings.arm_endpoint and _is_loopback(urlsplit(settings.arm_endpoint)):
            return []
        return [Problem((field,), f'is "{_FAKE}", which is allowed only with {PREFIX}ARM_ENDPOINT on loopback')]
    if kind:
        return [Problem((field,), f'is "{kind}"; leave it empty, or use "{_FAKE}" in tests')]
    secret = ("AZURE_CLIENT_SECRET", "AZURE_CLIENT_CERTIFICATE_PATH")
    missing = [name for name in ("AZURE_CLIENT_ID", "AZURE_TENANT_ID") if not environ.get(name)]
    if not any(environ.get(name) for name in ("AZURE_FEDERATED_TOKEN_FILE", *secret)):
        missing.append("AZURE_FEDERATED_TOKEN_FILE")
    if not missing:
        return []
    text = (
        f"{'is' if len(missing) == 1 else 'are'} not set, so there is no identity to sign in to Azure with. Workload"
        " identity sets them: the operator's pod needs the label azure.workload.identity/use=true, its ServiceAccount"
        " the annotation azure.workload.identity/client-id, and the cluster --enable-oidc-issuer and"
        " --enable-workload-identity. For a service principal set AZURE_CLIENT_ID, AZURE_TENANT_ID and"
        " AZURE_CLIENT_SECRET"
    )
    return [Problem((" ".join(missing),), text)]


def _is_loopback(url: SplitResult) -> bool:
    try:
        return ipaddress.ip_address(url.hostname or "").is_loopback
    except ValueError:
        return url.hostname == "localhost"
