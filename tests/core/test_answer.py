"""What answers of OpenAI's Responses and Anthropic's Messages say of themselves, event by event and whole."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.core.answer import Answer

# As llama.cpp (build 11549) has them.
RESPONSE = {
    "object": "response",
    "status": "completed",
    "output": [
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "message", "content": [{"type": "output_text", "text": "Hello"}, {"type": "refusal"}, "odd"]},
    ],
    "usage": {"input_tokens": 23, "output_tokens": 28, "input_tokens_details": {"cached_tokens": 22}},
}
MESSAGE = {
    "type": "message",
    "content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Hello"}],
    "stop_reason": "end_turn",
    "usage": {"cache_read_input_tokens": 22, "input_tokens": 1, "output_tokens": 28},
}


def read(*messages: Any) -> Answer:
    answer = Answer(keeps_text=True)
    for message in messages:
        answer.read(message)
    return answer


def known(answer: Answer) -> tuple[int | None, int | None, str | None]:
    return answer.prompt_tokens, answer.completion_tokens, answer.finish_reason


RESPONSE_EVENTS = [
    {"type": "response.created", "response": {"object": "response", "status": "in_progress"}},
    {"type": "response.output_item.added", "item": {"type": "message", "content": []}},
    {"type": "response.output_text.delta", "delta": "Hel"},
    {"type": "response.output_text.delta", "delta": "lo"},
    {"type": "response.output_text.done", "text": "Hello"},
    {"type": "response.completed", "response": RESPONSE},
]
MESSAGE_EVENTS = [
    {"type": "message_start", "message": {"usage": {**MESSAGE["usage"], "output_tokens": 0}}},  # type: ignore[dict-item]
    {"type": "content_block_start", "content_block": {"type": "text", "text": ""}},
    {"type": "ping"},
    {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Hel"}},
    {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "lo"}},
    {"type": "content_block_stop"},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 28}},
    {"type": "message_stop"},
]


@pytest.mark.parametrize("events", [RESPONSE_EVENTS, MESSAGE_EVENTS])
def test_streams_are_over_with_their_last_event(events: list[Any]) -> None:
    """Text, usage and reason are read from the events; nothing before the last one is the end."""
    assert not read(*events[:-1]).is_over
    answer = read(*events)
    assert answer.is_over
    assert answer.is_complete
    assert answer.text == ["Hel", "lo"]
    assert (answer.prompt_tokens, answer.completion_tokens) == (23, 28)


def test_finish_reasons() -> None:
    """It is the status of a response, or why it is incomplete, and the reason for which a message stopped."""
    assert read(*RESPONSE_EVENTS).finish_reason == "completed"
    assert read(*MESSAGE_EVENTS).finish_reason == "end_turn"
    cut = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    assert read({"type": "response.incomplete", "response": cut}).finish_reason == "max_output_tokens"
    assert read({"type": "response.cancelled", "response": {"status": "cancelled"}}).finish_reason == "cancelled"


def test_whole_answers() -> None:
    """Whole ones say the same as streamed ones, in one piece."""
    response, message = read(RESPONSE), read(MESSAGE)
    assert (response.text, *known(response)) == (["Hello"], 23, 28, "completed")
    assert (message.text, *known(message)) == (["Hello"], 23, 28, "end_turn")
    assert response.is_complete
    assert message.is_complete


def test_cached_tokens_are_part_of_the_prompt() -> None:
    """Anthropic counts what was cached apart from the rest, OpenAI does not."""
    usage = {"input_tokens": 1, "cache_read_input_tokens": 20, "cache_creation_input_tokens": 4}
    assert read({"usage": usage}).prompt_tokens == 25
    assert read({"usage": {"input_tokens": 25, "input_tokens_details": {"cached_tokens": 20}}}).prompt_tokens == 25


@pytest.mark.parametrize(
    ("event", "has_output"),
    [
        ({"type": "response.output_text.delta", "delta": "x"}, True),
        ({"type": "response.output_text.delta", "delta": ""}, False),
        ({"type": "response.reasoning_text.delta", "delta": "x"}, True),
        ({"type": "response.function_call_arguments.delta", "delta": "{"}, True),
        ({"type": "response.output_item.added", "item": {}}, False),
        ({"type": "content_block_delta", "delta": {"thinking": "x"}}, True),
        ({"type": "content_block_delta", "delta": {"partial_json": "{"}}, True),
        ({"type": "content_block_delta", "delta": {"signature": ""}}, False),
        ({"type": "content_block_delta", "delta": None}, False),
        ({"type": "message", "content": [{"type": "tool_use", "input": {}}]}, True),
        ({"type": "message_start", "message": None}, False),
        ({"type": "message_delta", "delta": None}, False),
        ({"type": "response.completed", "response": None}, False),
    ],
)
def test_first_output(event: dict[str, Any], *, has_output: bool) -> None:
    """The first token is the first of anything that the model says, thoughts and arguments of calls included."""
    answer = Answer()
    answer.read(event)
    assert answer.has_output is has_output
    assert answer.text == []


@pytest.mark.parametrize(
    "event",
    [
        {"type": "error", "error": {"type": "overloaded_error", "message": "gone"}},
        {"type": "error", "message": "gone", "code": "server_error"},
        {"type": "response.failed", "response": {"status": "failed", "error": {"code": "x", "message": "gone"}}},
        {"object": "response", "status": "failed", "error": {"message": "gone"}},
    ],
)
def test_errors(event: dict[str, Any]) -> None:
    """An error is known in each of the forms that it has, and completes the answer."""
    assert read(event).error == "gone"
    assert read(event).is_complete


def test_no_error_is_none() -> None:
    """A response that says that it has no error has none."""
    assert read({**RESPONSE, "error": None}).error is None


@given(
    message=st.recursive(
        st.none() | st.integers() | st.text(max_size=3) | st.sampled_from(["response.completed", "message_delta"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["type", "delta", "response", "message", "content", "usage", "output", "error"]), inner
            )
        ),
    )
)
def test_nothing_that_engines_write_is_too_odd_to_read(message: Any) -> None:
    """Whatever form a message has, it is read as far as it makes sense."""
    answer = read(message)
    assert answer.is_complete or answer.finish_reason is None


def streamed(*deltas: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    return [{"choices": [{"delta": each}], **more} for each in deltas]


@pytest.mark.parametrize(
    ("messages", "tokens"),
    [
        ([], 0),
        (streamed({"role": "assistant", "content": ""}), 0),
        (streamed({"content": "a"}, {"content": "b"}, {"reasoning": "c"}), 3),
        (streamed({"content": "x" * 41}), 11),
        (streamed({"content": "漢" * 4}), 3),
        (streamed({"reasoning_content": "x" * 40, "reasoning": "x" * 40}), 10),
        (streamed({"tool_calls": [{"index": 0, "function": {"arguments": "x" * 40}}]}), 10),
        ([{"type": "content_block_delta", "delta": {"text": "x" * 40}}], 10),
        ([{"type": "response.output_text.delta", "delta": "x" * 40}], 10),
        ([{"object": "response", "output": [{"content": [{"type": "output_text", "text": "x" * 40}]}]}], 10),
        ([{"type": "message_start", "message": {"usage": {"input_tokens": 5, "output_tokens": 1}}}], 1),
        ([{"choices": [{"message": {"content": "x" * 40}, "finish_reason": "stop"}]}], 10),
        (streamed({"content": "a"}, usage={"completion_tokens": 7}), 7),
    ],
)
def test_what_was_written_is_estimated_by_what_was_seen(messages: list[dict[str, Any]], tokens: int) -> None:
    """Where the engine has not told: a token a piece, or four bytes a token, whichever is more."""
    answer = Answer()
    for message in messages:
        answer.read(message)
    assert answer.tokens_written == tokens


def test_what_the_engine_told_in_the_end_is_believed() -> None:
    """A complete answer has the tokens that its engine counted, more or fewer."""
    answer = Answer()
    answer.read({"choices": [{"message": {"content": "x" * 400}, "finish_reason": "stop"}]})
    answer.read({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})
    assert answer.tokens_written == 2
