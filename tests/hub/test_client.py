"""The hub's answers, with the real client library: repositories, searches, and every way in which it says no."""

from __future__ import annotations

import hashlib
import socket

import pytest

from hub_server import Fault, HubServer, Repo, git_sha1

pytest.importorskip("huggingface_hub", reason="pulling needs an extra: rolecall[hub]")

from rolecall.hub.client import Hub
from rolecall.hub.failures import HubError, HubInterruption

LARGE, SMALL = bytes(range(256)) * 16, b"{}"
NAME = "acme/Tiny-GGUF"
API = f"/api/models/{NAME}"


class Waits:
    """Records pauses instead of making them."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, seconds: float, why: str) -> None:
        assert why
        self.seconds.append(seconds)


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest.fixture
def client(hub: HubServer, waits: Waits) -> Hub:
    """A client of the hub, which has one repository."""
    hub.repos[NAME] = Repo({"tiny-Q4_0.gguf": LARGE, "config.json": SMALL})
    return Hub(wait=waits)


def test_a_repository_is_its_files_with_sizes_and_digests(client: Hub) -> None:
    """Large files have a SHA-256, small ones git's name; the revision is that of the commit."""
    found = client.repository(NAME)
    assert (found.id, found.commit, found.ref, found.license, found.is_gated) == (
        NAME,
        "a" * 40,
        "main",
        "apache-2.0",
        False,
    )
    large, small = found.files
    assert (large.path, large.size_bytes, large.sha256) == ("tiny-Q4_0.gguf", 4096, hashlib.sha256(LARGE).hexdigest())
    assert (small.size_bytes, small.sha256, small.git_sha1) == (2, None, git_sha1(SMALL))


def test_search_lists_repositories_by_downloads(client: Hub, hub: HubServer) -> None:
    """The most downloaded come first; without ``gguf`` other formats are listed as well."""
    hub.repos["acme/Tiny-2-GGUF"] = Repo({"b-Q8_0.gguf": LARGE}, downloads=900, gated="manual", license=None)
    hub.repos["acme/Tiny-Folder"] = Repo({"config.json": SMALL}, downloads=1)
    found = client.search("tiny", 10)
    assert [each.id for each in found] == ["acme/Tiny-2-GGUF", NAME]
    assert (found[0].is_gated, found[0].license, found[1].license) == (True, None, "apache-2.0")
    assert (found[0].parameters, found[0].architecture, found[0].context_tokens) == (8_000_000_000, "llama", 32768)
    assert len(client.search("tiny", 1)) == 1
    assert len(client.search("tiny", 10, gguf=False)) == 3
    assert client.search("nothing of that name", 10) == []


def test_a_license_that_is_no_text(client: Hub, hub: HubServer) -> None:
    """Half a character, which JSON can name and no file can hold, becomes the sign for what cannot be read."""
    hub.repos[NAME].license = "a\ud800b"
    assert client.repository(NAME).license == "a�b"
    hub.repos[NAME].license_tag_only = True
    assert client.repository(NAME).license == "a�b"


@pytest.mark.parametrize("status", [429, 503])
def test_a_search_waits_as_everything_does(client: Hub, hub: HubServer, waits: Waits, status: int) -> None:
    """A pause that is asked for is made once, by rolecall alone; one that is too long is not waited for."""
    hub.fault("/api/models", Fault(status=status, headers={"Retry-After": "7"}))
    assert [each.id for each in client.search("tiny", 10)] == [NAME]
    assert waits.seconds == [7.0]
    hub.requests.clear()
    hub.fault("/api/models", Fault(status=status, headers={"Retry-After": "999"}, times=-1))
    with pytest.raises(HubInterruption):
        client.search("tiny", 10)
    assert (waits.seconds, len(hub.requests)) == ([7.0], 1)


def test_a_search_that_reaches_nobody(waits: Waits, caplog: pytest.LogCaptureFixture) -> None:
    """It is tried five times, and only rolecall speaks of it."""
    with pytest.raises(HubInterruption):
        Hub("http://127.0.0.1:9", waits).search("tiny", 10)
    assert waits.seconds == [0.5, 1.0, 2.0, 4.0]
    assert [record.message for record in caplog.records if record.name.startswith("huggingface_hub")] == []


