"""Conversations that outgrow the context of a real engine just go on."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from engines.test_end_to_end import ANSWER, CAPTION, DEMO, SETTINGS, real_entry
from harness import CHAT, Rolecall, upstream_entry

pytest.importorskip("xllamacpp", reason="the embedded engine needs an extra: rolecall[llama]")
pytest.importorskip("gguf", reason="the demo models need an extra: rolecall[llama]")

CONTEXT_TOKENS = 256
"""llama.cpp's smallest; a turn with a picture and its caption takes about 135 of them, for a letter is a token."""
PICTURES = 200
FIT = {"x-rolecall-history": "fit"}
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    """Run one rolecall with the demo models, whose context is small."""
    entries = (
        real_entry(
            "seer",
            DEMO + "demo-vision.gguf",
            context_length=CONTEXT_TOKENS,
            backend_config={"mmproj_path": "mmproj-demo-vision.gguf"},
        ),
        real_entry(
            "seer-off",
            DEMO + "demo-vision.gguf",
            context_length=CONTEXT_TOKENS,
            backend_config={"mmproj_path": "mmproj-demo-vision.gguf"},
            history={"vision_truncate_history": False, "history_fit": "off"},
        ),
        real_entry("talker", DEMO + "demo-chat.gguf", context_length=CONTEXT_TOKENS),
        real_entry("demo-chat", DEMO + "demo-chat.gguf"),
    )
    with Rolecall(tmp_path_factory.mktemp("long"), entries, settings=SETTINGS) as running:
        yield running
        assert "Traceback" not in running.words()


def picture(number: int) -> dict[str, Any]:
    """Return a picture that no other number has, of a size that others have not."""
    file = io.BytesIO()
    Image.new("RGB", (20 + number, 300 - number), (number, 255 - number, 7 * number % 256)).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def show(number: int) -> dict[str, Any]:
    """Return a user's message with a picture."""
    return {"role": "user", "content": [{"type": "text", "text": f"{number}?"}, picture(number)]}


def ask(server: Rolecall, model: str, messages: list[dict[str, Any]], **headers: str) -> tuple[Any, dict[str, Any]]:
    """Return a successful answer and its line in the log."""
    body = {"model": model, "messages": messages, "max_tokens": 24}
    answer = server.http.post(
        CHAT, json=body, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    assert answer.status_code == 200, answer.text
    return answer, server.line_of(answer)


@pytest.mark.long
def test_two_hundred_pictures_in_one_conversation(server: Rolecall) -> None:
    """A conversation grows by a picture with each request, in a context that holds about two: each one is captioned.

    The whole history is sent each time, and nothing but the context decides what stays of it.
    """
    messages: list[dict[str, Any]] = [SYSTEM]
    left = []
    for number in range(PICTURES):
        messages.append(show(number))
        answer, line = ask(server, "seer", messages, x_rolecall_history="fit")
        message = answer.json()["choices"][0]["message"]
        assert message["content"] == CAPTION
        assert line["truncate_history"] == answer.headers.get("x-rolecall-truncated")
        assert line["images"] == number + 1
        assert line["prompt_tokens"] < CONTEXT_TOKENS
        left.append(number + 1 - dropped(line["truncate_history"])[1])
        messages.append(message)
    assert left[:3] == [1, 2, 2]
    assert set(left[2:]) == {2}
    assert dropped(line["truncate_history"]) == (2 * (PICTURES - 2), PICTURES - 2)


def dropped(summary: str | None) -> tuple[int, int]:
    """Return the numbers of messages and pictures of a summary such as ``messages=4 images=1``."""
    words = dict(word.split("=") for word in summary.split()) if summary else {}
    return int(words.get("messages", 0)), int(words.get("images", 0))


def test_questions_about_the_newest_picture(server: Rolecall) -> None:
    """Words alone, one after another: the turns in between go, the newest picture stays with the engine."""
    messages: list[dict[str, Any]] = [SYSTEM, show(1), {"role": "assistant", "content": CAPTION}, show(2)]
    for number in range(20):
        answer, line = ask(server, "seer", messages)
        assert dropped(line["truncate_history"])[1] <= 1
        messages += [answer.json()["choices"][0]["message"], {"role": "user", "content": f"And {number}?"}]
    assert dropped(line["truncate_history"])[1] == 1


def test_an_engine_that_cannot_be_asked(server: Rolecall, tmp_path: Path) -> None:
    """Behind a server that others run nothing can be counted, and its pictures' costs are unknown: no request fails."""
    far = upstream_entry(
        "far",
        f"{server.base_url}/v1",
        served_model_id="seer-off",
        capabilities=["text", "vision"],
        context_length=CONTEXT_TOKENS,
    )
    with Rolecall(tmp_path, [far]) as near:
        messages: list[dict[str, Any]] = [SYSTEM]
        for number in range(25):
            messages.append(show(number))
            answer, _ = ask(near, "far", messages, x_rolecall_history="fit")
            messages += [answer.json()["choices"][0]["message"], {"role": "user", "content": f"And {number}?"}]
            answer, line = ask(near, "far", messages)
            messages.append(answer.json()["choices"][0]["message"])
    assert dropped(line["truncate_history"])[0] > 40


def test_a_new_picture_alone(server: Rolecall) -> None:
    """By default the earlier pictures are not sent at all, long before the context is full."""
    messages = [SYSTEM, show(1), {"role": "assistant", "content": "a"}, show(2)]
    answer, line = ask(server, "seer", messages)
    assert answer.headers["x-rolecall-truncated"] == line["truncate_history"] == "messages=2 images=1"


def test_long_talks_go_on_if_asked_for(server: Rolecall) -> None:
    """Without pictures a conversation is cut only if that is asked for; else the engine refuses it."""
    messages: list[dict[str, Any]] = [SYSTEM]
    for number in range(30):
        messages.append({"role": "user", "content": f"Tell me of number {number}, please."})
        answer, line = ask(server, "talker", messages, x_rolecall_history="fit")
        assert answer.json()["choices"][0]["message"]["content"] == ANSWER
        assert line["prompt_tokens"] < CONTEXT_TOKENS
        messages.append(answer.json()["choices"][0]["message"])
    for wish in ({}, {"x-rolecall-history": "keep"}):
        refused = server.http.post(CHAT, json={"model": "talker", "messages": messages}, headers=wish)
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "context_length_exceeded"


def test_what_is_too_long_in_itself(server: Rolecall) -> None:
    """A single message that is longer than the context: 400 with both numbers, as OpenAI's clients know it."""
    body = {"model": "talker", "messages": [SYSTEM, {"role": "user", "content": "x" * 400}]}
    refused = server.http.post(CHAT, json=body, headers=FIT)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")
    assert str(CONTEXT_TOKENS) in error["message"]


def test_a_wish_that_is_none(server: Rolecall) -> None:
    """An unknown value of the header is refused, with those that are known."""
    body = {"model": "talker", "messages": [SYSTEM, {"role": "user", "content": "x"}]}
    refused = server.http.post(CHAT, json=body, headers={"x-rolecall-history": "shrink"})
    assert refused.status_code == 400
    assert "keep, truncate, fit" in refused.json()["error"]["message"]
