"""A conversation is cut to a context: what goes first, what never goes, and what it says of itself then."""

from __future__ import annotations

from typing import Any

import pytest

from rolecall.core.fit import (
    ANSWER_NOTE,
    IMAGE_NOTE,
    Costs,
    costs_of,
    fit,
    is_fitted,
    room_for_answer,
    too_long,
)
from rolecall.core.history import HistoryPolicy

ALL = HistoryPolicy(fit="all")
NOTE = {"type": "text", "text": IMAGE_NOTE}


def picture(name: str) -> dict[str, Any]:
    """Return a content part with a picture."""
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{name}"}}


def say(role: str, content: Any = "x") -> dict[str, Any]:
    """Return a message."""
    return {"role": role, "content": content}


def show(*names: str) -> dict[str, Any]:
    """Return a user's message with pictures."""
    return say("user", [{"type": "text", "text": "what?"}, *map(picture, names)])


def costs(messages: list[dict[str, Any]], *, text: float = 10, image: float = 100, note: float = 5) -> Costs:
    """Return costs under which each message, picture and note costs the same as every other."""
    images = [
        [image for part in m["content"] if part["type"] != "text"] if isinstance(m["content"], list) else []
        for m in messages
    ]
    return Costs([text] * len(messages), images, overhead=2, image_note=note, answer_note=note)


def fitted(messages: list[dict[str, Any]], budget: float, **prices: float) -> list[Any]:
    """Return what is left of messages; its costs must be those that are stated."""
    prices_of = costs(messages, **prices)
    result = fit(messages, ALL, prices_of, budget)
    left = result.cut.messages
    assert len(result.costs.text) == len(result.costs.images) == len(left)
    assert (result.cut.messages is messages) == (not result.cut.is_cut)
    return list(left)


ALBUM = [say("system"), show("1"), say("assistant"), show("2"), say("assistant"), show("3")]
"""Costs 62 for texts and 300 for pictures."""
QUESTION = [*ALBUM, say("assistant"), say("user", "Which one?")]
"""Costs 20 more."""


def without(message: dict[str, Any], *numbers: int) -> dict[str, Any]:
    """Return a message with notes in place of the pictures of these numbers, counted from 1."""
    return say("user", [NOTE if number in numbers else part for number, part in enumerate(message["content"])])


def test_what_fits_stays_as_it_is() -> None:
    """A conversation that needs just the budget is returned itself."""
    assert fitted(ALBUM, 362) is not None
    result = fit(ALBUM, ALL, costs(ALBUM), 362)
    assert result.cut.messages is ALBUM
    assert result.cut.summary() is None


def test_the_oldest_picture_goes_first_and_leaves_a_note() -> None:
    """One token too many costs one picture, the next one the second; all texts stay."""
    assert fitted(ALBUM, 361) == [ALBUM[0], without(ALBUM[1], 1), *ALBUM[2:]]
    assert fitted(ALBUM, 266) == [ALBUM[0], without(ALBUM[1], 1), ALBUM[2], without(ALBUM[3], 1), *ALBUM[4:]]
    result = fit(ALBUM, ALL, costs(ALBUM), 266)
    assert (result.cut.summary(), result.costs.total) == ("messages=0 images=2", 172)
    assert ALBUM[1] == show("1")


def test_then_whole_turns_go_from_the_oldest_on() -> None:
    """If texts alone are too long, turns go with what they hold; system messages and the current turn stay."""
    assert fitted(ALBUM, 171) == [ALBUM[0], without(ALBUM[3], 1), *ALBUM[4:]]
    assert fitted(ALBUM, 146) == [ALBUM[0], ALBUM[5]]
    result = fit(ALBUM, ALL, costs(ALBUM), 146)
    assert (result.cut.summary(), result.costs.total) == ("messages=4 images=2", 122)


def test_pictures_come_back_when_a_long_turn_went() -> None:
    """A long text that goes makes room, which newer pictures take, instead of notes."""
    prices = costs(ALBUM)
    long = Costs([10, 10, 500, 10, 10, 10], prices.images, 2, 5, 5)
    assert fit(ALBUM, ALL, long, 300).cut.messages == [ALBUM[0], *ALBUM[3:]]


def test_the_newest_picture_stays_for_a_question_in_words() -> None:
    """When the current turn has no picture, the newest one outlives all turns around it."""
    later = [*QUESTION[:-1], say("user"), say("assistant"), say("user", "Which one?")]
    assert fitted(QUESTION, 381) == [QUESTION[0], without(QUESTION[1], 1), *QUESTION[2:]]
    assert fitted(QUESTION, 160) == [QUESTION[0], *QUESTION[5:]]
    assert fitted(later, 150) == [later[0], later[5], later[6], later[9]]
    assert fit(later, ALL, costs(later), 150).cut.summary() == "messages=6 images=2"


