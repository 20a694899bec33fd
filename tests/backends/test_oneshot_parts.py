"""The pure parts of mode ``cli``: requests read, conversations laid out, answers cut out of a program's output."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.backends.oneshot_request import MEDIA_MARKER, Order, read
from rolecall.backends.oneshot_template import CHATML, join, layout, literal, template_of
from rolecall.backends.oneshot_text import AnswerText, usage
from rolecall.errors import BadRequest

PNG = base64.b64encode(b"\x89PNG").decode()


def order(*messages: Any, **body: Any) -> Order:
    """Return what a request with these messages, or one with "hi", asks for."""
    return read({"messages": list(messages) or [{"role": "user", "content": "hi"}], **body})


def image(url: str = f"data:image/png;base64,{PNG}") -> dict[str, Any]:
    """Return a part of a content."""
    return {"type": "image_url", "image_url": {"url": url}}


# -- requests


def test_all_messages_keep_their_roles_and_order() -> None:
    """System messages, earlier turns and answers reach the model as they came; developer is system's new name."""
    asked = order(
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "-p --help"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    )
    assert asked.roles == ("system", "user", "assistant", "user")
    assert asked.texts == ("Be brief.", "-p --help", "", "a\nb")


def test_images_stand_where_they_stood() -> None:
    """A marker stands for each image, in the order of the files; one that a client wrote is none."""
    content = [{"type": "text", "text": f"x {MEDIA_MARKER}"}, image(), {"type": "text", "text": "y"}]
    asked = order({"role": "user", "content": content}, {"role": "user", "content": [image()]})
    assert asked.texts == (f"x <media>{MEDIA_MARKER}y", MEDIA_MARKER)
    assert asked.images == (b"\x89PNG", b"\x89PNG")


def test_a_marker_behind_a_nul_is_none_either() -> None:
    """NULs go before markers are looked for, else taking them out would make one."""
    asked = order({"role": "user", "content": "<__me\0dia__>"})
    assert MEDIA_MARKER not in join(asked.texts, "<sep>")


def test_sampling_becomes_options_with_numbers() -> None:
    """Each parameter has its option, by either of its names; null is not given."""
    asked = order(temp=0.5, top_k=20.0, mirostat=2, presence_penalty=-1, top_p=None, seed=7, unknown="--model x")
    assert asked.options == (
        "--temp", "0.5", "--top-k", "20", "--presence-penalty", "-1", "--mirostat", "2", "--seed", "7",
    )  # fmt: skip
    assert order(temperature=0, temp=1).options == ("--temp", "0")


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 4, "max_tokens": 5}, 4),
        ({"max_tokens": -1}, None),
        ({"max_tokens": 0}, 0),
        ({}, None),
    ],
)
def test_the_limit_of_an_answer(body: dict[str, Any], limit: int | None) -> None:
    """Either name counts; what is no limit is none."""
    assert order(**body).max_tokens == limit


def test_stop_words_and_schemas() -> None:
    """Both forms of stop are taken, and both forms of JSON answers."""
    assert [order(stop="a").stop, order(stop=["a", "", "b"]).stop, order().stop] == [("a",), ("a", "b"), ()]
    named = {"type": "json_schema", "json_schema": {"schema": {"type": "array"}}}
    assert order(response_format=named).schema == {"type": "array"}
    assert order(response_format={"type": "json_object"}).schema == {"type": "object"}
    assert order(response_format={"type": "text"}).schema is None


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ([], None),
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [image("http://x/y.png")]}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [image("file:///etc/passwd")]}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [image("data:image/png;base64,?")]}]}, "messages[0]"),
        ({"temperature": "0 --model x"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"seed": 1e300}, "seed"),
        ({"stop": [1]}, "stop"),
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
    ],
)
def test_what_cannot_be_done_is_refused(body: Any, param: str | None) -> None:
    """The field is named; nothing is fetched, and nothing but numbers becomes the value of an option."""
    if isinstance(body, dict) and param and not param.startswith("messages"):
        body = {"messages": [{"role": "user", "content": "hi"}], **body}
    with pytest.raises(BadRequest) as refusal:
        read(body)
    assert refusal.value.param == param


# -- conversations


def test_no_text_of_a_client_is_in_the_template() -> None:
    """The template holds roles alone; texts stand in the file, each behind a separator, one line break at the end."""
    template = layout("{{ messages }}", ["system", "user"], {"enable_thinking": False}, "<sep>")
    assert template.startswith("{% set enable_thinking = false %}{% set rolecall")
    assert template.endswith("{% set messages = rolecall.turns %}{{ messages }}")
    assert 'roles=["system", "user"]' in template
    assert join(["a\n", "b<sep>\0c"], "<sep>") == "<sep>a\n<sep>bc\n"


