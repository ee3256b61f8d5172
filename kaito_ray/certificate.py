# SPDX-License-Identifier: Apache-2.0
"""Host names in, the certificates of the admission webhook out. Pure but for the keys; called by webhook.py.

An authority of our own signs a short-lived certificate. The API server is given the authority, which lives for years,
so that a renewed certificate needs no change there. Keys are P-256.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_LIFE = timedelta(days=3650)
LIFE = timedelta(days=90)
# Renewed with this much left, so that an operator that is down for a week does no harm.
RENEW_BEFORE = timedelta(days=30)
_AUTHORITY_RENEW_BEFORE = timedelta(days=365)
# Clocks of API servers may be behind ours.
_SKEW = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM texts; `authorities` begins with the one that signed `certificate`, an older one may follow."""

    authorities: str
    authority_key: str
    certificate: str
    key: str


def make_certificates(hosts: Sequence[str], now: datetime) -> Certificates:
    """A new authority and a certificate for `hosts` (names and addresses)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("kaito-ray webhook authority")
    authority = (
        _builder(name, name, key, now, AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _issue(_pem(authority), _key_pem(key), hosts, now)


def renewed(certificates: Certificates, hosts: Sequence[str], now: datetime) -> Certificates:
    """The same certificates while they are good for `hosts`; new ones, signed by an authority already known, else.

    An authority that nears its end is replaced; the old one stays in the bundle for API servers' connections.
    """
    authority, *_ = x509.load_pem_x509_certificates(certificates.authorities.encode())
    if authority.not_valid_after_utc - now < _AUTHORITY_RENEW_BEFORE:
        fresh = make_certificates(hosts, now)
        bundle = fresh.authorities + _pem(authority)
        return Certificates(bundle, fresh.authority_key, fresh.certificate, fresh.key)
    leaf = x509.load_pem_x509_certificate(certificates.certificate.encode())
    if leaf.not_valid_after_utc - now >= RENEW_BEFORE and _hosts(leaf) == set(hosts):
        return certificates
    return _issue(certificates.authorities, certificates.authority_key, hosts, now)


def _issue(authorities: str, authority_key: str, hosts: Sequence[str], now: datetime) -> Certificates:
    authority, *_ = x509.load_pem_x509_certificates(authorities.encode())
    signer = serialization.load_pem_private_key(authority_key.encode(), password=None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise TypeError("the authority's key is not ours: it is no elliptic curve key")
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder(_name(hosts[0]), authority.subject, key, now, LIFE)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    return Certificates(authorities, authority_key, _pem(certificate), _key_pem(key))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + life)
    )


def _name(text: str) -> x509.Name:
    # A common name has at most 64 characters; nobody reads it, the alternative names count.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _key_usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _hosts(certificate: x509.Certificate) -> set[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in names}


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
