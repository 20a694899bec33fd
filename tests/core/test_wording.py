"""Words that many messages have."""

from __future__ import annotations

import pytest

from rolecall.core.wording import amount, counted, meant, some, spoken


@pytest.mark.parametrize(
    ("number", "nouns", "said"),
    [
        (0, ("model",), "0 models"),
        (1, ("model",), "1 model"),
        (2, ("model",), "2 models"),
        (1, ("entry", "entries"), "1 entry"),
        (2, ("entry", "entries"), "2 entries"),
    ],
)
def test_a_count_has_its_noun(number: int, nouns: tuple[str, ...], said: str) -> None:
    """One is one, none and several are many."""
    assert counted(number, *nouns) == said


def test_of_many_words_the_first_are_said() -> None:
    """And how many more there are; few are said as they are."""
    assert some(["a", "b", "c"], 2) == "a, b and 1 more"
    assert some(["a", "b", "c"], 3) == "a, b, c"
    assert some([], 3) == ""


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (2**20 - 1, "1048575 bytes"), (3 * 2**19, "1.5 MB"), (5 * 2**29, "2.5 GB")]
)
def test_bytes_are_said_in_a_unit_that_can_be_read(size: int, text: str) -> None:
    """Binary units, as the memory of cards is counted."""
    assert amount(size) == text


def test_what_may_be_meant() -> None:
    """The nearest known word, or nothing; a word without end costs no time."""
    assert meant("qwen3-8", ["llama", "qwen3-8b"]) == "did you mean 'qwen3-8b'?"
    assert meant("qwen3-8", ["llama"]) == ""
    assert meant("lama_cp", ["llama_cpp"], 0.95) == ""
    assert meant("x" * 10**7, ["llama"]) == ""


def test_spans_of_time_are_said_as_people_say_them() -> None:
    """Seconds, then minutes, then hours, each as long as its number stays small."""
    said = [spoken(seconds) for seconds in (0.44, 9.94, 9.96, 14, 119, 120, 600, 7100, 7200, 9000)]
    assert said == ["0.4 s", "9.9 s", "10 s", "14 s", "119 s", "2 min", "10 min", "118 min", "2.0 h", "2.5 h"]
