"""``field=value``: the way to a field, and JSON where the field takes it, else the text."""

from __future__ import annotations

from typing import Any

import pytest

from rolecall.core.assignments import Assignment, read_assignment


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("context_length=8192", ("context_length",), 8192),
        ("pinned=true", ("pinned",), True),
        ("quantization=q4_k_m", ("quantization",), "q4_k_m"),
        ("display_name=007", ("display_name",), "007"),
        ("display_name=42", ("display_name",), "42"),
        ("idle_unload_s = 0.5", ("idle_unload_s",), 0.5),
        ("role_priority.caption=85", ("role_priority", "caption"), 85),
        ('role_priority."gpt-4.1"=50', ("role_priority", "gpt-4.1"), 50),
        ('generation_defaults.stop=["a", "b"]', ("generation_defaults", "stop"), ["a", "b"]),
        ("backend_config.env.A=1", ("backend_config", "env", "A"), 1),
        ("backend_config.extra_args=--threads 4 -x=y", ("backend_config", "extra_args"), "--threads 4 -x=y"),
        ('request.set={"user": "x"}', ("request", "set"), {"user": "x"}),
        ("metadata.note=a=b", ("metadata", "note"), "a=b"),
        ('metadata.note=""', ("metadata", "note"), ""),
        ("display_name=NaN", ("display_name",), "NaN"),
        ('metadata.ratio="NaN"', ("metadata", "ratio"), "NaN"),
    ],
)
def test_a_value_is_json_where_the_field_takes_it(text: str, path: tuple[str, ...], value: Any) -> None:
    """Numbers, booleans, lists and objects are JSON; what the field would refuse, and all else, is text."""
    assert read_assignment(text) == Assignment(path, value)


@pytest.mark.parametrize("text", ["context_length=", "context_length= ", "context_length=null"])
def test_nothing_removes_the_field(text: str) -> None:
    """An empty value and null take a field away."""
    assert read_assignment(text) == Assignment(("context_length",), None, removes=True)


def test_a_wrong_value_is_left_to_the_registry_to_refuse() -> None:
    """What fits neither as JSON nor as text is kept as JSON, so that the registry names it as such."""
    assert read_assignment("context_length=true").value is True
    assert read_assignment("context_length=long").value == "long"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("context_lenght=1", "no field 'context_lenght'; did you mean 'context_length'"),
        ("extra_args=-x", "no field 'extra_args'; did you mean 'backend_config.extra_args'"),
        ("zzz=1", "no field 'zzz'; known are name, display_name"),
        ("backend_config.modelpath=x", "no field 'backend_config.modelpath'; did you mean 'model_path'"),
        ("history.zzz=1", "no field 'history.zzz'; known are vision_truncate"),
        ("context_length", "is no field=value, such as"),
        ("=1", "is no field=value"),
        ("a..b=1", "is no field=value"),
        ('"open=1', "is no field=value"),
        ("a b", "is no field=value"),
        ("display_name=a\udcff", "'display_name=a�' holds what is no UTF-8 text"),
        ('display_name="\\ud800"', "or half a character"),
        ("metadata.\ud800=1", "or half a character"),
    ],
)
def test_what_is_no_field_is_named(text: str, words: str) -> None:
    """A misspelt field is told with the one that may be meant; what is no assignment with an example."""
    with pytest.raises(ValueError, match="^.*" + words.replace(".", r"\.")):
        read_assignment(text)


def test_a_field_is_shown_as_it_is_written() -> None:
    """Parts that hold a dot stand in quotes again."""
    assert Assignment(("role_priority", "gpt-4.1")).field == 'role_priority."gpt-4.1"'


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "[1, NaN]"])
def test_a_number_that_json_cannot_hold_is_refused(value: str) -> None:
    """Where a number may stand, such a word is hardly meant as a text; in quotes it is one."""
    with pytest.raises(ValueError, match=r"generation_defaults\.temperature: .* is no number that JSON can hold"):
        read_assignment(f"generation_defaults.temperature={value}")
