"""The endpoints for one picture or one question: asked within the process, under the caller's key, logged as any other.

/analyze_image, /ocr          a form with the picture
/api/tag, /api/describe       JSON with the picture as base64, or a form
/api/chat                     JSON in Ollama's form, or a prompt with pictures
/api/generate-embeddings      JSON with texts
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import unquote

import httpx
import orjson
from starlette.requests import Request
from starlette.responses import Response

from rolecall.core.parameters import STAND_INS
from rolecall.errors import BadRequest, RolecallError, Unavailable, UpstreamError
from rolecall.gateway.body import ClientGone
from rolecall.gateway.caller import caller_of
from rolecall.gateway.header_text import header_text
from rolecall.gateway.routes import Json
from rolecall.gateway.server import Gateway
from rolecall.vision.ask import Asker, AskError, Question, Reply
from rolecall.vision.decoding import Decoding
from rolecall.vision.in_process import client_of
from rolecall.vision.photos import Photo
from rolecall.vision.runner import Outcome, messages, run_task
from rolecall.vision.single_account import Refusal
from rolecall.vision.single_answer import as_error, shown_headers
from rolecall.vision.single_chat import Conversation, chat_answer, response_format
from rolecall.vision.single_fields import check_fields, variables_in
from rolecall.vision.single_input import Input, Pictures, check_length, picture_bytes
from rolecall.vision.task import Task
from rolecall.vision.tasks import TaskError, Tasks, UnknownTask, WrongVariable

SEES, CHATS, EMBEDS = "vision_general", "chat", "embedding"
"""The roles that are asked where a request names no model; tasks have roles of their own."""

_EMBEDDINGS = "/v1/embeddings"
_FORMS = ("/analyze_image", "/ocr")
_MOST_TEXTS = 2048
_ANALYSIS_SIDE = 1280
_LANGUAGE = re.compile(r"[A-Za-z]{2,20}(?:[-_ ][A-Za-z0-9]{1,20}){0,4}")
_FROM_HEADERS = {"prompt_id": b"x-prompt-id", "prompt_version": b"x-prompt-version"}

Work = Callable[[Input, "_Session"], Awaitable[Response]]


_PASSED_ON = (b"x-session-id", b"x-rolecall-experiment")
"""Headers of the request that its questions have, too: by them experiments tell whose they are."""


class _Session:
    """What one request asks with: a client within the process on behalf of its caller, and what it says of itself."""

    def __init__(self, gateway: Gateway, request: Request, client: httpx.AsyncClient) -> None:
        headers = dict(request.scope["headers"])
        agent = (header_text(headers, b"user-agent") or "")[:100]
        self._catalog = gateway.services.roster.catalog
        self._caller = caller_of(request.scope)
        client.headers["user-agent"] = f"{agent} via {request.scope['path']}".strip()
        client.headers.update({name: headers[name] for name in _PASSED_ON if name in headers})
        self.client = client
        self.path: str = request.scope["path"]
        self.asker = Asker(client, patience_s=0)  # who asked is told when to come back
        self.sampling = gateway.services.roster.api_config.config.sampling
        self.named = {name: header_text(headers, header) for name, header in _FROM_HEADERS.items()}

    def model(self, given: Input, role: str, capability: str) -> str:
        """Return the model that a request names, else the role, else any that can do it: many people have but one."""
        if named := given.text("model", ""):
            return named
        wanted = (role, SEES) if capability == "vision" else (role,)
        if (found := next((each for each in wanted if each in self._catalog.roles), None)) is not None:
            return f"role:{found}"
        able = (entry.name for entry in self._catalog.listed() if capability in entry.all_capabilities)
        mine = (name for name in able if self._caller.sees(self._catalog.get(name)))
        return next(mine, f"role:{role}")

    async def ask(
        self, given: Input, model: str, chat: list[dict[str, Any]], *, logprobs: bool = False, **more: Any
    ) -> Reply:
        """Return the answer to a chat; an engine that refuses to give log-probabilities is asked without."""
        question = Question(
            model=model,
            messages=chat,
            parameters={STAND_INS: self.sampling, **given.options(), **more},
            wants_logprobs=logprobs,
            **self.named,
        )
        try:
            return await self.asker.ask(question)
        except AskError as error:
            if not (logprobs and error.status in {400, 422, 501} and "logprob" in error.message.lower()):
                raise
        return await self.ask(given, model, chat, **more)


class SingleRequests:
    """Answers requests with the models of a gateway."""

    def __init__(self, gateway: Gateway, tasks: Callable[[], Tasks], decoding: Decoding) -> None:
        self._gateway = gateway
        self._tasks = tasks
        self._pictures = Pictures(decoding)
        self._work: Mapping[str, Work] = {
            "/analyze_image": self.analyze_image,
            "/ocr": self.ocr,
            "/api/tag": self.tag,
            "/api/describe": self.describe,
            "/api/chat": self.chat,
            "/api/generate-embeddings": self.embeddings,
        }

    async def serve(self, request: Request) -> Response:
        """Return the answer to a request for one of the paths; raises ``ClientGone`` when the client leaves."""
        services, refusal = self._gateway.services, Refusal(request, self._gateway.services.recorder)
        try:
            caller = await refusal.paid()
            given = await refusal.read(services.settings.max_body_bytes, form_only=request.scope["path"] in _FORMS)
            async with client_of(self._gateway.inference, caller) as client:
                session = _Session(self._gateway, request, client)
                return await _unless_gone(request, self._work[session.path](given, session))
        except AskError as failed:  # the question has its line
            error = as_error(failed)
            return Json(error.body(), error.status, {**shown_headers(failed.headers), **error.headers()})
        except RolecallError as error:
            return refusal.answer(error)

    # -- a picture and a prompt of the request's own

    async def analyze_image(self, given: Input, session: _Session) -> Response:
        reply = await self._analysis(given, session, logprobs=True)
        answer = {"analysis": reply.text, "confidence": reply.confidence, "model": reply.model}
        return Json(answer, headers=shown_headers(reply.headers))

    async def _analysis(self, given: Input, session: _Session, *, logprobs: bool) -> Reply:
        check_fields(given, session.path)
        prompt = given.text("prompt")
        data, name = picture_bytes(given)
        photo = await self._prepared(data, name)
        model = session.model(given, SEES, "vision")
        return await session.ask(given, model, messages("", photo, prompt), logprobs=logprobs)

    async def _prepared(self, data: bytes, name: str) -> Photo:
        return await self._pictures.prepared(data, name, max_side=_ANALYSIS_SIDE, jpeg_quality=90)

    # -- tasks

    async def ocr(self, given: Input, session: _Session) -> Response:
        language = given.text("language", "ja").strip()
        if not _LANGUAGE.fullmatch(language):
            raise BadRequest("The field 'language' must be a language's code or name, such as ja.", param="language")
        outcome = await self._run("ocr", given, session, {"language": language}, parser="text")
        return Json({"text": _text_of(outcome), "language": language}, headers=shown_headers(outcome.headers))

    async def describe(self, given: Input, session: _Session) -> Response:
        if given.fields.get("prompt"):
            reply = await self._analysis(given, session, logprobs=False)
            answer = {"description": reply.text, "model": reply.model, "task": None, "version": None}
            return Json(answer, headers=shown_headers(reply.headers))
        name = given.text("task", "description")
        outcome = await self._run(name, given, session, parser="text")
        answer = {
            "description": _text_of(outcome),
            "model": outcome.model,
            "task": outcome.task_id,
            "version": outcome.version,
        }
        return Json(answer, headers=shown_headers(outcome.headers))

    async def tag(self, given: Input, session: _Session) -> Response:
        name = given.text("task", "tags")
        outcome = await self._run(name, given, session)
        by_dimension = outcome.value if isinstance(outcome.value, dict) else None
        answer = {
            "tags": list(outcome.tags),
            "by_dimension": by_dimension,
            "discarded": [{"text": each.text, "reason": each.reason} for each in outcome.discarded],
            "missing": list(outcome.missing),
            "problem": outcome.problem,
            "model": outcome.model,
            "task": outcome.task_id,
            "version": outcome.version,
        }
        return Json(answer, headers=shown_headers(outcome.headers))

    async def _run(
        self,
        name: str,
        given: Input,
        session: _Session,
        variables: Mapping[str, str] | None = None,
        parser: str | None = None,
    ) -> Outcome:
        task = await asyncio.to_thread(self._task, name, parser)
        check_fields(given, session.path, task.variables)
        values = {**variables_in(given, task), **(variables or {})}
        data, where = picture_bytes(given)
        image = task.image
        photo = await self._pictures.prepared(data, where, max_side=image.max_side, jpeg_quality=image.jpeg_quality)
        own = {STAND_INS: session.sampling, **task.parameters, **given.options()}
        task = task.model_copy(update={"parameters": own})
        model = session.model(given, task.role, "vision")
        try:
            return await run_task(session.asker, task, photo, values, model=model)
        except WrongVariable as error:
            raise BadRequest(_sentence(error), param=error.name) from None

    def _task(self, name: str, parser: str | None) -> Task:
        try:
            task = self._tasks().find(name)
        except UnknownTask as error:
            raise BadRequest(_sentence(error), param="task") from None
        except TaskError as error:
            raise Unavailable(_sentence(error)) from None
        if parser is not None and task.parser != parser:
            raise BadRequest(f"The task {task.id!r} does not end in a text; /api/tag is for tags.", param="task")
        if parser is None and task.parser not in {"tags", "keywords"}:
            raise BadRequest(f"The task {task.id!r} gives no tags; /api/describe is for texts.", param="task")
        return task

    # -- questions without a task

    async def chat(self, given: Input, session: _Session) -> Response:
        check_fields(given, session.path)
        conversation = Conversation(self._prepared)
        await conversation.read(given)
        model = session.model(given, SEES, "vision") if conversation.sees else session.model(given, CHATS, "text")
        reply = await session.ask(given, model, conversation.messages, **response_format(given))
        answer, headers = chat_answer(reply), shown_headers(reply.headers)
        if given.fields.get("stream") is True:  # a stream of one line, which Ollama's clients take
            return Response(orjson.dumps(answer) + b"\n", media_type="application/x-ndjson", headers=headers)
        return Json(answer, headers=headers)

    async def embeddings(self, given: Input, session: _Session) -> Response:
        check_fields(given, session.path)
        name = next((n for n in ("input", "text", "texts", "prompt") if given.fields.get(n) is not None), "input")
        texts = _texts(given.fields.get(name), name)
        model = session.model(given, EMBEDS, "embedding")
        body = {"model": model, "input": texts, "encoding_format": "float"}
        try:
            response = await session.client.post(_EMBEDDINGS, json=body, timeout=None)
        except httpx.HTTPError as error:
            raise UpstreamError(f"The answer broke off: {error}.") from None
        headers = shown_headers(response.headers)
        if response.status_code != httpx.codes.OK:
            return Response(response.content, response.status_code, headers, "application/json")
        vectors = _vectors(response.content, len(texts))
        answer: dict[str, Any] = {
            "embeddings": vectors,
            "model": unquote(headers["x-rolecall-model"]),
            "dimensions": len(vectors[0]),
        }
        if isinstance(given.fields.get(name), str):
            answer["embedding"] = vectors[0]
        return Json(answer, headers=headers)


def _texts(value: object, name: str) -> list[str]:
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not listed or not all(isinstance(text, str) and text for text in listed):
        raise BadRequest(f"The field {name!r} must be a text, or a list of texts; none may be empty.", param=name)
    if len(listed) > _MOST_TEXTS:
        raise BadRequest(f"There are {len(listed)} texts; {_MOST_TEXTS} are the most.", param=name)
    for text in listed:
        check_length(text, name)
    return listed


def _vectors(content: bytes, count: int) -> list[list[float]]:
    """Return the vectors of an answer in the order of the texts; raises ``UpstreamError`` for one that is none."""
    try:
        rows = sorted(orjson.loads(content)["data"], key=lambda row: int(row["index"]))
        vectors = [row["embedding"] for row in rows]
    except (ValueError, LookupError, TypeError):
        vectors = []
    if len(vectors) != count or not all(isinstance(vector, list) for vector in vectors):
        raise UpstreamError("The engine's answer holds no vector for each text.", code="rubbish_answer")
    return vectors


def _text_of(outcome: Outcome) -> str:
    if outcome.problem is not None or not isinstance(outcome.value, str):
        problem = outcome.problem or "it is no text"
        raise UpstreamError(f"The answer of {outcome.model!r} cannot be used: {problem}.", code="unusable_answer")
    return outcome.value


def _sentence(error: Exception) -> str:
    """Return what an error says with a capital at its start, and a mark at its end."""
    words = str(error)
    return words[:1].upper() + words[1:] + ("" if words.endswith(("?", ".", "!")) else ".")


async def _unless_gone(request: Request, work: Awaitable[Response]) -> Response:
    """Return what the work comes to; raises ``ClientGone``, with the work ended, if the client leaves first."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        watch.cancel()
        task.cancel()
        await asyncio.wait({task})


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
