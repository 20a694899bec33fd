"""Which addresses an image may be fetched from: the reading of a URL, and which IP addresses are public.

One strict reading, from which the request is built as well, so that no second parser can understand a URL in another
way. What browsers mend (backslashes, missing slashes, ``0x7f.1``, whitespace) is refused instead.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import quote, urljoin

MAX_URL = 8192
"""Characters; signed addresses of object stores have up to about 2000."""

_PORTS = {"http": 80, "https": 443}
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?(?P<rest>[/?#].*)?",
    re.IGNORECASE | re.ASCII | re.DOTALL,  # without ASCII, letters of other alphabets are s and k in disguise
)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE | re.ASCII)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_SAFE = "".join(map(chr, range(0x21, 0x7F)))
"""What passes as it was written, percent signs included: a signature covers the very characters."""

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_NOT_PUBLIC: tuple[_Network, ...] = tuple(
    map(
        ipaddress.ip_network,
        (
            "0.0.0.0/8",  # this host
            "10.0.0.0/8",
            "100.64.0.0/10",  # behind a carrier's NAT; clouds keep metadata there
            "127.0.0.0/8",
            "168.63.129.16/32",  # Azure's host, seen from inside
            "169.254.0.0/16",  # link-local; clouds keep metadata there
            "172.16.0.0/12",
            "192.0.0.0/24",  # protocol assignments
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # relays of 6to4
            "192.168.0.0/16",
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and the broadcast
            "2001::/23",  # protocol assignments: Teredo, ORCHID
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4, which holds an IPv4 address
            "3fff::/20",  # documentation
        ),
    )
)
"""From IANA's registries of special-purpose addresses. ``ipaddress.is_global`` differs between versions of Python."""

_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
"""All that IANA has given out; outside are ``::1``, IPv4-mapped, NAT64, unique local, link-local and multicast."""
_ISATAP = (0x00005EFE, 0x02005EFE)
"""The middle of an interface identifier whose end is an IPv4 address (RFC 5214)."""


class NotFetchable(ValueError):
    """An address from which nothing is fetched; the message says why and fits after "it"."""


@dataclass(frozen=True, slots=True)
class ImageUrl:
    """A URL that was understood. ``host`` is a name or an IP address, in small letters and without brackets."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def ip(self) -> str | None:
        """The host, if it is an IP address."""
        return self.host if ":" in self.host or _is_number(self.host) else None

    @property
    def authority(self) -> str:
        """The ``Host`` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def read_image_url(url: str) -> ImageUrl:
    """Return a URL's parts; raises ``NotFetchable`` unless it is a plain http or https one."""
    if len(url) > MAX_URL:
        raise NotFetchable(f"is longer than {MAX_URL} characters")
    if any(ord(letter) <= 0x20 or letter in "\\\x7f" for letter in url):
        raise NotFetchable("holds whitespace, a control character or a backslash")
    if url[:8].lower().split("://")[0] not in _PORTS:
        raise NotFetchable("is neither http nor https")
    found = _URL.fullmatch(url)
    if found is None:
        raise NotFetchable("has no plain host name or port, such as https://example.org/cat.png")
    scheme = found["scheme"].lower()
    port = int(found["port"] or _PORTS[scheme])
    target = quote((found["rest"] or "/").partition("#")[0], safe=_SAFE, errors="replace")
    return ImageUrl(scheme, _read_host(found["host"].lower()), port, target if target[:1] == "/" else "/" + target)


def redirected(url: ImageUrl, location: str) -> ImageUrl:
    """Return where a redirect leads to; raises ``NotFetchable`` as ``read_image_url`` does."""
    if location.startswith("//"):
        return read_image_url(f"{url.scheme}:{location}")
    if _SCHEME.match(location):
        return read_image_url(location)
    return read_image_url(f"{url.scheme}://{url.authority}{urljoin(url.target, location)}")


def read_host(text: str) -> str:
    """Return a host as ``is_allowed`` looks for it, with a port if it has one; raises ``NotFetchable``."""
    if not set("/?#").isdisjoint(text):
        raise NotFetchable(f"{text!r} is no host, nor a host with a port")
    url = read_image_url(f"http://{text}/")
    host = f"[{url.host}]" if ":" in url.host else url.host
    return f"{host}:{url.port}" if re.search(r":[0-9]+$", text) else host


def is_allowed(url: ImageUrl, allowed: Collection[str]) -> bool:
    """Whether ``image_hosts`` names the host: with its port, or alone for the ports 80 and 443."""
    host = f"[{url.host}]" if ":" in url.host else url.host
    return f"{host}:{url.port}" in allowed or (host in allowed and url.port in _PORTS.values())


def check_port(url: ImageUrl) -> None:
    """Raise ``NotFetchable`` for a port on which no web server for everybody listens."""
    if url.port not in _PORTS.values():
        raise NotFetchable("has another port than 80 and 443")


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the internet at large, and hides no other address in itself."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        has_ipv4_end = int(ip) >> 32 & 0xFFFFFFFF in _ISATAP
        if ip.scope_id is not None or has_ipv4_end or ip not in _GLOBAL_UNICAST:
            return False
    return not any(ip in network for network in _NOT_PUBLIC if network.version == ip.version)


def _read_host(host: str) -> str:
    try:
        if host[0] == "[":
            return str(ipaddress.IPv6Address(host[1:-1]))
        if _is_number(host):
            return str(ipaddress.IPv4Address(host))
    except ValueError:
        raise NotFetchable("has a number for a host that is no IP address in its usual form") from None
    if len(host) > 253 or not all(map(_LABEL.fullmatch, host.split("."))):
        raise NotFetchable("has a host that is no name")
    return host


def _is_number(host: str) -> bool:
    """Whether the host ends in a number, by which browsers tell an IPv4 address in any of its spellings."""
    return _NUMBER.fullmatch(host.rpartition(".")[2]) is not None
