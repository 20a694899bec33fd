"""What is known of an answer once it has passed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from starlette.types import Message

from rolecall.backends.base import Places, Upstream
from rolecall.backends.llama_server import LlamaServer
from rolecall.core.models import ModelEntry
from rolecall.core.selection import Demand, Selection
from rolecall.core.traits import Traits
from rolecall.core.transforms import RequestFacts
from rolecall.gateway.account import Account
from rolecall.gateway.relay import Relay
from rolecall.gateway.reply import Reply
from rolecall.gateway.services import Services
from rolecall.gateway.upstream import UpstreamResponse
from rolecall.gateway.wire import AsgiWire
from rolecall.runtime.lease import Lease
from rolecall.settings import Settings

SPEECH, TRANSCRIPTIONS = "/v1/audio/speech", "/v1/audio/transcriptions"


@dataclass
class FakeResponse(UpstreamResponse):
    """An engine's answer in ``parts``."""

    parts: tuple[bytes, ...]
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200

    async def chunks(self, idle_timeout_s: float) -> AsyncIterator[bytes]:
        """Yield the parts."""
        for part in self.parts:
            yield part

    async def close(self) -> None:
        """Do nothing."""


def lease() -> Lease:
    """Return a lease of a model."""
    return Lease(
        entry=ModelEntry.model_validate({"name": "m", "backend": "llama_cpp"}),
        backend=LlamaServer(Places(Path(), Path()), None),
        upstream=Upstream("http://127.0.0.1:9/v1"),
        selection=Selection(Demand(), (), (), "the only one"),
        queue_ms=0.0,
        load_ms=0.0,
        engine_gone=asyncio.Event(),
        _give_back=lambda _: None,
    )


async def at_once(work: Coroutine[Any, Any, Any]) -> Any:
    """Wait without a word."""
    return await work


@pytest.mark.parametrize(
    ("endpoint", "response"),
    [
        (TRANSCRIPTIONS, FakeResponse((b"data: {}\n\n",), {"content-type": "text/event-stream"})),
        (SPEECH, FakeResponse((b"ab", b"c"), {"content-type": "audio/mpeg", "content-length": "3"})),
        (SPEECH, FakeResponse((b"ab", b"c"), {"content-type": "audio/mpeg"})),
        (TRANSCRIPTIONS, FakeResponse((b'{"text":', b'"x"}'), {"content-type": "application/json"})),
        (TRANSCRIPTIONS, FakeResponse((b'{"a":"', b"x" * 2**20, b'"}'), {"content-type": "application/json"})),
    ],
)
async def test_a_whole_answer_is_delivered(endpoint: str, response: FakeResponse) -> None:
    """Of whatever kind it is: a client that leaves now has got all."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    account = Account({"path": endpoint, "headers": [], "client": None}, "req_1", keeps_prompts=False)
    services = SimpleNamespace(
        settings=Settings.model_validate({}), roster=SimpleNamespace(traits=lambda _entry: Traits())
    )
    reply = Reply(AsgiWire(send), "req_1", 9, endpoint)
    facts = RequestFacts(endpoint, "m")
    relay = Relay(cast("Services", services), reply, account, facts, waiting=at_once, headers=dict)
    await relay.run(response, lease())
    assert relay.is_delivered
    assert reply.is_complete
    assert b"".join(message.get("body", b"") for message in sent) == b"".join(response.parts)
    assert [message.get("more_body") for message in sent[1:]].count(False) == 1
