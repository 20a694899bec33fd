"""A JSON request on its way to an engine: what its client is told of it, and what it costs others."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import orjson
import pytest
from PIL import Image

from builders import entry
from fakes import FakeResolver
from gateway.image_servers import image_server, png, reply
from gateway.test_engine_context import lease
from gateway.test_images import encoded, uri
from rolecall.core.catalog import Target
from rolecall.core.fit import GONE_NOTE
from rolecall.core.text_size import measure
from rolecall.core.token_estimate import TokenModel
from rolecall.core.traits import NOTHING_KNOWN
from rolecall.core.transforms import read_facts
from rolecall.errors import BadRequest, ContextLengthExceeded, InvalidImage, InvalidImageUrl
from rolecall.gateway import large_json
from rolecall.gateway.body import read_json
from rolecall.gateway.counting import Counting
from rolecall.gateway.http_request import Pieces
from rolecall.gateway.image_fetch import ImageFetcher
from rolecall.gateway.images import Images
from rolecall.gateway.incoming import Payload
from rolecall.gateway.pictures import ImageSizes, Pictures
from rolecall.gateway.pipeline import JsonRequest
from rolecall.runtime.lease import Lease
from rolecall.runtime.token_memory import TokenMemory
from rolecall.settings import load_settings

CHAT = "/v1/chat/completions"
TARGET = Target((entry(),))
TOO_LONG = {"error": {"type": "exceed_context_size_error", "n_prompt_tokens": 5000, "n_ctx": 4096}}
DAMAGED = png(400, 300)[:200]


class CountedPictures(Pictures):
    """Pictures that count for how many requests sizes are looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.requests = 0

    def sizes(self) -> ImageSizes:
        """Count one."""
        self.requests += 1
        return super().sizes()


@dataclass
class Gateway:
    """What requests are made with."""

    folder: Path
    hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        settings = load_settings({"config_dir": self.folder, "state_dir": self.folder}, {})
        http = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(404)))
        memory = TokenMemory(self.folder / "tokens.json")
        self.pictures = CountedPictures()
        fetcher = ImageFetcher(hosts=self.hosts, resolver=FakeResolver(cat_example=[["127.0.0.1"]]))
        self.images = Images(settings, fetcher, self.pictures)
        self._services = SimpleNamespace(
            settings=settings,
            counting=Counting.of(settings, memory, self.pictures, http),
            images=self.images,
            roster=SimpleNamespace(traits=lambda _: NOTHING_KNOWN, fallbacks=lambda _: []),
        )

    def request(self, messages: list[Any], wish: str | None = None) -> JsonRequest:
        """Return a request with these messages."""
        return self.of({"model": "alpha", "messages": messages}, wish)

    def of(self, body: dict[str, Any], wish: str | None = None) -> JsonRequest:
        """Return a request with a body."""
        facts = read_facts(body, CHAT, max_image_bytes=10**9)
        size = len(bytes(large_json.dumps(body)))
        return JsonRequest(cast("Any", self._services), body, facts, wish, size=size)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    """Return what requests are made with; nothing may be fetched."""
    made = Gateway(tmp_path)
    yield made
    await made.images.aclose()


def show(*urls: str) -> dict[str, Any]:
    """Return a user's message with pictures, behind a text."""
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [{"type": "text", "text": "What is it?"}, *parts]}


def earlier(*urls: str) -> list[dict[str, Any]]:
    """Return a turn that goes when the next one shows a picture."""
    return [show(*urls), {"role": "assistant", "content": "A cat."}]


def content(payload: Payload, message: int = 0) -> Any:
    """Return the content of a message that an engine gets."""
    assert isinstance(payload.data, bytes)
    return orjson.loads(payload.data)["messages"][message]["content"]


async def test_an_address_that_may_not_be_fetched_is_named_as_it_came(gateway: Gateway) -> None:
    """However many messages and pictures were left out before it, index and param are those of the request."""
    request = gateway.request([*earlier(uri(png()), uri(png())), show(uri(png()), "https://10.0.0.1/x.png")])
    with pytest.raises(InvalidImageUrl, match=r"^Image 3 at messages\[2\]\.content\[2\]") as caught:
        await request.settle(TARGET)
    assert caught.value.param == "messages[2].content[2]"
    assert request.left_out == "messages=2 images=2"


