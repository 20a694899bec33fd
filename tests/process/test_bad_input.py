"""What is wrong with a request is said in OpenAI's shape, and nothing that comes over a socket shakes the server."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from harness import CHAT, Rolecall, fake_entry, new_agent, picture, prompt, read_to_end

MB = 2**20
LIMIT = 2 * MB
BIG = 100 * MB


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    """Run one rolecall with a text and a vision model, small limits, and a model that is not installed."""
    absent = {"name": "absent", "backend": "llama_cpp", "backend_config": {"model_path": "/no/such.gguf"}}
    entries = (
        fake_entry("text-only", roles=["chat"]),
        fake_entry("seeing", "--mmproj", "x", capabilities=["vision", "text"], roles=["look"]),
        fake_entry("unused", capabilities=["vision", "text"]),
        fake_entry("too-large", vram_estimate_mb=2_000_000, roles=["huge"]),
        {**absent, "roles": ["phantom"]},
    )
    settings = {"max_body_bytes": LIMIT, "max_image_bytes": 3000}
    with Rolecall(tmp_path_factory.mktemp("bad-input"), entries, settings=settings) as running:
        yield running
        assert running.get("/health")["status"] == "ok"
        assert "Traceback" not in running.words()


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    """Return the error of an answer, which has the status, the shape and a request id."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"].startswith("req_")
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error


def post(server: Rolecall, content: bytes, path: str = CHAT) -> httpx.Response:
    """Send any bytes as a body."""
    return server.http.post(path, content=content, headers={"content-type": "application/json"})


MESSAGES = b'"messages": [{"role": "user", "content": "x"}]'
BAD_BODIES = {
    "empty": (b"", None, "is empty"),
    "not json": (b"hello", None, "not valid JSON"),
    "half json": (b'{"model": "text-only", ', None, "not valid JSON"),
    "two objects": (b"{}{}", None, "not valid JSON"),
    "a list": (b"[]", None, "must be a JSON object, not a list"),
    "a string": (b'"x"', None, "must be a JSON object, not a string"),
    "a number": (b"17", None, "must be a JSON object, not a number"),
    "null": (b"null", None, "must be a JSON object, not null"),
    "no model": (b"{%s}" % MESSAGES, "model", "'model' is missing"),
    "model null": (b'{"model": null, %s}' % MESSAGES, "model", "'model' is missing"),
    "model number": (b'{"model": 7, %s}' % MESSAGES, "model", "must be a non-empty string"),
    "model list": (b'{"model": ["text-only"], %s}' % MESSAGES, "model", "must be a non-empty string"),
    "model empty": (b'{"model": "", %s}' % MESSAGES, "model", "must be a non-empty string"),
    "no messages": (b'{"model": "text-only"}', "messages", "is missing"),
    "messages empty": (b'{"model": "text-only", "messages": []}', "messages", "must be a non-empty list"),
    "messages text": (b'{"model": "text-only", "messages": "hi"}', "messages", "must be a non-empty list"),
    "message number": (b'{"model": "text-only", "messages": [7]}', "messages[0]", "with a 'role'"),
    "stream text": (b'{"model": "text-only", "stream": "yes", %s}' % MESSAGES, "stream", "true or false"),
    "options list": (b'{"model": "text-only", "stream_options": [], %s}' % MESSAGES, "stream_options", "an object"),
    "not utf-8": (b'{"model": "\xff\xfe", %s}' % MESSAGES, None, "not valid JSON"),
    "half a letter": (b'{"model": "\\ud800", %s}' % MESSAGES, None, "not valid JSON"),
    "utf-16": ('{"model": "text-only"}'.encode("utf-16"), None, "not valid JSON"),
    "nan": (b'{"model": "text-only", "temperature": NaN, %s}' % MESSAGES, None, "not valid JSON"),
    "deep lists": (
        b'{"model": "text-only", "x": %s}' % (b"[" * 10_000 + b"]" * 10_000),
        None,
        "nested too deeply; 250",
    ),
    "deep objects": (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, None, "nested too deeply; 250"),
    "251 lists": (b'{"model": "text-only", "x": %s}' % (b"[" * 250 + b"]" * 250), None, "nested too deeply; 250"),
    "only brackets": (b"[" * 1_000_000, None, "too many lists and objects; 60000"),
    "many texts": (b"[" + b'"",' * 120_001 + b"1]", None, "too many texts; 120000"),
    "many values": (b"[" + b"1," * 1_000_001 + b"1]", None, "too many values; 1000000"),
    "infinite": (b'{"model": "text-only", "temperature": 1e400, %s}' % MESSAGES, None, "not valid JSON"),
    "zeros": (b"\0" * 1000, None, "not valid JSON"),
}


