"""What an engine answered instead of an answer, as the error that a client is told.

The words are the engine's; the status is the one after which clients do the right thing. Sources: llama.cpp
tools/server/server-context.cpp and server-common.cpp (run: build 11549), vLLM 0.32
vllm/entrypoints/serve/exception_handling and vllm/renderers/params.py, Ollama openai/openai.go and llm/llama_server.go.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from rolecall.core.endpoints import CHAT, DETOKENIZE, PROMPT_FIELDS
from rolecall.core.media import Medium, images
from rolecall.core.overflow import MAX_READ, read_overflow
from rolecall.errors import (
    BadRequest,
    BodyTooLarge,
    ContextLengthExceeded,
    EngineBusy,
    InvalidImage,
    ModelLoading,
    NotImplementedByEngine,
    RolecallError,
    TooManyRequests,
    UnsupportedInput,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
)

MAX_QUOTED = 600
"""Characters of an engine's words that are passed on: some quote the whole request."""
_MAX_CODE = 100
_CODE = re.compile(r"[\w.:-]{1,100}")

RETRY_S = 5.0
"""When to come back to an engine that is busy and does not say for how long."""

_OVERFLOW = re.compile(
    r"context_length_exceeded|exceed_context_size"
    r"|(?:longer than|exceed(?:s|ed|ing)?|larger than|too (?:long|large) for)[^.]{0,60}"
    r"(?:context (?:length|size|window)|max_model_len|maximum model length)"
    r"|context (?:length|window|size) (?:is |was )?exceeded|prompt is too long",
    re.IGNORECASE,
)
"""An engine's code, type or words about a prompt that does not fit; what has numbers is known to `core.overflow`."""
_FULL_CACHE = "Context size has been exceeded"
"""llama.cpp's (500) for the requests that it answers at once and that share one cache: together they filled it."""
_TOO_LARGE_AT_ONCE = re.compile(
    r"input \((\d{1,12}) tokens\) is too large to process[^\n]{0,200}?batch size: (\d{1,12})"
)
"""llama.cpp's (500) for a text to embed or rank: it has to fit into one batch, ``--ubatch-size``."""
_OTHER_SIZE = "encoder prompt"
"""vLLM's, in a sentence like that of an overflow: one picture is too large for the encoder."""
_UNSUPPORTED = re.compile(
    r"(?:image|audio|video) input is not supported|provide the mmproj|is not a multimodal model"
    r"|At most 0 (?:image|audio|video)|does not support (?:image|audio|video|vision|multimodal)"
    r"|missing data required for image input",
    re.IGNORECASE,
)
_CLIENTS_FAULT = re.compile(
    r"Failed to parse (?:tools|messages|grammar|tool call)|Unable to generate parser|JSON schema error|json\.exception"
    r"|Jinja Exception|roles must alternate|(?:load|decode|process|download) (?:the )?(?:image|audio)|make GET request",
    re.IGNORECASE,
)
"""What engines answer with 500 although the request is to blame: it would fail again and again."""
_BAD_IMAGE = re.compile(r"(?:load|open|decode|process|identify) (?:the )?image", re.IGNORECASE)
"""llama.cpp: "Failed to load image or audio file" (500); vLLM: "Failed to load image", "cannot identify image file"."""
_PHRASES = (_UNSUPPORTED, _CLIENTS_FAULT)
_OURS = re.compile(r"The engine (?:says|gave up|failed \(\d{3}\)|finds the request too large): ")
_QUOTATION = re.compile(r"""["`“„«‘{\[<=:\n]|(?<!\w)'""")
_MAX_UNQUOTED = 200
_NO_SUCH_TOKEN = re.compile(r"_M_range_check|out of (?:range|vocabulary)|list index", re.IGNORECASE)
"""What is left of a look-up in the vocabulary: libstdc++'s words in llama.cpp (500), Python's and tokenizers'."""
_NO_ROUTE = re.compile(r"File Not Found|404 page not found|Not Found|Method Not Allowed", re.IGNORECASE)
"""The whole of what servers say of a path that they do not have: llama.cpp, Ollama, vLLM."""

_PATH = re.compile(r"(?<![\w:/#.~])~?(?!/(?:v1|api)/)(?:/[\w.@+~-]+)+/([\w.@+~-]+)")
_SECRET = re.compile(
    r"\bbearer\s+[\w.~+/-]{6,}=*|\b(?:sk|hf|gsk|pk)[-_][\w-]{8,}"
    r"|\b(?:api[_-]?key|token|password)[\"']?\s*[=:]\s*[\"']?[\w.~-]{6,}",
    re.IGNORECASE,
)
_BLOB = re.compile(r"(?<![A-Za-z0-9+/=_-])[A-Za-z0-9+/=_-]{160,}")

