"""Thoughts told from answers within one text, however it is cut into pieces."""

from __future__ import annotations

import re
import time
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rolecall.core.thoughts import TAGS, Said, ThoughtSplitter, split_whole

ANY_TAG = re.compile("|".join(map(re.escape, (*TAGS, *TAGS.values()))))

words = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<think",
        "</thi",
        "[THINK]",
        "[/THINK]",
        "<thinking>",
        "<",
        ">",
        " ",
        "\n",
        "ja",
        "ö",
        "</",
    ]
)
texts = st.lists(words, max_size=12).map("".join) | st.text(max_size=20)


def cut(text: str, at: list[int]) -> list[str]:
    """Cut a text at the given places."""
    places = sorted({0, len(text), *(place % (len(text) + 1) for place in at)})
    return [text[start:end] for start, end in pairwise(places)]


def split(*pieces: str, starts_in_thought: bool = False) -> Said:
    """Return what was said in pieces."""
    splitter = ThoughtSplitter(starts_in_thought=starts_in_thought)
    said = Said()
    for piece in pieces:
        said += splitter.feed(piece)
    return said + splitter.end()


cuts = st.lists(st.integers(min_value=0), max_size=20)


@given(text=texts, at=cuts, starts_in_thought=st.booleans())
@example(text="<think>a </think>b", at=list(range(18)), starts_in_thought=False)
def test_pieces_change_nothing(text: str, at: list[int], *, starts_in_thought: bool) -> None:
    """However a text is cut, the same of it is thought and the same is answer."""
    assert split(*cut(text, at), starts_in_thought=starts_in_thought) == split(
        text, starts_in_thought=starts_in_thought
    )


@given(text=texts, starts_in_thought=st.booleans())
@example(text="[THINK]<think[/THINK]>", starts_in_thought=False)
def test_nothing_is_lost_or_invented(text: str, *, starts_in_thought: bool) -> None:
    """But for tags and white space next to them, thought and answer are the text, in its order."""
    said = split(text, starts_in_thought=starts_in_thought)
    rest = iter("".join(text.split()))
    told = "".join((said.thought + said.answer).split())
    assert all(letter in rest for letter in told)  # in this order, for `rest` is used up
    # In one go each: what is left on both sides of a tag may look like a tag, and is text.
    kept = "".join(ANY_TAG.sub("", part) for part in (said.thought, said.answer))
    assert len("".join(kept.split())) >= len("".join(ANY_TAG.sub("", text).split()))


@given(thought=st.text("ab <\n", min_size=1, max_size=20), answer=st.text("ab <\n", max_size=20))
@pytest.mark.parametrize("tag", TAGS)
def test_a_thought_before_an_answer(tag: str, thought: str, answer: str) -> None:
    """What stands between the tags is the thought, the rest is the answer, without the white space next to tags."""
    said = split(f"{tag}{thought}{TAGS[tag]}{answer}")
    assert said == Said(thought.strip(), answer.lstrip())
    assert split_whole(f"\n{tag}{thought}{TAGS[tag]}{answer}") == said


@pytest.mark.parametrize(
    ("pieces", "starts_in_thought", "said"),
    [
        (("Hello <think>x</think>",), False, Said(answer="Hello <think>x</think>")),
        (("<think>a</think>", "\n<think>b</think>\nc"), False, Said("ab", "c")),
        (("<think>\n\n</think>\n\nHi",), False, Said(answer="Hi")),
        (("<think>never closed </thi",), False, Said("never closed </thi")),
        (("<think> ",), False, Said()),
        ((" \n",), False, Said(answer=" \n")),
        (("  Hi",), False, Said(answer="  Hi")),
        (("<thi",), False, Said(answer="<thi")),
        (("a thought</think>Hi",), True, Said("a thought", "Hi")),
        (("<think>", "opened twice</think>Hi"), True, Said("opened twice", "Hi")),
        (("<thing> is a thought</think>\n <b",), True, Said("<thing> is a thought", "<b")),
        (("all thought",), True, Said("all thought")),
        (("  ",), True, Said()),
        (("a</think>",), False, Said(answer="a</think>")),
    ],
)
def test_texts(pieces: tuple[str, ...], said: Said, *, starts_in_thought: bool) -> None:
    """Thoughts are found at the beginning and after each other, nowhere else; one may be open already."""
    assert split(*pieces, starts_in_thought=starts_in_thought) == said


