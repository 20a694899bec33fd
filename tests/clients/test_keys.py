"""Each client in front of a rolecall that wants API keys."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import openai
import pytest

from clients.adapters import EVERY, IS_COMPLETE, Client
from clients.entries import ANSWER, HELLO, SHIPPED
from harness import Rolecall

LIMITS = {
    "programs": (),
    "captions": ("--role", "caption"),
    "hasty": ("--rpm", "15"),
    "modest": ("--tokens-per-day", "1"),
    "boss": ("--scope", "admin"),
}


@dataclass(frozen=True)
class Guarded:
    """A rolecall and its keys by name."""

    server: Rolecall
    keys: Mapping[str, str]

    @property
    def base_url(self) -> str:
        """What a client is configured with."""
        return f"{self.server.base_url}/v1"

    def client(self, name: str) -> openai.OpenAI:
        """OpenAI's client with a key."""
        return openai.OpenAI(base_url=self.base_url, api_key=self.keys[name])


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A rolecall that has its keys by the command that makes them."""
    folder = tmp_path_factory.mktemp("guarded")
    settings = {"llama_server": "embedded", "api_keys_file": "keys.json"}
    server = Rolecall(folder, SHIPPED, settings=settings)
    keys = {name: _new_key(server, name, *limits) for name, limits in LIMITS.items()}
    with server:
        server.http.headers["authorization"] = f"Bearer {keys['boss']}"
        yield Guarded(server, keys)


def _new_key(server: Rolecall, *arguments: str) -> str:
    argv = [server.argv[0], "-m", "rolecall", "keys", "add", *arguments, "--config-dir", str(server.config_dir)]
    return subprocess.run(argv, env=server.environment, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("client", EVERY)
def test_the_right_key(guarded: Guarded, client: type[Client]) -> None:
    """A client sends its key in its own way, whole and streamed."""
    made = client(guarded.base_url, guarded.keys["programs"])
    assert made.whole("role:chat") == ANSWER
    assert "".join(made.stream("role:chat")) == ANSWER


@pytest.mark.parametrize("client", EVERY)
def test_a_wrong_key(guarded: Guarded, client: type[Client]) -> None:
    """It is refused, and the client says why."""
    with pytest.raises(Exception, match="not one of this server's"):
        client(guarded.base_url, "rc-of-somebody-else").whole("role:chat")


def test_a_wrong_key_has_its_class(guarded: Guarded) -> None:
    """OpenAI's client raises AuthenticationError, for the list of models too, and does not try again."""
    count = len(guarded.server.log_lines())
    client = openai.OpenAI(base_url=guarded.base_url, api_key="rc-of-somebody-else")
    with pytest.raises(openai.AuthenticationError) as refusal:
        client.chat.completions.create(model="role:chat", messages=HELLO)
    assert (refusal.value.status_code, refusal.value.code) == (401, "invalid_api_key")
    with pytest.raises(openai.AuthenticationError):
        client.models.list()
    assert len(guarded.server.log_lines()) <= count + 1


def test_a_key_for_a_role(guarded: Guarded) -> None:
    """It sees and gets what its role needs; another role is a PermissionDeniedError or unknown."""
    client = guarded.client("captions")
    answer = client.chat.completions.create(model="role:caption", messages=HELLO)
    assert answer.model == "demo-vision"
    with pytest.raises((openai.PermissionDeniedError, openai.NotFoundError)):
        client.chat.completions.create(model="role:chat", messages=HELLO)
    assert "demo-chat" not in {model.id for model in client.models.list()}


def test_the_tokens_of_a_day(guarded: Guarded) -> None:
    """Once they are used the next request is a RateLimitError at once: tomorrow is too far away to try again."""
    client = guarded.client("modest")
    answer = client.chat.completions.create(model="role:chat", messages=HELLO)
    assert answer.choices[0].message.content == ANSWER
    guarded.server.line(str(answer._request_id))  # tokens are counted with it
    with pytest.raises(openai.RateLimitError) as refusal:
        client.chat.completions.create(model="role:chat", messages=HELLO)
    assert refusal.value.response.headers["x-should-retry"] == "false"


def test_requests_a_minute(guarded: Guarded) -> None:
    """Whoever is too fast is told to wait a moment; the client does, and gets its answer."""
    client = guarded.client("hasty")
    begun = len(guarded.server.log_lines())

    def ask() -> str | None:
        return client.chat.completions.create(model="role:chat", messages=HELLO).choices[0].message.content

    with ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(ask) for _ in range(16)]
    assert [answer.result() for answer in answers] == [ANSWER] * 16
    assert 429 in {line["status"] for line in guarded.server.log_lines(begun + 17)[begun:]}


@pytest.mark.skipif(not IS_COMPLETE, reason="make test-clients has Anthropic's client")
def test_the_way_of_anthropic(guarded: Guarded) -> None:
    """Its client sends the key in a header of its own, or as a token, and knows a refusal by its class."""
    import anthropic

    asked: Any = {"model": "role:chat", "max_tokens": 100, "messages": HELLO}
    for name in ("api_key", "auth_token"):
        with anthropic.Anthropic(base_url=guarded.server.base_url, **{name: guarded.keys["programs"]}) as client:
            assert client.messages.create(**asked).content[0].text == ANSWER
    with (
        anthropic.Anthropic(base_url=guarded.server.base_url, api_key="rc-of-somebody-else") as client,
        pytest.raises(anthropic.AuthenticationError, match="not one of this server's"),
    ):
        client.messages.create(**asked)
