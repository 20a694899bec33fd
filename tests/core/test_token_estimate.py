"""The estimate of tokens: near from the start, nearer with each answer, and not led astray by wrong counts."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.core.image_tokens import ImageSpec
from rolecall.core.text_size import NOTHING, TextSize
from rolecall.core.token_estimate import (
    BELIEVES_ALL,
    WINDOW,
    TokenModel,
    measure,
    measure_message,
    tokens_of_image,
)

WORDS = ["the", "a", "of", "and", "model", "window", "answer", "conversation", "understanding", "quickly", "yes", "why"]
Tokenizer = Callable[[str], int]


def subwords(text: str) -> int:
    """A tokenizer that cuts as the usual ones do: words in pieces of six letters, digits one by one, marks in runs."""
    pieces = re.findall(r"[A-Za-z]{1,6}|\d|[^\sA-Za-z\d\u3000-\uffff]+|[\u3000-\uffff]|\n\s*|  +", text)
    return len(pieces)


def in_bytes(text: str) -> int:
    """A tokenizer of bytes."""
    return len(text.encode())


def body(seed: int) -> dict[str, Any]:
    """A conversation of some turns in prose, code, Chinese and numbers; some offer tools."""
    rnd = random.Random(seed)
    kinds: list[Callable[[], str]] = [
        lambda: " ".join(rnd.choices(WORDS, k=rnd.randrange(5, 200))) + ".",
        lambda: "\n".join(f"    if ({rnd.choice(WORDS)}[{n}] != {n * 7}) {{\n        return x;" for n in range(9)),
        lambda: "".join(rnd.choices("今天气很好我们去公园散步吧，。", k=rnd.randrange(5, 200))),
        lambda: ", ".join(str(rnd.randrange(10**6)) for _ in range(rnd.randrange(2, 40))),
    ]
    turns = [{"role": ("user", "assistant")[n % 2], "content": rnd.choice(kinds)()} for n in range(rnd.randrange(1, 8))]
    tool = {"type": "function", "function": {"name": "look_up", "description": " ".join(rnd.choices(WORDS, k=9))}}
    return {"messages": turns, **({"tools": [tool] * rnd.randrange(1, 3)} if rnd.random() < 0.3 else {})}


def count(request: dict[str, Any], tokenizer: Tokenizer) -> int:
    """What an engine would count: the texts, some tokens a message, and a preamble for tools."""
    said = sum(tokenizer(turn["content"]) + tokenizer(turn["role"]) + 3 for turn in request["messages"])
    tools = request.get("tools", [])
    return said + 2 + (tokenizer(json.dumps(tools)) + 45 if tools else 0)


def trained(tokenizer: Tokenizer = subwords, requests: int = 30) -> TokenModel:
    """A model that has seen so many requests."""
    model = TokenModel()
    for seed in range(requests):
        model.learn(measure(body(seed)), count(body(seed), tokenizer))
    return model


def errors(model: TokenModel, tokenizer: Tokenizer, requests: range = range(500, 540)) -> list[float]:
    """Relative errors for requests that it has not seen."""
    counts = [(model.predict(measure(body(seed))), count(body(seed), tokenizer)) for seed in requests]
    return [abs(predicted - actual) / actual for predicted, actual in counts]


# -- what is predicted


def test_the_first_prediction_is_near() -> None:
    """Before anything is learnt, English has about four characters a token, and Chinese one or two a character."""
    prose = "This is a sentence of ordinary English prose, as it may stand in a question to a language model. " * 20
    model = TokenModel()
    assert model.predict(measure({"prompt": prose})) == pytest.approx(len(prose) / 4.5, rel=0.15)
    chinese = "今天天气很好我们去公园散步" * 50
    assert 0.6 < model.predict(measure({"prompt": chinese})) / len(chinese) < 1.5


@pytest.mark.parametrize("tokenizer", [subwords, in_bytes])
def test_twenty_requests_are_enough(tokenizer: Tokenizer) -> None:
    """After 20 requests the median error is below 3 %, for pieces of words and for bytes."""
    model = trained(tokenizer, 20)
    assert median(errors(model, tokenizer)) < 0.03
    assert model.observations == 20


def test_the_error_that_it_expects_is_honest() -> None:
    """It says of itself how far it is off."""
    model = trained()
    assert median(errors(model, subwords)) < 1.5 * model.error < 0.1


def test_parts_add_up_to_the_whole() -> None:
    """The whole is its parts and what a template writes once."""
    model, request = trained(), body(77)
    parts = sum(model.predict_part(measure_message(turn)) for turn in request["messages"])
    parts += model.predict_part(measure({"tools": request.get("tools")}))
    assert model.predict(measure(request)) == pytest.approx(parts + model.predict(NOTHING), rel=1e-9)
    assert model.predict_part(NOTHING) == 0


SIZES = st.builds(TextSize, *[st.integers(0, 1000)] * len(TextSize.__slots__))


@given(SIZES, SIZES, st.lists(st.tuples(SIZES, st.integers(-5, 10**5), st.integers(0, 2)), max_size=12))
def test_no_prediction_is_negative_and_more_is_never_less(
    size: TextSize, more: TextSize, seen: list[tuple[TextSize, int, int]]
) -> None:
    """Whatever it has learnt from, however absurd."""
    model = TokenModel()
    for other, tokens, images in seen:
        model.learn(other, tokens, image_tokens=10.0 * images, unknown_images=images // 2)
    assert 0 <= model.predict(size) <= model.predict(size + more)
    assert model.predict_part(size) >= 0


# -- what is not believed


@pytest.mark.parametrize("share", [0.1, 0.5, 3.0])
def test_single_wrong_counts_change_nothing(share: float) -> None:
    """A prompt that was cut, or of which only what was not cached was counted, teaches nothing."""
    model = trained()
    before = model.to_json()
    for seed in (900, 901):
        model.learn(measure(body(seed)), int(share * count(body(seed), subwords)))
    assert model.to_json() == before


def test_many_wrong_counts_that_disagree_change_nothing() -> None:
    """An engine that counts what is not cached counts another share each time."""
    model = trained()
    before = model.to_json()
    for seed in range(900, 912):
        share = random.Random(seed).uniform(0.02, 0.5)
        model.learn(measure(body(seed)), int(share * count(body(seed), subwords)))
    assert model.to_json() == before


def test_a_new_tokenizer_is_noticed() -> None:
    """Counts that agree on something else are believed after some of them, and what was learnt before is forgotten."""
    model = trained(subwords)
    for seed in range(600, 640):
        model.learn(measure(body(seed)), count(body(seed), in_bytes))
    assert median(errors(model, in_bytes)) < 0.03


@pytest.mark.parametrize("tokens", [-1, 0, 3, 10**9])
def test_impossible_counts_are_ignored_from_the_start(tokens: int) -> None:
    """Fewer tokens than the text could fit into, or more than it has bytes, are no count of it."""
    model = TokenModel()
    model.learn(measure({"prompt": "word " * 500}), tokens)
    assert model.observations == 0


# -- images

PICTURE = {"type": "image_url", "image_url": {"url": "data:,"}}
ASKED = measure({"messages": [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, PICTURE]}]})


def test_known_images_add_what_their_formula_says() -> None:
    """And the rest of such a prompt teaches about its text."""
    model = TokenModel()
    for seed in range(20):
        model.learn(measure(body(seed)), count(body(seed), subwords) + 300, image_tokens=300)
    assert model.image_factor == 1.0
    assert median(errors(model, subwords)) < 0.03
    size = measure(body(3))
    assert model.predict(size, image_tokens=300) == model.predict(size) + 300


def test_a_formula_that_is_wrong_is_corrected() -> None:
    """Once the text is known, what images really take shows in prompts that are mostly images."""
    model = trained()
    for _ in range(5):
        model.learn(ASKED, 14 + 1500, image_tokens=1000)
    assert model.predict(ASKED, image_tokens=1000) == pytest.approx(1514, rel=0.02)


def test_images_without_a_formula_are_learnt() -> None:
    """From what the text leaves of the prompt; of the last ones a rather high figure counts."""
    model = TokenModel()
    assert model.tokens_per_image is None
    for tokens in (200, 210, 190, 205, 220, 1000):
        model.learn(ASKED, 14 + tokens, unknown_images=1)
    assert model.tokens_per_image == pytest.approx(220, rel=0.05)
    for _ in range(WINDOW):
        model.learn(ASKED, 14 + 2 * 256, unknown_images=2)
    assert model.tokens_per_image == pytest.approx(256, rel=0.05)


def test_an_image_that_takes_nothing_teaches_nothing() -> None:
    """An engine that left the image out of its count."""
    model = trained()
    model.learn(measure(body(3)), 60, unknown_images=1)
    assert model.tokens_per_image is None


def test_only_images_and_nothing_left_for_the_text() -> None:
    """A formula that says more than was counted is no reason to believe that texts are free."""
    model = TokenModel()
    model.learn(ASKED, 200, image_tokens=400)
    assert model.observations == 0


def test_which_figure_counts_for_an_image() -> None:
    """The registry's, else the formula's, else what was learnt, else a cautious guess."""
    model, spec = TokenModel(), ImageSpec("fixed", tokens=256)
    assert tokens_of_image(model, spec, 99, 640, 480) == 99
    assert tokens_of_image(model, spec, None, 640, 480) == 256
    assert tokens_of_image(model, None, None, 640, 480) == 576
    model.learn(ASKED, 114, unknown_images=1)
    assert tokens_of_image(model, None, None, 640, 480) == model.tokens_per_image
    assert tokens_of_image(model, spec, None, 640, 480) == 256


# -- on disk


def test_it_survives_json() -> None:
    """What is read again predicts and learns as before, and takes some kilobytes."""
    model = trained()
    model.learn(ASKED, 300, unknown_images=1)
    text = json.dumps(model.to_json())
    again = TokenModel.from_json(json.loads(text))
    assert again.to_json() == model.to_json()
    assert len(text) < 8000
    size = measure(body(700))
    for each in (model, again):
        each.learn(size, count(body(700), subwords))
    assert again.predict(size) == model.predict(size)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 0},
        {"fits": []},
        {"fits": [[1.0]]},
        {"fits": 3},
        {"moments": {}},
        {"moments": None},
        {"observations": -1},
        {"best": "0"},
        {"per_image": [float("nan")]},
        {"image_factors": None},
    ],
)
def test_rubbish_is_refused(change: dict[str, Any]) -> None:
    """A file that somebody else wrote is no model."""
    with pytest.raises(ValueError):  # noqa: PT011 - each says something else
        TokenModel.from_json({**trained(requests=3).to_json(), **change})
    with pytest.raises(ValueError, match="TypeError"):
        TokenModel.from_json([])


def test_it_believes_all_at_first() -> None:
    """Until it has seen some prompts, it cannot tell what is an outlier."""
    assert trained(in_bytes, BELIEVES_ALL - 1).observations == BELIEVES_ALL - 1
