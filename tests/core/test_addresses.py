"""Which URLs are understood, and which IP addresses are public."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from rolecall.core.addresses import (
    ImageUrl,
    NotFetchable,
    check_port,
    is_allowed,
    is_public,
    read_host,
    read_image_url,
    redirected,
)


def problem(url: str) -> str:
    with pytest.raises(NotFetchable) as caught:
        read_image_url(url)
    return str(caught.value)


@pytest.mark.parametrize(
    ("url", "read", "authority"),
    [
        ("https://example.org/a/cat.png", ImageUrl("https", "example.org", 443, "/a/cat.png"), "example.org"),
        ("http://example.org", ImageUrl("http", "example.org", 80, "/"), "example.org"),
        ("http://example.org?a=b#c", ImageUrl("http", "example.org", 80, "/?a=b"), "example.org"),
        ("HTTPS://EXAMPLE.org:443/A", ImageUrl("https", "example.org", 443, "/A"), "example.org"),
        ("http://example.org:443/", ImageUrl("http", "example.org", 443, "/"), "example.org:443"),
        ("https://e.org/?s=a%2Fb+c'd|e", ImageUrl("https", "e.org", 443, "/?s=a%2Fb+c'd|e"), "e.org"),
        ("https://e.org/ü?ö", ImageUrl("https", "e.org", 443, "/%C3%BC?%C3%B6"), "e.org"),
        ("http://8.8.8.8/x", ImageUrl("http", "8.8.8.8", 80, "/x"), "8.8.8.8"),
        ("http://[2606:4700::1111]:80/x", ImageUrl("http", "2606:4700::1111", 80, "/x"), "[2606:4700::1111]"),
        ("http://[0:0::1]:8000/", ImageUrl("http", "::1", 8000, "/"), "[::1]:8000"),
        (
            "https://xn--bcher-kva.org/",
            ImageUrl("https", "xn--bcher-kva.org", 443, "/"),
            "xn--bcher-kva.org",
        ),
        ("http://my_host/", ImageUrl("http", "my_host", 80, "/"), "my_host"),
    ],
)
def test_plain_urls_are_understood(url: str, read: ImageUrl, authority: str) -> None:
    """What is asked for is what was written, but for the fragment and for letters outside of ASCII."""
    assert read_image_url(url) == read
    assert read.authority == authority


@pytest.mark.parametrize(
    "url",
    [
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.1/",
        "http://0X7F.0.0.1/",
        "http://127.1/",
        "http://127.0.1/",
        "http://0177.0.0.1/",
        "http://017700000001/",
        "http://127.0.0.01/",
        "http://256.1.1.1/",
        "http://1.2.3.4.5/",
        "http://example.org.0x1/",
        "http://[::1.2.3]/",
        "http://[1::2::3]/",
    ],
)
def test_odd_spellings_of_numbers_are_refused(url: str) -> None:
    """A host that ends in a number is an IP address in its usual form, or nothing."""
    assert "no IP address in its usual form" in problem(url)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("file:///etc/passwd", "neither http nor https"),
        ("ftp://example.org/", "neither http nor https"),
        ("gopher://127.0.0.1:70/", "neither http nor https"),
        ("data:image/png;base64,AA", "neither http nor https"),
        ("example.org/cat.png", "neither http nor https"),
        ("", "neither http nor https"),
        ("http:example.org", "neither http nor https"),
        ("http:/example.org", "neither http nor https"),
        ("httpſ://example.org", "neither http nor https"),
        ("http:///example.org", "no plain host name"),
        ("http://", "no plain host name"),
        ("http://user@example.org/", "no plain host name"),
        ("http://user:pass@example.org/", "no plain host name"),
        ("http://example.org:80@127.0.0.1/", "no plain host name"),
        ("http://127.0.0.1:80#@example.org/", ""),
        ("http://example.org:port/", "no plain host name"),
        ("http://example.org:123456/", "no plain host name"),
        ("http://example.org%2f@x/", "no plain host name"),
        ("http://exam%70le.org/", "no plain host name"),
        ("http://bücher.example/", "no plain host name"),
        ("http://１２７.０.０.１/", "no plain host name"),
        ("http://127。0。0。1/", "no plain host name"),
        ("http://\u212a.example/", "no plain host name"),
        ("http://[fe80::1%25eth0]/", "no plain host name"),
        ("http://[::1/", "no plain host name"),
        ("http://a..b/", "no name"),
        ("http://localhost./", "no name"),
        ("http://127.0.0.1./", "no name"),
        ("http://.example/", "no name"),
        ("http://-a.example/", "no name"),
        ("http://" + "a" * 64 + ".example/", "no name"),
        ("http://" + "a." * 127 + "example/", "no name"),
        ("http://example.org\\@127.0.0.1/", "backslash"),
        ("http:\\\\127.0.0.1\\", "backslash"),
        ("http://example.org /", "whitespace"),
        (" http://example.org/", "whitespace"),
        ("http://example.org/\r\nHost: x", "whitespace"),
        ("ht\ntp://example.org/", "whitespace"),
        ("http://example.org/\x00", "control character"),
        ("http://example.org/\x7f", "control character"),
        ("http://example.org/" + "x" * 8192, "longer than 8192"),
    ],
)
def test_what_is_not_plain_is_refused(url: str, words: str) -> None:
    """Nothing is mended: userinfo, backslashes, whitespace, other schemes and other alphabets in names are refused."""
    if words:
        assert words in problem(url)
    else:
        assert read_image_url(url).host == "127.0.0.1"


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/x.png", "http://e.org:8000/x.png"),
        ("x.png?a", "http://e.org:8000/a/x.png?a"),
        ("../x.png", "http://e.org:8000/x.png"),
        ("?y", "http://e.org:8000/a/b?y"),
        ("#y", "http://e.org:8000/a/b?q"),
        ("", "http://e.org:8000/a/b?q"),
        ("//f.org/x", "http://f.org:80/x"),
        ("https://f.org/x", "https://f.org:443/x"),
        ("/ü", "http://e.org:8000/%C3%BC"),
        ("/\ud800", "http://e.org:8000/?"),
    ],
)
def test_redirects_lead_where_they_say(location: str, target: str) -> None:
    """A redirect may be relative to its page, to its host, or whole."""
    to = redirected(read_image_url("http://e.org:8000/a/b?q"), location)
    assert f"{to.scheme}://{to.host}:{to.port}{to.target}" == target


@pytest.mark.parametrize("location", ["file:///etc/passwd", "//user@127.0.0.1", "gopher://x", "/\\x", "http:x", "/a b"])
def test_redirects_are_read_as_strictly(location: str) -> None:
    """What would be refused in a request is refused in a redirect."""
    with pytest.raises(NotFetchable):
        redirected(read_image_url("https://example.org/a"), location)


@pytest.mark.parametrize(
    ("url", "hosts", "allowed"),
    [
        ("http://nas.lan/x", {"nas.lan"}, True),
        ("https://nas.lan/x", {"nas.lan"}, True),
        ("http://nas.lan:8000/x", {"nas.lan"}, False),
        ("http://nas.lan:8000/x", {"nas.lan:8000"}, True),
        ("http://nas.lan/x", {"nas.lan:8000"}, False),
        ("http://nas.lan/x", {"nas.lan:80"}, True),
        ("http://[::1]:8000/x", {"[::1]:8000"}, True),
        ("http://[0::1]/x", {"[::1]"}, True),
        ("http://10.0.0.5/x", {"10.0.0.5"}, True),
        ("http://sub.nas.lan/x", {"nas.lan"}, False),
        ("http://nas.lan/x", set(), False),
    ],
)
def test_hosts_are_allowed_by_name_and_port(url: str, hosts: set[str], *, allowed: bool) -> None:
    """A name alone stands for the ports 80 and 443; names below it are other names."""
    assert is_allowed(read_image_url(url), hosts) is allowed


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("NAS.lan", "nas.lan"),
        ("nas.lan:80", "nas.lan:80"),
        ("10.0.0.5:8000", "10.0.0.5:8000"),
        ("[0:0::1]", "[::1]"),
        ("[::1]:443", "[::1]:443"),
    ],
)
def test_hosts_of_the_setting_are_understood(text: str, host: str) -> None:
    """They are brought into the form in which they are looked for."""
    assert read_host(text) == host
    assert is_allowed(read_image_url(f"http://{text}/x"), {host})


@pytest.mark.parametrize("text", ["", "http://nas.lan", "nas.lan/x", "nas.lan?x", "a#b", "a@b", "::1", "*.lan", "a:b"])
def test_what_is_no_host_is_told(text: str) -> None:
    """A host that would never match is a mistake."""
    with pytest.raises(NotFetchable):
        read_host(text)


def test_other_ports_are_refused() -> None:
    """80 and 443 are for everybody; Redis and the like are not."""
    check_port(read_image_url("http://example.org:443/"))
    check_port(read_image_url("https://example.org:80/"))
    for port in (22, 6379, 8080, 0, 65535):
        with pytest.raises(NotFetchable, match="another port than 80 and 443"):
            check_port(read_image_url(f"http://example.org:{port}/"))


def test_numbers_are_told_from_names() -> None:
    """A host that is an IP address is not looked up."""
    assert read_image_url("http://8.8.8.8/").ip == "8.8.8.8"
    assert read_image_url("http://[2606:4700:0::1]/").ip == "2606:4700::1"
    assert read_image_url("http://8.8.8.8.example/").ip is None


# -- public addresses


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "100.100.100.200",
        "127.0.0.1",
        "127.255.255.254",
        "168.63.129.16",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.0.1",
        "198.18.0.1",
        "198.51.100.7",
        "203.0.113.7",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::8.8.8.8",
        "64:ff9b:1::7f00:1",
        "100::1",
        "2001::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "2001:10::1",
        "2001:20::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:808:808::1",
        "2606:4700::5efe:7f00:1",
        "2606:4700::200:5efe:7f00:1",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "2606:4700::1111%eth0",
        "fec0::1",
        "ff02::1",
        "127.1",
        "0x7f000001",
        "localhost",
        "",
    ],
)
def test_addresses_inside_are_not_public(address: str) -> None:
    """Loopback, private, link-local, multicast, reserved, documentation, and every form that holds another address."""
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "8.8.8.8", "93.184.215.14", "172.15.0.1", "172.32.0.1", "100.63.0.1", "100.128.0.1", "223.255.255.255"],
)
def test_addresses_of_the_internet_are_public(address: str) -> None:
    """What lies beside a private block is public."""
    assert is_public(address)


@pytest.mark.parametrize("address", ["2606:4700:4700::1111", "2a00:1450:4001:80b::200e", "2001:4860:4860::8888"])
def test_addresses_of_the_internet_are_public_in_ipv6(address: str) -> None:
    """What IANA has given out, 2001::/23 apart, is public."""
    assert is_public(address)


@given(address=st.ip_addresses(v=4))
def test_no_ipv4_address_that_python_knows_as_special_is_public(address: ipaddress.IPv4Address) -> None:
    """Our list is as strict as Python's."""
    special = (
        address.is_private,
        address.is_loopback,
        address.is_link_local,
        address.is_multicast,
        address.is_reserved,
    )
    if any(special) or address.is_unspecified:
        assert not is_public(str(address))


