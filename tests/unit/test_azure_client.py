# SPDX-License-Identifier: Apache-2.0
"""How the operator signs in to Azure, and what it says when it cannot."""

from typing import Any

import pytest

from kaito_ray.errors import InvalidManifest
from kaito_ray.nodes.azure_client import azure_client
from kaito_ray.settings import Settings

WORKLOAD = {
    "AZURE_CLIENT_ID": "00000000-0000-0000-0000-00000000000c",
    "AZURE_TENANT_ID": "00000000-0000-0000-0000-00000000000e",
    "AZURE_FEDERATED_TOKEN_FILE": "/var/run/secrets/azure/tokens/azure-identity-token",
}
FAKE = {"arm_endpoint": "http://127.0.0.1:1", "azure_credential": "fake"}


def settings(**overrides: Any) -> Settings:
    values = {"subscription_id": "s", "resource_group": "g", "cluster_name": "c", "location": "eastus"} | overrides
    return Settings(**values)


@pytest.mark.parametrize(
    ("overrides", "environ", "problems"),
    [
        ({"subscription_id": "", "location": ""}, WORKLOAD, ["KAITO_RAY_SUBSCRIPTION_ID", "KAITO_RAY_LOCATION"]),
        ({}, {}, ["AZURE_CLIENT_ID AZURE_TENANT_ID AZURE_FEDERATED_TOKEN_FILE: are not set"]),
        ({}, WORKLOAD | {"AZURE_TENANT_ID": ""}, ["AZURE_TENANT_ID: is not set", "azure.workload.identity/use=true"]),
        ({}, {"AZURE_CLIENT_ID": "c", "AZURE_TENANT_ID": "t"}, ["AZURE_FEDERATED_TOKEN_FILE: is not set"]),
        ({"arm_endpoint": "http://10.0.0.1"}, WORKLOAD, ["may be http only on a loopback address"]),
        ({"arm_endpoint": "http://127.0.0.1.evil.example"}, WORKLOAD, ["may be http only on a loopback address"]),
        ({"arm_endpoint": "ftp://127.0.0.1"}, WORKLOAD, ["it must be https"]),
        ({"arm_endpoint": "nonsense"}, WORKLOAD, ["it must be https"]),
        ({"azure_credential": "fake"}, WORKLOAD, ["allowed only with KAITO_RAY_ARM_ENDPOINT on loopback"]),
        (FAKE | {"arm_endpoint": "https://management.azure.com"}, {}, ["allowed only with KAITO_RAY_ARM_ENDPOINT"]),
        ({"azure_credential": "cli"}, WORKLOAD, ['KAITO_RAY_AZURE_CREDENTIAL: is "cli"']),
    ],
)
def test_what_is_missing_is_named_before_anything_is_asked(
    overrides: dict[str, Any], environ: dict[str, str], problems: list[str]
) -> None:
    with pytest.raises(InvalidManifest) as refused:
        azure_client(settings(**overrides), environ)
    for problem in problems:
        assert problem in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "environ"),
    [
        ({}, WORKLOAD),
        ({"arm_endpoint": "https://management.usgovcloudapi.net/"}, WORKLOAD),
        ({}, {"AZURE_CLIENT_ID": "c", "AZURE_TENANT_ID": "t", "AZURE_CLIENT_SECRET": "s"}),
        (FAKE, {}),
        (FAKE | {"arm_endpoint": "http://localhost:1"}, {}),
        (FAKE | {"arm_endpoint": "http://[::1]:1"}, {}),
    ],
)
async def test_ways_to_sign_in(
    overrides: dict[str, Any], environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():  # azure-identity reads the process's own environment
        monkeypatch.setenv(name, value)
    async with azure_client(settings(**overrides), environ):
        pass
