"""Hosts that a request may be meant for, and pages that may send one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.core.hosts import AllowedHosts, AllowedOrigins, host_rule, is_host_rule, is_loopback, origin_rule
from rolecall.errors import BadRequest, HostNotAllowed, RolecallError

LOCAL = AllowedHosts(["127.0.0.1"])
LISTED = AllowedHosts(["llm.lan", "*.example.org", "10.1.2.3"])
EVERYWHERE = AllowedHosts(["box"], any_address=True)


def verdict(hosts: AllowedHosts, host: bytes) -> int:
    try:
        hosts.check(host)
    except RolecallError as error:
        return error.status
    return 200


@pytest.mark.parametrize(
    "host",
    [
        b"localhost", b"localhost:8100", b"LocalHost:1", b"localhost.", b"localhost.:8100", b"a.localhost:3000",
        b"127.0.0.1", b"127.0.0.1:8100", b"127.8.9.1", b"[::1]", b"[::1]:8100", b"[::ffff:127.0.0.1]:80", b"localhost:",
    ],
)  # fmt: skip
def test_loopback_is_always_allowed(host: bytes) -> None:
    """Its names and addresses, with any port, in any case, also where other names are listed."""
    for _ in range(2):  # the second time it is remembered
        assert [verdict(hosts, host) for hosts in (LOCAL, LISTED, EVERYWHERE)] == [200, 200, 200]


@pytest.mark.parametrize(
    "host",
    [
        b"evil.example", b"evil.example:8100", b"localhost.evil.example", b"127.0.0.1.evil.example", b"xlocalhost",
        b"192.168.0.1", b"[2001:db8::1]:8100", b"0.0.0.0:8100", b"127.1", b"2130706433", b"0x7f.0.0.1", b"[::]:8100",
        b"10.1.2.3", b"box", b"localhost-", b".", b"..", b"[::2]",
    ],
)  # fmt: skip
def test_a_server_of_loopback_is_called_nothing_else(host: bytes) -> None:
    """Names that an attacker could point at it, other addresses, and odd spellings of its own are refused with 421."""
    assert verdict(LOCAL, host) == 421


@pytest.mark.parametrize(
    "host",
    [
        b"", b" ", b"a b", b"x/v1/models", b"x?role=chat", b"x#f", b"/", b"?", b"#", b"@", b"x\\y", b"[::1", b"::1",
        b"user@localhost", b"localhost:80:80", b"localhost:http", b"localhost:123456", b"localhost\x00", b"localhost,x",
        b"\xff\xfe", "löcalhost".encode(), b"localhost\xc2\xa0", b"a" * 10_000, b"[zz]", b"localhost/", b":8100",
    ],
)  # fmt: skip
def test_what_is_no_host_is_a_bad_request(host: bytes) -> None:
    """Whatever else stands there is refused with 400, whichever hosts are allowed."""
    assert [verdict(hosts, host) for hosts in (LOCAL, EVERYWHERE)] == [400, 400]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (b"llm.lan:8100", 200), (b"LLM.LAN", 200), (b"x.llm.lan", 421), (b"a.example.org", 200), (b"10.1.2.3:1", 200),
        (b"a.b.example.org:443", 200), (b"example.org", 421), (b"xexample.org", 421), (b"10.1.2.4", 421),
    ],
)  # fmt: skip
def test_listed_names(host: bytes, status: int) -> None:
    """A listed name is that name alone; ``*.`` stands for everything below it."""
    assert verdict(LISTED, host) == status


@pytest.mark.parametrize(
    ("host", "status"),
    [(b"192.168.0.1:8100", 200), (b"[2001:db8::1]", 200), (b"box:8100", 200), (b"evil.example", 421)],
)
def test_beyond_loopback_addresses_are_allowed_and_names_are_not(host: bytes, status: int) -> None:
    """No page can be made to come from an address in place of a name, so that stops rebinding all the same."""
    assert verdict(EVERYWHERE, host) == status


def test_the_error_says_what_to_do() -> None:
    """It names the host and the setting."""
    with pytest.raises(HostNotAllowed, match=r"'evil\.example'.*CHAT_PROXY_ALLOWED_HOSTS"):
        LOCAL.check(b"Evil.example:8100")
    with pytest.raises(BadRequest, match=r"localhost:8100"):
        LOCAL.check(b"a b")


@given(st.binary(max_size=400))
def test_any_bytes_have_a_verdict(host: bytes) -> None:
    """Nothing but a refusal is ever raised, and the answer is the same each time."""
    assert verdict(LOCAL, host) == verdict(LOCAL, host)


def test_what_is_remembered_is_bounded() -> None:
    """Ever new allowed hosts are allowed, and do not fill the memory."""
    hosts = AllowedHosts(["*.example.org"])
    assert {verdict(hosts, f"n{number}.example.org".encode()) for number in range(1000)} == {200}
    assert len(hosts._known) <= 64


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (" LLM.lan ", "llm.lan"), ("*.Example.org.", "*.example.org"), ("[::1]", "::1"), ("2001:db8::1", "2001:db8::1"),
        ("10.0.0.1", "10.0.0.1"), ("my_box", "my_box"),
    ],
)  # fmt: skip
def test_rules_of_hosts(text: str, rule: str) -> None:
    """A name, a wildcard for what is below a name, or an address."""
    assert host_rule(text) == rule
    assert is_host_rule(text)


@pytest.mark.parametrize("text", ["", "*", "*.", "a*b", "http://x", "x:8100", "a/b", "a..b", "[::1", "*.*.x", "a b"])
def test_wrong_rules_of_hosts(text: str) -> None:
    """No wildcard for everything, no port, no URL."""
    assert not is_host_rule(text)
    with pytest.raises(ValueError, match="without a port"):
        host_rule(text)


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("::ffff:127.0.0.1", True), ("LOCALHOST", True),
        ("0.0.0.0", False), ("::", False), ("192.168.1.1", False), ("::ffff:10.0.0.1", False), ("box", False),
    ],
)  # fmt: skip
def test_what_loopback_is(host: str, local: object) -> None:
    """All of 127/8, ::1 in either spelling, and localhost."""
    assert is_loopback(host) is local


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("https://Chat.example.org", "https://chat.example.org"), ("http://localhost:3000", "http://localhost:3000"),
        ("http://x:80", "http://x"), ("https://x:443", "https://x"), ("http://x:443", "http://x:443"),
        ("app://obsidian.md", "app://obsidian.md"), ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ("http://[::1]:3000", "http://[::1]:3000"),
    ],
)  # fmt: skip
def test_rules_of_origins(text: str, rule: str) -> None:
    """They are compared as browsers send them: in lower case, without the port that the scheme has anyway."""
    assert origin_rule(text) == rule
    assert AllowedOrigins([text]).has(rule.encode())


@pytest.mark.parametrize(
    "text", ["*", "", "null", "example.org", "https://*.example.org", "https://x/", "https://x/y", "https://u@x", "x:y"]
)
def test_wrong_rules_of_origins(text: str) -> None:
    """No wildcard, no path, and not ``null``, which every sandboxed page is."""
    with pytest.raises(ValueError, match="must be an origin"):
        origin_rule(text)


def test_origins() -> None:
    """A listed page is allowed, by its whole origin; an empty list says so."""
    origins = AllowedOrigins(["https://chat.example.org"])
    assert origins.has(b"https://Chat.example.org")
    others = (b"http://chat.example.org", b"https://chat.example.org:8443", b"https://x.chat.example.org", b"null", b"")
    assert not any(map(origins.has, others))
    assert bool(origins)
    assert not AllowedOrigins()


@pytest.mark.parametrize(
    ("origin", "host", "own"),
    [
        (b"http://localhost:8100", b"localhost:8100", True), (b"https://llm.lan", b"LLM.lan", True),
        (b"http://localhost:3000", b"localhost:8100", False), (b"http://127.0.0.1:8100", b"localhost:8100", False),
        (b"null", b"localhost", False), (b"app://localhost", b"localhost", False), (b"localhost", b"localhost", False),
    ],
)  # fmt: skip
def test_our_own_pages(origin: bytes, host: bytes, own: object) -> None:
    """A page is our own if it came from the very host and port that it asks, by http or https."""
    assert AllowedOrigins.is_own(origin, host) is own