_INSTEAD = {
    "/v1/embeddings": "Ask a model with the capability embedding.",
    "/v1/rerank": "Ask a model with the capability rerank.",
    "/v1/score": "Ask a model with the capability rerank.",
    "/v1/audio/": "Ask a model with the capability audio.",
    "/v1/responses": "Use /v1/chat/completions.",
    "/v1/messages": "Use /v1/chat/completions.",
    "/v1/completions": "Use /v1/chat/completions.",
    "/tokenize": "Models of llama.cpp and vLLM have it.",
    "/detokenize": "Models of llama.cpp and vLLM have it.",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked when the engine answered with an error: the endpoint, the entry's name, the media of the body."""

    endpoint: str = ""
    model: str = ""
    media: Sequence[Medium] = ()

    @property
    def field(self) -> str | None:
        """The field that holds what the model reads; ``messages`` where no endpoint is named."""
        return PROMPT_FIELDS.get(self.endpoint or CHAT)


@dataclass(frozen=True, slots=True)
class _Told:
    """An engine's error: how its message begins, the same fit for the client, its code and type, the field it means."""

    message: str
    words: str
    kinds: str
    code: str | None
    param: str | None


def quoted(text: str) -> str:
    """Return an engine's words fit for a client: no keys, of a path the last part, no blobs, not too long."""
    text = _SECRET.sub("[redacted]", text[: 20 * MAX_QUOTED])
    text = _BLOB.sub("…", _PATH.sub(r"\1", text)).strip()
    return text if len(text) <= MAX_QUOTED else text[: MAX_QUOTED - 1] + "…"


def without_quotes(words: str) -> str:
    """Return the beginning of an engine's words, up to where they may quote the request, for a log without prompts.

    Quoted may be all that follows a quotation mark, a bracket, a colon, an equals sign or a line's end. llama.cpp:
    "Unsupported tool type: …", "Failed to parse messages: …; messages = […"; vLLM: pydantic's words. Of what follows
    the known phrases stay, which say what is wrong.
    """
    ours = _OURS.match(words)
    start = ours.end() if ours else 0
    found = _QUOTATION.search(words, start)
    if found is None and len(words) <= _MAX_UNQUOTED:
        return words
    end = min(found.start() if found else len(words), start + _MAX_UNQUOTED)
    known = dict.fromkeys(phrase[0] for pattern in _PHRASES for phrase in pattern.finditer(words, end, MAX_READ))
    return " … ".join([f"{words[:end].rstrip()} …".lstrip(), *known])


def read_error(status: int, said: Any, asked: Asked = Asked(), *, retry_after_s: float | None = None) -> RolecallError:
    """Return what an engine's error answer means for the client.

    ``status`` is the engine's (400 to 599), ``said`` its parsed JSON, its text where that is none, None if it said
    nothing; ``retry_after_s`` is its header ``retry-after``.
    """
    told = _listen(status, said)
    wait_s = RETRY_S if retry_after_s is None else retry_after_s

    def meaning(told: _Told) -> RolecallError:
        return _too_long(said, told, asked) or _wrong_input(told, asked) or _by_status(status, told, asked, wait_s)

    error = meaning(told)
    error.discreet = meaning(replace(told, words=without_quotes(told.words))).message
    return error


def read_event(message: Mapping[str, Any], asked: Asked = Asked()) -> RolecallError:
    """Return what an error within a stream means: the same, by the status that it says it would have had."""
    fields = _fields(message)[1]
    code = fields.get("code")
    return read_error(code if isinstance(code, int) and 400 <= code < 600 else 500, message, asked)


def _listen(status: int, said: Any) -> _Told:
    message, fields = _fields(said)
    code, kind, param = (fields.get(name) for name in ("code", "type", "param"))
    return _Told(
        message=message[:MAX_READ],
        words=quoted(message) or f"(the status {status} and no reason)",
        kinds=f"{code} {kind}"[:MAX_READ],
        code=code if isinstance(code, str) and _CODE.fullmatch(code) and not code.isdecimal() else None,
        param=param[:_MAX_CODE] if isinstance(param, str) and param else None,
    )


def _fields(said: Any) -> tuple[str, Mapping[str, Any]]:
    """Return the message and the fields of an error in any of the shapes that engines give it.

    ``{"error": {"message"}}``, ``{"error": "text"}`` (Ollama's own API), ``{"message"}`` (vLLM before 0.10),
    ``{"detail": "text"}`` or ``[{"msg", "loc"}]`` (FastAPI), text.
    """
    if not isinstance(said, Mapping):
        return ("" if said is None else said if isinstance(said, str) else _dump(said)), {}
    error = said.get("error") or said.get("detail") or said.get("message")
    if isinstance(error, list) and error and isinstance(error[0], Mapping):
        place = error[0].get("loc")
        return str(error[0].get("msg", "")), {"param": ".".join(map(str, place)) if isinstance(place, list) else None}
    if isinstance(error, Mapping):
        text = error.get("message")
        return (text if isinstance(text, str) and text else _dump(error)), error
    return (error if isinstance(error, str) else _dump(said)), said


def _dump(said: Any) -> str:
    return orjson.dumps(said).decode()


def _too_long(said: Any, told: _Told, asked: Asked) -> RolecallError | None:
    """Return the error for a prompt that is longer than the context.

    Without numbers, in Ollama's words: "the input length exceeds the context length", "the prompt is longer than the
    context length currently available to the model". SGLang: "The input (… tokens) is longer than the model's context
    length".
    """
    if _FULL_CACHE in told.message:
        return EngineBusy(
            "The requests that the engine answers at once share one context and have filled it. Send it again.",
            retry_after_s=2,
        )
    if _OTHER_SIZE in told.message:
        return BadRequest(told.words, param=asked.field)
    if at_once := _TOO_LARGE_AT_ONCE.search(told.message):
        return ContextLengthExceeded(int(at_once[1]), int(at_once[2]), f"The engine says: {told.words}", asked.field)
    overflow = read_overflow(said)
    if overflow is not None:
        needed = overflow.prompt + overflow.answer if overflow.prompt is not None else None
        return ContextLengthExceeded(needed, overflow.context, f"The engine says: {told.words}", asked.field)
    if _OVERFLOW.search(told.message) or _OVERFLOW.search(told.kinds):
        return ContextLengthExceeded(None, None, f"The engine says: {told.words}", asked.field)
    return None


def _wrong_input(told: _Told, asked: Asked) -> RolecallError | None:
    if _UNSUPPORTED.search(told.message):
        return UnsupportedInput(f"This model takes no such input: {told.words}", param=asked.field)
    return None


def _by_status(status: int, told: _Told, asked: Asked, wait_s: float) -> RolecallError:  # noqa: PLR0911 - a table
    words = told.words
    if status == 501 or (status in {404, 405} and _NO_ROUTE.fullmatch(told.message.strip())):
        return _not_implemented(words, asked)
    if status in {401, 403, 404, 405, 407}:
        return UpstreamRefused(_refusal(status, words, asked))
    if status == 413:
        return BodyTooLarge(f"The engine finds the request too large: {words}")
    if status == 429:
        return TooManyRequests(f"The engine says: {words}", code=told.code, retry_after_s=wait_s)
    if status == 503:
        busy = ModelLoading if "loading model" in told.message.lower() else EngineBusy
        return busy(f"The engine says: {words}", retry_after_s=wait_s)
    if status in {408, 504}:
        return UpstreamTimeout(f"The engine gave up: {words}")
    if asked.endpoint == DETOKENIZE and status >= 500 and _NO_SUCH_TOKEN.search(told.message):
        return BadRequest(f"A token is not in the model's vocabulary: {words}", param="tokens")
    if _BAD_IMAGE.search(told.message) and (pictures := images(asked.media)):
        return _bad_image(told, pictures, asked)
    if status < 500 or _CLIENTS_FAULT.search(told.message):
        return BadRequest(words, param=told.param, code=told.code)
    return UpstreamError(f"The engine failed ({status}): {words}")


def _bad_image(told: _Told, pictures: Sequence[Medium], asked: Asked) -> InvalidImage:
    """Return the error for a picture that the engine cannot read; of several it does not say which one."""
    if len(pictures) > 1:
        what = f"One of the {len(pictures)} images cannot be read by the engine: {told.words}"
        return InvalidImage(what, param=asked.field, code=told.code)
    param = pictures[0].param
    return InvalidImage(f"Image 0 at {param} cannot be read by the engine: {told.words}", param=param, code=told.code)


def _not_implemented(words: str, asked: Asked) -> RolecallError:
    instead = next((hint for path, hint in _INSTEAD.items() if asked.endpoint.startswith(path)), "")
    what = f"The engine of {asked.model!r} does not serve {asked.endpoint}: {words}"
    return NotImplementedByEngine(f"{what.rstrip('.')}. {instead}".rstrip(), param="model")


def _refusal(status: int, words: str, asked: Asked) -> str:
    if status in {404, 405}:
        return (
            f"The engine does not know {asked.model!r} by the name that rolecall has for it; served_model_id of its "
            f"entry has to be what the engine calls it. The engine says: {words}"
        )
    return (
        f"The engine of {asked.model!r} refuses rolecall's own key ({status}), which is not the client's. For a server "
        "that others run, backend_config.api_key_env of its entry names the variable that has to hold the right one. "
        f"The engine says: {words}"
    )
