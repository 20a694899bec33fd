"""Each client behind the same three methods: a whole answer, a stream, and a stream in a task.

They are made with their defaults; only where a test wants a client to give up is there a time limit, and then no
retries.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import openai
import pytest

from clients.entries import HELLO, PICTURE
from harness import PYTHON_VARIABLE

# Its list of prices is fetched at import; a copy lies in the package.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

JS = Path(__file__).parent / "js"
TEXT: str = HELLO[0]["content"]


class Client(Protocol):
    """A client that is pointed to rolecall."""

    name: ClassVar[str]

    def __init__(self, base_url: str, key: str = "none", limit_s: float | None = None) -> None:
        """Configure it; with a limit it gives up after so many seconds, and does not try again."""

    def whole(self, model: str) -> str:
        """Return the answer to ``HELLO``."""

    def stream(self, model: str) -> Iterator[str]:
        """Return the pieces of the answer as they come."""


class AsyncClient(Client, Protocol):
    """One that has an asynchronous side."""

    def pieces(self, model: str) -> AsyncIterator[str]:
        """Return the pieces of the answer as they come."""


@dataclass
class _Configured:
    base_url: str
    key: str = "none"
    limit_s: float | None = None

    def _options(self, timeout: str = "timeout", retries: str = "max_retries") -> dict[str, Any]:
        return {} if self.limit_s is None else {timeout: self.limit_s, retries: 0}


class OpenAI(_Configured):
    """The Python package openai."""

    name: ClassVar[str] = "openai"

    def whole(self, model: str) -> str:
        """By ``OpenAI``."""
        with openai.OpenAI(base_url=self.base_url, api_key=self.key, **self._options()) as client:
            answer = client.chat.completions.create(model=model, messages=HELLO)
            return answer.choices[0].message.content or ""

    def stream(self, model: str) -> Iterator[str]:
        """By ``OpenAI``."""
        with (
            openai.OpenAI(base_url=self.base_url, api_key=self.key, **self._options()) as client,
            client.chat.completions.create(model=model, messages=HELLO, stream=True) as chunks,
        ):
            yield from (chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

    async def pieces(self, model: str) -> AsyncIterator[str]:
        """By ``AsyncOpenAI``."""
        async with openai.AsyncOpenAI(base_url=self.base_url, api_key=self.key, **self._options()) as client:
            async for chunk in await client.chat.completions.create(model=model, messages=HELLO, stream=True):
                yield (chunk.choices[0].delta.content or "") if chunk.choices else ""


class LangChain(_Configured):
    """ChatOpenAI of langchain-openai."""

    name: ClassVar[str] = "langchain-openai"

    def _model(self, model: str) -> Any:
        from langchain_openai import ChatOpenAI

        return ChatOpenAI(base_url=self.base_url, api_key=self.key, model=model, **self._options())

    def whole(self, model: str) -> str:
        """By ``invoke``."""
        return str(self._model(model).invoke(TEXT).content)

    def stream(self, model: str) -> Iterator[str]:
        """By ``stream``."""
        with contextlib.closing(self._model(model).stream(TEXT)) as chunks:
            yield from (str(chunk.content) for chunk in chunks)

    async def pieces(self, model: str) -> AsyncIterator[str]:
        """By ``astream``."""
        async for chunk in self._model(model).astream(TEXT):
            yield str(chunk.content)


class LlamaIndex(_Configured):
    """OpenAILike of llama-index-llms-openai-like."""

    name: ClassVar[str] = "llama-index-llms-openai-like"

    def _model(self, model: str) -> Any:
        from llama_index.llms.openai_like import OpenAILike

        options = self._options()
        return OpenAILike(api_base=self.base_url, api_key=self.key, model=model, is_chat_model=True, **options)

    def _messages(self) -> list[Any]:
        from llama_index.core.llms import ChatMessage

        return [ChatMessage(role="user", content=TEXT)]

    def whole(self, model: str) -> str:
        """By ``chat``."""
        return str(self._model(model).chat(self._messages()).message.content)

    def stream(self, model: str) -> Iterator[str]:
        """By ``stream_chat``."""
        with contextlib.closing(self._model(model).stream_chat(self._messages())) as chunks:
            yield from (chunk.delta or "" for chunk in chunks)

    async def pieces(self, model: str) -> AsyncIterator[str]:
        """By ``astream_chat``."""
        async for chunk in await self._model(model).astream_chat(self._messages()):
            yield chunk.delta or ""


class LiteLLM(_Configured):
    """litellm as a client."""

    name: ClassVar[str] = "litellm"

    def _arguments(self, model: str) -> dict[str, Any]:
        where = {"api_base": self.base_url, "api_key": self.key, **self._options()}
        return {"model": f"openai/{model}", "messages": HELLO, **where}

    def whole(self, model: str) -> str:
        """By ``completion``."""
        import litellm

        return str(litellm.completion(**self._arguments(model)).choices[0].message.content)

    def stream(self, model: str) -> Iterator[str]:
        """By ``completion``, whose stream has to be closed by whoever leaves it early."""
        import litellm

        with litellm.completion(**self._arguments(model), stream=True) as chunks:
            yield from (chunk.choices[0].delta.content or "" for chunk in chunks)

    async def pieces(self, model: str) -> AsyncIterator[str]:
        """By ``acompletion``."""
        import litellm

        async for chunk in await litellm.acompletion(**self._arguments(model), stream=True):
            yield chunk.choices[0].delta.content or ""


class Npm(_Configured):
    """The npm package openai, in a process of its own that ``js/client.mjs`` runs."""

    name: ClassVar[str] = "openai (npm)"

    def _start(self, mode: str, model: str) -> subprocess.Popen[str]:
        limit = {} if self.limit_s is None else {"timeout": self.limit_s * 1000, "maxRetries": 0}
        options = json.dumps({"baseURL": self.base_url, "apiKey": self.key, **limit})
        argv = ["node", str(JS / "client.mjs"), mode, model, options, json.dumps(PICTURE)]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.PIPE, text=True)

    def call(self, mode: str, model: str) -> Any:
        """Return what the program finds out; raises RuntimeError with the name and message of what was thrown."""
        with self._start(mode, model) as node:
            out, err = node.communicate()
        if node.returncode:
            raise RuntimeError(err)
        return json.loads(out)

    def whole(self, model: str) -> str:
        """By ``chat.completions.create``."""
        return str(self.call("whole", model))

    def stream(self, model: str) -> Iterator[str]:
        """By ``chat.completions.create``; who stops reading aborts the request by its controller."""
        with self._start("stream", model) as node:
            assert node.stdout
            try:
                yield from (json.loads(line) for line in node.stdout)
            except GeneratorExit:
                node.communicate("abort\n")
                raise
            _, err = node.communicate()
        if node.returncode:
            raise RuntimeError(err)


class Curl(_Configured):
    """curl, as the pages show it."""

    name: ClassVar[str] = "curl"

    def _start(self, model: str, *, stream: bool) -> subprocess.Popen[str]:
        body = json.dumps({"model": model, "messages": HELLO, "stream": stream})
        limit = [] if self.limit_s is None else ["--max-time", str(self.limit_s)]
        headers = ["-H", "content-type: application/json", "-H", f"authorization: Bearer {self.key}"]
        argv = ["curl", "-sSN", "--fail-with-body", f"{self.base_url}/chat/completions", *headers, *limit, "-d", body]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)

    def whole(self, model: str) -> str:
        """By its output."""
        with self._start(model, stream=False) as curl:
            out, _ = curl.communicate()
        if curl.returncode:
            raise RuntimeError(out)
        return str(json.loads(out)["choices"][0]["message"]["content"])

    def stream(self, model: str) -> Iterator[str]:
        """By its output with ``-N``; who stops reading ends the process."""
        with self._start(model, stream=True) as curl:
            assert curl.stdout
            try:
                yield from (_piece(line[6:]) for line in curl.stdout if line.startswith("data: {"))
            except GeneratorExit:
                curl.terminate()
                raise
        if curl.returncode:
            raise RuntimeError(f"curl ended with {curl.returncode}")


def _piece(data: str) -> str:
    chunk = json.loads(data)
    if "error" in chunk:
        raise RuntimeError(data)
    return (chunk["choices"][0]["delta"].get("content") or "") if chunk["choices"] else ""


IS_COMPLETE = PYTHON_VARIABLE in os.environ
"""Whether this is the environment of ``make test-clients``."""

PYTHON = [pytest.param(client, id=client.name) for client in (OpenAI, LangChain, LlamaIndex, LiteLLM)]
"""The clients that have an asynchronous side, as parameters of a test."""
if not IS_COMPLETE:
    del PYTHON[1:]


OLDEST_NODE = 18


def _version_of_node() -> int:
    told = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False).stdout
    return int(told.lstrip("v").partition(".")[0] or 0)


def _reason(program: str) -> str | None:
    if not shutil.which(program):
        return f"{program} is not installed"
    if program == "node" and _version_of_node() < OLDEST_NODE:
        return f"node is older than {OLDEST_NODE}"
    if program == "node" and not (JS / "node_modules").is_dir():
        return "the npm package is not installed: npm was not there"
    return None


needs_node = pytest.mark.skipif(_reason("node") is not None, reason=str(_reason("node")))
needs_curl = pytest.mark.skipif(_reason("curl") is not None, reason=str(_reason("curl")))

NPM = [pytest.param(Npm, id=Npm.name, marks=needs_node)] if IS_COMPLETE else []
EVERY = [*PYTHON, *NPM, pytest.param(Curl, id=Curl.name, marks=needs_curl)]
"""All clients, as parameters of a test."""
