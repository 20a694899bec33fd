"""What prompts cost: learnt for texts, computed for pictures, and learnt from what engines say."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import pytest
from PIL import Image

from gateway.test_engine_context import lease
from rolecall.core.image_tokens import ImageSpec
from rolecall.core.token_estimate import TokenModel
from rolecall.gateway.pictures import Pictures
from rolecall.gateway.prompt_costs import Knowledge, PromptCosts
from rolecall.runtime.lease import Lease

QWEN = ImageSpec("smart", patch_size=14, merge=2, min_pixels=56 * 56, max_pixels=1280 * 28 * 28)


class Counter:
    """An engine that counts everything as 7 tokens."""

    async def count_text(self, lease: Lease, body: Mapping[str, Any]) -> int | None:
        """Return its number."""
        return 7


def prompt_costs(images: ImageSpec | None = QWEN, per_image: int | None = None) -> tuple[PromptCosts, TokenModel]:
    """Return the costs of one model, and what is learnt of it."""
    model = TokenModel()
    return PromptCosts(lambda _: Knowledge(model, images, per_image), Pictures(), Counter()), model


def picture(width: int, height: int) -> dict[str, Any]:
    """Return a content part with a picture of this size."""
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def chat(*contents: Any, **more: Any) -> dict[str, Any]:
    """Return a body with a user's messages."""
    return {"messages": [{"role": "user", "content": content} for content in contents], **more}


async def test_the_parts_add_up_to_the_whole() -> None:
    """The costs of messages, tools and template together are what the model of texts says of the body."""
    costs, model = prompt_costs()
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
    body = chat("Tell me a story.", [{"type": "text", "text": "And a longer one, please."}], tools=tools)
    made = await costs.of_request(0).costs(lease(), body)
    assert made.text_total == pytest.approx(model.predict((await costs.of_request(0).receipt(lease(), body)).size))
    assert made.overhead > 0
    assert 0 < made.image_note < 40
    assert 0 < made.answer_note < 40
    assert made.text[0] < made.text[1]
    assert await costs.of_request(0).count_text(lease(), body) == 7


async def test_pictures_cost_by_their_size() -> None:
    """Each picture is counted by the formula of the model's family, as large as the model gets it."""
    costs, _ = prompt_costs()
    body = chat("x", [picture(280, 280), {"type": "text", "text": "x"}, picture(560, 280)])
    assert (await costs.of_request(0).costs(lease(), body)).images == [[], [100, 200]]
    assert (await costs.of_request(0).costs(lease(max_image_pixels=280 * 280), body)).images[1][0] == 100
    assert (await costs.of_request(0).costs(lease(max_image_pixels=280 * 280), body)).images[1][1] <= 110
    fixed, _ = prompt_costs(per_image=64)
    assert (await fixed.of_request(0).costs(lease(), body)).images == [[], [64, 64]]


async def test_a_picture_that_cannot_be_read_counts_as_a_large_one() -> None:
    """What is elsewhere, or is none, is not free."""
    costs, _ = prompt_costs()
    there = {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}}
    (row,) = (await costs.of_request(0).costs(lease(), chat([there, {"type": "image"}]))).images
    assert row[0] == row[1] > 1000


@pytest.mark.parametrize("message", [None, 7, "x", [], {}, {"content": 7}, {"content": [None]}])
async def test_hostile_messages_cost_little(message: Any) -> None:
    """Whatever stands in the place of a message has a price and raises nothing."""
    costs, _ = prompt_costs()
    made = await costs.of_request(0).costs(lease(), {"messages": [message]})
    assert 0 <= made.text[0] < 20
    await costs.of_request(0).receipt(lease(), {"messages": message})


async def test_what_engines_say_is_learnt() -> None:
    """Texts of an engine that takes a token for each character are priced so after a few answers."""
    costs, _ = prompt_costs()
    for length in range(100, 400, 50):
        body = chat("some words " * (length // 10))
        costs.settle(lease(), await costs.of_request(0).receipt(lease(), body), 11 * (length // 10) + 20)
    body = chat("other words " * 50)
    assert (await costs.of_request(0).costs(lease(), body)).total == pytest.approx(620, rel=0.1)


async def test_pictures_without_a_formula_are_learnt() -> None:
    """A refusal that says how long a prompt was tells what a picture of an unknown family takes."""
    costs, _ = prompt_costs(images=None)
    body = chat([picture(100, 100), picture(200, 200)])
    before = (await costs.of_request(0).costs(lease(), body)).images_total
    await costs.of_request(0).learn(lease(), body, 5010)
    assert (await costs.of_request(0).costs(lease(), body)).images_total == pytest.approx(5000, rel=0.05)
    assert before < 2000


async def test_what_is_known_well_is_learnt_seldom() -> None:
    """Learning holds others up: of a new model soon again, of one that is known well after a second."""
    now = 0.0
    model = TokenModel()
    engine, costs = lease(), PromptCosts(lambda _: Knowledge(model), Pictures(), Counter(), clock=lambda: now)
    assert costs.is_curious(engine)
    assert not costs.is_curious(engine)
    now += 0.05
    assert costs.is_curious(engine)
    model.observations = 64
    now += 0.05
    assert costs.is_curious(engine)
    now += 0.9
    assert not costs.is_curious(engine)
    now += 0.2
    assert costs.is_curious(engine)


async def test_a_long_prompt_costs_the_same_as_in_a_thread() -> None:
    """Where it is measured makes no difference to what is found."""
    costs, _ = prompt_costs()
    body = chat("some words " * 50, [picture(280, 280)], tools=[{"type": "function"}])
    short, long = costs.of_request(0), costs.of_request(10**6)
    assert await short.receipt(lease(), body) == await long.receipt(lease(), body)
    assert await short.costs(lease(), body) == await long.costs(lease(), body)