@pytest.mark.parametrize("wish", [None, "keep"])
async def test_a_picture_that_cannot_be_read_is_named_as_it_came(gateway: Gateway, wish: str | None) -> None:
    """So is one that cannot be made smaller for its model, whether anything was left out or not."""
    request = gateway.request([*earlier(uri(png())), show(uri(DAMAGED))], wish)
    await request.settle(TARGET)
    with pytest.raises(InvalidImage, match=r"^Image 1 at messages\[2\]\.content\[1\]") as caught:
        await request.payload(lease(max_image_pixels=100))
    assert caught.value.param == "messages[2].content[1]"


async def test_a_picture_that_was_fetched_is_named_as_it_came(tmp_path: Path) -> None:
    """One that came by its address is inline by the time at which it turns out to be damaged."""
    with image_server(reply(DAMAGED)) as server:
        gateway = Gateway(tmp_path, hosts=(f"cat.example:{server.port}",))
        url = f"http://cat.example:{server.port}/x.png"
        request = gateway.request([*earlier(uri(png())), show(uri(png()), url)])
        await request.settle(TARGET)
        with pytest.raises(InvalidImage, match=r"^Image 2 at messages\[2\]\.content\[2\]"):
            await request.payload(lease(max_image_pixels=100))
        await gateway.images.aclose()


DEAD = "https://10.0.0.1/x.png"
QUESTION = {"role": "user", "content": "And now?"}


async def test_an_earlier_picture_whose_address_is_dead_does_not_end_a_conversation(gateway: Gateway) -> None:
    """A text takes its place, and it counts as left out; the newest picture, which is asked about, stays."""
    request = gateway.request([show(DEAD), *earlier(uri(png())), QUESTION])
    await request.settle(TARGET)
    assert request.left_out == "messages=0 images=1"
    note = {"type": "text", "text": GONE_NOTE}
    assert note in content(await request.payload(lease()))


@pytest.mark.parametrize(
    ("messages", "wish"),
    [
        ([*earlier(uri(png())), *earlier(DEAD), QUESTION], None),
        ([*earlier(uri(png())), show(DEAD)], "fit"),
        ([*earlier(DEAD), show(uri(png()))], "keep"),
    ],
)
async def test_a_picture_that_is_needed_has_to_be_there(
    gateway: Gateway, messages: list[Any], wish: str | None
) -> None:
    """The newest one that a question may be about, one of the current turn, and all where nothing may be left out."""
    request = gateway.request(messages, wish)
    with pytest.raises(InvalidImageUrl):
        await request.settle(TARGET)


async def test_each_picture_is_looked_at_once(gateway: Gateway) -> None:
    """What was told of a picture holds for all that is made of its request: the first body, and a smaller one."""
    request = gateway.request([*earlier(uri(png(64, 64))) * 20, {"role": "user", "content": "And now?"}], "fit")
    await request.settle(TARGET)
    whole = await request.payload(lease())
    smaller = await request.smaller(lease(), orjson.dumps(TOO_LONG), is_last=False)
    assert smaller is not None
    assert smaller.size < whole.size
    assert gateway.pictures.requests == 1
    request.let_go()


async def test_a_wish_that_is_none_is_refused_at_once(gateway: Gateway) -> None:
    """Nobody waits for a model only to be told that."""
    with pytest.raises(BadRequest, match="X-Rolecall-History"):
        gateway.request([show()], "shorter")


class Watched(list[Any]):
    """Messages that know which threads went through them."""

    threads: set[int] = set()  # noqa: RUF012 - replaced once they are watched

    def __iter__(self) -> Iterator[Any]:
        """Note the thread."""
        self.threads.add(threading.get_ident())
        return super().__iter__()


@pytest.mark.parametrize(("turns", "is_aside"), [(10, False), (1000, True)])
async def test_long_conversations_are_cut_off_the_loop(gateway: Gateway, turns: int, is_aside: bool) -> None:  # noqa: FBT001
    """They hold nobody else up; for short ones a thread would cost more than it saves."""
    messages = Watched([*earlier(uri(png())) * turns, show(uri(png()))])
    request = gateway.request(messages)
    messages.threads = set()
    await request.settle(TARGET)
    assert messages.threads
    assert (threading.get_ident() not in messages.threads) == is_aside
    assert request.left_out == f"messages={2 * turns} images={turns}"


