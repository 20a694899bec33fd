"""Which hosts a request may be meant for, and which web pages may send one.

A page in a browser can send requests to servers on the same machine. By DNS rebinding, where the page's own name comes
to stand for 127.0.0.1, it could read the answers too; its requests then have that name in ``Host``. A page that sends
without rebinding says who it is in ``Origin``, which no page can change.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from rolecall.errors import BadRequest, HostNotAllowed

_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+?)\.?)(?::[0-9]{0,5})?", re.ASCII)
_NAME = re.compile(r"(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*", re.ASCII)
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?", re.ASCII)
_LONGEST = 300
"""Bytes; a DNS name has 253 at the most."""
_MOST_KNOWN = 64
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def host_rule(text: str) -> str:
    """Return an entry of ``allowed_hosts`` as it is compared; raises ``ValueError``: a name, ``*.name`` or address."""
    rule = text.strip().lower().rstrip(".")
    rule = rule[1:-1] if rule.startswith("[") and rule.endswith("]") else rule
    if _NAME.fullmatch(rule) is None and _address(rule) is None:
        raise ValueError(f"{text!r} must be a host's name without a port, *. and a name, or an address")
    return rule


def is_host_rule(text: str) -> bool:
    """Whether `host_rule` takes it."""
    try:
        host_rule(text)
    except ValueError:
        return False
    return True


def origin_rule(text: str) -> str:
    """Return an entry of ``allowed_origins`` as browsers send it; raises ``ValueError`` for a path or a wildcard."""
    rule = text.strip().lower()
    rule = rule.removesuffix(_DEFAULT_PORTS.get(rule.partition("://")[0], "\0"))
    if _ORIGIN.fullmatch(rule) is None:
        raise ValueError(f"{text!r} must be an origin such as https://chat.example.org: scheme, host, port if any")
    return rule


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address; of a name it is known of ``localhost`` alone."""
    address = _address(host)
    mapped = getattr(address, "ipv4_mapped", None)
    return host.lower() == "localhost" if address is None else (mapped or address).is_loopback


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


class AllowedHosts:
    """Decides about ``Host`` headers.

    Allowed with any port are loopback's addresses and names (``localhost``, ``*.localhost``), and ``names``. A server
    that listens beyond loopback (``any_address``) is reached by addresses that it does not know of: all are allowed,
    because an address in place of a name cannot be rebound.
    """

    def __init__(self, names: Iterable[str] = (), *, any_address: bool = False) -> None:
        rules = {host_rule(name) for name in names} | {"localhost", "*.localhost"}
        self._exact = frozenset(rule for rule in rules if not rule.startswith("*."))
        self._endings = tuple(rule[1:] for rule in rules if rule.startswith("*."))
        self._any_address = any_address
        self._known: set[bytes] = set()

    def check(self, host: bytes) -> None:
        """Raise ``BadRequest`` for what is no host, ``HostNotAllowed`` for one that is not ours."""
        if host in self._known:
            return
        self._examine(host[: _LONGEST + 1].decode("latin-1").lower())
        if len(self._known) < _MOST_KNOWN:  # what is allowed is short and comes again and again
            self._known.add(host)

    def _examine(self, host: str) -> None:
        parts = _HOST.fullmatch(host) if len(host) <= _LONGEST else None
        if parts is None:
            raise BadRequest("The Host header must name one host, such as localhost:8100.")
        name = parts[1] or parts[2]
        if not (name in self._exact or name.endswith(self._endings) or self._is_our_address(name)):
            raise HostNotAllowed(
                f"The request was sent to the host {name!r}, which is not one of this server's. Use localhost or an "
                "address of it, or add the name to allowed_hosts (CHAT_PROXY_ALLOWED_HOSTS)."
            )

    def _is_our_address(self, name: str) -> bool:
        return is_loopback(name) or (self._any_address and _address(name) is not None)


class AllowedOrigins:
    """Decides about ``Origin`` headers: those that are listed, and pages that came from this server itself."""

    def __init__(self, origins: Iterable[str] = ()) -> None:
        self._listed = frozenset(origin_rule(origin).encode() for origin in origins)

    def __bool__(self) -> bool:
        """Whether any other page is allowed."""
        return bool(self._listed)

    def has(self, origin: bytes) -> bool:
        """Whether a page of this origin may send requests and read the answers."""
        return origin.lower() in self._listed

    @staticmethod
    def is_own(origin: bytes, host: bytes) -> bool:
        """Whether a page came from the host that it asks. An allowed ``Host`` is one that no other page can have."""
        scheme, _, rest = origin.lower().partition(b"://")
        return scheme in {b"http", b"https"} and rest == host.lower()
