"""A JSON text changed in place: the value is the new one, and what was not touched stands as it stood."""

from __future__ import annotations

import copy
import difflib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.core.json_edit import append, drop, exchange, put
from rolecall.core.json_tree import line_of, parse_tree, value_of

KEYS = st.text(max_size=4)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)
STYLES: tuple[dict[str, Any], ...] = (
    {"indent": 2},
    {"indent": 4, "ensure_ascii": False},
    {"indent": "\t"},
    {"indent": 0},
    {},
    {"separators": (",", ":")},
)

BY_HAND = """[
  {
    "name": "small",
    "backend": "llama_cpp",
    "backend_config": { "model_path": "~/small.gguf" },

    "role_priority": { "chat": 1 }
  },
  {
    "name": "large", "backend": "vllm"
  }
]
"""


def changed_lines(before: str, after: str) -> list[str]:
    """The lines that went and came, as a diff marks them."""
    lines = difflib.ndiff(before.splitlines(), after.splitlines())
    return [line for line in lines if line.startswith(("+ ", "- "))]


@pytest.mark.parametrize(
    ("path", "value", "lines"),
    [
        ([0, "backend"], "vllm", ['-     "backend": "llama_cpp",', '+     "backend": "vllm",']),
        (
            [0, "role_priority", "caption"],
            50,
            ['-     "role_priority": { "chat": 1 }', '+     "role_priority": { "chat": 1, "caption": 50 }'],
        ),
        (
            [0, "request", "set", "user"],
            "x",
            [
                '-     "role_priority": { "chat": 1 }',
                '+     "role_priority": { "chat": 1 },',
                '+     "request": { "set": { "user": "x" } }',
            ],
        ),
        (
            [1, "roles"],
            ["chat"],
            [
                '-     "name": "large", "backend": "vllm"',
                '+     "name": "large", "backend": "vllm",',
                '+     "roles": ["chat"]',
            ],
        ),
    ],
)
def test_a_value_changes_its_line_alone(path: list[str | int], value: Any, lines: list[str]) -> None:
    """Setting a value changes or adds the lines of that value; the blank line and the order of keys stay."""
    assert changed_lines(BY_HAND, put(BY_HAND, path, value)) == lines


def test_an_entry_is_added_as_a_person_would_write_it() -> None:
    """A new entry has a line for each field, short objects in one line, and long lists filled lines."""
    entry = {"name": "new", "backend": "llama_cpp", "backend_config": {"extra_args": ["--flag"] * 14}, "roles": []}
    assert append(BY_HAND, [], entry).removeprefix(BY_HAND[:-3]) == (
        """,
  {
    "name": "new",
    "backend": "llama_cpp",
    "backend_config": {
      "extra_args": [
        "--flag", "--flag", "--flag", "--flag", "--flag", "--flag", "--flag", "--flag", "--flag", "--flag", "--flag",
        "--flag", "--flag", "--flag"
      ]
    },
    "roles": []
  }
]
"""
    )


def test_elements_are_exchanged_where_they_stand() -> None:
    """Several elements give way to others, each with a line for its members where it does not fit into one."""
    text = '{"models": [\n  { "name": "a" },\n  { "name": "b" },\n  { "name": "c" }\n]}'
    after = exchange(text, ["models"], {0: {"name": "long", "note": "x" * 120}, 2: {"name": "d"}})
    assert after == (
        '{"models": [\n  {\n    "name": "long",\n    "note": "' + "x" * 120 + '"\n  },\n'
        '  { "name": "b" },\n  { "name": "d" }\n]}'
    )
    assert exchange(text, ["models"], {}) == text
    assert append(text, ["models"]) == text


@pytest.mark.parametrize(
    ("text", "path", "whole"),
    [
        ("[]\n", [], '[\n  {\n    "name": "a"\n  }\n]\n'),
        ('{"models": []}', ["models"], '{"models": [\n  {\n    "name": "a"\n  }\n]}'),
        ('[{"b": 1}]', [], '[{"b": 1}, { "name": "a" }]'),
        ("[1,\n 2]", [], '[1,\n 2, { "name": "a" }]'),
        ('[\r\n    {"b": 1}\r\n]', [], '[\r\n    {"b": 1},\r\n    {\r\n        "name": "a"\r\n    }\r\n]'),
    ],
)
def test_the_first_entry_and_other_ways_of_writing(text: str, path: list[str | int], whole: str) -> None:
    """An empty list, a list under a key, a text in one line and Windows' line ends are gone on with."""
    assert append(text, path, {"name": "a"}) == whole


