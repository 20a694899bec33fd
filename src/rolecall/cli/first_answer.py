"""One question to the server that was set up: to the one that runs, or to one that is started for it and ended."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from rolecall.cli.client import KEY_VARIABLE, connect, default_url, key_header
from rolecall.cli.common import CommandError
from rolecall.core.models import ModelEntry
from rolecall.runtime import exec_bound
from rolecall.settings import PREFIX, Settings

QUESTION = "Say hello in one short sentence."
_MOST_TOKENS = 200
_LOOK_EVERY_S = 0.05
_FOLLOWS_WITHIN_S = 3.0
_END_S = 30.0
_TOLD_LINES = 5


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; ``seconds`` from the question to the end of the answer, the load of the model included."""

    role: str
    model: str
    text: str
    seconds: float
    url: str


@dataclass(frozen=True, slots=True)
class Question:
    """What a role is asked, by what its model can do."""

    role: str
    model: str
    path: str
    body: dict[str, Any]

    @classmethod
    def to(cls, role: str, entry: ModelEntry) -> Question | None:
        """Return a question that a model of that kind can answer; None if nothing short can be asked."""
        model = f"role:{role}"
        can = entry.all_capabilities
        if "embedding" in can:
            return cls(role, entry.name, "/v1/embeddings", {"model": model, "input": QUESTION})
        if "rerank" in can:
            documents = ["Hello.", "It rains."]
            return cls(role, entry.name, "/v1/rerank", {"model": model, "query": "a greeting", "documents": documents})
        if "text" not in can:
            return None
        messages = [{"role": "user", "content": QUESTION}]
        body = {"model": model, "messages": messages, "max_tokens": _MOST_TOKENS}
        return cls(role, entry.name, "/v1/chat/completions", body)


def ask_running(settings: Settings, question: Question, within_s: float) -> Answer:
    """Ask the rolecall that listens where the settings say; raises ``CommandError`` if no answer comes.

    It follows a new registry within a second. One that chooses another model has another configuration.
    """
    url = default_url(settings)
    deadline = time.monotonic() + min(within_s, _FOLLOWS_WITHIN_S)
    while True:
        try:
            with connect(url, None) as client:
                chosen = str(client.choice(question.role).get("model"))
        except CommandError as error:
            chosen = str(error)
        if chosen == question.model:
            return _ask(url, question, within_s)
        if time.monotonic() > deadline:
            raise CommandError(
                f"the rolecall at {url} answers role:{question.role} by other means ({chosen}): it was started with "
                "another configuration; start it again to ask this one"
            )
        time.sleep(_LOOK_EVERY_S * 4)


def ask_started(settings: Settings, options: Sequence[str], question: Question, within_s: float) -> Answer:
    """Start ``rolecall serve`` for one question and end it; raises ``CommandError`` if no answer comes in time."""
    deadline = time.monotonic() + within_s
    with _server(settings, options) as (process, log):
        url = default_url(settings)
        while not _is_ready(url):
            if process.poll() is not None:
                raise CommandError(f"`rolecall serve` ended as it started:\n{_end_of(log)}")
            if time.monotonic() > deadline:
                raise CommandError(f"`rolecall serve` was not ready within {within_s:g} s:\n{_end_of(log)}")
            time.sleep(_LOOK_EVERY_S)
        try:
            return _ask(url, question, max(0.1, deadline - time.monotonic()), limit_s=within_s)
        except CommandError as error:
            logs = settings.state_dir / "engine-logs"
            raise CommandError(f"{error}\nwhat the engine said is in {logs}") from None


@contextmanager
def _server(settings: Settings, options: Sequence[str]) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run a server that leaves no request log, keeps no engine, and dies with this process."""
    with tempfile.TemporaryDirectory(prefix="rolecall-") as folder:
        log = Path(folder, "server.log")
        argv = [sys.executable, exec_bound.__file__, str(os.getpid()), sys.executable, "-m", "rolecall", "serve"]
        argv += [*options, "--port", str(settings.port), "--log-path", str(Path(folder, "requests.jsonl"))]
        environ = {**os.environ, f"{PREFIX}KEEP_ENGINES_ON_EXIT": "false"}
        with log.open("wb") as file:
            process = subprocess.Popen(
                argv, env=environ, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )
        try:
            yield process, log
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _is_ready(url: str) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(f"{url}/health", timeout=2, trust_env=False).status_code < 500
    return False


def _end_of(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(line.removeprefix("rolecall: ") for line in lines[-_TOLD_LINES:]) or "it said nothing"


def _ask(url: str, question: Question, within_s: float, *, limit_s: float | None = None) -> Answer:
    start = time.monotonic()
    try:
        with httpx.Client(trust_env=False, headers=key_header(), timeout=within_s) as http:
            response = http.post(url + question.path, json=question.body)
    except httpx.TimeoutException:
        waited = limit_s or within_s
        raise CommandError(
            f"{question.model} did not answer role:{question.role} within {waited:g} s: a large model may need longer "
            "for its first load; --answer-within waits longer"
        ) from None
    except httpx.HTTPError as error:
        raise CommandError(f"{url}{question.path}: {str(error) or type(error).__name__}") from None
    if response.status_code in (401, 403):
        raise CommandError(f"the server wants an API key: set {KEY_VARIABLE}")
    text = _text_of(response)
    model = response.headers.get("x-rolecall-model", question.model)
    return Answer(question.role, model, text, time.monotonic() - start, url)


def _text_of(response: httpx.Response) -> str:
    """Return what was answered, in words; a model that only thought in so few tokens did answer."""
    try:
        content = response.json()
        if response.is_error:
            raise CommandError(str(content["error"]["message"]))
        if "choices" in content:
            message = content["choices"][0]["message"]
            return str(message.get("content") or message.get("reasoning_content") or "(an empty answer)").strip()
        if "data" in content:
            return f"a vector of {len(content['data'][0]['embedding'])} numbers"
        return f"{len(content['results'])} documents ranked"
    except (ValueError, KeyError, IndexError, TypeError):
        raise CommandError(f"{response.url} answered {response.status_code} and nothing that makes sense") from None
