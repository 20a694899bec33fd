"""A request is cut for its engine: what is estimated, what is counted, and what an engine's refusal teaches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway.test_engine_context import contexts, lease
from rolecall.core.conversation import image_positions, parts
from rolecall.core.fit import IMAGE_NOTE, Costs, costs_of
from rolecall.core.history import HistoryPolicy
from rolecall.core.overflow import Overflow
from rolecall.errors import BadRequest, ContextLengthExceeded
from rolecall.gateway.fitting import Fitter
from rolecall.runtime.lease import Lease

PICTURE = {"type": "image_url", "image_url": {"url": "data:,x"}}
FIT = "fit"
"""The wish with which only the context counts."""


@dataclass
class FakePricing:
    """A text token is a character; estimates are ``guess`` times that, and ``counts`` says whether the engine counts.

    ``counted`` holds how many messages each count was of.
    """

    guess: float = 1
    image: float = 100
    counts: bool = True
    counted: list[int] = field(default_factory=list)
    learnt: list[tuple[int, int]] = field(default_factory=list)

    async def costs(self, lease: Lease, body: Mapping[str, Any]) -> Costs:
        """Return estimates."""
        messages = body["messages"]
        images = [[self.image] * len(image_positions(message)) for message in messages]
        return costs_of(messages, lambda message: self.guess * characters(message), images)

    async def count_text(self, lease: Lease, body: Mapping[str, Any]) -> int | None:
        """Return the true number."""
        self.counted.append(len(body["messages"]))
        return sum(map(characters, body["messages"])) if self.counts else None

    async def learn(self, lease: Lease, body: Mapping[str, Any], tokens: int) -> None:
        """Note the number of messages and what they are said to take."""
        self.learnt.append((len(body["messages"]), tokens))


def characters(message: Any) -> int:
    """Return the length of a message's text, at least 1."""
    content = message["content"]
    return len(content) if isinstance(content, str) else 1 + sum(len(part.get("text", "")) for part in parts(message))


def say(role: str, length: int = 100) -> dict[str, Any]:
    """Return a message of so many tokens."""
    return {"role": role, "content": "x" * length}


def chat(turns: int, **more: Any) -> dict[str, Any]:
    """Return a body with so many turns of 200 tokens and a question of 100."""
    return {"model": "alpha", "messages": [*[say("user"), say("assistant")] * turns, say("user")], **more}


def show() -> dict[str, Any]:
    """Return a message with a picture and one token of text."""
    return {"role": "user", "content": [PICTURE]}


def fitter(pricing: FakePricing, context: int = 2048, policy: HistoryPolicy | None = None) -> Fitter:
    """Return a fitter for an engine of this context."""
    pages = {"/props": {"default_generation_settings": {"n_ctx": context}}}
    return Fitter(policy or HistoryPolicy(fit="all"), contexts(pages), pricing)


async def test_what_is_far_from_the_limit_is_not_counted() -> None:
    """A short conversation is sent as it is, and the engine is not asked."""
    pricing, body = FakePricing(), chat(5)
    sent = await fitter(pricing).prepare(body, lease())
    assert (sent.body, sent.cut.is_cut, sent.is_counted) == (body, False, False)
    assert sent.body is body
    assert sent.costs is not None
    assert pricing.counted == []


async def test_a_guess_that_is_too_high_drops_nothing() -> None:
    """What only seems to be too long is counted, and sent as it is."""
    pricing, body = FakePricing(guess=2), chat(8)
    sent = await fitter(pricing).prepare(body, lease())
    assert sent.body is body
    assert (pricing.counted, sent.is_counted) == ([17], True)


@pytest.mark.parametrize(
    ("guess", "counted"), [(0.8, [41, 19]), (1, [19]), (2.5, [7, 19]), (7, [1, 19]), (50, [1, 19])]
)
async def test_what_is_too_long_is_cut_by_what_the_engine_counts(guess: float, counted: list[int]) -> None:
    """However good the estimate is, as many turns stay as fit; what is far too long is counted only in part."""
    pricing = FakePricing(guess=guess)
    sent = await fitter(pricing).prepare(chat(20, max_tokens=148), lease())
    assert len(sent.body["messages"]) == 2 * 9 + 1
    assert sent.cut.summary() == "messages=22 images=0"
    assert pricing.counted == counted


async def test_an_estimate_that_is_wrong_in_parts_is_mended() -> None:
    """If what was cut is still too long by the engine's count, it is cut again, and counted again."""

    class Crooked(FakePricing):
        async def costs(self, lease: Lease, body: Mapping[str, Any]) -> Costs:
            made = await super().costs(lease, body)
            return Costs([each * (2 if number < 10 else 1) for number, each in enumerate(made.text)], made.images)

    pricing = Crooked()
    sent = await fitter(pricing).prepare(chat(12, max_tokens=248), lease())
    assert pricing.counted == [25, 19, 17]
    assert len(sent.body["messages"]) == 17