@given(text=texts)
def test_only_what_may_be_a_tag_is_held_back(text: str) -> None:
    """What has come and is held back is white space and the beginning of a tag, no more."""
    splitter = ThoughtSplitter()
    said = splitter.feed(text)
    held = "".join((splitter.end().thought + splitter.end().answer).split())
    assert any(tag.startswith(held) for tag in (*TAGS, *TAGS.values()))
    assert isinstance(said, Said)


def test_an_answer_is_not_held_back() -> None:
    """Once the answer has begun, each piece passes at once, whatever it looks like."""
    splitter = ThoughtSplitter()
    assert splitter.feed("Hi") == Said(answer="Hi")
    assert splitter.feed("<think>") == Said(answer="<think>")
    assert splitter.feed("") == Said()


def test_an_engine_that_tells_thoughts_itself_is_believed() -> None:
    """After ``leave`` no tag is one, and what was held back has not been lost."""
    splitter = ThoughtSplitter(starts_in_thought=True)
    splitter.feed("<th")
    assert splitter.leave() == Said("<th")
    assert splitter.feed("<think>x") == Said(answer="<think>x")


@pytest.mark.parametrize(
    ("text", "starts_in_thought", "was_cut", "said"),
    [
        ("so it is\n</think>\n\nHi", False, False, Said("so it is", "Hi")),
        ("so it is\n </think>", False, False, Said("so it is")),
        (
            "The tag to close is </think>\nAnd more.",
            False,
            False,
            Said(answer="The tag to close is </think>\nAnd more."),
        ),
        ("Close it with </think>", False, False, Said(answer="Close it with </think>")),
        ("So:\n```\n</think>\n```", False, False, Said(answer="So:\n```\n</think>\n```")),
        ("`</think>` it is:\n</think>\n", False, False, Said(answer="`</think>` it is:\n</think>\n")),
        ("```a```\n</think>\n\nHi", False, False, Said("```a```", "Hi")),
        ("write `</think>` at the end", False, False, Said(answer="write `</think>` at the end")),
        ("a <think>b</think>\nc", False, False, Said(answer="a <think>b</think>\nc")),
        ("so it is</think>Hi", True, False, Said("so it is", "Hi")),
        ("Hi", True, False, Said(answer="Hi")),
        ("I wonder", True, True, Said("I wonder")),
        ("<think>I wonder", True, False, Said("I wonder")),
        ("", True, False, Said()),
    ],
)
def test_whole_texts(text: str, said: Said, *, starts_in_thought: bool, was_cut: bool) -> None:
    """A whole text shows by its closing tag that it began with a thought, and by the lack of it that it did not."""
    assert split_whole(text, starts_in_thought=starts_in_thought, was_cut=was_cut) == said


@given(text=texts, starts_in_thought=st.booleans(), size=st.integers(2**12 - 12, 2**12 + 12))
def test_a_long_whole_text_is_split_as_any(text: str, size: int, *, starts_in_thought: bool) -> None:
    """Where a whole text is taken in pieces makes no difference."""
    whole = f"<think>{'x' * size}{text}</think>{text}"
    assert split_whole(whole, starts_in_thought=starts_in_thought) == split(whole, starts_in_thought=starts_in_thought)


@pytest.mark.parametrize(
    "piece",
    ["<think></think>", "<think>a</think>", "</think>", "</think> \t", "\n", "\n</think>", "<thinking> ", "```"],
)
@pytest.mark.parametrize("starts_in_thought", [False, True])
def test_a_long_whole_text_takes_no_time(piece: str, *, starts_in_thought: bool) -> None:
    """However many tags there are: the loop, which all requests share, goes on."""
    text = piece * (2**20 // len(piece))
    began = time.process_time()
    split_whole(text, starts_in_thought=starts_in_thought)
    assert time.process_time() - began < 1.5  # it takes a tenth of that