def test_an_address_that_is_none(waits: Waits) -> None:
    """It will be none the next time as well: told at once."""
    with pytest.raises(HubError, match="foo is no address of a hub"):
        Hub("foo", waits).search("tiny", 10)
    with pytest.raises(HubError, match="foo is no address of a hub"):
        Hub("foo", waits).repository(NAME)
    assert waits.seconds == []


@pytest.mark.parametrize("content", [b"{", b"{}x", b'{"error": "x"}', b"[7]", b"[{}]"])
def test_a_search_that_is_answered_with_nonsense(client: Hub, hub: HubServer, content: bytes) -> None:
    """What is no list of models is not a hub's answer."""
    hub.fault("/api/models", Fault(content=content))
    with pytest.raises(HubError, match="does not speak a hub's language"):
        client.search("tiny", 10)


def test_large_files_come_from_another_host_which_is_not_told_the_token(
    client: Hub, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub gets the token of HF_TOKEN, and the host that it redirects to does not."""
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    with client.stream(client.repository(NAME), "tiny-Q4_0.gguf", 1000, 2000) as incoming:
        assert (incoming.start, incoming.total_bytes) == (1000, 4096)
        assert b"".join(incoming.chunks) == LARGE[1000:2000]
    assert {each.authorization for each in hub.requests if each.host == "hub"} == {"Bearer hf_good"}
    assert [(each.authorization, each.range) for each in hub.requests if each.host == "cdn"] == [
        (None, "bytes=1000-1999")
    ]


# --- what is not given


def refusal(client: Hub, name: str = NAME) -> str:
    """Return why a repository is not given."""
    with pytest.raises(HubError) as refused:
        client.repository(name)
    return str(refused.value)


def refusal_of_content(client: Hub, path: str) -> str:
    """Return why a file of the repository is not given."""
    found = client.repository(NAME)
    with pytest.raises(HubError) as refused, client.stream(found, path):
        pass
    return str(refused.value)


def test_a_repository_that_is_not_there(client: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong name and a private repository look alike to strangers; both ways out are told."""
    told = refusal(client, "acme/absent")
    assert "has no model acme/absent, or it is private" in told
    assert "rolecall models search" in told
    assert "set HF_TOKEN" in told
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert "the token may lack the right" in refusal(client, "acme/absent")


def test_a_private_repository_is_open_to_its_token(
    client: Hub, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HF_TOKEN opens what is private."""
    hub.repos[NAME].private = True
    assert "private" in refusal(client)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert client.repository(NAME).id == NAME


def test_a_token_that_is_none(client: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong token is not taken for a missing repository, and is not shown."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret_and_wrong")
    told = refusal(client)
    assert "does not take the token of HF_TOKEN" in told
    assert "/settings/tokens" in told
    assert "hf_secret" not in told


def test_a_gated_repository_says_what_to_accept_and_where(
    client: Hub, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strangers are told to accept, to make a token and to set it; with a token its account has to accept."""
    hub.repos[NAME].gated = "auto"
    assert client.repository(NAME).is_gated
    told = refusal_of_content(client, "tiny-Q4_0.gguf")
    assert f"accept them at {hub.url}/{NAME}, make a token at {hub.url}/settings/tokens, and set HF_TOKEN" in told
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert "with the account of your token" in refusal_of_content(client, "tiny-Q4_0.gguf")
    hub.granted.add(NAME)
    with client.stream(client.repository(NAME), "tiny-Q4_0.gguf") as incoming:
        assert b"".join(incoming.chunks) == LARGE


def test_forbidden(client: Hub, hub: HubServer) -> None:
    """A refusal without a reason is told as one of rights, with the hub's own words."""
    hub.fault(API, Fault(status=403))
    told = refusal(client)
    assert "does not let us have acme/Tiny-GGUF" in told
    assert "so it is" in told


def test_a_revision_and_a_file_that_are_not_there(client: Hub, hub: HubServer) -> None:
    """Both are told apart from a repository that is not there."""
    with pytest.raises(HubError, match="no such revision"):
        client.repository(NAME, "v9")
    assert client.repository(NAME, "a" * 40).ref == "a" * 40
    found = client.repository(NAME)
    del hub.repos[NAME].files["config.json"]
    with pytest.raises(HubError, match="lists a file that"), client.stream(found, "config.json"):
        pass


@pytest.mark.parametrize("name", ["a/b/c", "white space", "..", "a--b", "org/"])
def test_what_is_no_name_of_a_repository(client: Hub, hub: HubServer, name: str) -> None:
    """A name that no repository can have is not asked for."""
    assert "no name of a repository" in refusal(client, name)
    assert hub.requests == []


# --- what passes


def test_a_busy_hub_is_given_the_pause_that_it_asks_for(client: Hub, hub: HubServer, waits: Waits) -> None:
    """429 with Retry-After, or with the hub's own header for it, is waited for, and asked again."""
    hub.fault(API, Fault(times=2, status=429, headers={"Retry-After": "7"}))
    assert client.repository(NAME).id == NAME
    hub.fault(API, Fault(status=429, headers={"RateLimit": '"api";r=0;t=9'}))
    assert client.repository(NAME).id == NAME
    assert waits.seconds == [7.0, 7.0, 9.0]


def test_a_pause_of_hours_is_not_waited_for(client: Hub, hub: HubServer, waits: Waits) -> None:
    """A hub that asks for more patience than anybody has is told instead."""
    hub.fault(API, Fault(status=429, headers={"Retry-After": "3600"}))
    assert "asks for a pause (429)" in refusal(client)
    assert waits.seconds == []


def test_a_hub_in_trouble_is_asked_again_with_growing_pauses(client: Hub, hub: HubServer, waits: Waits) -> None:
    """5xx passes, or is told in the end."""
    hub.fault(API, Fault(times=2, status=503))
    assert client.repository(NAME).id == NAME
    assert waits.seconds == [0.5, 1.0]
    hub.fault(API, Fault(times=-1, status=500))
    assert "is in trouble (500)" in refusal(client)
    assert waits.seconds[2:] == [0.5, 1.0, 2.0, 4.0]


def test_a_hub_that_is_not_there(waits: Waits, hub: HubServer) -> None:
    """A closed port is told as such, after some attempts."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        client = Hub(f"http://127.0.0.1:{closed.getsockname()[1]}", waits)
        with pytest.raises(HubInterruption, match="cannot be reached"):
            client.repository(NAME)
    assert len(waits.seconds) == 4


# --- what is no hub, or a bad one


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>a portal</html>",
        b"[]",
        b"{}",
        b'{"id":"acme/Tiny-GGUF","sha":"a","siblings":[]}',
        b'{"id":"acme/Tiny-GGUF","siblings":[{"rfilename":"a.gguf","size":"much"}]}',
        b'{"id":"../../etc","sha":"%s"}' % (b"a" * 40),
        b'{"id":"..","sha":"%s"}' % (b"a" * 40),
        b'{"id":"acme/Tiny-GGUF","sha":"%s","siblings":[{"rfilename":"a","size":2,"lfs":7}]}' % (b"a" * 40),
    ],
)
def test_an_answer_that_makes_no_sense(client: Hub, hub: HubServer, answer: bytes) -> None:
    """What does not speak a hub's language is told so, whatever it says."""
    hub.fault(API, Fault(content=answer))
    with pytest.raises(HubError, match=r"HF_ENDPOINT names the hub|names neither repository nor revision"):
        client.repository(NAME)


@pytest.mark.parametrize("path", ["../outside.gguf", "/etc/passwd", "a/../../b", "a\\b", "x\n"])
def test_a_name_that_leads_out_of_the_folder_ends_it(client: Hub, hub: HubServer, path: str) -> None:
    """A repository with one hostile name is refused as a whole."""
    hub.repos[NAME].files[path] = LARGE
    told = refusal(client)
    assert "nothing is fetched" in told
    assert repr(path) in told


def test_digests_that_are_none_are_not_taken(client: Hub, hub: HubServer) -> None:
    """A hash names a file here, so that only one in hexadecimal is a hash."""
    hub.repos[NAME].hashes["tiny-Q4_0.gguf"] = "../" * 22
    assert client.repository(NAME).files[0].sha256 is None