async def test_without_a_count_the_estimate_is_used_with_caution() -> None:
    """An engine that cannot count: the estimate decides, and a twentieth of the room stays free."""
    pricing = FakePricing(counts=False)
    sent = await fitter(pricing).prepare(chat(20, max_tokens=148), lease())
    assert (len(sent.body["messages"]), sent.is_counted) == (17, False)
    whole = chat(9, max_tokens=148)
    assert (await fitter(pricing).prepare(whole, lease())).body is whole


async def test_policies_drop_before_the_context_does() -> None:
    """A new picture makes the earlier turns go first; what went either way is counted together."""
    messages = [say("system"), show(), say("assistant"), show(), say("assistant"), show()]
    pricing = FakePricing()
    sent = await fitter(pricing).prepare({"messages": messages}, lease())
    assert sent.body["messages"] == [messages[0], messages[5]]
    kept = await fitter(pricing, 640).prepare({"messages": messages}, lease(history={"vision_keep_last_n_turns": 2}))
    assert kept.body["messages"][1]["content"] == [{"type": "text", "text": IMAGE_NOTE}]
    assert kept.cut.summary() == "messages=0 images=1"
    fitted = await fitter(pricing, 512).prepare({"messages": messages}, lease(), FIT)
    assert fitted.cut.summary() == "messages=2 images=1"


async def test_pictures_count_for_what_they_are() -> None:
    """The engine counts texts alone; pictures are added by their size."""
    messages = [show(), say("assistant", 10), show(), say("assistant", 10), say("user", 10)]
    sent = await fitter(FakePricing(guess=2, image=300), 600).prepare({"messages": messages, "max_tokens": 50}, lease())
    assert sent.cut.summary() == "messages=0 images=1"
    assert sent.costs is not None
    assert sent.costs.images_total == 300
    assert sent.costs.text_total == pytest.approx(sum(map(characters, sent.body["messages"])))


async def test_text_that_is_too_long_in_itself_is_refused() -> None:
    """A current turn that is longer than the context is a 400 with both numbers, and the engine is spared."""
    with pytest.raises(ContextLengthExceeded, match=r"is 2048 tokens.* need 3100 tokens") as error:
        await fitter(FakePricing(guess=0.5)).prepare(
            {"messages": [say("system"), *chat(3)["messages"], say("user", 3000)]}, lease()
        )
    assert (error.value.needed_tokens, error.value.context_tokens) == (3100, 2048)


async def test_the_engine_has_the_last_word_on_pictures_and_guesses() -> None:
    """What may not be left out is sent if only pictures, or only a guess, say that it is too long."""
    large = {"messages": [say("system", 10), show(), say("assistant"), show()]}
    sent = await fitter(FakePricing(image=5000)).prepare(large, lease(), FIT)
    assert sent.body["messages"] == [large["messages"][0], large["messages"][3]]
    guessed = {"messages": [say("user", 3000)]}
    assert (await fitter(FakePricing(counts=False)).prepare(guessed, lease())).body is guessed


async def test_what_is_never_cut() -> None:
    """Nothing is cut, nor counted, where the context is not known, the policy says no, or there are no messages."""
    pricing, body = FakePricing(), chat(50)
    unknown = Fitter(HistoryPolicy(fit="all"), contexts({}), pricing)
    assert (await unknown.prepare(body, lease())).body is body
    assert (await fitter(pricing).prepare(body, lease(), "keep")).body is body
    assert (await fitter(pricing, policy=HistoryPolicy()).prepare(body, lease())).body is body
    assert (await fitter(pricing).prepare({"prompt": "x"}, lease())).body == {"prompt": "x"}
    assert pricing.counted == []
    with pytest.raises(BadRequest, match="keep, truncate, fit"):
        await fitter(pricing).prepare(body, lease(), "both")


async def test_very_many_messages_are_cut_alike() -> None:
    """Thousands of messages are looked at in a thread, with the same result."""
    sent = await fitter(FakePricing()).prepare(chat(3000, max_tokens=148), lease())
    assert len(sent.body["messages"]) == 2 * 9 + 1


# -- after an engine's refusal


async def test_a_refusal_by_numbers_makes_a_smaller_request() -> None:
    """The engine's number corrects the costs, so that what is sent next fits; all that was left out is counted."""
    each = fitter(FakePricing(guess=0.3))
    sent = await each.prepare(chat(20, max_tokens=148), lease())
    assert not sent.cut.is_cut
    smaller = await each.smaller(sent, lease(), Overflow(2048, 4100))
    assert smaller is not None
    assert sum(map(characters, smaller.body["messages"])) <= 1900
    again = await each.smaller(smaller, lease(), Overflow(1024, 1900))
    assert again is not None
    assert sum(map(characters, again.body["messages"])) <= 1024 - 148
    assert again.cut.dropped_messages == 41 - len(again.body["messages"])
    last = await each.smaller(smaller, lease(), Overflow(2048, 2100), is_last=True)
    assert last is not None
    assert last.cut.dropped_messages == 40  # of all that was said, the current turn is left


