"""Long conversations of OpenAI's client: what is left out, what is said of it, and what the client may ask for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from clients.entries import ANSWER, CAPTION, HELLO, PICTURE

LOOKED: Any = [{"role": "user", "content": PICTURE}, {"role": "assistant", "content": CAPTION}]
TALKED: Any = [{"role": "user", "content": "x" * 40}, {"role": "assistant", "content": "y" * 40}]


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    """The client with its defaults."""
    with openai.OpenAI(base_url=base_url, api_key="none") as each:
        yield each


def ask(client: openai.OpenAI, model: str, messages: Any, history: str | None = None) -> tuple[str | None, str | None]:
    """Return the answer and what was left out for it; ``history`` asks for something else than the default."""
    headers = {"x-rolecall-history": history} if history else {}
    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=messages, max_tokens=60, extra_headers=headers
    )
    return raw.parse().choices[0].message.content, raw.headers.get("x-rolecall-truncated")


def test_a_new_picture_goes_alone(client: openai.OpenAI) -> None:
    """One picture after another in one conversation: the earlier ones do not come along, unless asked for."""
    conversation = [*LOOKED, *LOOKED, LOOKED[0]]
    assert ask(client, "role:caption", conversation) == (CAPTION, "messages=4 images=2")
    assert ask(client, "role:caption", conversation, "keep") == (CAPTION, None)


def test_a_question_about_a_picture_keeps_it(client: openai.OpenAI) -> None:
    """A question in words is about the picture that was shown before: nothing is left out."""
    assert ask(client, "role:caption", [*LOOKED, *HELLO])[1] is None


def test_a_conversation_that_is_too_long(client: openai.OpenAI) -> None:
    """In words it is the client's to shorten, as programs expect; one that asks for it gets it cut."""
    conversation = [*TALKED * 10, *HELLO]
    with pytest.raises(openai.BadRequestError) as refusal:
        ask(client, "tight", conversation)
    assert refusal.value.code == "context_length_exceeded"
    text, left_out = ask(client, "tight", conversation, "fit")
    assert text == ANSWER
    assert left_out is not None
    assert left_out.startswith("messages=")


@pytest.mark.long
def test_many_pictures_in_a_growing_conversation(client: openai.OpenAI) -> None:
    """Pictures and questions in turns, all sent again each time, far beyond the context, end in no error."""
    conversation: Any = []
    left_out = []
    for _ in range(15):
        for content in ([{"type": "text", "text": "x" * 300}, PICTURE[1]], "And before? " + "x" * 400):
            conversation.append({"role": "user", "content": content})
            text, header = ask(client, "role:caption", conversation)
            left_out.append(header)
            conversation.append({"role": "assistant", "content": text})
    pictures, questions = left_out[::2], left_out[1::2]
    assert pictures[-1] == "messages=56 images=14"
    assert questions[0] is None
    assert "images=" in (questions[-1] or "")


def test_a_word_that_is_none_of_these(client: openai.OpenAI) -> None:
    """Another value of the header is refused with those that there are."""
    with pytest.raises(openai.BadRequestError, match=r"keep.*truncate.*fit"):
        ask(client, "demo-chat", HELLO, "sometimes")
