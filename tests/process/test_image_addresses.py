"""No address reaches an engine: attacks by addresses of images against a whole rolecall, and images that are served."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.image_servers import ImageServer, image_server, png, redirect, reply
from harness import CHAT, Rolecall, Upstream, upstream, upstream_entry

SECRET = b"canary-of-the-inside"
ANSWER = {
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "a cat"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


@dataclass
class World:
    """A rolecall, an engine that keeps what it gets, a server of images that is allowed, and one that is not."""

    rolecall: Rolecall
    engine: Upstream
    allowed: ImageServer
    inside: ImageServer

    def ask(self, part: Any, path: str = CHAT, **body: Any) -> httpx.Response:
        """Send a message with a part."""
        messages = [{"role": "user", "content": [{"type": "text", "text": "what is it?"}, part]}]
        return self.rolecall.http.post(path, json={"model": "seeing", "messages": messages, **body})

    def received(self) -> Any:
        """Return the body of the only request that the engine got since it was last asked."""
        (request,) = (each for each in self.engine.requests if each.startswith(b"POST "))
        self.engine.requests.clear()
        return json.loads(request.partition(b"\r\n\r\n")[2])

    @property
    def picture_url(self) -> str:
        """The address of an image that may be fetched."""
        return f"http://localhost:{self.allowed.port}/cat.png"


def running(folder: Path, **settings: Any) -> Iterator[World]:
    """Run all of it."""
    with ExitStack() as stack:
        engine = stack.enter_context(
            upstream(reply(json.dumps(ANSWER).encode(), "200 OK", "Content-Type: application/json"))
        )
        allowed = stack.enter_context(image_server(reply(png())))
        inside = stack.enter_context(image_server(reply(png() + SECRET)))
        entries = [
            upstream_entry("seeing", engine.base_url, capabilities=["vision", "text"], **settings.pop("entry", {}))
        ]
        settings = {"image_hosts": [f"localhost:{allowed.port}"], "image_fetch_timeout_ms": 2000, **settings}
        rolecall = stack.enter_context(Rolecall(folder, entries, settings=settings))
        yield World(rolecall, engine, allowed, inside)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Run a rolecall that fetches, from one host of loopback."""
    yield from running(tmp_path_factory.mktemp("addresses"), entry={"max_image_pixels": 10_000})


@pytest.fixture(autouse=True)
def nothing_got_out(world: World) -> Iterator[None]:
    """Check that in no test somebody connects to what is inside, and begin with an image that is served."""
    world.allowed.answer = reply(png())
    world.engine.requests.clear()
    yield
    assert world.inside.connections == 0


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


PLACES: dict[str, Any] = {
    "chat": image,
    "bare": lambda url: {"type": "image_url", "image_url": url},
    "no type": lambda url: {"image_url": {"url": url}},
    "uuid": lambda url: {"type": "text", "text": "x", "uuid": "1", "image_url": url},
    "input_image": lambda url: {"type": "input_image", "image_url": url},
    "anthropic": lambda url: {"type": "image", "source": {"type": "url", "url": url}},
    "tool result": lambda url: {
        "type": "tool_result",
        "content": [{"type": "image", "source": {"type": "url", "url": url}}],
    },
    "base64 that is none": lambda url: {"type": "image", "source": {"type": "base64", "data": url}},
    "audio": lambda url: {"type": "input_audio", "input_audio": {"data": url, "format": "wav"}},
    "video": lambda url: {"type": "video_url", "video_url": {"url": url}},
    "file": lambda url: {"type": "input_file", "file_url": url},
    "unknown": lambda url: {"type": "x", "x_url": url},
}
ADDRESSES = [
    "http://127.0.0.1:{inside}/",
    "http://localhost:{inside}/",
    "http://[::ffff:127.0.0.1]:{inside}/",
    "http://127.1:{inside}/",
    "http://2130706433:{inside}/",
    "http://0x7f000001:{inside}/",
    "http://localhost:{allowed}@127.0.0.1:{inside}/",
    "http://127.0.0.1:{inside}\\@localhost:{allowed}/",
    "http:\\\\127.0.0.1:{inside}\\",
    " http://127.0.0.1:{inside}/",
    "file:///etc/passwd",
    "file://localhost/etc/passwd",
    "FILE:///etc/passwd",
    "//127.0.0.1:{inside}/",
    "ftp://127.0.0.1:{inside}/",
    "http://169.254.169.254/latest/meta-data/",
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_inside_is_a_400(world: World, place: str, address: str) -> None:
    """In every place and every spelling: nobody is connected to, and no engine gets the request."""
    url = address.format(inside=world.inside.port, allowed=world.allowed.port)
    answer = world.ask(PLACES[place](url))
    error = answer.json()["error"]
    assert answer.status_code == 400, answer.text
    assert error["code"] in {"invalid_image_url", "invalid_media_url"}
    assert error["param"].startswith("messages[0].content[1]")
    assert world.engine.requests == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "{url}"}]}]}),
        (
            "/v1/responses",
            {"input": [{"type": "function_call_output", "output": [{"type": "input_file", "file_url": "{url}"}]}]},
        ),
        (
            "/v1/messages",
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "{url}"}}]}]},
        ),
        (
            "/v1/embeddings",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "{url}"}}]}]},
        ),
        ("/v1/rerank", {"query": {"content": [{"type": "image_url", "image_url": "{url}"}]}, "documents": ["x"]}),
        (
            "/v1/rerank",
            {"query": "x", "documents": {"content": [{"type": "video_url", "video_url": {"url": "{url}"}}]}},
        ),
        ("/v1/completions", {"prompt": {"prompt_string": "x", "multimodal_data": ["{url}"]}}),
        ("/tokenize", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "{url}"}]}]}),
    ],
)
def test_every_endpoint_is_guarded(world: World, path: str, body: dict[str, Any]) -> None:
    """Whatever endpoint takes media."""
    url = f"http://127.0.0.1:{world.inside.port}/"
    sent = json.loads(json.dumps(body).replace("{url}", url))
    answer = world.rolecall.http.post(path, json={"model": "seeing", **sent})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] in {"invalid_image_url", "invalid_media_url"}
    assert world.engine.requests == []


