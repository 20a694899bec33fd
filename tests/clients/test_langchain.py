"""langchain-openai: tools, structured output, pictures, embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import litellm
import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from clients.entries import ANSWER, CAPTION, PICTURE, PIXEL, THOUGHT, Place, Weather


def get_weather(city: str) -> str:
    """Return the weather now."""
    return f"sunny in {city}"


TOOL: Any = tool(get_weather)


@pytest.fixture
def model(base_url: str) -> Any:
    """The chat model."""
    return ChatOpenAI(base_url=base_url, api_key="none", model="demo-chat")


def test_what_comes_with_the_answer(model: Any) -> None:
    """Usage, the model's name and the finish reason arrive, whole and streamed."""
    answer = model.invoke("Hello?")
    assert answer.usage_metadata["output_tokens"] > 5
    assert answer.response_metadata["model_name"] == "demo-chat"
    chunks = [*model.stream("Hello?", stream_usage=True)]
    (usage,) = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
    assert usage["output_tokens"] == answer.usage_metadata["output_tokens"]


def test_tools(model: Any) -> None:
    """A tool is called, whole and streamed; its result is taken into the conversation."""
    bound = model.bind_tools([TOOL])
    call = bound.invoke("Hello?")
    assert [(each["name"], each["args"]) for each in call.tool_calls] == [("get_weather", {"city": "Paris"})]
    first, *rest = bound.stream("Hello?")
    assert sum(rest, start=first).tool_calls[0]["args"] == {"city": "Paris"}
    result = TOOL.invoke(call.tool_calls[0])
    assert isinstance(result, ToolMessage)
    assert model.invoke([HumanMessage("Hello?"), call, result]).content == ANSWER


@pytest.mark.parametrize(
    ("kind", "method", "values"),
    [
        (Place, "json_schema", {"city": "Paris", "size": 7}),
        (Weather, "function_calling", {"city": "Paris"}),
    ],
)
def test_structured_output(model: Any, kind: Any, method: str, values: dict[str, Any]) -> None:
    """Objects come out, by a schema for the answer and by a tool."""
    assert model.with_structured_output(kind, method=method).invoke("Hello?") == kind(**values)


@pytest.mark.parametrize(
    "part",
    [PICTURE[1], {"type": "image", "base64": PIXEL.partition(",")[2], "mime_type": "image/png"}],
    ids=["OpenAI's part", "LangChain's part"],
)
def test_a_picture(base_url: str, part: dict[str, Any]) -> None:
    """A picture in a message goes to a model that sees, in both of the shapes that LangChain has."""
    model = ChatOpenAI(base_url=base_url, api_key="none", model="role:caption")
    content: list[Any] = [{"type": "text", "text": "what is it?"}, part]
    assert model.invoke([HumanMessage(content=content)]).content == CAPTION


def test_responses(base_url: str) -> None:
    """LangChain's way over the Responses endpoint."""
    model = ChatOpenAI(base_url=base_url, api_key="none", model="role:chat", use_responses_api=True)
    assert model.invoke("Hello?").text == ANSWER


def test_thoughts_are_no_part_of_the_answer(base_url: str) -> None:
    """LangChain knows no field for thoughts here, and shows the answer alone."""
    answer = ChatOpenAI(base_url=base_url, api_key="none", model="role:reasoning").invoke("Hello?")
    assert isinstance(answer, AIMessage)
    assert answer.text == ANSWER
    assert THOUGHT not in answer.text


async def test_embeddings(base_url: str) -> None:
    """One vector for each text; texts are sent as they are if LangChain is told not to cut them into tokens itself."""
    model = OpenAIEmbeddings(base_url=base_url, api_key="none", model="demo-embed", check_embedding_ctx_length=False)
    first, second, third = model.embed_documents(["one", "two", "one"])
    assert first == pytest.approx(third, abs=1e-5)
    assert first != pytest.approx(second, abs=1e-5)
    assert model.embed_query("one") == pytest.approx(first, abs=1e-5)
    assert await model.aembed_query("one") == pytest.approx(first, abs=1e-5)


def test_embeddings_as_tokens_of_another_model(base_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its defaults LangChain sends token numbers of OpenAI's vocabulary: the engine refuses those it lacks.

    What is below its vocabulary's size would be another text to it, which is why the page says to switch that off.
    """
    package = Path(litellm.__file__).parent  # which has a copy of OpenAI's vocabulary, so that none is downloaded
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(package / "litellm_core_utils" / "tokenizers"))
    model = OpenAIEmbeddings(base_url=base_url, api_key="none", model="demo-embed")
    with pytest.raises(openai.BadRequestError, match="invalid tokens"):
        model.embed_documents(["a sentence of unusual words"])
