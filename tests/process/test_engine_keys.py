"""Engines ask for a key that only rolecall knows: nobody else on the machine gets an answer of them."""

from __future__ import annotations

import json
import signal
import stat
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from harness import (
    CHAT,
    DEADLINE_S,
    TOKEN_VARIABLE,
    Rolecall,
    end_all,
    eventually,
    fake_entry,
    new_token,
    prompt,
    text_of,
    words,
)
from harness import events as events_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")

VARIABLE = "LLAMA_API_KEY"


def record(server: Rolecall, model: str) -> dict[str, Any]:
    """Return what is written down of an engine."""
    text = (server.state / "engines" / f"{server.process.pid}.json").read_text()
    found: dict[str, Any] = json.loads(text)["engines"][model]
    return found


def stranger(server: Rolecall, model: str, key: str | None = None) -> int:
    """Return the status that an engine gives somebody who asks it behind rolecall's back."""
    url = f"http://127.0.0.1:{server.row(model)['port']}{CHAT}"
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx.post(url, json=prompt(model), headers=headers, timeout=DEADLINE_S, trust_env=False).status_code


def test_only_rolecall_gets_an_answer(tmp_path: Path) -> None:
    """Whole and streamed answers pass; a stranger on loopback, with a wrong key or none, gets 401."""
    with Rolecall(tmp_path, [fake_entry("m"), fake_entry("n")]) as server:
        assert server.chat("m").json()["choices"][0]["message"]["content"] == words(8)
        with server.stream("n") as stream:
            assert text_of(events_of(stream.read().decode())) == words(8)
        keys = [record(server, model)["key"] for model in "mn"]
        assert keys[0] != keys[1]
        assert all(len(key) >= 40 for key in keys)
        assert [stranger(server, "m", key) for key in (None, "x", keys[1], keys[0])] == [401, 401, 401, 200]


def test_each_start_has_a_key_of_its_own(tmp_path: Path) -> None:
    """A key that came to light is worth nothing once its engine is gone."""
    with Rolecall(tmp_path, [fake_entry("m")]) as server:
        keys = []
        for _ in range(2):
            assert server.chat("m").status_code == 200
            keys.append(record(server, "m")["key"])
            assert server.http.post("/v1/models/m/unload").status_code == 200
        assert len({*keys, ""}) == 3


def test_the_key_is_nowhere_to_be_seen(tmp_path: Path) -> None:
    """Not on a command line, in a log, a page, an error, nor in a file that others may read; only where it must be."""
    fails = fake_entry("fails", "--error-status", "500")
    with Rolecall(tmp_path, [fake_entry("m"), fails], settings={"log_prompts": True}) as server:
        assert server.chat("m").status_code == 200
        said = [server.chat("fails").text, json.dumps(server.log_lines(2))]
        keys = [record(server, model)["key"] for model in ("m", "fails")]
        psutil.Process(server.row("m")["pid"]).kill()
        eventually(lambda: server.row("m")["error"])
        pages = ("/health", "/v1/models", "/v1/models/health", "/v1/config/proxy", "/v1/config/profile", "/metrics")
        said += [server.http.get(page).text for page in pages]
        said += [" ".join(process.cmdline()) for process in server.engine_processes()]
        said += [server.chat("m").headers.__repr__(), server.words()]
        roll = server.state / "engines" / f"{server.process.pid}.json"
        assert stat.S_IMODE(roll.stat().st_mode) == 0o600
        files = [path for path in tmp_path.rglob("*") if path.is_file() and path != roll]
        said += [path.read_text(errors="replace") for path in files]
        assert files
        assert [text for text in said for key in keys if key in text] == []


def test_an_engine_that_lives_on_keeps_its_key(tmp_path: Path) -> None:
    """The next rolecall takes it over with its key, and so does the one after it; a stranger still gets nothing."""
    token = new_token()
    keep = {"keep_engines_on_exit": True}
    servers = [
        Rolecall(tmp_path / str(n), [fake_entry("m")], settings=keep, state_dir=tmp_path / "s") for n in range(3)
    ]
    pids, keys = set(), set()
    try:
        for server in servers:
            server.environ = {TOKEN_VARIABLE: token}
            with server:
                assert server.chat("m").status_code == 200
                pids.add(server.row("m")["pid"])
                keys.add(record(server, "m")["key"])
                assert stranger(server, "m") == 401
                server.process.send_signal(signal.SIGKILL)
                server.process.wait(DEADLINE_S)
        assert (len(pids), len(keys)) == (1, 1)
        (roll,) = (tmp_path / "s" / "engines").glob("*.json")
        assert stat.S_IMODE(roll.stat().st_mode) == 0o600
    finally:
        end_all(token)


@pytest.mark.parametrize(("key", "without"), [("my-own-key", 401), ("", 200)])
def test_a_key_of_the_entry(tmp_path: Path, key: str, without: int) -> None:
    """A key that the entry gives its engine is the one that is shown to it; an empty one means that there is none."""
    entry = fake_entry("m", backend_config={"env": {VARIABLE: key}})
    with Rolecall(tmp_path, [entry]) as server:
        assert server.chat("m").status_code == 200
        assert stranger(server, "m") == without
        assert stranger(server, "m", "my-own-key") == 200
