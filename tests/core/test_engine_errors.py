"""What engines answer instead of an answer, and what clients are told of it."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.core.endpoints import CHAT
from rolecall.core.engine_errors import MAX_QUOTED, RETRY_S, Asked, quoted, read_error, read_event, without_quotes
from rolecall.core.media import Medium
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

ASKED = Asked("/v1/embeddings", "org/embed")

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["error", "message", "detail", "code", "param", "msg", "loc"]), inner)
    ),
    max_leaves=8,
)


def llama(code: int, message: str, kind: str = "server_error", **more: Any) -> tuple[int, Any]:
    """Return an error as llama.cpp has it."""
    return code, {"error": {"code": code, "message": message, "type": kind, **more}}


def vllm(code: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> tuple[int, Any]:
    """Return an error as vLLM has it."""
    return code, {"error": {"message": message, "type": kind, "param": param, "code": code}}


@given(status=st.integers(400, 599), said=JSON | st.text())
def test_whatever_an_engine_says_is_an_error_in_openais_shape(status: int, said: Any) -> None:
    """No answer of an engine is beyond telling: there is a message, not too long, and a status of an error."""
    error = read_error(status, said, ASKED)
    fields = error.body()["error"]
    assert list(fields) == ["message", "type", "param", "code"]
    assert 0 < len(fields["message"]) < MAX_QUOTED + 300
    assert 400 <= error.status < 600
    assert error.status not in {408, 409}  # clients would send the same once more


@pytest.mark.parametrize(
    ("answer", "needed", "context"),
    [
        (
            llama(
                400,
                "request (3021 tokens) exceeds the available context size (512 tokens), try increasing it",
                "exceed_context_size_error",
                n_prompt_tokens=3021,
                n_ctx=512,
            ),
            3021,
            512,
        ),
        (
            vllm(
                400,
                "This model's maximum context length is 2048 tokens. However, your prompt contains at least 2049 input "
                "tokens, which exceeds this limit even without any output tokens. Please reduce the length of the "
                "input prompt. (parameter=input_tokens, value=2049)",
                param="input_tokens",
            ),
            2049,
            2048,
        ),
        (
            vllm(
                400,
                "This model's maximum context length is 16384 tokens. However, you requested 122946 tokens (112946 in "
                "the messages, 10000 in the completion). Please reduce the length of the messages or completion.",
            ),
            122946,
            16384,
        ),
        (vllm(400, "The engine prompt length 3000 exceeds the max_model_len 2048. Please reduce prompt."), None, None),
        ((400, {"error": {"message": "the input length exceeds the context length", "type": "api_error"}}), None, None),
        (
            (
                400,
                {
                    "error": "the prompt is longer than the context length currently available to the model; shorten "
                    "the prompt, adjust the context length in settings, or use a model with a longer context length"
                },
            ),
            None,
            None,
        ),
        (
            llama(
                500,
                "input (501 tokens) is too large to process. increase the physical batch size (current batch size: 64)",
            ),
            501,
            64,
        ),
        ((400, {"error": {"message": "Too much.", "code": "context_length_exceeded"}}), None, None),
        ((400, {"message": "The input (3000 tokens) is longer than the model's context length (2048 tokens)."}), 0, 0),
    ],
)
def test_too_long_a_prompt(answer: tuple[int, Any], needed: int | None, context: int | None) -> None:
    """Every engine's words for it become OpenAI's code and the beginning of its sentence, with numbers if there are."""
    error = read_error(*answer)
    assert isinstance(error, ContextLengthExceeded)
    assert (error.status, error.code, error.param) == (400, "context_length_exceeded", "messages")
    assert error.message.startswith("This model's maximum context length ")
    if needed != 0:
        assert (error.needed_tokens, error.context_tokens) == (needed, context)


HOSTILE = (
    *(
        "exceed",
        "exceed_",
        "exceeds ",
        "longer than ",
        "context length is ",
        "maximum model length of ",
        "prompt (length ",
    ),
    *("input (1 tokens) is too large to process", "(1", "1", "requested 1 ", "resulted in 1", "does not support "),
    *("At most 0 ", "download ", "Failed to parse ", "/a", "-/a", "~/", "/v1/", "sk-", "bearer ", "token ", "token\t="),
    *("a", "a" * 159 + " ", " ", "\n", "[", '"', "Not Found"),
)
"""What searches for an engine's words may stumble over, again and again."""


