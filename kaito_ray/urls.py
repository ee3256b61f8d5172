# SPDX-License-Identifier: Apache-2.0
"""Which addresses of data and adapters are refused: by their text here, and by the address connected to when fetched.

Called by workspace_rules.py at admission with the URL as written, and by whatever fetches a URL with every redirect
and every address it is about to connect to. Pure: nothing is resolved. Messages name the host alone, because the
rest of a URL may hold a token.
"""

import ipaddress
import re
import unicodedata
from collections.abc import Collection
from urllib.parse import urlsplit

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_LENGTH = 4096
_LIFTED = "; an administrator can allow it with KAITO_RAY_ALLOW_PRIVATE_URLS"

# Cloud metadata and platform endpoints hand out credentials to whoever asks, so nothing lifts these.
_METADATA_ADDRESSES = frozenset(
    ipaddress.ip_address(text)
    for text in ("169.254.169.254", "169.254.170.2", "168.63.129.16", "100.100.100.200", "fd00:ec2::254")
)
_METADATA_HOSTS = frozenset(
    {"metadata", "metadata.google.internal", "metadata.azure.internal", "instance-data", "instance-data.ec2.internal"}
)
_LOOPBACK_HOSTS = frozenset({"localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"})
_PRIVATE_SUFFIXES = (".localhost", ".localdomain", ".local", ".internal", ".intranet", ".lan", ".svc")

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_V4_COMPATIBLE = ipaddress.ip_network("::/96")
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]*|[0-9]+")
_HOST = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")


def refuse_url(url: str, allowed: Collection[str] = ()) -> str | None:
    """Why `url` must not be fetched, as the end of a sentence that starts with the field; None when it may.

    `allowed` holds hosts (`minio.data.svc`, `.corp.example`) and networks (`10.0.0.0/8`), private but permitted.
    """
    if len(url) > MAX_LENGTH:
        return f"must have at most {MAX_LENGTH} characters, got {len(url)}"
    if "\\" in url:
        return "must not contain a backslash"
    if any(character.isspace() or unicodedata.category(character) == "Cc" for character in url):
        return "must not contain spaces or control characters"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "is not a URL"
    if parts.scheme not in {"http", "https"}:
        return f'must begin with https:// or http://, got "{url.split(":", 1)[0][:20]}"'
    if "@" in parts.netloc:
        return "must not carry a user name or password"
    if not host:
        return "names no host"
    return _refuse_host(host, allowed)


def refuse_address(address: IPAddress, allowed: Collection[str] = ()) -> str | None:
    """Why `address` must not be connected to; None when it is public or permitted by `allowed`."""
    for inner in (address, *_embedded(address)):
        if inner in _METADATA_ADDRESSES:
            return f"leads to {address}, a metadata endpoint of the cloud"
    if any(_network_holds(entry, address) for entry in allowed):
        return None
    mapped = isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None
    # A mapped address is nothing but its IPv4 address; whether it is global itself depends on the Python version.
    for inner in _embedded(address) if mapped else (*_embedded(address), address):
        if not inner.is_global or inner.is_multicast:
            kind = "this machine itself" if inner.is_loopback or inner.is_unspecified else "a private address"
            return f"leads to {address}, {kind}{_LIFTED}"
    return None


def allows_host(host: str, allowed: Collection[str]) -> bool:
    """Whether `allowed` names this host, so that it may resolve to a private address (never to a metadata one)."""
    return any(_name_matches(entry, host.lower().removesuffix(".")) for entry in allowed)


def _refuse_host(host: str, allowed: Collection[str]) -> str | None:
    if not host.isascii() or "%" in host:
        return "must spell its host in plain ASCII (a domain with other letters begins with xn--)"
    host = host.removesuffix(".")
    address = _address(host)
    if address is not None:
        return refuse_address(address, allowed)
    if _NUMBER.fullmatch(host.rsplit(".", 1)[-1]) or ":" in host:
        return f"has the host {host[:64]}, which is not an IP address"
    if len(host) > 253 or not _HOST.fullmatch(host):
        return f"has the host {host[:64]}, which is not a domain name"
    if host in _METADATA_HOSTS:
        return f"leads to {host}, a metadata endpoint of the cloud"
    if allows_host(host, allowed):
        return None
    if host in _LOOPBACK_HOSTS or host.endswith(".localhost"):
        return f"leads to {host}, this machine itself{_LIFTED}"
    if "." not in host or host.endswith((*_PRIVATE_SUFFIXES, ".cluster.local")):
        return f"leads to {host}, a name inside a private network{_LIFTED}"
    return None


def _address(host: str) -> IPAddress | None:
    """The IP address that a resolver makes of `host`, in any spelling inet_aton takes; None for a name."""
    if ":" in host:
        try:
            return ipaddress.IPv6Address(host)
        except ValueError:
            return None
    parts = host.split(".")
    if len(parts) > 4 or not all(_NUMBER.fullmatch(part) for part in parts):
        return None
    try:
        numbers = [_number(part) for part in parts]
    except ValueError:
        return None
    *leading, last = numbers
    if any(number > 255 for number in leading) or last >= 256 ** (5 - len(parts)):
        return None
    value = last
    for index, number in enumerate(leading):
        value += number << (8 * (3 - index))
    return ipaddress.IPv4Address(value)


def _number(part: str) -> int:
    if part[:2] in {"0x", "0X"}:
        return int(part[2:] or "0", 16)
    return int(part, 8) if len(part) > 1 and part.startswith("0") else int(part)


def _embedded(address: IPAddress) -> list[IPAddress]:
    """IPv4 addresses that an IPv6 address stands for: mapped, compatible, 6to4, Teredo, NAT64."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    found: list[IPAddress | None] = [address.ipv4_mapped, address.sixtofour]
    if address.teredo:
        found.append(address.teredo[1])
    if address in _NAT64 or (address in _V4_COMPATIBLE and int(address) > 1):
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [inner for inner in found if inner is not None]


def _network_holds(entry: str, address: IPAddress) -> bool:
    try:
        network = ipaddress.ip_network(entry.strip(), strict=False)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return any(one.version == network.version and one in network for one in (address, mapped) if one is not None)


def _name_matches(entry: str, host: str) -> bool:
    name = entry.strip().lower().removesuffix(".").removeprefix("*")
    return host.endswith(name) if name.startswith(".") else host == name
