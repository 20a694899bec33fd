"""What waiting clients are told, and when, without a server: the send of an ASGI server is a list."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from starlette.types import Message

from rolecall.core.lifecycle import State
from rolecall.errors import UpstreamError
from rolecall.gateway.body import ClientGone
from rolecall.gateway.comments import Commentary, Pace, comment_on
from rolecall.gateway.reply import Reply, as_stream
from rolecall.gateway.wire import AsgiWire
from rolecall.runtime.lease import Outlook

FAST = Pace(head_after_s=0.02, waiting_every_s=0.02, processing_every_s=0.03)
WAITING = Outlook("m", State.READY)


class Client:
    """Notes what it is sent, and can wait for the n-th message; ``takes`` is how many it takes at all."""

    def __init__(self, takes: int = 1000) -> None:
        self.messages: list[Message] = []
        self._takes = takes
        self._came = asyncio.Condition()

    async def send(self, message: Message) -> None:
        """Take a message, or never return."""
        if len(self.messages) == self._takes:
            await asyncio.Event().wait()
        async with self._came:
            self.messages.append(message)
            self._came.notify_all()

    async def has(self, count: int) -> list[Message]:
        """Return the messages once there are so many."""
        async with self._came:
            await asyncio.wait_for(self._came.wait_for(lambda: len(self.messages) >= count), 10)
        return self.messages

    @property
    def content(self) -> bytes:
        """All bytes of the body."""
        return b"".join(message.get("body", b"") for message in self.messages)


async def done() -> str:
    """Be done."""
    return "done"


@pytest.mark.parametrize(
    ("outlook", "comment"),
    [
        (None, b": processing\n\n"),
        (Outlook("a b", State.STARTING, 3, 0.396, 11.2), b": loading a b 40% eta 12s\n\n"),
        (Outlook("m", State.STARTING, 0, 0.5), b": loading m 50%\n\n"),
        (Outlook("m", State.STARTING), b": loading m\n\n"),
        (Outlook("m", State.STOPPED, 3), b": waiting for m, 3 ahead\n\n"),
        (Outlook("m", State.SLEEPING), b": waiting for m\n\n"),
        (Outlook("ä\r\n\ndata: x", State.READY), ": waiting for ä???data: x\n\n".encode()),
    ],
)
def test_comments_are_one_line_each(outlook: Outlook | None, comment: bytes) -> None:
    """A comment has a colon, a space and one line, whatever the model is called."""
    assert comment_on(outlook) == comment


async def test_quick_work_is_not_commented() -> None:
    """Work that is done before the head is due leaves the reply untouched."""
    client = Client()
    commentary = Commentary(Reply(AsgiWire(client.send), "id", 1), lambda: WAITING, dict, Pace(60, 60, 60))
    assert await commentary.over(done()) == "done"
    assert client.messages == []


async def test_a_wait_is_commented_at_once_and_again() -> None:
    """The head comes with the first comment; then comments go on, and change with the outlook."""
    client, ready = Client(), asyncio.Event()
    outlooks: Iterator[Outlook | None] = iter([WAITING, Outlook("m", State.STARTING, 0, 0.1, 1), None])
    commentary = Commentary(
        Reply(AsgiWire(client.send), "id", 1), lambda: next(outlooks, None), lambda: {"x-a": "b"}, FAST
    )
    work = asyncio.create_task(commentary.over(ready.wait()))
    await client.has(5)
    ready.set()
    assert await work
    head, *_ = client.messages
    assert (head["type"], head["status"]) == ("http.response.start", 200)
    assert {(b"content-type", b"text/event-stream"), (b"x-a", b"b"), (b"x-request-id", b"id")} <= set(head["headers"])
    said = b": waiting for m\n\n: loading m 10% eta 1s\n\n: processing\n\n: processing\n\n"
    assert client.content.startswith(said)


async def test_an_engine_that_takes_its_time_is_commented_later() -> None:
    """Who did not wait for a model hears nothing at the first look, but the head and a comment at the next."""
    client, ready = Client(), asyncio.Event()
    looks: list[int] = []

    def outlook() -> None:
        looks.append(len(client.messages))

    work = asyncio.create_task(
        Commentary(Reply(AsgiWire(client.send), "id", 1), outlook, dict, FAST).over(ready.wait())
    )
    await client.has(2)
    ready.set()
    await work
    assert looks[:2] == [0, 0]
    assert client.content.startswith(b": processing\n\n")


async def test_the_pace_goes_on_from_one_work_to_the_next() -> None:
    """Several short works that follow each other are one wait."""
    client = Client()
    commentary = Commentary(Reply(AsgiWire(client.send), "id", 1), lambda: WAITING, dict, FAST)
    deadline = asyncio.get_running_loop().time() + 10
    while not client.messages:
        await commentary.over(asyncio.sleep(0.005))
        assert asyncio.get_running_loop().time() < deadline
    assert client.content.startswith(b": waiting for m\n\n")


async def test_work_that_fails_while_it_is_commented() -> None:
    """Its error is raised as if there were no comments."""
    client = Client()

    async def fails() -> None:
        await client.has(2)
        raise UpstreamError("kaputt")

    with pytest.raises(UpstreamError, match="kaputt"):
        await Commentary(Reply(AsgiWire(client.send), "id", 1), lambda: WAITING, dict, FAST).over(fails())


@pytest.mark.parametrize("leaves", ["by closing", "by not reading"])
async def test_a_client_that_leaves_ends_the_work(leaves: str) -> None:
    """Cancelled from outside, or by a client that takes nothing, the work is cancelled and over when it returns."""
    client = Client(takes=1000 if leaves == "by closing" else 2)
    ended: list[str] = []

    async def works() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("work")

    reply = Reply(AsgiWire(client.send), "id", 0.05)
    task = asyncio.create_task(Commentary(reply, lambda: WAITING, dict, FAST).over(works()))
    await client.has(2)
    if leaves == "by closing":
        task.cancel()
    with pytest.raises(asyncio.CancelledError if leaves == "by closing" else ClientGone):
        await task
    assert ended == ["work"]


async def test_a_promised_head_is_sent_once() -> None:
    """The answer's own head does not follow a promised one; an error then is an event, and nothing ends properly."""
    client = Client()
    reply = Reply(AsgiWire(client.send), "id", 1)
    await reply.promise({"content-type": "text/event-stream"})
    assert (reply.has_head, reply.has_started) == (True, False)
    await reply.fail(UpstreamError("early"))
    await reply.start(201, {"x-late": "1"})
    await reply.body(b"data: 1")
    await reply.fail(UpstreamError("late"))
    assert [message["type"] for message in client.messages].count("http.response.start") == 1
    rest = b'"type":"upstream_error","param":null,"code":"engine_error"}}\n\n'
    assert client.content == (
        b'data: {"error":{"message":"early",' + rest + b'data: 1\n\ndata: {"error":{"message":"late",' + rest
    )
    assert client.messages[-1]["more_body"]


@pytest.mark.parametrize("said", [None, [], "text", dict, {"choices": None}, {"choices": ["a"]}, {"data": []}])
def test_what_is_no_chat_answer_becomes_no_stream(said: object) -> None:
    """Nothing is made up for an answer that is not understood."""
    assert as_stream(said) is None


def test_a_completion_becomes_a_stream_of_one_chunk() -> None:
    """The older endpoint's chunks look like its answers."""
    answer = {"object": "text_completion", "choices": [{"index": 0, "text": "a", "finish_reason": "stop"}]}
    expected = b'data: {"object":"text_completion","choices":[{"index":0,"text":"a","finish_reason":"stop"}]}\n\n'
    assert as_stream(answer) == expected + b"data: [DONE]\n\n"