@pytest.mark.parametrize("target", ["http://127.0.0.1:{inside}/", "http://localhost:{inside}/", "file:///etc/passwd"])
def test_a_redirect_inside_is_not_followed(world: World, target: str) -> None:
    """From a host that is allowed to one that is not."""
    world.allowed.answer = redirect(target.format(inside=world.inside.port))
    answer = world.ask(image(world.picture_url))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_image_url")
    assert world.engine.requests == []


def test_an_image_is_fetched_for_the_engine(world: World) -> None:
    """The engine gets it inline, in the same part, with the rest of the part."""
    answer = world.ask({"type": "image_url", "image_url": {"url": world.picture_url, "detail": "low"}})
    assert answer.status_code == 200, answer.text
    part = world.received()["messages"][0]["content"][1]
    coded = base64.b64encode(png()).decode()
    assert part == {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{coded}", "detail": "low"}}


def test_a_fetched_image_is_scaled_down(world: World) -> None:
    """As the entry says."""
    world.allowed.answer = reply(png(400, 400))
    assert world.ask(image(world.picture_url)).status_code == 200
    coded = world.received()["messages"][0]["content"][1]["image_url"]["url"].partition(",")[2]
    assert int.from_bytes(base64.b64decode(coded)[16:20], "big") == 100


def test_a_stream_waits_for_its_image(world: World) -> None:
    """A stream whose image cannot be fetched is told so."""
    world.allowed.answer = reply(SECRET)
    answer = world.ask(image(world.picture_url), stream=True)
    assert "invalid_image_url" in answer.text
    assert SECRET.decode() not in answer.text


def test_nothing_that_was_fetched_is_in_the_log(world: World) -> None:
    """Neither what came instead of an image nor the address, which may hold a signature."""
    world.allowed.answer = reply(SECRET)
    answer = world.ask(image(world.picture_url + "?signature=hush"))
    line = world.rolecall.line_of(answer)
    assert (line["status"], line["images"]) == (400, 1)
    assert "hush" not in json.dumps(line)
    assert "hush" not in world.rolecall.words()
    assert SECRET.decode() not in json.dumps(line) + world.rolecall.words() + answer.text


@pytest.mark.parametrize(("policy", "status"), [("refuse", 400), ("pass", 200)])
def test_the_setting_decides(tmp_path: Path, policy: str, status: int) -> None:
    """Addresses are refused, or passed untouched and not fetched."""
    for world in running(tmp_path, image_urls=policy):
        assert world.ask(image(world.picture_url)).status_code == status
        if status == 200:
            assert world.received()["messages"][0]["content"][1] == image(world.picture_url)
        assert world.allowed.connections == 0