@given(address=st.ip_addresses(v=6))
@example(address=ipaddress.IPv6Address("2001:db8::1"))
def test_no_ipv6_address_that_python_knows_as_special_is_public(address: ipaddress.IPv6Address) -> None:
    """Our list is as strict as Python's, and no address that holds an IPv4 address passes."""
    holds_another = address.ipv4_mapped or address.sixtofour or address.teredo
    if address.is_private or address.is_multicast or address.is_reserved or holds_another:
        assert not is_public(str(address))


@given(inner=st.ip_addresses(v=4))
def test_no_ipv6_form_of_an_ipv4_address_is_public(inner: ipaddress.IPv4Address) -> None:
    """Mapped, compatible, NAT64, 6to4 and ISATAP addresses lead to IPv4 hosts, public or not."""
    number = int(inner)
    forms = [number, 0xFFFF << 32 | number, 0x0064FF9B << 96 | number, 0x2002 << 112 | number << 80]
    forms.append(0x26064700 << 96 | 0x5EFE << 32 | number)
    assert not any(is_public(str(ipaddress.IPv6Address(form))) for form in forms)


hosts = st.sampled_from(["127.0.0.1", "example.org", "[::1]", "0x7f.1", "a@b", "localhost", "127.1", "x\\y", "é"])
urls = st.builds(
    "{}{}{}{}{}".format,
    st.sampled_from(["http", "https", "HTTP", "file", "httpſ", ""]),
    st.sampled_from(["://", ":/", ":", ":\\\\", "//", "://user@", "://a:b@"]),
    hosts | st.text(alphabet="a1.-:[]@%#?/\\x", max_size=10),
    st.sampled_from(["", ":80", ":443", ":6379", ":", ":80@x"]),
    st.sampled_from(["", "/", "/x", "?x", "#x", "#@x", "\\x", "/\n", "/é"]) | st.text(max_size=4),
)


