# SPDX-License-Identifier: Apache-2.0
"""The webhook's certificates: what they are good for, and when new ones come."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store

from kaito_ray.certificate import AUTHORITY_LIFE, LIFE, RENEW_BEFORE, Certificates, make_certificates, renewed

NOW = datetime(2026, 11, 20, tzinfo=UTC)
HOSTS = ("kaito-ray-webhook.kaito-ray.svc", "localhost", "127.0.0.1")


def verify(certificates: Certificates, moment: datetime, host: str = HOSTS[0]) -> None:
    """Check the chain and the name as a strict TLS client does; raises when they do not hold."""
    authorities = x509.load_pem_x509_certificates(certificates.authorities.encode())
    verifier = PolicyBuilder().store(Store(authorities)).time(moment).build_server_verifier(x509.DNSName(host))
    verifier.verify(x509.load_pem_x509_certificate(certificates.certificate.encode()), [])


def test_a_new_certificate_is_good_for_its_hosts() -> None:
    certificates = make_certificates(HOSTS, NOW)
    verify(certificates, NOW)
    verify(certificates, NOW + LIFE - timedelta(days=1), "localhost")
    with pytest.raises(x509.verification.VerificationError):
        verify(certificates, NOW, "another.kaito-ray.svc")


def test_keys_are_only_where_they_belong() -> None:
    certificates = make_certificates(HOSTS, NOW)
    assert "PRIVATE KEY" not in certificates.authorities + certificates.certificate


@pytest.mark.parametrize(
    ("later", "hosts", "new"),
    [
        (timedelta(0), HOSTS, False),
        (LIFE - RENEW_BEFORE - timedelta(days=1), HOSTS, False),
        (LIFE - RENEW_BEFORE + timedelta(days=1), HOSTS, True),
        (LIFE + timedelta(days=400), HOSTS, True),
        (timedelta(0), ("renamed.kaito-ray.svc",), True),
    ],
)
def test_it_is_renewed_in_time_by_the_same_authority(later: timedelta, hosts: tuple[str, ...], new: bool) -> None:
    first = make_certificates(HOSTS, NOW)
    second = renewed(first, hosts, NOW + later)
    assert (second.certificate != first.certificate) is new
    assert second.authorities == first.authorities
    verify(second, NOW + later, hosts[0])


def test_an_authority_near_its_end_is_replaced_and_stays_trusted() -> None:
    first = make_certificates(HOSTS, NOW)
    moment = NOW + AUTHORITY_LIFE - timedelta(days=100)
    second = renewed(first, HOSTS, moment)
    assert second.authorities.endswith(first.authorities)
    verify(second, moment)
    third = renewed(second, HOSTS, moment + timedelta(days=1))
    assert third == second