@pytest.mark.parametrize("piece", HOSTILE, ids=lambda piece: repr(piece[:20]))
@pytest.mark.parametrize("status", [400, 404, 500])
def test_a_quoted_request_takes_no_time_to_read(piece: str, status: int) -> None:
    """An engine's error may quote megabytes of the client's choice: the loop, which all requests share, goes on."""
    text = piece * (2**20 // len(piece))
    began = time.process_time()
    for said in (text, {"error": {"message": text, "code": text, "type": text}}, {"detail": [{"msg": text}]}):
        read_error(status, said, ASKED)
    assert time.process_time() - began < 0.5  # it takes some milliseconds


def test_words_of_the_request_make_no_other_error() -> None:
    """What stands far behind in an engine's message is what it quotes; and a code is a short word."""
    quotes = "Failed to parse messages: bad role; messages = " + "x " * 4000
    error = read_error(*llama(500, f"{quotes} maximum context length is 1 tokens, image input is not supported"))
    assert type(error) is BadRequest
    assert read_error(400, {"error": {"message": "no", "code": "c" * 1000}}).code == "invalid_request"


def test_numbers_stay_unknown_where_only_the_limit_is_said() -> None:
    """An overflow of which the engine says the limit alone is one all the same."""
    error = read_error(*vllm(400, "This model's maximum context length is 4096 tokens, and that is less."))
    assert isinstance(error, ContextLengthExceeded)
    assert (error.needed_tokens, error.context_tokens) == (None, 4096)


@pytest.mark.parametrize(
    ("answer", "kind", "status"),
    [
        (llama(500, "image input is not supported - hint: you may need to provide the mmproj"), UnsupportedInput, 400),
        (llama(500, "audio input is not supported - hint: you may need to provide the mmproj"), UnsupportedInput, 400),
        (vllm(400, "At most 0 image(s) may be provided in one prompt."), UnsupportedInput, 400),
        (vllm(400, "org/model is not a multimodal model"), UnsupportedInput, 400),
        (llama(500, "Context size has been exceeded."), EngineBusy, 503),
        (
            vllm(400, "The encoder prompt (length 9000) is longer than the maximum model length of 4096."),
            BadRequest,
            400,
        ),
        (llama(501, "This server does not support embeddings.", "not_supported_error"), NotImplementedByEngine, 501),
        (llama(404, "File Not Found", "not_found_error"), NotImplementedByEngine, 501),
        ((404, {"detail": "Not Found"}), NotImplementedByEngine, 501),
        ((404, "404 page not found"), NotImplementedByEngine, 501),
        ((405, {"detail": "Method Not Allowed"}), NotImplementedByEngine, 501),
        (vllm(404, "The model `x` does not exist.", "NotFoundError"), UpstreamRefused, 502),
        ((404, {"error": {"message": "model 'x' not found", "type": "api_error"}}), UpstreamRefused, 502),
        ((401, {"error": "Unauthorized"}), UpstreamRefused, 502),
        (llama(401, "Invalid API Key", "authentication_error"), UpstreamRefused, 502),
        ((403, "forbidden"), UpstreamRefused, 502),
        (llama(503, "Loading model", "unavailable_error"), ModelLoading, 503),
        ((503, {"error": "server busy, please try again.  maximum pending requests exceeded"}), EngineBusy, 503),
        ((429, {"error": {"message": "slow down", "code": "insufficient_quota"}}), TooManyRequests, 429),
        ((413, None), BodyTooLarge, 413),
        ((408, "slow"), UpstreamTimeout, 504),
        ((504, "gateway"), UpstreamTimeout, 504),
        (llama(400, "Failed to initialize samplers: failed to parse grammar"), BadRequest, 400),
        (llama(400, "JSON schema error at #: unrecognized type nonsense"), BadRequest, 400),
        (llama(500, "Failed to parse tools: Expected 'tools' to be an array, got \"x\""), BadRequest, 400),
        (llama(500, "Failed to load image or audio file"), BadRequest, 400),
        (llama(500, "error: cannot make GET request"), BadRequest, 400),
        ((422, {"detail": [{"loc": ["body", "n"], "msg": "too many"}]}), BadRequest, 400),
        ((409, "conflict"), BadRequest, 400),
        (llama(500, "Compute error."), UpstreamError, 502),
        (vllm(500, "EngineCore encountered an issue.", "InternalServerError"), UpstreamError, 502),
        ((500, None), UpstreamError, 502),
        ((500, []), UpstreamError, 502),
    ],
)
def test_statuses(answer: tuple[int, Any], kind: type[RolecallError], status: int) -> None:
    """What no retry mends is 400, 404 or 501, what is nobody's fault now is 503, and rolecall's own faults are 502."""
    error = read_error(*answer, ASKED)
    assert type(error) is kind
    assert error.status == status


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"error": {"message": "a"}}, "a"),
        ({"error": "a"}, "a"),
        ({"message": "a", "object": "error"}, "a"),
        ({"detail": "a"}, "a"),
        ({"detail": [{"loc": ["body"], "msg": "a"}]}, "a"),
        ("a", "a"),
        ({"error": {"code": 7}}, '{"code":7}'),
        ({"oops": 1}, '{"oops":1}'),
        ([1], "[1]"),
        (None, "(the status 400 and no reason)"),
    ],
)
def test_shapes_of_errors(said: Any, message: str) -> None:
    """The words are found in each shape that engines give them; what has none is shown as it is."""
    assert read_error(400, said).message == message