def test_a_text_with_a_line_for_each_value_stays_one() -> None:
    """Where no container stands in one line, none is written so."""
    text = json.dumps([{"a": 1, "b": [1]}], indent=2)
    assert put(text, [0, "c", "d"], [2]) == json.dumps([{"a": 1, "b": [1], "c": {"d": [2]}}], indent=2)


@pytest.mark.parametrize(
    ("path", "whole"),
    [
        ([0, "name"], BY_HAND.replace('"name": "small",\n    ', "")),
        ([0, "role_priority"], BY_HAND.replace(',\n\n    "role_priority": { "chat": 1 }', "")),
        ([0, "role_priority", "chat"], BY_HAND.replace('{ "chat": 1 }', "{}")),
        ([1], BY_HAND.replace(BY_HAND[BY_HAND.index("},\n  {") + 1 : BY_HAND.rindex("\n]")], "")),
        ([0, "no", "such"], BY_HAND),
        ([7], BY_HAND),
    ],
)
def test_a_value_goes_with_its_comma(path: list[str | int], whole: str) -> None:
    """What is taken away takes its comma and its line along; what is not there changes nothing."""
    assert drop(BY_HAND, path) == whole


def test_of_two_like_keys_the_last_one_counts_and_both_go() -> None:
    """As for whoever reads the file: the last of two is changed, and a value that is taken away is gone."""
    text = '[{"a": {"b": 1, "b": 2, "c": 3}}]'
    assert put(text, [0, "a", "b"], 5) == '[{"a": {"b": 1, "b": 5, "c": 3}}]'
    assert drop(text, [0, "a", "b"]) == '[{"a": {"c": 3}}]'


def test_null_gives_way_to_an_object() -> None:
    """A null on the way is not given, so an object takes its place."""
    assert put('[{"a": null}]', [0, "a", "b"], 1) == '[{"a": { "b": 1 }}]'


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        ('[{"a": 1}]', [0, "a", "b"], r"^a is no object, so it has no 'b'"),
        ('[{"a": [1]}]', [0, "a", 3], r"^a is no object, so it has no 3"),
        ("1", ["b"], "the whole is no object"),
        ("[1", [0], "Expecting"),
        ("[" * 100_000 + "]" * 100_000, [0], "is nested too deep"),
    ],
)
def test_a_way_that_leads_nowhere_is_named(text: str, path: list[str | int], words: str) -> None:
    """A way through a number or a list, and a text that is no JSON, are errors."""
    with pytest.raises(ValueError, match=words):
        put(text, path, 2)


def test_nothing_is_appended_to_nothing() -> None:
    """A list that is not there cannot be added to."""
    with pytest.raises(ValueError, match="there is no models"):
        append("{}", ["models"], 1)


def test_positions_are_lines_and_values() -> None:
    """The tree knows the line of each value, and what the value is."""
    root = parse_tree(BY_HAND)
    large = root.members[1].value
    member = large.member("backend")
    assert member is not None
    assert (line_of(BY_HAND, large.start), line_of(BY_HAND, member.start)) == (9, 10)
    assert value_of(BY_HAND, large) == {"name": "large", "backend": "vllm"}
    assert large.member("none") is None


@given(st.data(), st.dictionaries(KEYS, VALUES, max_size=4), KEYS, KEYS, VALUES, st.sampled_from(STYLES))
def test_a_text_says_what_the_value_would(  # noqa: PLR0917 - drawn one by one
    data: st.DataObject, whole: dict[str, Any], key: str, inner: str, value: Any, style: dict[str, Any]
) -> None:
    """Whatever the text and its style: it parses to what the same change makes of the value, and back again."""
    text = json.dumps([whole], **style)
    expected = copy.deepcopy(whole)
    path: list[str | int] = [0, key]
    if isinstance(whole.get(key), dict) and data.draw(st.booleans()):
        path.append(inner)
        expected[key][inner] = value
    else:
        expected[key] = value
    after = put(text, path, value)
    assert json.loads(after) == [expected]
    assert json.loads(append(after, [], whole)) == [expected, whole]
    target = expected
    for step in path[1:-1]:
        target = target[str(step)]
    del target[str(path[-1])]
    assert json.loads(drop(after, path)) == [expected]
