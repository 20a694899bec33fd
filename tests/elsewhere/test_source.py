"""YAML and JSON read with lines; what is no configuration, or unfolds to more than one, is told with its line."""

from __future__ import annotations

from typing import Any

import pytest

from rolecall.elsewhere.source import MOST_BYTES, read_source
from rolecall.elsewhere.tree import SourceError

BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
MERGES = "a0: &a0 {x: [1,2,3,4,5,6,7,8]}\n" + "".join(
    f"a{n}: &a{n}\n  <<: *a{n - 1}\n  y: [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
CHAIN = "- &a0 1\n" + "".join(f"- &a{n} [*a{n - 1}]\n" for n in range(1, 5000))


def test_values_have_their_lines() -> None:
    """A value in a mapping begins with its key, one in a list with itself; a block of text ends on its last line."""
    root = read_source(b"# mine\na:\n  - 1\n  - b: |\n      one\n      two\nc: {d: 'e'}\n")
    a, c = root["a"], root["c"]
    assert a is not None
    assert c is not None
    block = a.elements()[1]["b"]
    assert block is not None
    assert (a.line, a.elements()[0].line, block.line, block.end_line, c.line) == (2, 3, 4, 6, 7)
    assert root.plain == {"a": [1, {"b": "one\ntwo\n"}], "c": {"d": "e"}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[1, -2, 0x1f, 0o17, 1.5, 1e3, .5, 010, 1_000]", [1, -2, 31, 15, 1.5, 1000.0, 0.5, "010", "1_000"]),
        ("[true, False, TRUE, tRue, yes, off, ~, null, '']", [True, False, True, "tRue", "yes", "off", None, None, ""]),
        ("['1', !!str 1, \"true\", 1:30, 2026-01-01]", ["1", "1", "true", "1:30", "2026-01-01"]),
        ("{1: a, true: b, ~: c}", {"1": "a", "true": "b", "none": "c"}),
        (f"- {'9' * 30}", ["9" * 30]),
        ("a: &x {k: 1}\nb: *x\nc: {<<: *x, l: 2}\nd: {<<: [*x, {k: 3, m: 4}], k: 5}", None),
    ],
)
def test_words_are_what_yaml_says(text: str, value: Any) -> None:
    """Plain words by the core schema; quoted ones are texts; aliases and merge keys stand for what they name."""
    if value is None:
        value = {"a": {"k": 1}, "b": {"k": 1}, "c": {"k": 1, "l": 2}, "d": {"k": 5, "m": 4}}
    assert read_source(text.encode()).plain == value


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b" \n# only this\n", "is empty"),
        (b"a: 1\nb: [2\n", "line 3: is not YAML: did not find expected ',' or ']'"),
        (b"a: 1\n\tb: 2\n", "line 2: is not YAML"),
        (b"a: 1\nb: \x01\n", "is not YAML: control characters are not allowed"),
        (b"a: 1\n\nb: \xff\n", "line 3: is not UTF-8 text"),
        (b"a: 1\nb: 2\na: 3\n", "line 3: the key 'a' stands in line 1 already"),
        (b'{"a": 1,\n "a": 2}', "line 2: the key 'a' stands in line 1 already"),
        (b"a: !!python/object/apply:os.system [x]", "line 1: the tag '!!python/object/apply:os.system' is not underst"),
        (b"a: 1\nb: !secret x", "line 2: the tag '!secret' is not understood"),
        (b"a: *b", "line 1: there is no anchor &b before the alias \\*b"),
        (b"a: &a\n  b: *a", "line 2: the alias \\*a holds itself"),
        (b"a: {<<: [1]}", "line 1: << takes mappings, not a number"),
        (b"? [1]\n: 2", "line 1: a key must be a text, not a list or a mapping"),
        (b"a: 1\n---\nb: 2", "line 2: a second document begins here"),
        (b"[" * 5000, "line 1: is nested too deep"),
        (BOMB.encode(), "line 6: unfolds to more than 200000 values"),
        (MERGES.encode(), "unfolds to more than 200000 values"),
        (CHAIN.encode(), "line 101: is nested too deep, by aliases"),
        (b"- x\n" * 300_000, "unfolds to more than 200000 values"),
        (b"x" * (MOST_BYTES + 1), "is larger than 2097152 bytes"),
        (b'[{"name": "a",}]\nx', "is neither JSON .*line 1 column 15.* nor YAML \\(line 2"),
        (b"[" * 100_000 + b"]" * 100_000, "is nested too deep"),
    ],
    ids=str,
)
def test_what_is_no_configuration_is_told_with_its_line(data: bytes, words: str) -> None:
    """Nothing unfolds, calls, or is taken twice: an error names the line and the reason."""
    with pytest.raises(SourceError, match=words):
        read_source(data)