def test_the_engines_own_field_and_code_stay() -> None:
    """``param`` and a ``code`` in words are kept; a number is no code."""
    error = read_error(*vllm(400, "temperature must be non-negative", param="temperature"))
    assert (error.param, error.code) == ("temperature", "invalid_request")
    said = {"error": {"message": "no", "code": "content_policy_violation", "param": ""}}
    assert (read_error(400, said).param, read_error(400, said).code) == (None, "content_policy_violation")
    assert read_error(429, said).code == "content_policy_violation"
    assert read_error(400, {"detail": [{"loc": ["body", 0], "msg": "a"}]}).param == "body.0"
    assert read_error(400, {"detail": [{"loc": 3, "msg": "a"}]}).param is None


IMAGE = Medium("image", ("messages", 1, "content", 2, "image_url", "url"))


@pytest.mark.parametrize(
    "answer", [llama(500, "Failed to load image or audio file"), vllm(400, "Failed to load image: cannot identify")]
)
def test_an_image_that_the_engine_cannot_read(answer: tuple[int, Any]) -> None:
    """The only one is named as the client knows it; of several the engine does not say which it was."""
    one = read_error(*answer, Asked(CHAT, "m", (Medium("file", ("a", 0)), IMAGE)))
    assert (type(one), one.param, one.code) == (InvalidImage, "messages[1].content[2]", "invalid_image")
    assert one.message.startswith(
        "Image 0 at messages[1].content[2] cannot be read by the engine: Failed to load image"
    )
    two = read_error(*answer, Asked(CHAT, "m", (IMAGE, IMAGE)))
    assert (type(two), two.param) == (InvalidImage, "messages")
    assert two.message.startswith("One of the 2 images cannot be read by the engine: Failed to load image")


def test_when_to_come_back() -> None:
    """The engine's own time counts, else a few seconds."""
    assert read_error(503, "busy", retry_after_s=9).retry_after_s == 9
    assert read_error(429, "busy").retry_after_s == RETRY_S


def test_what_to_use_instead() -> None:
    """An engine without an endpoint: the message names the way out, and clients are told not to retry."""
    error = read_error(*llama(501, "This server does not support embeddings. Start it with `--embeddings`"), ASKED)
    assert "'org/embed' does not serve /v1/embeddings" in error.message
    assert error.message.endswith("Ask a model with the capability embedding.")
    assert error.headers()["x-should-retry"] == "false"
    assert read_error(501, "no", Asked("/x", "m")).message == "The engine of 'm' does not serve /x: no."


def test_our_own_key_is_not_the_clients_fault() -> None:
    """A client must not take the engine's refusal of rolecall's key for one of its own key."""
    error = read_error(401, {"error": "Invalid API Key"}, Asked("/v1/chat/completions", "m"))
    assert error.status == 502
    assert "api_key_env" in error.message
    assert error.headers() == {"x-should-retry": "false"}
    assert "served_model_id" in read_error(404, {"error": "model not found"}, ASKED).message


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("cannot open /home/me/models/x-Q4.gguf now", "cannot open x-Q4.gguf now"),
        ("see ~/models/x.gguf", "see x.gguf"),
        ("see https://github.com/a/b/c", "see https://github.com/a/b/c"),
        ("POST /v1/chat/completions failed", "POST /v1/chat/completions failed"),
        ("at #/properties/a/type", "at #/properties/a/type"),
        ("type application/json, 3/4 of it", "type application/json, 3/4 of it"),
        ("Bearer abcdef123456 is wrong", "[redacted] is wrong"),
        ("key sk-abcdefgh12345 is wrong", "key [redacted] is wrong"),
        ("api_key='abcdef123'", "[redacted]'"),
        ("input: " + "iVBOR" * 100, "input: …"),
        ("x y " * 400, ("x y " * 400)[: MAX_QUOTED - 1] + "…"),
    ],
)
def test_engines_words_are_made_fit_for_clients(text: str, safe: str) -> None:
    """No keys, no folders, no images in base64, and not too much of it."""
    assert quoted(text) == safe


SECRET = "my private words"


