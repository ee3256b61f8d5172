# SPDX-License-Identifier: Apache-2.0
"""A URL or an address in, why it is refused out."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaito_ray.urls import refuse_address, refuse_url

PUBLIC = [
    "https://huggingface.co/datasets/a/b/resolve/main/train.parquet?download=true",
    "http://example.com:8080/x.json#part",
    "https://example.com./x",
    "https://8.8.8.8/x",
    "https://[2606:4700::1111]/x",
    "https://xn--bcher-kva.example/x",
    "https://my_bucket.s3.amazonaws.com/x%20y",
    "HTTPS://EXAMPLE.COM/x",
    "https://127.0.0.1.example.com/x",
    "https://1password.com/x",
]
REFUSED = {
    "file": ("file:///etc/passwd", 'https:// or http://, got "file"'),
    "ftp": ("ftp://example.com/x", "must begin with"),
    "no scheme": ("example.com/x", "must begin with"),
    "no host": ("https:///x", "names no host"),
    "one slash": ("https:/example.com/x", "names no host"),
    "user": ("https://user@example.com/x", "user name"),
    "user and password": ("https://example.com:pw@10.0.0.1/x", "user name"),
    "backslash": ("https://example.com\\@10.0.0.1/", "backslash"),
    "space": ("https://example.com/a b", "spaces"),
    "tab inside the scheme": ("ht\ttp://example.com", "control characters"),
    "new line": ("https://example.com/\r\nHost: x", "control characters"),
    "port": ("https://example.com:99999/", "is not a URL"),
    "bracket": ("https://[::1/", "is not a URL"),
    "fullwidth digits": ("http://１２７.0.0.1/", "ASCII"),
    "circled letters": ("http://ⓛocalhost/", "ASCII"),
    "ideographic stop": ("http://127。0。0。1/", "ASCII"),
    "escaped host": ("http://%6cocalhost/", "ASCII"),
    "zone": ("http://[fe80::1%25eth0]/", "ASCII"),
    "localhost": ("http://localhost:8000/x", "this machine itself"),
    "upper case": ("http://LocalHost/x", "this machine itself"),
    "trailing dot": ("http://localhost./x", "this machine itself"),
    "below localhost": ("http://a.localhost/x", "this machine itself"),
    "loopback": ("http://127.0.0.1/", "this machine itself"),
    "loopback, far end": ("http://127.255.255.254/", "this machine itself"),
    "loopback with a dot": ("http://127.0.0.1./", "this machine itself"),
    "short form": ("http://127.1/", "this machine itself"),
    "three parts": ("http://127.0.1/", "this machine itself"),
    "decimal": ("http://2130706433/", "this machine itself"),
    "octal": ("http://0177.0.0.1/", "this machine itself"),
    "hex": ("http://0x7f.0x0.0x0.0x1/", "this machine itself"),
    "hex number": ("http://0x7f000001/", "this machine itself"),
    "octal number": ("http://017700000001/", "this machine itself"),
    "mixed": ("http://0x7f.1/", "this machine itself"),
    "unspecified": ("http://0/", "this machine itself"),
    "unspecified v6": ("http://[::]/", "this machine itself"),
    "v6 loopback": ("http://[::1]/", "this machine itself"),
    "mapped": ("http://[::ffff:127.0.0.1]/", "this machine itself"),
    "mapped in hex": ("http://[::ffff:7f00:1]/", "this machine itself"),
    "mapped, long": ("http://[0:0:0:0:0:ffff:10.0.0.1]/", "a private address"),
    "compatible": ("http://[::10.0.0.1]/", "a private address"),
    "6to4": ("http://[2002:a00:1::]/", "a private address"),
    "nat64": ("http://[64:ff9b::a00:1]/", "a private address"),
    "private": ("http://10.1.2.3/", "a private address"),
    "private 172": ("http://172.16.0.1/", "a private address"),
    "private 192": ("http://192.168.1.1/", "a private address"),
    "carrier": ("http://100.64.0.1/", "a private address"),
    "link-local": ("http://169.254.1.1/", "a private address"),
    "v6 link-local": ("http://[fe80::1]/", "a private address"),
    "v6 private": ("http://[fd00::1]/", "a private address"),
    "multicast": ("http://224.0.0.1/", "a private address"),
    "broadcast": ("http://255.255.255.255/", "a private address"),
    "metadata": ("http://169.254.169.254/latest/meta-data", "a metadata endpoint"),
    "metadata in decimal": ("http://2852039166/", "a metadata endpoint"),
    "metadata mapped": ("http://[::ffff:169.254.169.254]/", "a metadata endpoint"),
    "metadata by name": ("http://metadata.google.internal/", "a metadata endpoint"),
    "Azure's platform": ("http://168.63.129.16/", "a metadata endpoint"),
    "broken address": ("http://1.2.3.4.5/", "not an IP address"),
    "part too large": ("http://256.0.0.1/", "not an IP address"),
    "octal that is none": ("http://09.0.0.1/", "not an IP address"),
    "cluster name": ("http://minio/x", "private network"),
    "service": ("http://minio.data.svc/x", "private network"),
    "service, long": ("http://minio.data.svc.cluster.local/x", "private network"),
    "internal": ("http://db.corp.internal/x", "private network"),
    "strange host": ("http://a..b/", "not a domain name"),
    "too long": ("https://example.com/" + "a" * 5000, "at most 4096 characters"),
}


@pytest.mark.parametrize("url", PUBLIC)
def test_public_urls_pass(url: str) -> None:
    assert refuse_url(url) is None


@pytest.mark.parametrize(("url", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_urls_are_refused(url: str, words: str) -> None:
    assert words in str(refuse_url(url))


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("http://127.0.0.1:9000/x", "127.0.0.1"),
        ("http://127.1:9000/x", "127.0.0.0/8"),
        ("http://[::ffff:10.0.0.1]/x", "10.0.0.0/8"),
        ("http://[fd00::1]/x", "fd00::/8"),
        ("http://localhost/x", "localhost"),
        ("http://MinIO.data.svc/x", "minio.data.svc"),
        ("http://a.b.corp.internal/x", ".corp.internal"),
        ("http://a.corp.internal/x", "*.corp.internal"),
    ],
)
def test_private_places_can_be_allowed(url: str, allowed: str) -> None:
    assert refuse_url(url) is not None
    assert refuse_url(url, [allowed]) is None


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("http://169.254.169.254/", "169.254.0.0/16"),
        ("http://metadata.google.internal/", ".internal"),
        ("http://10.0.0.1/", "10.1.0.0/16"),
        ("http://evilcorp.internal/", "corp.internal"),
        ("http://user@10.0.0.1/", "10.0.0.1"),
        ("file://10.0.0.1/x", "10.0.0.1"),
    ],
)
def test_allowing_one_place_opens_no_other(url: str, allowed: str) -> None:
    assert refuse_url(url, [allowed]) is not None


def test_messages_do_not_repeat_what_may_be_secret() -> None:
    for url in ("https://me:hunter2@x.example/", "http://10.0.0.1/x?sig=hunter2", "http://a\\b/?sig=hunter2"):
        assert "hunter2" not in str(refuse_url(url))


@given(st.ip_addresses(v=4))
def test_every_spelling_of_an_address_is_judged_alike(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    a, b, c, d = address.packed
    spellings = [
        f"{number}",
        f"{number:#x}",
        f"0{number:o}",
        f"{a}.{number & 0xFFFFFF}",
        f"{a}.{b}.{number & 0xFFFF}",
        f"{a:#x}.0{b:o}.{c}.{d:#x}",
        f"[::ffff:{address}]",
        f"[64:ff9b::{address}]",
    ]
    refused = refuse_address(address) is not None
    for spelling in spellings:
        assert (refuse_url(f"http://{spelling}/") is not None) == refused, spelling


@given(st.text(max_size=40))
def test_any_text_is_judged(text: str) -> None:
    for url in (text, f"http://{text}", f"http://a{text}/"):
        refuse_url(url)