async def test_where_the_text_was_counted_the_pictures_are_to_blame() -> None:
    """The engine's number makes the pictures dearer, not the text, which it counted itself."""
    messages = [show(), say("assistant", 50), show(), say("assistant", 50), say("user", 1200)]
    each, now = fitter(FakePricing(image=60)), lease()
    sent = await each.prepare({"messages": messages, "max_tokens": 100}, now)
    assert (sent.is_counted, sent.cut.is_cut) == (True, False)
    smaller = await each.smaller(sent, now, Overflow(2048, 2102))
    assert smaller is not None
    assert smaller.cut.summary() == "messages=0 images=1"
    assert smaller.costs is not None
    assert smaller.costs.images_total == 400


@pytest.mark.parametrize("overflow", [Overflow(2048), Overflow(2048, 2049, is_floor=True)])
async def test_a_refusal_without_a_number_makes_it_smaller_all_the_same(overflow: Overflow) -> None:
    """Where the engine does not say how long the prompt is, a good part of it goes."""
    each, now = fitter(FakePricing(counts=False)), lease()
    sent = await each.prepare(chat(9, max_tokens=148), now)
    smaller = await each.smaller(sent, now, overflow)
    assert smaller is not None
    assert 3 < len(smaller.body["messages"]) < 17


async def test_a_refusal_tells_the_context() -> None:
    """What an engine said of its context counts for the requests after."""
    each, now = Fitter(HistoryPolicy(fit="all"), contexts({}), FakePricing()), lease()
    sent = await each.prepare(chat(20), now)
    assert sent.costs is None
    smaller = await each.smaller(sent, now, Overflow(2048, 4100))
    assert smaller is not None
    assert smaller.cut.is_cut
    assert (await each.prepare(chat(20), now)).cut.is_cut
    assert not (await each.prepare(chat(20), lease())).cut.is_cut


async def test_what_cannot_become_smaller() -> None:
    """The current turn alone: 400 with the engine's number. No room for the answer, or off: the engine's own word."""
    each, now = fitter(FakePricing()), lease()
    alone = await each.prepare({"messages": [say("system", 10), show()]}, now)
    with pytest.raises(ContextLengthExceeded, match=r"need 2600 tokens.*1 image"):
        await each.smaller(alone, now, Overflow(2048, 2600))
    with pytest.raises(ContextLengthExceeded, match="is 2048 tokens"):
        await each.smaller(alone, now, Overflow(2048))
    assert await each.smaller(alone, now, Overflow(2048, 110, answer=2000)) is None
    long = await each.prepare(chat(5), now)
    assert await each.smaller(long, now, Overflow(2048, 1100, answer=8000)) is None
    assert await each.smaller(alone, now, Overflow(2048, 2600), "keep") is None


async def test_the_engine_s_number_is_learnt() -> None:
    """What an engine counted before it refused teaches the estimate, unless it had stopped counting."""
    pricing, now = FakePricing(), lease()
    each = fitter(pricing)
    sent = await each.prepare(chat(4), now)
    await each.smaller(sent, now, Overflow(2048, 4100))
    await each.smaller(sent, now, Overflow(2048, 2049, is_floor=True))
    assert pricing.learnt == [(9, 4100)]


async def test_more_stays_if_the_first_cut_was_too_deep() -> None:
    """A cut that leaves much of the room is tried again with what was learnt; the best one that fits is sent."""

    class Crooked(FakePricing):
        async def costs(self, lease: Lease, body: Mapping[str, Any]) -> Costs:
            made = await super().costs(lease, body)
            return Costs([each * (2 if number > 30 else 1) for number, each in enumerate(made.text)], made.images)

    pricing = Crooked(guess=1)
    sent = await fitter(pricing).prepare(chat(20, max_tokens=148), lease())
    assert 1400 < sum(map(characters, sent.body["messages"])) <= 1900
    assert pricing.counted[0] < len(sent.body["messages"])


async def test_an_answer_that_was_asked_for_makes_room() -> None:
    """Where the engine counts the answer in, as vLLM does, history goes for all that was asked for."""
    each, now = fitter(FakePricing()), lease()
    sent = await each.prepare(chat(4, max_tokens=1500), now)
    assert not sent.cut.is_cut
    smaller = await each.smaller(sent, now, Overflow(2048, 900, answer=1500))
    assert smaller is not None
    assert sum(map(characters, smaller.body["messages"])) <= 548
