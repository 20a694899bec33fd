"""A conversation cut to what a model's context holds.

System messages, the current turn and the newest picture stay. The rest goes in this order, until it fits:

1. Pictures of past turns, from the oldest on; a short text takes the place of each. One that is smaller than this text
   stays where it is.
2. Past turns, from the oldest on, whole. The turn of the newest picture is passed over if the current turn has none of
   its own: what is asked in words is most often about it. When turns have gone, pictures come back that fit now.
3. Of the turn of the newest picture, all but the picture's own message; a short text takes the place of the answer, for
   some templates want roles to alternate. That can be done only if the turn begins with the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from rolecall.core.conversation import Conversation, Turn, image_positions, parts, split
from rolecall.core.history import Cut, HistoryPolicy
from rolecall.errors import ContextLengthExceeded

IMAGE_NOTE = "[an earlier image was left out to fit the context]"
"""What a model reads in place of a picture."""

GONE_NOTE = "[an earlier image can no longer be fetched]"
"""The same for a picture of a past turn whose address leads nowhere any more."""

ANSWER_NOTE = "[an earlier answer was left out to fit the context]"

_ANSWER_SHARE = 0.5
"""The most that ``max_tokens`` may take of a context: the rest is the conversation's, whatever a client asks for."""
_ANSWER_TOKENS = 512
"""What is left for the answer where a request does not say how long it may be; an eighth of a small context."""
_SMALL_SHARE = 0.125

_WAY_OUT = (
    "All of the history was left out already; what remains is the system messages and the current turn{images}. "
    "Shorten them, send fewer or smaller images, or use a model with a larger context."
)


@dataclass(frozen=True, slots=True)
class Costs:
    """Tokens of a conversation: of each message's text with what the template adds to it, and of each picture.

    ``images`` has for each message those of its pictures, in order. ``overhead`` is what belongs to no message (the
    template's frame, tools), ``image_note`` and ``answer_note`` are those of the texts that stand for what is left out.
    """

    text: Sequence[float]
    images: Sequence[Sequence[float]]
    overhead: float = 0
    image_note: float = 0
    answer_note: float = 0

    @property
    def text_total(self) -> float:
        """The tokens of all that is no picture."""
        return self.overhead + sum(self.text)

    @property
    def images_total(self) -> float:
        """The tokens of all pictures."""
        return sum(map(sum, self.images))

    @property
    def total(self) -> float:
        """The tokens of the prompt."""
        return self.text_total + self.images_total

    def scaled(self, text: float = 1, images: float = 1) -> Costs:
        """Return the costs with all texts and all pictures so many times as large."""
        return Costs(
            [each * text for each in self.text],
            [[each * images for each in several] for several in self.images],
            self.overhead * text,
            self.image_note * text,
            self.answer_note * text,
        )


@dataclass(frozen=True, slots=True)
class Fitted:
    """What is sent, and the tokens that it is thought to need; ``costs`` are those of the messages that are left."""

    cut: Cut
    costs: Costs


def costs_of(
    messages: Sequence[Any],
    text_tokens: Callable[[Any], float],
    image_tokens: Sequence[Sequence[float]],
    overhead: float = 0,
) -> Costs:
    """Return the costs of messages; ``text_tokens`` gives those of one message without its pictures."""
    return Costs(
        [text_tokens(message) for message in messages],
        image_tokens,
        overhead,
        text_tokens({"role": "user", "content": [_note()]}),
        text_tokens(_answer()),
    )


def room_for_answer(body: Mapping[str, Any], context_tokens: int) -> int:
    """Return the tokens of a context that are kept free for the answer to a body for the engine.

    That is ``max_tokens`` (or ``max_completion_tokens``), at most half of the context: vLLM refuses a prompt that does
    not leave it, llama.cpp cuts the answer off. Where it is not said: 512, at most an eighth of the context.
    """
    asked = [body.get(name) for name in ("max_completion_tokens", "max_tokens")]
    limits = [n for n in asked if isinstance(n, int) and not isinstance(n, bool) and n > 0]
    if limits:
        return min(*limits, int(context_tokens * _ANSWER_SHARE))
    return min(_ANSWER_TOKENS, int(context_tokens * _SMALL_SHARE))


def is_fitted(messages: Sequence[Any], policy: HistoryPolicy) -> bool:
    """Whether the policy lets a conversation be cut to the context: all, or those with pictures."""
    return policy.fit == "all" or (policy.fit == "vision" and any(map(image_positions, messages)))


def fit(messages: Sequence[Any], policy: HistoryPolicy, costs: Costs, budget: float) -> Fitted:
    """Return the messages cut to a budget in tokens, or as small as they may become if that is not enough.

    What fits, and what the policy leaves alone, is returned as it is.
    """
    if costs.total <= budget or not is_fitted(messages, policy):
        return Fitted(Cut(messages), costs)
    return _Fitting(split(messages), costs, budget).result()


