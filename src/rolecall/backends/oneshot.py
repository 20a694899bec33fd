"""llama.cpp without a server: ``python -m rolecall.backends.oneshot``, one process of it for each request.

For machines with little memory: the model is loaded for an answer and gone after it. To rolecall this is an engine
like any other (``GET /health``, ``GET /v1/models``, ``POST /v1/chat/completions``, streamed or not; with a key from
``LLAMA_API_KEY``, which all but ``/health`` then ask for); it starts
``llama-completion`` (``llama-cli`` of builds before December 2025) for text and ``llama-mtmd-cli`` for images, one at a
time, and the others wait. A client that leaves, and SIGTERM, end the program at once.

What reaches the model: all messages, with their roles and in their order, laid out by the model's own chat template
(``oneshot_template``), images where they stood. What does not: tools (400), log probabilities, more than one answer.
Reasoning stands in the answer as the model writes it. Sampling options, ``max_tokens``, ``stop``, ``seed`` and
``response_format`` apply to each request; sizes, such as ``--ctx-size``, are given at the start, behind ``--``.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from rolecall.backends.oneshot_request import Order, read
from rolecall.backends.oneshot_run import Programs, Run, Spool, find_problem, sweep
from rolecall.backends.oneshot_template import template_of
from rolecall.core.models import flag_value
from rolecall.errors import BadRequest, RolecallError

_CHECK_S = 30.0


class OneShot:
    """Answers requests one after the other."""

    def __init__(self, programs: Programs, spool: Spool, alias: str) -> None:
        self._programs = programs
        self._spool = spool
        self._alias = alias
        self._turn = asyncio.Lock()
        self._run: Run | None = None

    def app(self) -> Starlette:
        """Return the HTTP interface."""
        return Starlette(
            routes=[
                Route("/health", self._health),
                Route("/v1/models", self._models),
                Route("/v1/chat/completions", _Chat(self), methods=["POST"]),
            ]
        )

    def kill(self) -> None:
        """End the program that runs, if one does."""
        if self._run:
            self._run.kill()

    async def _health(self, request: Request) -> Response:
        del request
        return JSONResponse({"status": "ok"})

    async def _models(self, request: Request) -> Response:
        del request
        return JSONResponse(
            {"object": "list", "data": [{"id": self._alias, "object": "model", "owned_by": "llamacpp"}]}
        )

    async def answer(self, order: Order, exchange: Exchange) -> None:
        """Answer one request once it is its turn."""
        async with self._turn:
            run = self._run = Run(self._programs, order, self._spool)
            try:
                async with aclosing(run.pieces()) as pieces:
                    async for piece in pieces:
                        await exchange.piece(piece)
                await exchange.end(run)
            except RolecallError as error:
                await exchange.fail(error)
            finally:
                self._run = None
                run.kill()
                await asyncio.shield(run.gone())

    def exchange(self, order: Order, send: Send) -> Exchange:
        """Return what writes the answer to a request."""
        return Exchange(order, self._alias, send)


class Guarded:
    """Lets nobody in who does not show the key; whether the engine is well is told to everybody."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._expected = f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401 as llama-server does."""
        if scope["type"] == "http" and scope["path"] != "/health" and not self._is_shown(scope):
            error = {"code": 401, "message": "Invalid API Key", "type": "authentication_error"}
            await JSONResponse({"error": error}, 401)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _is_shown(self, scope: Scope) -> bool:
        shown = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(shown, self._expected)