@pytest.mark.parametrize("kind", BAD_BODIES)
def test_a_body_that_makes_no_sense_is_a_400(server: Rolecall, kind: str) -> None:
    """The answer is 400, names the field and what it should be, and the request has its line."""
    content, param, words = BAD_BODIES[kind]
    answer = post(server, content)
    error = problem(answer, 400)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert words in error["message"]
    assert len(error["message"]) < 500
    line = server.line_of(answer)
    assert line["status"] == 400
    assert line["error"].endswith(error["message"])


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings", "/v1/responses", "/tokenize"])
def test_every_inference_endpoint_checks_its_body(server: Rolecall, path: str) -> None:
    """Without a model the other endpoints answer 400 as well; only chat needs messages."""
    assert problem(post(server, b"{}", path), 400)["param"] == "model"
    assert server.http.post("/tokenize", json={"model": "text-only", "content": "a"}).status_code == 200


@pytest.mark.parametrize(
    ("model", "hint"),
    [("text-onyl", "'text-only'"), ("TEXT-ONLY", "'text-only'"), ("seeing-7b", "'seeing'"), ("zzzzzz", None)],
)
def test_an_unknown_model_is_a_404_with_the_nearest_names(server: Rolecall, model: str, hint: str | None) -> None:
    """A name that nobody has is 404 model_not_found; names that look like it are offered."""
    for answer in (server.chat(model), server.http.get(f"/v1/models/{model}")):
        error = problem(answer, 404)
        assert (error["code"], error["param"], error["type"]) == ("model_not_found", "model", "invalid_request_error")
        assert repr(model) in error["message"]
        assert (f"Did you mean {hint}" in error["message"]) if hint else ("Did you mean" not in error["message"])


@pytest.mark.parametrize(
    "model", ["x" * 100_000, "\n\r\t\0", "../../etc/passwd", "http://127.0.0.1/", "--help", "{port}"]
)
def test_a_name_is_a_name_whatever_it_holds(server: Rolecall, model: str) -> None:
    """Long, strange and hostile names are names that nobody has."""
    answer = server.chat(model)
    error = problem(answer, 404)
    assert len(error["message"]) < 1500
    assert server.line_of(answer)["requested_model"] == model[:300]


def test_a_role_without_a_model_says_which_roles_there_are(server: Rolecall) -> None:
    """An unknown role is 404 with the known ones; the nearest is offered."""
    error = problem(server.chat("role:lok"), 404)
    assert error["code"] == "model_not_found"
    assert "Known roles: chat, huge, look, phantom" in error["message"]
    assert "'role:look'" in error["message"]


def test_a_role_whose_models_cannot_serve_says_why(server: Rolecall) -> None:
    """A role whose only model is too large or absent is 404 with the reason: by how much, and which file."""
    large = problem(server.chat("role:huge"), 404)
    assert large["code"] == "no_model_for_role"
    assert "too-large: needs 2000000 MB, 1000000 MB more than the 1000000 MB it may use" in large["message"]
    phantom = problem(server.chat("role:phantom"), 404)
    assert "absent: not installed: /no/such.gguf does not exist" in phantom["message"]


def test_models_that_cannot_be_loaded_are_named(server: Rolecall) -> None:
    """A model that is too large is 400, for no retry can mend it; one that is not installed is 404."""
    assert problem(server.chat("too-large"), 400)["code"] == "model_too_large"
    assert "/no/such.gguf" in problem(server.chat("absent"), 404)["message"]