def too_long(smallest: Costs, context_tokens: int, counted: int | None = None) -> ContextLengthExceeded:
    """Return the error for what is too long even as small as it may become; ``counted`` is the engine's number."""
    images = sum(map(len, smallest.images))
    pictures = f" with {images} image{'s' * (images > 1)} ({ceil(smallest.images_total)} tokens)" if images else ""
    return ContextLengthExceeded(counted or ceil(smallest.total), context_tokens, _WAY_OUT.format(images=pictures))


class _Fitting:
    """One conversation on its way to a budget.

    Pictures are named by message and number among its pictures. ``_left_out`` are those that texts take the place of,
    ``_spared`` is the newest one if the current turn has none.
    """

    def __init__(self, conversation: Conversation, costs: Costs, budget: float) -> None:
        self._conversation = conversation
        self._costs = costs
        self._budget = budget
        self._kept: Sequence[Turn] = conversation.past
        self._left_out: dict[int, set[int]] = {}
        self._shortened: int | None = None
        self._spared = None if conversation.images(conversation.current) else conversation.newest_image()

    def result(self) -> Fitted:
        """Return the largest form that fits, else the smallest."""
        tokens = self._drop_turns()
        if tokens > self._budget:
            tokens = self._shorten(tokens)
        self._leave_out_images(tokens)
        return self._fitted()

    # -- what is left out

    def _drop_turns(self) -> float:
        """Drop the fewest turns with which the rest fits without its pictures; return its tokens."""
        fixed = (*self._conversation.system, *self._conversation.current.indices)
        tokens = self._costs.overhead + sum(map(self._whole, fixed)) + sum(map(self._smallest, self._kept))
        kept = []
        for turn in self._kept:
            if tokens <= self._budget or self._holds_spared(turn):
                kept.append(turn)
            else:
                tokens -= self._smallest(turn)
        self._kept = kept
        return tokens

    def _shorten(self, tokens: float) -> float:
        """Leave only the first message of the newest picture's turn, if it is that one's; return the tokens then."""
        for turn in self._kept:
            first, rest = turn.indices[0], Turn(turn.indices[1:])
            saved = self._smallest(rest) - self._costs.answer_note
            if self._spared and self._spared[0] == first and saved > 0:
                self._kept = [Turn((first,))]
                self._shortened = first
                return tokens - saved
        return tokens

    def _leave_out_images(self, tokens: float) -> None:
        """Leave out the pictures, but for as many of the newest as there is room for."""
        places = [place for turn in self._kept for place in self._replaceable(turn)]
        while places and (tokens := tokens + self._saving(places[-1])) <= self._budget:
            places.pop()
        for index, number in places:
            self._left_out.setdefault(index, set()).add(number)

    # -- what it costs

    def _whole(self, index: int) -> float:
        return self._costs.text[index] + sum(self._costs.images[index])

    def _smallest(self, turn: Turn) -> float:
        """Return the tokens of a turn without the pictures that can go."""
        return sum(map(self._whole, turn.indices)) - sum(map(self._saving, self._replaceable(turn)))

    def _saving(self, place: tuple[int, int]) -> float:
        """Return how many tokens less the text is than the picture."""
        index, number = place
        return self._costs.images[index][number] - self._costs.image_note

    def _replaceable(self, turn: Turn) -> Iterator[tuple[int, int]]:
        """Yield the pictures of a turn that are worth a text in their place."""
        for index in turn.indices:
            for number in range(len(self._costs.images[index])):
                if (index, number) != self._spared and self._saving((index, number)) > 0:
                    yield index, number

    def _holds_spared(self, turn: Turn) -> bool:
        return self._spared is not None and self._spared[0] in turn.indices

    # -- what is left

    def _fitted(self) -> Fitted:
        conversation, costs = self._conversation, self._costs
        gone = {index for turn in conversation.past for index in turn.indices}
        gone.difference_update(*(turn.indices for turn in self._kept))
        left: list[Any] = []
        text: list[float] = []
        images: list[Sequence[float]] = []
        for index, message in enumerate(conversation.messages):
            if index not in gone:
                out = self._left_out.get(index, set())
                left.append(_without_images(message, out) if out else message)
                text.append(costs.text[index] + len(out) * costs.image_note)
                images.append([each for number, each in enumerate(costs.images[index]) if number not in out])
            if index == self._shortened:
                left.append(_answer())
                text.append(costs.answer_note)
                images.append([])
        lost = sum(map(len, self._left_out.values())) + sum(len(costs.images[index]) for index in gone)
        cut = Cut(left, len(gone), lost) if gone or lost else Cut(conversation.messages)
        return Fitted(cut, replace(costs, text=text, images=images))


def _without_images(message: Any, numbers: set[int]) -> Any:
    """Return a message with the text in place of its pictures of these numbers."""
    positions = image_positions(message)
    out = {positions[number] for number in numbers}
    content = [_note() if position in out else part for position, part in enumerate(parts(message))]
    return {**message, "content": content}


def _note() -> dict[str, str]:
    return {"type": "text", "text": IMAGE_NOTE}


def _answer() -> dict[str, str]:
    return {"role": "assistant", "content": ANSWER_NOTE}