class Exchange:
    """Writes one answer in llama-server's form: chunks as they come, or a whole completion at the end.

    The head of a stream goes out with the first words, so that a program that fails before them is an HTTP error.
    """

    def __init__(self, order: Order, alias: str, send: Send) -> None:
        self._order = order
        self._send = send
        self._common = {"created": int(time.time()), "id": f"chatcmpl-{uuid.uuid4().hex}", "model": alias}
        self._text: list[str] = []
        self._has_head = False

    async def piece(self, text: str) -> None:
        """Pass on what came of the answer."""
        if not self._order.stream:
            self._text.append(text)
            return
        await self._open()
        await self._chunk({"content": text}, None)

    async def end(self, run: Run) -> None:
        """Write what stands at the end of an answer: its reason, its tokens."""
        if not self._order.stream:
            message = {"role": "assistant", "content": "".join(self._text)}
            choice = {"finish_reason": run.finish_reason, "index": 0, "message": message}
            await self._whole(200, {"choices": [choice], "object": "chat.completion", **_usage(run), **self._common})
            return
        await self._open()
        await self._chunk({}, run.finish_reason)
        if self._order.wants_usage and _usage(run):
            await self._event({"choices": [], "object": "chat.completion.chunk", **_usage(run), **self._common})
        await self._send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def fail(self, error: RolecallError) -> None:
        """Say that there is no answer, or that it breaks off here."""
        if not self._has_head:
            await self._whole(error.status, error.body())
            return
        await self._event(error.body())
        await self._send({"type": "http.response.body", "body": b""})

    async def _open(self) -> None:
        if not self._has_head:
            self._has_head = True
            await self._head(200, b"text/event-stream")
            await self._chunk({"role": "assistant", "content": None}, None)

    async def _chunk(self, delta: dict[str, Any], finish_reason: str | None) -> None:
        choice = {"finish_reason": finish_reason, "index": 0, "delta": delta}
        await self._event({"choices": [choice], "object": "chat.completion.chunk", **self._common})

    async def _event(self, value: Any) -> None:
        data = b"data: " + json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") + b"\n\n"
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def _whole(self, status: int, value: Any) -> None:
        self._has_head = True
        await self._head(status, b"application/json; charset=utf-8")
        await self._send(
            {"type": "http.response.body", "body": json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")}
        )

    async def _head(self, status: int, content_type: bytes) -> None:
        await self._send(
            {"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type)]}
        )


class _Chat:
    """The route of chat completions, as a plain ASGI application: it has to see that its client leaves."""

    def __init__(self, oneshot: OneShot) -> None:
        self._oneshot = oneshot

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the request, and answer it unless its client leaves before."""
        try:
            order = read(_parse(await Request(scope, receive).body()))
        except ClientDisconnect:
            return
        except RolecallError as error:
            await JSONResponse(error.body(), error.status)(scope, receive, send)
            return
        answering = asyncio.create_task(self._oneshot.answer(order, self._oneshot.exchange(order, send)))
        leaving = asyncio.create_task(_until_gone(receive))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not answering.done():
                answering.cancel()
            await asyncio.wait({answering})
        if not answering.cancelled():
            answering.result()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        raise BadRequest("The body is no JSON.") from None
    except RecursionError:
        raise BadRequest("The body is nested too deeply.") from None


def _usage(run: Run) -> dict[str, dict[str, int]]:
    """``llama-mtmd-cli`` tells nothing of tokens, and a program that was ended at a stop word did not come to it."""
    if run.prompt_tokens is None or run.completion_tokens is None:
        return {}
    total = run.prompt_tokens + run.completion_tokens
    counts = {"completion_tokens": run.completion_tokens, "prompt_tokens": run.prompt_tokens, "total_tokens": total}
    return {"usage": counts}


class _Server(uvicorn.Server):
    """uvicorn, which ends the program before the connections."""

    def __init__(self, config: uvicorn.Config, oneshot: OneShot, spool: Spool) -> None:
        super().__init__(config)
        self._oneshot = oneshot
        self._spool = spool

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End what runs; its stream then breaks off with an error."""
        self._oneshot.kill()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: Any = None) -> None:
        """Leave no file behind; uvicorn raises the signal again after this."""
        await super().shutdown(sockets)
        self._spool.remove()


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal ends the process; returns 1 when it cannot begin, with the reason on stderr."""
    given = list(sys.argv[1:] if argv is None else argv)
    cut = given.index("--") if "--" in given else len(given)
    arguments, flags = _arguments().parse_args(given[:cut]), tuple(given[cut + 1 :])
    try:
        programs = _programs(arguments, flags)
        for path in sweep(arguments.spool):
            sys.stderr.write(f"removed what an earlier run left: {path}\n")
        spool = Spool(arguments.spool)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    oneshot = OneShot(programs, spool, arguments.alias or Path(arguments.model).name)
    key = os.environ.pop("LLAMA_API_KEY", "")  # the programs need not know it
    app = Guarded(oneshot.app(), key) if key else oneshot.app()
    config = uvicorn.Config(
        app, host=arguments.host, port=arguments.port, log_level="warning", timeout_graceful_shutdown=1
    )
    # SIGINT reaches the program from the terminal by itself.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _Server(config, oneshot, spool).run()
    finally:
        spool.remove()
    return 0


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m rolecall.backends.oneshot", allow_abbrev=False)
    parser.add_argument("--cli", help="llama-completion, or the llama-cli of an older build: for text")
    parser.add_argument("--mtmd-cli", help="llama-mtmd-cli: for images")
    parser.add_argument("--model", required=True)
    parser.add_argument("--mmproj")
    parser.add_argument("--alias")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    default = Path(tempfile.gettempdir())
    parser.add_argument("--spool", type=Path, default=default, help="folder for what the programs read")
    parser.epilog = "What follows -- is passed on to the programs."
    return parser


def _programs(arguments: argparse.Namespace, flags: tuple[str, ...]) -> Programs:
    """Raises ``OSError`` or ``ValueError`` with the reason why no request could be answered."""
    template = _template(Path(arguments.model), flags)
    programs = Programs(arguments.cli, arguments.mtmd_cli, arguments.model, arguments.mmproj, template, flags)
    problem = find_problem(programs, (arguments.model, arguments.mmproj))
    if problem is None and not (programs.text or programs.mtmd):
        problem = "neither --cli nor --mtmd-cli is given"
    if problem is None and programs.text and not _is_single_shot(programs.text):
        problem = f"{programs.text} only talks to a person; put llama-completion of the same build beside it"
    if problem:
        raise ValueError(problem)
    return programs


def _template(model: Path, flags: Sequence[str]) -> str:
    file, text = flag_value(flags, "--chat-template-file"), flag_value(flags, "--chat-template")
    if file:
        return Path(file).read_text(encoding="utf-8")
    if text and "{" not in text:
        raise ValueError(f"--chat-template {text}: in mode cli give the template itself, by --chat-template-file")
    return text or template_of(model)


def _is_single_shot(program: str) -> bool:
    """Whether it answers and ends: llama-cli became a chat program with commands of its own in December 2025."""
    told = subprocess.run([program, "--help"], capture_output=True, timeout=_CHECK_S, check=False)
    return b"-no-cnv" in told.stdout + told.stderr


if __name__ == "__main__":
    sys.exit(main())