def test_a_template_that_takes_parts_only_gets_parts() -> None:
    """Some vision models' templates read a content as a list and never as a string."""
    parts = (
        "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    )
    assert '"type": "text"' in layout(parts, ["user"], {}, "x")
    assert '"type": "text"' not in layout("{% if c is string %}" + parts, ["user"], {}, "x")
    assert '"type": "text"' not in layout(CHATML, ["user"], {}, "x")


@pytest.mark.parametrize("name", ["x = 1 %}{% set y", "if", "endfor", "None", "messages", "namespace", "größe", ""])
def test_a_variable_needs_a_name(name: str) -> None:
    """A name that would be more than a name, a word of Jinja, or what the layout itself works with is refused."""
    with pytest.raises(ValueError, match="is no name"):
        layout(CHATML, ["user"], {name: 1}, "x")


@pytest.mark.parametrize("written", [MEDIA_MARKER, "<__me\0dia__>"])
def test_no_role_and_no_variable_stands_for_an_image(written: str) -> None:
    """A marker in a role or within a variable's value is taken out of the template."""
    template = layout(CHATML, [f"user{written}"], {"a": {written: [written]}}, "x")
    assert MEDIA_MARKER not in template
    assert '"user<media>"' in template


@given(st.text())
def test_a_literal_ends_where_it_should(text: str) -> None:
    """Whatever a string holds, its quotes and backslashes are escaped and it has no line break."""
    quoted = literal(text)
    assert re.fullmatch(r'"(?:[^"\\\n\r]|\\.)*"', quoted)


def test_values_as_jinja_writes_them() -> None:
    """JSON's values have Jinja's spelling."""
    assert literal({"a": [1, 1.5, True, None, "x"]}) == '{"a": [1, 1.5, true, none, "x"]}'


def test_the_template_of_a_file_that_is_none(tmp_path: Path) -> None:
    """What is no GGUF, or is cut off, is said to be; without a template it is ChatML."""
    file = tmp_path / "m.gguf"
    for data, words in ((b"PK", "no GGUF"), (b"GGUF\3\0\0\0", "cut off"), (b"GGUF" + b"\x09" * 20, "version")):
        file.write_bytes(data)
        with pytest.raises(ValueError, match=words):
            template_of(file)
    file.write_bytes(b"GGUF\3\0\0\0" + bytes(16))
    assert template_of(file) == CHATML


def test_the_template_of_a_model(tmp_path: Path) -> None:
    """It is found behind keys of any kind."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_token_list(["a", "b"])
    writer.add_token_scores([0.5, 1.0])
    writer.add_context_length(7)
    writer.add_chat_template("{{ messages }} é")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert template_of(tmp_path / "m.gguf") == "{{ messages }} é"


# -- answers


def cut(output: bytes, *stop: str, size: int = 1) -> tuple[str, AnswerText]:
    """Return the answer in an output that comes in pieces of ``size`` bytes."""
    text = AnswerText(stop)
    pieces = [text.feed(output[at : at + size]) for at in range(0, len(output), size)]
    return "".join(pieces) + text.close(), text


@pytest.mark.parametrize(
    ("output", "answer", "ended"),
    [
        ("Hello there. [end of text]\n\n\n", "Hello there.", True),
        ("Hello there\n\n", "Hello there", False),
        ("\nI see.\n\n\n", "I see.", True),
        ("\nI see\n\n", "I see", False),
        ("a [end of text] b\n\n", "a [end of text] b", False),
        ("a\n\nb [end\n\n", "a\n\nb [end", False),
        (" größer 🦙 [end of text]\n\n\n", " größer 🦙", True),
        ("\n\n\n", "", False),
        ("", "", False),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_the_answer_in_an_output(output: str, answer: str, ended: bool, size: int) -> None:  # noqa: FBT001 - a parameter of the test
    """Line breaks around it and the end mark go, wherever the output is split."""
    found, text = cut(output.encode(), size=size)
    assert found == answer
    assert text.ended is (ended and bool(answer))


def test_a_character_that_was_cut_through() -> None:
    """Half a character at the end is left out."""
    assert cut("ab🦙".encode()[:-1])[0] == "ab"


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_an_answer_ends_before_a_stop_word(size: int) -> None:
    """Nothing of a stop word comes through, however it arrives; the first of several counts."""
    found, text = cut(b"one two three four", "three", "two t", size=size)
    assert (found, text.stopped) == ("one ", True)
    found, text = cut(b"one two", "two three", size=size)
    assert (found, text.stopped) == ("one two", False)


@given(st.text(alphabet="ab \n[end of text]é", max_size=60), st.integers(1, 7))
def test_pieces_make_no_difference(output: str, size: int) -> None:
    """However an output is split, the same answer comes of it."""
    assert cut(output.encode(), "ba", size=size)[0] == cut(output.encode(), "ba", size=10**6)[0]


def test_tokens_by_the_last_lines() -> None:
    """The first token of an answer is no evaluation of its own."""
    lines = [
        "common_perf_print: prompt eval time =       2.09 ms /   127 tokens (    0.02 ms per token)",
        "common_perf_print:        eval time =       0.48 ms /     7 runs   (    0.07 ms per token)",
        "common_perf_print:       total time =      13.19 ms /   134 tokens",
    ]
    assert usage(lines) == (127, 8)
    assert usage([]) == (None, None)
