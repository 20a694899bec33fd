"""What engines say of prompts that are too long, in the words of several versions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.core.overflow import Overflow, read_overflow

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["error", "message", "n_ctx"]), inner),
    max_leaves=8,
)


def openai_error(message: Any, **more: Any) -> dict[str, Any]:
    """Return an error in OpenAI's shape."""
    return {"error": {"message": message, "type": "BadRequestError", **more}}


def test_llama_cpp_has_fields() -> None:
    """llama.cpp's numbers are read from its fields."""
    said = openai_error(
        "request (13392 tokens) exceeds the available context size (8192 tokens), try increasing it",
        type="exceed_context_size_error",
        n_prompt_tokens=13392,
        n_ctx=8192,
    )
    assert read_overflow(said) == Overflow(context=8192, prompt=13392)
    del said["error"]["n_ctx"]
    assert read_overflow(said) == Overflow(context=8192, prompt=13392)


@pytest.mark.parametrize(
    ("message", "overflow"),
    [
        (
            (
                "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4000 in the "
                "messages, 1000 in the completion). Please reduce the length of the messages or completion."
            ),
            Overflow(4096, 4000, 1000),
        ),
        (
            "This model's maximum context length is 4096 tokens. However, your request has 4176 input tokens.",
            Overflow(4096, 4176),
        ),
        (
            (
                "'max_tokens' or 'max_completion_tokens' is too large: 8000. This model's maximum context length is "
                "4096 tokens and your request has 2778 input tokens (8000 > 4096 - 2778). None"
            ),
            Overflow(4096, 2778, 8000),
        ),
        (
            (
                "You passed 4097 input tokens and requested 100 output tokens. However, the model's context length is "
                "only 4096 tokens, resulting in a maximum input length of 3996 tokens."
            ),
            Overflow(4096, 4097, 100),
        ),
        (
            (
                "This model's maximum context length is 32768 tokens. However, you requested 0 output tokens and your "
                "prompt contains at least 32769 input tokens, for a total of at least 32769 tokens."
            ),
            Overflow(32768, 32769, 0, is_floor=True),
        ),
        (
            (
                "The decoder prompt (length 16476) is longer than the maximum model length of 16384. Make sure that "
                "`max_model_len` is no smaller than the number of text tokens plus multimodal tokens."
            ),
            Overflow(16384, 16476),
        ),
        (
            "The prompt (total length 25938) is too long to fit into the model (context length 4096).",
            Overflow(4096, 25938),
        ),
        (
            "This model's maximum context length is 1000 tokens. However, your messages resulted in 1001 tokens.",
            Overflow(1000, 1001),
        ),
        (
            "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens.",
            Overflow(4096, 5000),
        ),
        ("This model's maximum context length is 4096 tokens.", Overflow(4096)),
        ("The encoder prompt (length 9000) is longer than the maximum model length of 8192.", None),
        ("The context length is unlimited.", None),
        ("bad image", None),
        (None, None),
    ],
)
def test_sentences_of_vllm(message: str | None, overflow: Overflow | None) -> None:
    """Context, prompt and answer are read from the sentences of vLLM's versions, in an ``error`` or at the top."""
    assert read_overflow(openai_error(message)) == overflow
    assert read_overflow({"object": "error", "message": message}) == overflow


@given(JSON)
def test_no_answer_is_trouble(said: Any) -> None:
    """Whatever JSON an engine answers, nothing is raised."""
    found = read_overflow(said)
    assert found is None or found.context > 0
