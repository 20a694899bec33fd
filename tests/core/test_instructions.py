"""System and developer messages reach the model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.core.endpoints import CHAT, COMPLETIONS, RESPONSES
from rolecall.core.instructions import fit_instructions


def system(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "system", "content": content, **more}


def developer(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "developer", "content": content, **more}


USER: dict[str, Any] = {"role": "user", "content": "hello"}
PARTS = [{"type": "input_text", "text": "c"}]
IMAGE = [{"type": "input_image", "image_url": "data:,x"}]


def fitted(
    endpoint: str = CHAT, *, knows_developer: bool = False, backend: str = "llama_cpp", **body: Any
) -> dict[str, Any]:
    before = copy.deepcopy(body)
    after = dict(body)
    fit_instructions(after, endpoint, knows_developer=knows_developer, backend=backend)
    assert body == before  # the caller's own lists and messages are as they were
    return after


@pytest.mark.parametrize(
    ("messages", "after"),
    [
        ([developer("a"), USER], [system("a"), USER]),
        ([system("a"), developer("b"), USER], [system("a\n\nb"), USER]),
        ([system("a"), system("b"), USER, system("c")], [system("a\n\nb"), USER, system("c")]),
        ([USER, developer("late")], [USER, system("late")]),
        ([system("a"), system(PARTS)], [system([{"type": "text", "text": "a"}, *PARTS])]),
        ([system("a"), system("b", name="x"), USER], [system("a"), system("b", name="x"), USER]),
        ([system(None), system("b")], [system(None), system("b")]),
        ([USER], [USER]),
        ([], []),
        ("odd", "odd"),
        ([5, developer("a")], [5, system("a")]),
    ],
)
def test_chats_of_llama_cpp(messages: Any, after: Any) -> None:
    """Developers become systems, those at the beginning become one; later ones keep their place."""
    assert fitted(messages=messages) == {"messages": after}


def test_engines_that_put_them_together_themselves_get_them_apart() -> None:
    """Elsewhere nothing is merged: vLLM does it by itself, and of others it is not known."""
    assert fitted(backend="vllm", messages=[system("a"), developer("b")]) == {"messages": [system("a"), system("b")]}


def test_a_model_that_knows_developers_gets_them() -> None:
    """Its roles are left alone, and a developer is not merged into a system message."""
    messages = [system("a"), developer("b"), USER]
    assert fitted(knows_developer=True, messages=messages)["messages"] == messages


@pytest.mark.parametrize(
    ("body", "after"),
    [
        ({"instructions": "a", "input": [developer("b"), USER]}, {"instructions": "a\n\nb", "input": [USER]}),
        ({"instructions": "a", "input": [developer(PARTS), USER]}, {"instructions": "a\n\nc", "input": [USER]}),
        ({"input": [system("a"), developer("b")]}, {"instructions": "a\n\nb", "input": []}),
        ({"input": [developer("b", type="message"), USER]}, {"input": [system("b", type="message"), USER]}),
        ({"instructions": "a", "input": [system(IMAGE)]}, {"instructions": "a", "input": [system(IMAGE)]}),
        ({"instructions": 5, "input": [system("a")]}, {"instructions": 5, "input": [system("a")]}),
        ({"instructions": "a", "input": [USER]}, {"instructions": "a", "input": [USER]}),
        ({"instructions": "a", "input": "hello"}, {"instructions": "a", "input": "hello"}),
    ],
)
def test_responses(body: dict[str, Any], after: dict[str, Any]) -> None:
    """Of Responses the instructions are a system message as well: there is to be one."""
    assert fitted(RESPONSES, **body) == after


def test_other_endpoints_have_none() -> None:
    """A completion's fields are left alone, whatever they are called."""
    assert fitted(COMPLETIONS, messages=[developer("a")]) == {"messages": [developer("a")]}


messages = st.lists(
    st.builds(
        lambda role, content: {"role": role, "content": content},
        st.sampled_from(["system", "developer", "user", "assistant"]),
        st.text("ab", min_size=1, max_size=3) | st.just(PARTS),
    ),
    max_size=6,
)


@given(messages=messages, knows_developer=st.booleans(), backend=st.sampled_from(["llama_cpp", "vllm"]))
def test_no_word_is_lost_and_twice_is_once(messages: list[Any], backend: str, *, knows_developer: bool) -> None:
    """All that was said is said, in its order; doing it again changes nothing."""

    def words(after: list[Any]) -> str:
        texts = [part["text"] if isinstance(part, dict) else part for each in after for part in each["content"]]
        return "".join("".join(texts).split())

    once = fitted(messages=messages, knows_developer=knows_developer, backend=backend)["messages"]
    assert words(once) == words(messages)
    assert fitted(messages=once, knows_developer=knows_developer, backend=backend)["messages"] == once
    assert [each for each in once if each["role"] in ("user", "assistant")] == [
        each for each in messages if each["role"] in ("user", "assistant")
    ]
