"""Answers of models as texts, keywords and JSON: what surrounds them goes, and rubbish is not used."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.vision.answers import json_in, read_answer, unwrapped
from rolecall.vision.task import Task


def task(parser: str = "text", **validation: Any) -> Task:
    fields = {"id": "t", "version": "1", "title": "T", "role": "r", "user": "?", "parser": parser}
    return Task.model_validate({**fields, "validation": validation})


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("A dog.", "A dog."),
        ("  A dog.\n", "A dog."),
        ("<think>A cat? No.</think>\n\nA dog.", "A dog."),
        ("<think>one</think><think>two</think>A dog.", "A dog."),
        ("The user wants a caption.</think>A dog.", "A dog."),
        ("[THINK]hm[/THINK]A dog.", "A dog."),
        ("<think>and so on, until the limit", ""),
        ("A dog.<|im_end|>", "A dog."),
        ("<|assistant|>A dog.</s>", "A dog."),
        ("```\nA dog.\n```", "A dog."),
        ("```json\n{}\n```", "{}"),
        ("```json\n{}", "{}"),
        ('"A dog."', "A dog."),
        ("“A dog.”", "A dog."),
        ('"A dog" is not "a cat"', '"A dog" is not "a cat"'),
        ("```a```b```", "```a```b```"),
        ("", ""),
        ('"', '"'),
    ],
)
def test_what_surrounds_an_answer_goes(text: str, left: str) -> None:
    """Thoughts, special tokens, a fence, and quotation marks around all of it are no part of the answer."""
    assert unwrapped(text) == left


@given(st.text())
def test_unwrapping_never_fails(text: str) -> None:
    """Whatever comes, what is left of it is stripped and no longer."""
    left = unwrapped(text)
    assert left == left.strip()
    assert len(left) <= len(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        ("[1, 2]", [1, 2]),
        ('Here it is:\n```json\n{"a": 1}\n```\nEnjoy!', {"a": 1}),
        ('Sure! {"a": {"b": [1]}} Anything else?', {"a": {"b": [1]}}),
        ('<think>{"a": 0}</think>{"a": 1}', {"a": 1}),
        ("{not json} {}", None),
        ('{"a": 1', None),
        ('"a"', None),
        ("7", None),
        ("no", None),
        ("", None),
        ("[" * 50_000, None),
        ('{"a": NaN}', None),
        ('{"a": 1e999}', None),
        ('{"a": 12345678901234567890}', {"a": 12345678901234567890.0}),
        (r'{"\ud800a": ["\udfff"]}', {"?a": ["?"]}),
        ('{"a":' * 5000, None),
    ],
)
def test_json_is_found(text: str, value: Any) -> None:
    """An object or a list is found among words; what is left open is none, and neither are single values."""
    assert json_in(text) == value


@given(st.text() | st.text('[]{}":,0123456789.eE-\\ud8f '))
def test_what_is_found_can_be_written(text: str) -> None:
    """Whatever JSON comes out of an answer, it goes into a file again."""
    assert orjson.loads(orjson.dumps(json_in(text))) == json_in(text)


@given(st.dictionaries(st.text(min_size=1), st.integers(1 - 10**18, 10**18 - 1) | st.text(), min_size=1), st.booleans())
def test_json_survives_a_fence(value: dict[str, Any], fenced: bool) -> None:  # noqa: FBT001 - hypothesis gives it
    """What was written as JSON is read again, with a fence around it or without, whatever its texts hold."""
    text = json.dumps(value)
    if "```" not in text and not any(mark in text.lower() for mark in ("<", "[")):
        assert json_in(f"```json\n{text}\n```" if fenced else text) == value


@pytest.mark.parametrize(
    ("text", "rules", "problem"),
    [
        ("", {}, "the answer is empty"),
        ("<think>so many thoughts", {}, "the answer is empty"),
        ("ok", {"min_chars": 5}, "the answer has 2 characters, fewer than 5"),
        ("x" * 11, {"max_chars": 10}, "the answer has 11 characters, more than 10"),
        ("I’m  sorry, but I cannot", {"reject": ["I'm sorry"]}, 'the answer begins with "I\'m sorry"'),
    ],
)
def test_a_text_that_is_none(text: str, rules: dict[str, Any], problem: str) -> None:
    """An empty answer, one of the wrong length and a refusal have no value, and the reason is told."""
    answer = read_answer(task(**rules), text)
    assert (answer.value, answer.problem) == (None, problem)


def test_nothing_there_is_an_answer() -> None:
    """Where a task has words for it, a model may say that there is nothing; that is no problem."""
    for parser, value in (("text", ""), ("keywords", []), ("json", {})):
        answer = read_answer(task(parser, empty=["NO TEXT"]), "No text.")
        assert (answer.value, answer.problem) == (value, None)


@pytest.mark.parametrize(
    "text",
    [
        "red, Green apple, blue",
        "Red, green apple, BLUE, red.",
        "1. red\n2. green apple\n3. blue",
        "- red\n- green apple\n* blue",
        "Here are the keywords:\nred, green apple, blue",
        "Keywords: red, green apple, blue.",
        '["red", "green apple", "blue"]',
        '{"keywords": ["red", "green apple", "blue"]}',
        '```json\n["red", "green apple", "blue"]\n```',
        "#red, #green apple, #blue",
        "red; green apple; blue;;",
        "red、green apple、blue",
        "**red**, **green apple**, **blue**",
    ],
)
def test_keywords_in_any_form(text: str) -> None:
    """A list is a list, however a model writes it; what comes twice counts once."""
    answer = read_answer(task("keywords"), text)
    assert answer.value == list(answer.tags)
    assert [word.casefold() for word in answer.tags] == ["red", "green apple", "blue"]


def test_what_is_no_keyword_is_discarded_and_counted() -> None:
    """Sentences, and more keywords than were wanted, are left out and told."""
    answer = read_answer(task("keywords", max_items=2, max_words=3), "one, this is a sentence, two, three, ONE")
    assert answer.value == ["one", "two"]
    assert [(each.text, each.reason) for each in answer.discarded] == [
        ("this is a sentence", "more than 3 words or 60 characters"),
        ("three", "more than 2 keywords"),
    ]


def test_too_few_keywords_are_none() -> None:
    """An answer in which no keyword is left has no value, and what was discarded is kept to be seen."""
    answer = read_answer(task("keywords"), "I would say that this is a very nice picture of something")
    assert answer.value is None
    assert answer.problem == "the answer has 0 keywords, fewer than 1"
    assert len(answer.discarded) == 1


@given(st.text(max_size=300))
def test_keywords_keep_the_rules(text: str) -> None:
    """Whatever comes, each keyword is short, stands once, and is no mark."""
    answer = read_answer(task("keywords", max_items=5, max_words=2), text)
    words = answer.tags
    assert len({word.casefold() for word in words}) == len(words) <= 5
    assert all(len(word.split()) <= 2 and word == word.strip(" .,;") for word in words)


@pytest.mark.parametrize(
    ("text", "value", "problem"),
    [
        ('{"title": "x", "year": 1}', {"title": "x", "year": 1}, None),
        ('{"title": "x"}', None, "the answer's object lacks year"),
        ("[1]", None, "the answer is no JSON object"),
        ("title: x", None, "the answer is no JSON object"),
    ],
)
def test_json_needs_its_names(text: str, value: Any, problem: str | None) -> None:
    """An object has what the task requires, or is not used."""
    answer = read_answer(task("json", required=["title", "year"]), text)
    assert (answer.value, answer.problem) == (value, problem)


def test_a_list_will_do_where_no_names_are_required() -> None:
    """A task may ask for a list."""
    assert read_answer(task("json"), "[1, 2]").value == [1, 2]


def test_what_was_discarded_is_shortened() -> None:
    """A rambling model does not fill reports."""
    answer = read_answer(task("json"), "blah " * 1000)
    assert len(answer.discarded[0].text) == 200
