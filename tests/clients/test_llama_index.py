"""llama-index-llms-openai-like: function calling, structured output, pictures, plain completion."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

from clients.entries import ANSWER, CAPTION, PIXEL, Place


def get_weather(city: str) -> str:
    """Return the weather now."""
    return f"sunny in {city}"


@pytest.fixture
def model(base_url: str) -> Any:
    """The model as the page configures it."""
    options = {"is_chat_model": True, "is_function_calling_model": True, "should_use_structured_outputs": True}
    return OpenAILike(api_base=base_url, api_key="none", model="demo-chat", **options)


def test_function_calling(model: Any) -> None:
    """A function is asked for, and called with what the model gave."""
    tool = FunctionTool.from_defaults(get_weather)
    (call,) = model.get_tool_calls_from_response(model.chat_with_tools([tool], user_msg="Hello?"))
    assert (call.tool_name, call.tool_kwargs) == ("get_weather", {"city": "Paris"})
    assert model.predict_and_call([tool], user_msg="Hello?").response == "sunny in Paris"


def test_structured_output(model: Any) -> None:
    """An object comes out, by a schema for the answer."""
    assert model.structured_predict(Place, PromptTemplate("Hello?")) == Place(city="Paris", size=7)


def test_a_picture(base_url: str) -> None:
    """A picture as a block of a message."""
    image = ImageBlock(image=base64.b64decode(PIXEL.partition(",")[2]), image_mimetype="image/png")
    message = ChatMessage(role="user", blocks=[TextBlock(text="what is it?"), image])
    model = OpenAILike(api_base=base_url, api_key="none", model="role:caption", is_chat_model=True)
    assert model.chat([message]).message.content == CAPTION


@pytest.mark.parametrize("is_chat_model", [True, False])
def test_completion(base_url: str, is_chat_model: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """A plain prompt, over the chat endpoint or over the older one for text."""
    model = OpenAILike(api_base=base_url, api_key="none", model="role:chat", is_chat_model=is_chat_model)
    assert model.complete("Hello?").text == ANSWER
    assert "".join(chunk.delta or "" for chunk in model.stream_complete("Hello?")) == ANSWER