def test_an_image_for_a_model_that_reads_text_is_a_400(server: Rolecall) -> None:
    """A picture for a text model, or for a role of text models, is refused before any engine is asked."""
    for model in ("text-only", "role:chat"):
        body = {"model": model, "messages": [{"role": "user", "content": [picture()]}]}
        error = problem(server.http.post(CHAT, json=body), 400)
        assert (error["code"], error["param"]) == ("unsupported_input", "messages")
        assert "lacks vision" in error["message"]


@pytest.mark.parametrize("scheme", ["data:image/png;base64,", "DATA:image/jpeg;base64,"])
def test_an_image_above_the_limit_is_a_413(server: Rolecall, scheme: str) -> None:
    """An image is measured as it is decoded, and the answer names its size and the setting."""
    fits = {"role": "user", "content": [picture(4000, scheme)]}
    too_large = {"role": "user", "content": [picture(4004, scheme)]}
    assert server.http.post(CHAT, json={"model": "seeing", "messages": [fits]}).status_code == 200
    error = problem(server.http.post(CHAT, json={"model": "seeing", "messages": [fits, too_large]}), 413)
    assert "has 3003 bytes; the limit is 3000 (setting max_image_bytes)" in error["message"]
    assert "Image 1 at " in error["message"]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": None},
        {"type": "image_url", "image_url": {"url": None}},
        {"type": "image_url", "image_url": {"url": "data:"}},
        {"type": "image_url", "image_url": {"url": ["data:"]}},
        {"type": "image_url", "image_url": {"url": "/etc/passwd"}},
        {"type": "image_url"},
    ],
)
def test_an_image_part_without_an_image_loads_no_model(server: Rolecall, part: dict[str, Any]) -> None:
    """What no engine could read is refused with its place, and without a model."""
    answer = server.http.post(CHAT, json={"model": "unused", "messages": [{"role": "user", "content": [part]}]})
    error = problem(answer, 400)
    assert error["code"] in {"invalid_image", "invalid_image_url"}
    assert error["param"].startswith("messages[0].content[0]")
    assert server.row("unused")["state"] == "stopped"


@pytest.mark.parametrize(("path", "field"), [("/v1/completions", "prompt"), ("/v1/embeddings", "input")])
def test_the_field_that_is_read_must_be_there(server: Rolecall, path: str, field: str) -> None:
    """An engine would answer in words of its own, after it was loaded."""
    error = problem(post(server, b'{"model": "text-only"}', path), 400)
    assert (error["param"], error["message"]) == (field, f"The field {field!r} is missing.")


def test_a_header_sent_twice_must_say_the_same(server: Rolecall) -> None:
    """Of two wishes for the history none is taken in silence."""
    body = {"model": "text-only", "messages": [{"role": "user", "content": "hi"}]}
    for wishes, status in ((("keep", "fit"), 400), (("keep", "keep"), 200)):
        answer = server.http.post(CHAT, json=body, headers=[("x-rolecall-history", wish) for wish in wishes])
        assert answer.status_code == status


@pytest.mark.parametrize("content", [None, 7, {"a": 1}, [None], ["x"], [[]], [{"type": 7}]])
def test_odd_message_contents_do_not_shake_the_server(server: Rolecall, content: Any) -> None:
    """Contents of any JSON kind are read without harm; the engine decides about them."""
    body = {"model": "text-only", "messages": [{"role": "user", "content": content}]}
    answer = server.http.post(CHAT, json=body)
    assert answer.status_code in {200, 400}
    assert server.get("/health")["status"] == "ok"


