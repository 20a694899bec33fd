"""What a request's line says of its waits."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Scope

from rolecall.backends.base import Places, Upstream
from rolecall.backends.llama_server import LlamaServer
from rolecall.core.engine_errors import read_error
from rolecall.core.models import ModelEntry
from rolecall.core.selection import Demand, Selection
from rolecall.core.transforms import RequestFacts
from rolecall.errors import UpstreamError
from rolecall.gateway.account import Account
from rolecall.gateway.body import parse_answer
from rolecall.runtime.lease import Lease
from rolecall.runtime.markers import MarkersFile


def lease(model: str, queue_ms: float, load_ms: float) -> Lease:
    """Return a lease that was waited for so long."""
    return Lease(
        entry=ModelEntry.model_validate({"name": model, "backend": "llama_cpp"}),
        backend=LlamaServer(Places(Path(), Path()), None),
        upstream=Upstream("http://127.0.0.1:9/v1"),
        selection=Selection(Demand(), (), (), "the only one"),
        queue_ms=queue_ms,
        load_ms=load_ms,
        engine_gone=asyncio.Event(),
        _give_back=lambda _: None,
    )


SECRET = "my private words"


@pytest.mark.parametrize("keeps_prompts", [False, True])
def test_an_engines_error_brings_no_prompt_into_the_line(*, keeps_prompts: bool) -> None:
    """What an engine quotes in an error, at once or within its answer, is in the line only where prompts are."""
    scope: Scope = {"path": "/v1/chat/completions", "headers": [], "client": None}
    said = f"Failed to parse messages: Missing 'role'; messages = [{SECRET}]"
    with pytest.raises(UpstreamError, match=SECRET) as no_json:
        parse_answer(200, f'{{"content": "{SECRET}'.encode())
    for error, cause in [(read_error(500, said), "invalid_request: Failed to parse"), (no_json.value, "not JSON")]:
        account = Account(scope, "req_1", keeps_prompts=keeps_prompts)
        account.note_error(error, within_answer=False)
        line = account.close("p", 0)
        assert cause in line["error"]
        assert (SECRET in line["error"]) is keeps_prompts
    account = Account(scope, "req_1", keeps_prompts=keeps_prompts)
    account.answer.read({"error": {"message": said}})
    line = account.close("p", 0)
    assert line["error"].startswith("upstream_error: Failed to parse messages")
    assert (SECRET in line["error"]) is keeps_prompts


def test_the_waits_for_a_second_engine_are_added() -> None:
    """A request that was sent once more has waited twice; the model is the one that served it."""
    scope: Scope = {"path": "/v1/chat/completions", "headers": [], "client": None}
    account = Account(scope, "req_1", keeps_prompts=False)
    account.note_lease(lease("first", 100.0, 2000.0))
    assert (account.line.queue_ms, account.line.load_ms) == (100.0, 2000.0)
    account.note_lease(lease("second", 0.5, 3000.25))
    assert (account.line.queue_ms, account.line.load_ms, account.line.model) == (100.5, 5000.25, "second")


def account() -> Account:
    return Account({"path": "/v1/chat/completions", "headers": [], "client": None}, "req_1", keeps_prompts=False)


def test_a_prompt_that_an_engine_has_is_owed() -> None:
    """Its estimate counts until the engine tells, and not at all where there was no answer."""
    left = account()
    left.note_lease(lease("one", 0, 0))
    assert left.tokens(lambda _lease: 40.4) == 0
    left.note_sent()
    left.answer.read({"choices": [{"delta": {"content": "hi"}}]})
    assert left.tokens(lambda _lease: 40.4) == 41
    left.answer.read({"choices": [], "usage": {"prompt_tokens": 30, "completion_tokens": 5}})
    assert left.tokens(lambda _lease: 40.4) == 35
    refused = account()
    refused.note_lease(lease("one", 0, 0))
    refused.note_sent()
    refused.note_error(UpstreamError("no"), within_answer=False)
    assert refused.tokens(lambda _lease: 40.4) == 0
    cut = account()
    cut.note_lease(lease("one", 0, 0))
    cut.note_sent()
    cut.note_error(UpstreamError("no"), within_answer=True)
    assert cut.tokens(lambda _lease: 40.4) == 40


def looked_at(prompt_id: str | None, tmp_path: Path, *texts: str) -> dict[str, Any]:
    """Return the line of an answer of such texts to a request with that prompt id."""
    (tmp_path / "markers.toml").write_text('chars = 20\n[markers.refusal]\nphrases = ["I can\'t"]\n')
    scope: Scope = {"path": "/v1/chat/completions", "headers": [], "client": None}
    looking = Account(scope, "req_1", keeps_prompts=False, markers=MarkersFile(tmp_path))
    looking.note_facts(RequestFacts("/v1/chat/completions", "m", prompt_id=prompt_id), {})
    for text in texts:
        looking.answer.read({"choices": [{"delta": {"content": text}}]})
    return looking.close("p", 0)


def test_markers_are_looked_for_where_there_is_a_prompt_id(tmp_path: Path) -> None:
    """The line names the groups that were found; it has no such key where nothing was looked at."""
    assert looked_at("caption", tmp_path, "I ", "can’t see it")["markers"] == ["refusal"]
    assert looked_at("caption", tmp_path, "A bridge in fog. But I can't tell")["markers"] == []
    assert "markers" not in looked_at("caption", tmp_path)
    assert "markers" not in looked_at(None, tmp_path, "I can't")
    assert "I can" not in str(looked_at("caption", tmp_path, "I can't"))


def test_the_line_has_the_size_of_the_output(tmp_path: Path) -> None:
    """Bytes of all the model wrote; unknown where nothing was read."""
    assert looked_at(None, tmp_path, "Grüße, ", "世界")["output_bytes"] == 9 + 6
    assert looked_at(None, tmp_path)["output_bytes"] is None
