"""OpenAI's Responses for an engine that has less of them."""

from __future__ import annotations

from typing import Any

import pytest

from rolecall.core.responses import ResponsesEvents, fit_responses

SCHEMA = {"type": "object"}


def fitted(**body: Any) -> dict[str, Any]:
    """Return a body as the engine gets it."""
    fit_responses(body)
    return body


@pytest.mark.parametrize("content", ["yes", [{"type": "output_text", "text": "yes"}]])
def test_a_past_answer_says_what_it_is(content: Any) -> None:
    """A message of the assistant gets its type; those of others, and items that have one, stay."""
    others = [{"role": "user", "content": "x"}, {"type": "function_call", "name": "f"}, "odd"]
    answer = {"role": "assistant", "content": content}
    assert fitted(input=[*others, answer])["input"] == [*others, {**answer, "type": "message"}]
    typed = [{**answer, "type": "message"}]
    assert fitted(input=typed)["input"] == typed


def test_thoughts_that_cannot_be_read_go() -> None:
    """A thought with its text stays; one that is encrypted or a summary goes."""
    told = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    sealed = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}], "encrypted_content": "x"}
    assert fitted(input=[told, sealed])["input"] == [told]


def test_text_as_input_stays() -> None:
    """A prompt in words is nobody's affair."""
    assert fitted(input="x") == {"input": "x"}
    assert fitted() == {}


@pytest.mark.parametrize(
    ("wanted", "known"),
    [
        (
            {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True},
            {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}},
        ),
        ({"type": "json_object"}, {"type": "json_object"}),
    ],
)
def test_a_format_by_the_name_of_chat(wanted: Any, known: Any) -> None:
    """The format of the text is asked for as in a chat, unless the request has done so itself."""
    assert fitted(text={"format": wanted})["response_format"] == known
    assert fitted(text={"format": wanted}, response_format={"type": "text"})["response_format"] == {"type": "text"}


@pytest.mark.parametrize("text", [None, "x", {}, {"format": None}, {"format": {"type": "text"}}, {"verbosity": "low"}])
def test_plain_text_needs_no_format(text: Any) -> None:
    """Where no format is asked for, none is added."""
    assert "response_format" not in fitted(text=text)


STREAM: list[dict[str, Any]] = [
    {"type": "response.created", "response": {"id": "r", "status": "in_progress"}},
    {"type": "response.output_item.added", "item": {"id": "rs", "type": "reasoning"}},
    {"type": "response.reasoning_text.delta", "item_id": "rs", "delta": "hm"},
    {"type": "response.output_item.added", "item": {"id": "msg", "type": "message"}},
    {"type": "response.content_part.added", "item_id": "msg", "part": {"type": "output_text", "text": ""}},
    {"type": "response.output_text.delta", "item_id": "msg", "delta": "yes"},
    {"type": "response.output_item.done", "item": {"id": "rs", "type": "reasoning"}},
    {"type": "response.output_item.done", "item": {"id": "msg", "type": "message"}},
    {"type": "response.completed", "response": {"id": "r", "output": [{"id": "msg"}]}},
]


def test_events_are_numbered() -> None:
    """Each event has its number, that of its item in the order of their beginning, and that of its part."""
    events = ResponsesEvents("m")
    seen = [events.rewrite(message) for message in STREAM]
    assert [event["sequence_number"] for event in seen] == list(range(len(STREAM)))
    assert [event.get("output_index") for event in seen] == [None, 0, 0, 1, 1, 1, 0, 1, None]
    assert [event.get("content_index") for event in seen] == [None, None, 0, None, 0, 0, None, None, None]
    assert seen[0]["response"] == {"id": "r", "status": "in_progress", "model": "m", "output": []}
    assert seen[4]["part"] == {"type": "output_text", "text": "", "annotations": []}
    assert seen[5]["logprobs"] == []
    assert seen[-1]["response"] == STREAM[-1]["response"]


def test_a_complete_stream_passes() -> None:
    """Of an engine whose events lack nothing each passes as it is, the same object."""
    first = ResponsesEvents("m")
    complete = [first.rewrite(message) for message in STREAM]
    second = ResponsesEvents("m")
    assert all(second.rewrite(message) is message for message in complete)


@pytest.mark.parametrize("message", [{"type": "error", "message": "x"}, {"type": 7}, {"choices": []}])
def test_other_messages_pass(message: dict[str, Any]) -> None:
    """What is no event of a response is left alone."""
    assert ResponsesEvents("m").rewrite(message) is message


@pytest.mark.parametrize("item", [None, "x", {"id": 7}])
def test_an_event_without_a_known_item_has_no_index(item: Any) -> None:
    """Where an event does not tell its item, nothing is made up."""
    event = ResponsesEvents("m").rewrite({"type": "response.output_item.added", "item": item})
    assert "output_index" not in event