@pytest.mark.parametrize("lets_go", [True, False])
@pytest.mark.parametrize("text", ["Tell me a story. " * 20, "Tell me a story. " * 10_000])
async def test_what_a_prompt_costs_is_known_once_somebody_asks(gateway: Gateway, text: str, lets_go: bool) -> None:  # noqa: FBT001
    """However late, and however large it was: it is what the prompt that was sent amounts to."""
    messages = [{"role": "user", "content": text}]
    request, holder = gateway.request(messages), lease()
    await request.settle(TARGET)
    assert request.estimate(holder) == 0
    payload = await request.payload(holder)
    if lets_go:
        request.let_go()
    assert isinstance(payload.data, bytes)
    expected = TokenModel().predict(measure(orjson.loads(payload.data)))
    assert request.estimate(holder) == request.estimate(holder) == pytest.approx(expected)


async def test_what_engines_count_is_learnt_of_requests_that_were_let_go(gateway: Gateway) -> None:
    """The estimates of the next ones follow it."""
    messages = [{"role": "user", "content": "Tell me a story. " * 20}]
    for _ in range(12):
        request, holder = gateway.request(messages), lease()
        await request.settle(TARGET)
        await request.payload(holder)
        before = request.estimate(holder)
        request.let_go()
        request.learn(holder, 300)
        await asyncio.sleep(0.021)
    assert request.estimate(holder) == pytest.approx(300, rel=0.05)
    assert abs(before - 300) < 60


@pytest.mark.parametrize("wish", [None, "fit", "keep"])
async def test_what_was_sent_is_held_no_longer_than_needed(gateway: Gateway, wish: str | None) -> None:
    """Pictures are large: once the answer has begun they go at once, and do not wait for the garbage collector."""
    messages = Watched([*earlier(uri(png())), show(uri(png()))])
    request, left = gateway.request(messages, wish), weakref.ref(messages)
    del messages
    await request.settle(TARGET)
    await request.payload(lease())
    gc.disable()
    try:
        request.let_go()
        assert left() is None
    finally:
        gc.enable()


PHOTOGRAPH = uri(encoded(Image.effect_noise((900, 700), 80), "PNG"))
BARE = PHOTOGRAPH.partition(",")[2]


@pytest.mark.parametrize("fields", [{}, {"max_image_pixels": 90_000}, {"context_length": 4096}, {"image_tokens": 4000}])
@pytest.mark.parametrize(
    "conversation",
    [
        [show(PHOTOGRAPH, PHOTOGRAPH)],
        [*earlier(PHOTOGRAPH), QUESTION],
        [*earlier(PHOTOGRAPH), *earlier(PHOTOGRAPH), QUESTION],
        [{"role": "user", "content": "x", "images": [BARE, BARE]}],
        [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": BARE}}, {"type": "text", "text": "é"}],
            }
        ],
        [{"role": "user", "content": PHOTOGRAPH}],
    ],
    ids=["pictures", "past picture", "past pictures", "ollama", "bare", "text"],
)
async def test_a_body_in_pieces_is_sent_as_one_of_strings(
    tmp_path: Path, conversation: list[Any], fields: dict[str, Any]
) -> None:
    """Whatever is cut, made smaller or left out: an engine gets the same bytes."""
    data = orjson.dumps({"model": "alpha", "messages": conversation, "num_ctx": 7, "n": 1.5})
    of_strings, in_pieces = [
        await sent(Gateway(tmp_path), data, lease(**fields), in_full=full) for full in (True, False)
    ]
    assert list(map(_bytes, of_strings[:2])) == list(map(_bytes, in_pieces[:2]))
    assert of_strings[2:] == in_pieces[2:]
    assert isinstance(in_pieces[0].data, Pieces) or fields or conversation[0]["content"] == PHOTOGRAPH


async def sent(gateway: Gateway, data: bytes, holder: Lease, *, in_full: bool) -> tuple[Payload, Payload | None, Any]:
    """Return what is sent of a body, what is sent of it after a refusal, and what else is told of it."""
    request, refusal, smaller = gateway.of(await read_json(data, in_full=in_full), "fit"), None, None
    await request.settle(TARGET)
    payload = await request.payload(holder)
    estimate = request.estimate(holder)
    try:
        smaller = await request.smaller(holder, orjson.dumps(TOO_LONG), is_last=False)
    except ContextLengthExceeded as error:
        refusal = error.message
    return payload, smaller, (request.left_out, estimate, refusal)


def _bytes(payload: Payload | None) -> bytes | None:
    if payload is None:
        return None
    assert payload.size == len(payload.data)  # type: ignore[arg-type]
    assert isinstance(payload.data, bytes | Pieces)
    return bytes(payload.data)