def test_of_several_pictures_the_last_one_is_the_newest() -> None:
    """Of pictures that were shown together only the last one is sure to stay."""
    messages = [show("1", "2", "3"), say("assistant"), say("user")]
    assert fitted(messages, 150) == [without(messages[0], 1, 2), *messages[1:]]


def test_the_answer_to_the_newest_picture_goes_last() -> None:
    """If nothing else helps, the rest of the picture's turn goes, and a note keeps user and assistant alternating."""
    question, *rest = [show("1"), say("assistant"), say("tool"), say("assistant"), say("user")]
    assert fitted([question, *rest], 140) == [question, say("assistant", ANSWER_NOTE), rest[-1]]
    result = fit([question, *rest], ALL, costs([question, *rest]), 140)
    assert (result.cut.summary(), result.costs.total) == ("messages=3 images=0", 127)


def test_the_smallest_form_is_returned_if_even_that_is_too_large() -> None:
    """System messages, the newest picture and the current turn are never given up; the error has the numbers."""
    result = fit(QUESTION, ALL, costs(QUESTION), 1)
    assert result.cut.messages == [QUESTION[0], QUESTION[5], say("assistant", ANSWER_NOTE), QUESTION[7]]
    error = too_long(result.costs, 100)
    assert (error.status, error.code) == (400, "context_length_exceeded")
    assert (error.needed_tokens, error.context_tokens) == (137, 100)
    assert "100 tokens" in error.message
    assert "137 tokens" in error.message
    assert "1 image (100 tokens)" in error.message
    assert "larger context" in error.message
    assert "image (" not in too_long(costs([say("user")]), 10).message


def test_a_turn_whose_picture_came_late_stays_whole() -> None:
    """If a tool showed the newest picture, its call must stay with it; and so does an answer shorter than the note."""
    late = [say("user"), say("assistant"), {**show("1"), "role": "tool"}, say("user")]
    assert fitted(late, 1) == late
    short = [show("1"), say("assistant"), say("user")]
    assert fitted(short, 1, note=10) == short


def test_a_picture_smaller_than_its_note_stays() -> None:
    """Where a note would cost more than the picture, turns go instead."""
    assert fitted(ALBUM, 77, image=5) == ALBUM
    assert fitted(ALBUM, 70, image=5) == [ALBUM[0], *ALBUM[3:]]


@pytest.mark.parametrize(
    ("mode", "with_pictures", "without_pictures"), [("off", False, False), ("vision", True, False), ("all", True, True)]
)
def test_which_conversations_are_fitted(mode: Any, with_pictures: bool, without_pictures: bool) -> None:  # noqa: FBT001 - parameters of the test
    """``vision`` cuts conversations with pictures, ``all`` every one, ``off`` none, however long they are."""
    policy = HistoryPolicy(fit=mode)
    words = [say("user"), say("assistant"), say("user")]
    assert (is_fitted(ALBUM, policy), is_fitted(words, policy)) == (with_pictures, without_pictures)
    assert fit(ALBUM, policy, costs(ALBUM), 1).cut.is_cut == with_pictures
    assert fit(words, policy, costs(words), 1).cut.is_cut == without_pictures


@pytest.mark.parametrize(
    ("body", "context", "tokens"),
    [
        ({}, 8192, 512),
        ({}, 1024, 128),
        ({"max_tokens": 300}, 8192, 300),
        ({"max_tokens": 8000}, 8192, 4096),
        ({"max_completion_tokens": 100, "max_tokens": 300}, 8192, 100),
        ({"max_tokens": -1}, 8192, 512),
        ({"max_tokens": True, "max_completion_tokens": "7"}, 8192, 512),
    ],
)
def test_room_for_the_answer(body: dict[str, Any], context: int, tokens: int) -> None:
    """What the request allows for its answer is kept free, within half of the context; else a little."""
    assert room_for_answer(body, context) == tokens


def test_costs_are_made_of_messages_and_scaled() -> None:
    """The notes are priced like messages; a count that differs from the estimate scales texts, not pictures."""
    made = costs_of(
        [say("user", "abc"), show("1")], lambda message: len(str(message["content"])), [[], [9]], overhead=1
    )
    assert made.text[0] == 3
    assert made.image_note == len(str([NOTE]))
    assert made.answer_note == len(ANSWER_NOTE)
    doubled = made.scaled(text=2, images=3)
    assert doubled.text_total == 2 * made.text_total
    assert doubled.images_total == 27
    assert (doubled.image_note, doubled.answer_note) == (2 * made.image_note, 2 * made.answer_note)