@given(url=urls | st.text(max_size=30))
@example(url="http://127.0.0.1:80#@example.org/")
def test_a_url_that_is_understood_is_understood_alike_elsewhere(url: str) -> None:
    """Python's parser sees the same host and port, and the target is one line of visible ASCII."""
    try:
        read = read_image_url(url)
    except NotFetchable:
        return
    split = urlsplit(url)
    assume(split.netloc == url.split("://", 1)[1].partition("/")[0].partition("?")[0].partition("#")[0])
    assert split.scheme == read.scheme
    assert split.username is None
    assert split.hostname is not None
    if read.ip is None:
        assert split.hostname == read.host
    else:
        assert ipaddress.ip_address(split.hostname) == ipaddress.ip_address(read.ip)
    assert (split.port or {"http": 80, "https": 443}[read.scheme]) == read.port
    assert read.target[0] == "/"
    assert all(0x20 < ord(letter) < 0x7F for letter in read.target)


@given(location=st.text(max_size=20) | urls)
def test_any_redirect_is_read_or_refused(location: str) -> None:
    """Whatever a server sends as Location: a URL that is understood, or ``NotFetchable``."""
    try:
        to = redirected(read_image_url("https://example.org/a/b"), location)
    except NotFetchable:
        return
    assert to == read_image_url(f"{to.scheme}://{to.authority}{to.target}")
