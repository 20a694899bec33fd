"""How a person's tags and a model's come together."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.errors import BadRequest
from rolecall.vision.datasets_records import MAX_TAG_CHARACTERS, MAX_TAGS, Tags, clean_tags, clean_text

WORDS = st.lists(st.sampled_from("abcdefAB"), max_size=5)


def test_new_tags_are_merged_without_repetitions() -> None:
    """A model's tags come after those that are there; what is there already is not there twice."""
    tags = Tags(("holiday", "dark"), ("holiday", "dark"))
    merged = tags.merged(["dark", "indoor", "indoor"], instead=False)
    assert merged.shown == ("holiday", "dark", "indoor")
    assert (merged.own, merged.given) == (("holiday", "dark"), ("indoor",))


def test_a_task_that_is_run_again_replaces_its_own_tags_alone() -> None:
    """What the task gave before gives way; a person's tags stay, in their place."""
    tags = Tags(("dark", "holiday", "sharp"), ("holiday",), ("dark", "sharp"))
    assert tags.merged(["bright", "sharp"], instead=True).shown == ("holiday", "sharp", "bright")
    assert tags.merged(["bright"], instead=False).shown == ("dark", "holiday", "sharp", "bright")


def test_a_tag_that_a_person_took_away_is_not_given_again() -> None:
    """Until the person gives it again."""
    tags = Tags().merged(["dark", "sharp"], instead=False).edited(remove=["dark"])
    assert tags.merged(["dark", "sharp"], instead=True).shown == ("sharp",)
    back = tags.edited(add=["dark"])
    assert (back.shown, back.own, back.refused) == (("sharp", "dark"), ("dark",), ())


def test_the_whole_list_is_what_is_shown_then() -> None:
    """Whoever sends it has seen all of it: what is in it is hers, and what is not is taken away."""
    tags = Tags().merged(["dark", "sharp"], instead=False).edited(add=["mine"])
    edited = tags.replaced(["sharp", "new"])
    assert (edited.shown, edited.own, edited.given) == (("sharp", "new"), ("sharp", "new"), ())
    assert edited.refused == ("dark",)


def test_a_tag_that_a_person_confirms_is_hers() -> None:
    """A model gave it, and the next one does not: it stays all the same."""
    tags = Tags().merged(["dark", "sharp"], instead=False).edited(add=["dark"])
    assert (tags.shown, tags.own, tags.given) == (("dark", "sharp"), ("dark",), ("sharp",))
    assert tags.merged(["bright"], instead=True).shown == ("dark", "bright")


def test_capitals_make_no_other_tag() -> None:
    """As in sidecars: what differs in nothing else is one tag, as the person wrote it, in its old place."""
    tags = Tags().merged(["sharp", "Sharp", "dark"], instead=False)
    assert tags.shown == ("sharp", "dark")
    mine = tags.edited(add=["Sharp"])
    assert (mine.shown, mine.own, mine.given) == (("Sharp", "dark"), ("Sharp",), ("dark",))
    assert mine.merged(["SHARP"], instead=True).shown == ("Sharp",)
    gone = mine.edited(remove=["sharp", "DARK"])
    assert (gone.shown, gone.merged(["Dark"], instead=False).shown) == ((), ())
    assert clean_tags(["a", "A", "b"]) == ("a", "b")


@given(st.lists(st.tuples(st.sampled_from(["merge", "again", "add", "remove", "replace"]), WORDS), max_size=12))
def test_no_model_takes_a_persons_tag_away(steps: list[tuple[str, list[str]]]) -> None:
    """Whatever happens in whichever order: own tags stay until a person removes them, and nothing is shown twice."""
    tags, own = Tags(), set[str]()

    def plain(words: Iterable[str]) -> set[str]:
        return {word.casefold() for word in words}

    for what, words in steps:
        if what in {"merge", "again"}:
            tags = tags.merged(words, instead=what == "again")
            assert plain(words) <= plain(tags.shown) | plain(tags.refused)
        elif what == "add":
            own |= plain(words)
            tags = tags.edited(add=words)
        elif what == "remove":
            own -= plain(words)
            tags = tags.edited(remove=words)
        else:
            own = plain(words)
            tags = tags.replaced(words)
            assert plain(tags.shown) == plain(words)
        assert plain(tags.own) == own <= plain(tags.shown)
        assert sorted(tags.shown) == sorted((*tags.own, *tags.given))
        assert len(plain(tags.shown)) == len(tags.shown)
        assert not plain(tags.refused) & plain(tags.shown)


def test_tags_of_people_are_tidied() -> None:
    """Space around and within is one space; what is the same then is there once."""
    assert clean_tags(["  a  b ", "a b", "c"]) == ("a b", "c")


@pytest.mark.parametrize(
    "tag", ["", "  ", "x" * (MAX_TAG_CHARACTERS + 1), "a\x00b", "a\x1b[2J", "\ud800", "a\u2028b\x07"]
)
def test_what_is_no_tag_is_refused(tag: str) -> None:
    """Empty, long, or with characters that no line of text has."""
    with pytest.raises(BadRequest) as refusal:
        clean_tags([tag])
    assert refusal.value.param == "tags"


def test_too_many_tags_are_refused() -> None:
    """The limit is of different ones."""
    assert len(clean_tags([f"t{number % MAX_TAGS}" for number in range(2 * MAX_TAGS)])) == MAX_TAGS
    with pytest.raises(BadRequest, match=str(MAX_TAGS)):
        clean_tags([f"t{number}" for number in range(MAX_TAGS + 1)])
    assert clean_text(" a\nb ", "name", 9) == "a b"