class TestHugeBodies:
    """A body above the limit is answered with a 413 that each kind of client can read."""

    def check(self, status: int, body: bytes) -> None:
        """See that it is the 413 with the limit."""
        assert status == 413
        error = json.loads(body)["error"]
        assert error["code"] == "body_too_large"
        assert f"the limit is {LIMIT} (setting max_body_bytes)" in error["message"]

    def test_httpx(self, server: Rolecall) -> None:
        """The httpx client."""
        answer = post(server, b"x" * BIG)
        self.check(answer.status_code, answer.content)
        assert server.line_of(answer)["status"] == 413

    def test_openai(self, server: Rolecall) -> None:
        """The openai client."""
        with openai.OpenAI(base_url=server.base_url + "/v1", api_key="none", max_retries=0) as client:
            with pytest.raises(openai.APIStatusError) as caught:
                client.chat.completions.create(model="text-only", messages=[{"role": "user", "content": "x" * BIG}])
            self.check(caught.value.status_code, caught.value.response.content)

    def test_http_client(self, server: Rolecall) -> None:
        """The standard library's client."""
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        connection.request("POST", CHAT, b"x" * BIG, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        self.check(answer.status, answer.read())
        connection.close()

    def test_urllib(self, server: Rolecall) -> None:
        """The standard library's opener."""
        request = urllib.request.Request(server.base_url + CHAT, b"x" * BIG, {"Content-Type": "application/json"})
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=30)
        self.check(caught.value.code, caught.value.read())

    @pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
    @pytest.mark.parametrize("options", [[], ["-H", "Expect:"], ["-H", "Transfer-Encoding: chunked"]])
    def test_curl(self, server: Rolecall, tmp_path: Path, options: list[str]) -> None:
        """The curl command, which asks for permission to send, or does not, or sends chunks."""
        (tmp_path / "big").write_bytes(b"x" * BIG)
        argv = [
            "curl",
            "-sS",
            "-w",
            "%{http_code}",
            *options,
            "--data-binary",
            f"@{tmp_path}/big",
            server.base_url + CHAT,
        ]
        done = subprocess.run(argv, capture_output=True, timeout=60, check=True)
        self.check(int(done.stdout[-3:]), done.stdout[:-3])

    def test_a_client_that_asks_first_sends_nothing(self, server: Rolecall) -> None:
        """With Expect: 100-continue the 413 comes in place of the permission, and the connection ends."""
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {BIG}\r\nExpect: 100-continue\r\n\r\n"
        with server.raw(head.encode()) as connection:
            answer = read_to_end(connection)
        self.check(int(answer[9:12]), answer.partition(b"\r\n\r\n")[2])

    def test_memory_does_not_grow_with_the_body(self, server: Rolecall) -> None:
        """What is above the limit is not kept."""
        process = psutil.Process(server.process.pid)
        before = process.memory_info().rss
        with server.raw(
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {BIG}\r\n\r\n".encode()
        ) as connection:
            peak = before
            for _ in range(BIG // MB):
                connection.sendall(b"x" * MB)
                peak = max(peak, process.memory_info().rss)
            assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
        assert (peak - before) / MB < 20

    def test_a_body_at_the_limit_is_read(self, server: Rolecall) -> None:
        """The last byte that is allowed is allowed."""
        body = json.dumps(prompt("text-only")).encode()
        assert post(server, body + b" " * (LIMIT - len(body))).status_code == 200
        assert post(server, body + b" " * (LIMIT - len(body) + 1)).status_code == 413

    def test_a_small_limit_holds_for_chunks_that_come_at_once(self, tmp_path: Path) -> None:
        """A body that is there as a whole before anybody looks at it is refused as well."""
        body = json.dumps(prompt("one", "x" * 50_000)).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
        chunk = b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        settings = {"max_body_bytes": 40_000}
        with Rolecall(tmp_path, [fake_entry("one")], settings=settings) as small, small.raw(head + chunk) as connection:
            assert read_to_end(connection).startswith(b"HTTP/1.1 413 ")

    def test_a_client_that_gives_up_sending_leaves_a_line(self, server: Rolecall) -> None:
        """A body that is called too large is a 413, whether or not the rest of it comes."""
        agent = new_agent()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: {agent}\r\nContent-Length: {BIG}\r\n\r\n"
        with server.raw(head.encode() + b"x" * MB):
            pass
        assert server.line_by(agent)["status"] == 413


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/chat", "/v2/models", "/v1/chat/completions/", "/health/", "/v1//models", "/é"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "PUT"])
def test_an_unknown_path_is_a_404(server: Rolecall, method: str, path: str) -> None:
    """A path that nothing answers is 404 for every method, and is never redirected."""
    answer = server.http.request(method, path)
    if method == "HEAD":
        assert (answer.status_code, answer.content) == (404, b"")
    else:
        error = problem(answer, 404)
        assert error["code"] == "not_found"
        assert "/v1/chat/completions" in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", CHAT, "POST"),
        ("DELETE", CHAT, "POST"),
        ("OPTIONS", CHAT, "POST"),
        ("POST", "/v1/models", "GET"),
        ("PUT", "/health", "GET"),
        ("GET", "/v1/admin/reload", "POST"),
    ],
)
def test_a_wrong_method_is_a_405(server: Rolecall, method: str, path: str, allowed: str) -> None:
    """A path that takes other methods says which, in words and in the header Allow."""
    answer = server.http.request(method, path)
    assert allowed in problem(answer, 405)["message"]
    assert allowed in answer.headers["allow"]
    assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize(
    "path", ["/health", "/v1/models", "/v1/models/text-only", "/v1/models/health", "/v1/config/proxy"]
)
def test_head_is_get_without_the_body(server: Rolecall, path: str) -> None:
    """HEAD answers with the headers of GET and no body."""
    answer = server.http.head(path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) > 0


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100,
        b"hello\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nBad Header\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_no_http_is_a_400_or_a_closed_connection(server: Rolecall, data: bytes) -> None:
    """Bytes that are no request are refused on their own connection, and the next one is served."""
    with server.raw(data) as connection:
        connection.shutdown(socket.SHUT_WR)
        answer = read_to_end(connection)
    assert answer == b"" or answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 404 "))
    assert server.get("/health")["status"] == "ok"