@pytest.mark.parametrize(
    ("status", "said", "kept"),
    [
        (500, f"Failed to parse messages: Missing 'role'; messages = [{SECRET}]", ["Failed to parse messages …"]),
        (400, f"Unsupported tool type: {SECRET}", ["Unsupported tool type …"]),
        (400, f"Jinja Exception: roles must alternate: {SECRET}", ["Jinja Exception …", "roles must alternate"]),
        (400, f"[{{'type': 'missing', 'input': '{SECRET}'}}]", []),
        (500, f"Something broke\n{SECRET}", ["The engine failed (500): Something broke …"]),
        (500, "Compute error", ["The engine failed (500): Compute error"]),
        (500, "It isn't the client's fault", ["It isn't the client's fault"]),
        (500, f"invalid literal for int() with base 10: '{SECRET}'", ["invalid literal for int() with base 10"]),
        (503, f"busy with `{SECRET}`", ["The engine says: busy with …"]),
        (501, f"no {{{SECRET}", ["does not serve /v1/embeddings: no …"]),
        (401, f"who is “{SECRET}”?", ["api_key_env", "who is …"]),
        (429, f"x={SECRET}", ["x …"]),
        (400, f"image input is not supported - hint: {SECRET}", ["image input is not supported - hint …"]),
        (400, "a " * 150 + SECRET, ["a a …"]),
        (400, {"error": {"message": "no", "code": SECRET}}, ["no"]),
        (400, {"error": {"message": f"request (9 tokens) exceeds the context size (5): {SECRET}"}}, ["(9 tokens)"]),
    ],
)
def test_the_log_gets_the_cause_without_the_request(status: int, said: Any, kept: list[str]) -> None:
    """Where no prompts are to be logged, the engine's words end before what they quote; the client gets them all."""
    error = read_error(status, said, ASKED)
    summary = error.summary(discreetly=True)
    assert SECRET not in summary
    assert all(words in summary for words in kept)
    assert error.summary() == f"{error.code}: {error.message}"


@given(said=st.text(), status=st.integers(400, 599))
def test_a_discreet_summary_is_bounded(said: str, status: int) -> None:
    """Whatever the engine's words are."""
    assert len(read_error(status, f"{said}'{SECRET}'", ASKED).summary(discreetly=True)) < 1000


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        (f"The engine failed (500): broke on '{SECRET}'", "The engine failed (500): broke on …"),
        (f"The engine says: no: {SECRET}", "The engine says: no …"),
        (f"broke: {SECRET}", "broke …"),
        ("broke", "broke"),
    ],
)
def test_words_without_quotes(told: str, kept: str) -> None:
    """What rolecall says before an engine's words stays."""
    assert without_quotes(told) == kept


@given(text=st.text() | st.text("/~ab.", max_size=3000))
def test_quoting_bounds(text: str) -> None:
    """Whatever an engine writes, a bounded text is passed on."""
    assert len(quoted(text)) <= MAX_QUOTED


def test_errors_within_streams() -> None:
    """They are read by the status that they say they would have had."""
    assert read_event(llama(500, "Context size has been exceeded.")[1]).status == 503
    assert read_event(llama(400, "no")[1]).status == 400
    assert read_event({"error": {"message": "gone", "code": "abort"}}).status == 502
    assert read_event({"error": "gone"}).message == "The engine failed (500): gone"
    assert read_event({"type": "error", "message": "gone", "code": "x"}).status == 502


@pytest.mark.parametrize(
    ("endpoint", "field"),
    [("/v1/responses", "input"), ("/v1/embeddings", "input"), ("/v1/completions", "prompt"), ("/v1/score", None)],
)
def test_the_field_of_the_endpoint_is_named(endpoint: str, field: str | None) -> None:
    """Whoever sends no messages is not told of messages."""
    asked = Asked(endpoint, "m")
    too_long = read_error(400, {"error": {"message": "x", "n_prompt_tokens": 9, "n_ctx": 5}}, asked)
    assert too_long.param == field
    assert "However, your input needs 9 tokens." in too_long.message
    assert read_error(500, {"error": {"message": "image input is not supported"}}, asked).param == field


@pytest.mark.parametrize(
    "words", ["vector::_M_range_check: __n (which is 9) >= this->size() (which is 5)", "list index out of range"]
)
def test_a_token_that_is_none_is_the_clients_fault(words: str) -> None:
    """llama.cpp answers 500 for it, which clients would send again; elsewhere such words are the engine's fault."""
    error = read_error(500, {"error": {"message": words}}, Asked("/detokenize", "m"))
    assert (error.status, error.param) == (400, "tokens")
    assert read_error(500, {"error": {"message": words}}, Asked("/v1/embeddings", "m")).status == 502
