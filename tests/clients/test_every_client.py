"""What holds for each client: answers by name and by role, ids of any kind, errors with their words, tries."""

from __future__ import annotations

import pytest

from clients.adapters import EVERY, NPM, PYTHON, AsyncClient, Client
from clients.entries import ANSWER, ODD_NAMES
from harness import Rolecall, eventually, words


@pytest.mark.parametrize("client", EVERY)
@pytest.mark.parametrize("model", ["demo-chat", "role:chat", "role:chat@development", *ODD_NAMES])
def test_a_whole_answer(base_url: str, client: type[Client], model: str) -> None:
    """Names with slashes, colons, parentheses, spaces and other letters, and roles, with a profile or without."""
    assert client(base_url).whole(model) == ANSWER


@pytest.mark.parametrize("client", EVERY)
@pytest.mark.parametrize("model", ["role:chat", "role:reasoning"])
def test_a_stream(base_url: str, client: type[Client], model: str) -> None:
    """A stream comes in pieces, thoughts before it or not."""
    pieces = [*client(base_url).stream(model)]
    assert "".join(pieces) == ANSWER
    assert len([piece for piece in pieces if piece]) > 5


@pytest.mark.parametrize("client", PYTHON)
async def test_a_stream_in_a_task(base_url: str, client: type[AsyncClient]) -> None:
    """So does one of the asynchronous side."""
    assert "".join([piece async for piece in client(base_url).pieces("role:chat")]) == ANSWER


@pytest.mark.parametrize("client", EVERY)
def test_an_unknown_model(base_url: str, client: type[Client]) -> None:
    """Whoever reads the exception is told the nearest names."""
    with pytest.raises(Exception, match="Did you mean 'demo-chat'"):
        client(base_url).whole("demo-chatt")


@pytest.mark.parametrize("client", [*PYTHON, *NPM])
def test_a_failure_that_passes(base_url: str, server: Rolecall, client: type[Client]) -> None:
    """A 500 of the engine that does not come again is not seen by the program: the client sends it once more."""
    model = f"fails {client.__name__} once"
    assert client(base_url).whole(model) == words(8)
    eventually(lambda: _statuses(server, model) == [502, 200])


def _statuses(server: Rolecall, model: str) -> list[int]:
    return [line["status"] for line in server.log_lines() if line["requested_model"] == model]


@pytest.mark.parametrize("client", EVERY)
def test_an_engine_that_breaks_off(base_url: str, client: type[Client]) -> None:
    """Half an answer raises, in whatever class the client has for that; it never looks like a whole one."""
    pieces: list[str] = []
    with pytest.raises(Exception, match="engine"):
        pieces.extend(client(base_url).stream("breaks-off"))
    assert "".join(pieces) in {"", words(3)}