@pytest.mark.parametrize("target", ["http://evil.example/health", "/health?x=/v1/models#y", "//evil.example/health"])
def test_odd_targets(server: Rolecall, target: str) -> None:
    """A target in absolute form or with a query is answered by its path."""
    status, _, body = server.exchange(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    expected = 404 if target.startswith("//") else 200
    assert status == expected
    assert b"evil" not in body or status == 404


def test_an_upgrade_is_not_granted(server: Rolecall) -> None:
    """A request for a WebSocket on any path is answered by HTTP, or refused."""
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAA\r\n"
    with server.raw(f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n{upgrade}\r\n".encode()) as connection:
        assert not connection.recv(65536).startswith(b"HTTP/1.1 101")
    assert server.get("/health")["status"] == "ok"


@pytest.mark.parametrize("query", ["include_non_installed=perhaps", "include_non_installed=2"])
def test_a_query_that_makes_no_sense_is_a_400(server: Rolecall, query: str) -> None:
    """A flag of a query takes 1 and 0 and says so."""
    error = problem(server.http.get(f"/v1/models?{query}"), 400)
    assert error["param"] == "include_non_installed"


@pytest.mark.parametrize("query", ["", "role=", "role=chat&profile=nonsense", "role=chat&explain=maybe"])
def test_select_by_role_checks_its_query(server: Rolecall, query: str) -> None:
    """A missing role, an unknown profile and a flag that is none are 400, naming the field."""
    assert problem(server.http.get(f"/v1/models/select_by_role?{query}"), 400)["param"]


def test_many_headers_and_long_ones_do_no_harm(server: Rolecall) -> None:
    """A request with long headers is served, one with absurdly long ones is refused; the log stays readable."""
    agent = b"a" * 10_000
    answer = server.http.post(
        CHAT, json=prompt("text-only"), headers={b"user-agent": agent, b"x-prompt-id": b"\xe9\xff" * 500}
    )
    assert answer.status_code == 200
    line = server.line_of(answer)
    assert len(line["client"]) < 150
    assert len(line["prompt_id"]) == 200
