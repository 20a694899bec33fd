"""`/api/config` of a running rolecall: what is set, kept, put in force, and when engines are started anew for it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from harness import FAKE_ENGINE, Rolecall, eventually, picture, words
from photographs import encoded
from rolecall.core.api_config import DEFAULTS

CONFIG = "/api/config"
Make = Callable[..., Rolecall]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a maker of rolecalls whose llama-server is the fake engine, with the models m, own and other."""
    engine = tmp_path / "llama-server"
    engine.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(FAKE_ENGINE))} "$@"\n')
    engine.chmod(0o755)
    (tmp_path / "model.gguf").write_bytes(b"no model")
    config = {"model_path": str(tmp_path / "model.gguf")}
    entry = {"backend": "llama_cpp", "vram_estimate_mb": 100, "backend_config": config}
    entries = [
        {"name": "m", **entry},
        {"name": "own", **entry, "generation_defaults": {"temperature": 0.9, "ctx_size": 777, "batch_size": 99}},
    ]
    return lambda **fields: Rolecall(
        tmp_path, entries, settings={"llama_server": str(engine), **fields.pop("settings", {})}, **fields
    )


@pytest.fixture
def server(make: Make) -> Iterator[Rolecall]:
    """Return one that runs."""
    with make() as running:
        yield running


def change(server: Rolecall, **patch: Any) -> dict[str, Any]:
    """Set something and return what is in force."""
    answer = server.http.post(CONFIG, json=patch)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def sizes(server: Rolecall, model: str) -> dict[str, str]:
    """Return the sizes that a loaded model's engine was started with."""
    argv = server.stats(model)["argv"]
    flags = ("--ctx-size", "--batch-size", "--ubatch-size")
    return {flag: argv[argv.index(flag) + 1] for flag in flags if flag in argv}


def asked(server: Rolecall, model: str, **body: Any) -> dict[str, Any]:
    """Send a chat and return the body that its engine got."""
    assert server.chat(model, **body).status_code == 200
    got: dict[str, Any] = server.stats(model)["last_request"]["body"]
    return got


def test_nobody_has_set_anything(server: Rolecall) -> None:
    """The defaults are shown; engines and requests are what they are without them."""
    shown = server.get(CONFIG)
    assert shown == {
        "backend": "server",
        "llm_params": dict(DEFAULTS),
        "set": {"backend": None, "llm_params": {}},
        "reloading": [],
        "problem": None,
    }
    body = asked(server, "m")
    assert not {"temperature", "top_p", "top_k", "presence_penalty", "mirostat"} & body.keys()
    assert sizes(server, "m") == {}


def test_numbers_of_requests_hold_at_once(server: Rolecall) -> None:
    """They fill what neither the request nor the entry says, without a new start of the engine."""
    asked(server, "m")
    pid = server.row("m")["pid"]
    shown = change(server, llm_params={"temp": 0.5, "top_k": 7})
    assert shown["llm_params"] == {**DEFAULTS, "temp": 0.5, "top_k": 7}
    assert shown["set"]["llm_params"] == {"temp": 0.5, "top_k": 7}
    body = asked(server, "m")
    assert (body["temperature"], body["top_k"], "top_p" in body) == (0.5, 7, False)
    assert asked(server, "m", temperature=1)["temperature"] == 1
    assert asked(server, "own")["temperature"] == 0.9
    assert server.row("m")["pid"] == pid


def test_sizes_are_given_at_the_start(server: Rolecall) -> None:
    """To entries that have none of their own."""
    change(server, llm_params={"ctx_size": 4096, "batch_size": 512, "ubatch_size": 256})
    asked(server, "m")
    asked(server, "own")
    assert sizes(server, "m") == {"--ctx-size": "4096", "--batch-size": "512", "--ubatch-size": "256"}
    assert sizes(server, "own") == {"--ctx-size": "777", "--batch-size": "99", "--ubatch-size": "256"}


def test_new_sizes_wait_for_the_answer(server: Rolecall) -> None:
    """An engine that answers goes on, is named as one that waits, and is started anew when it is idle, unasked."""
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(server.chat, "m", fake={"tokens": 20, "token_delay_s": 0.1})
        server.await_in_flight("m", 1)
        pid = server.row("m")["pid"]
        assert change(server, llm_params={"ctx_size": 4096})["reloading"] == ["m"]
        assert server.chat("m").status_code == 200
        assert server.row("m")["pid"] == pid
        assert answer.result().json()["choices"][0]["message"]["content"] == words(20)
    eventually(lambda: server.state_of("m") == "ready" and server.row("m")["pid"] != pid)
    assert sizes(server, "m") == {"--ctx-size": "4096"}
    assert server.get(CONFIG)["reloading"] == []


def test_an_idle_engine_is_started_anew_at_once(server: Rolecall) -> None:
    """And sizes that are taken back are gone with the next start."""
    asked(server, "m")
    change(server, llm_params={"ctx_size": 4096})
    eventually(lambda: server.state_of("m") == "ready" and sizes(server, "m") == {"--ctx-size": "4096"})
    change(server, llm_params=None)
    eventually(lambda: server.state_of("m") == "ready" and sizes(server, "m") == {})


def test_it_is_kept(make: Make) -> None:
    """What was set holds after a new start of rolecall."""
    with make() as first:
        change(first, llm_params={"temp": 0.5, "ctx_size": 4096}, backend="server")
        kept = json.loads((first.state / "api_config.json").read_text())
        assert kept == {"version": 1, "backend": "server", "llm_params": {"ctx_size": 4096, "temp": 0.5}}
    with make() as second:
        assert second.get(CONFIG)["set"] == {"backend": "server", "llm_params": {"ctx_size": 4096, "temp": 0.5}}
        assert asked(second, "m")["temperature"] == 0.5
        assert sizes(second, "m") == {"--ctx-size": "4096"}


def test_a_damaged_file(make: Make) -> None:
    """Rolecall starts as if nothing had been set, says so on the terminal and here, and keeps the file."""
    server = make()
    server.state.mkdir()
    (server.state / "api_config.json").write_text('{"version": 1, "llm_params": {"temp": ')
    with server:
        shown = server.get(CONFIG)
        assert shown["set"] == {"backend": None, "llm_params": {}}
        assert "api_config.json makes no sense" in shown["problem"]
        assert "api_config.json makes no sense" in server.words()
        assert (server.state / "api_config.json.broken").exists()
        assert change(server, llm_params={"temp": 1})["problem"] is None


def test_programs_that_are_missing(server: Rolecall) -> None:
    """`cli` is refused where models that are there could not be served any more, and nothing changes."""
    answer = server.http.post(CONFIG, json={"backend": "cli", "llm_params": {"temp": 1}})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "backend"
    assert "mode 'cli' needs llama-completion" in answer.json()["error"]["message"]
    assert server.get(CONFIG)["set"] == {"backend": None, "llm_params": {}}
    assert server.chat("m").status_code == 200


def test_the_command_line_programs(make: Make, tmp_path: Path) -> None:
    """With `cli` each request starts a program, also one with a picture; the server that was loaded has ended."""
    for name in ("llama-completion", "llama-mtmd-cli"):
        fake = shlex.join([sys.executable, str(FAKE_ENGINE.with_name("fake_llama_cli.py")), name])
        (tmp_path / name).write_text(f'#!/bin/sh\nexec {fake} "$@"\n')
        (tmp_path / name).chmod(0o755)
    (tmp_path / "seeing.gguf").write_bytes(b"no model")
    (tmp_path / "mmproj-seeing-f16.gguf").write_bytes(b"no projector")
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}\x1e{{ m.content }}{% endfor %}")
    config = {
        "model_path": str(tmp_path / "seeing.gguf"),
        "extra_args": ["--chat-template-file", str(template)],
        "env": {"FAKE_CLI_JOURNAL": str(tmp_path)},
    }
    server = make()
    server.write_registry({"name": "e", "backend": "llama_cpp", "vram_estimate_mb": 100, "backend_config": config})
    with server:
        assert server.chat("e").json()["choices"][0]["message"]["content"] == words(8)
        change(server, backend="cli", llm_params={"temp": 0.25})
        red = encoded(Image.new("RGB", (40, 30), "red"))
        form: dict[str, Any] = {"file": ("p.jpg", red), "prompt": (None, "what?")}
        found = server.http.post("/analyze_image", files=form)
        assert found.json() == {"analysis": "Hello there.", "confidence": None, "model": "e"}
        (noted,) = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
        assert noted["program"] == "llama-mtmd-cli"
        assert noted["argv"][noted["argv"].index("--temp") + 1] == "0.25"
        assert noted["argv"][noted["argv"].index("--mmproj") + 1].endswith("mmproj-seeing-f16.gguf")


def test_a_model_without_its_projector(make: Make, tmp_path: Path) -> None:
    """A picture for a model that lists vision and has no projector is 400 before anything is loaded."""
    server = make()
    config = {"model_path": str(tmp_path / "model.gguf")}
    server.write_registry({"name": "v", "backend": "llama_cpp", "capabilities": ["vision"], "backend_config": config})
    with server:
        answer = server.http.post(
            "/v1/chat/completions", json={"model": "v", "messages": [{"role": "user", "content": [picture()]}]}
        )
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "unsupported_input"
        assert server.state_of("v") == "stopped"
        assert "'v' lists vision, but no projector" in server.words()


def test_a_task_that_is_broken(make: Make) -> None:
    """It is refused with the file and the field until it is mended; the rest, single requests too, goes on."""
    with make() as server:
        tasks = server.config_dir / "tasks"
        tasks.mkdir()
        (tasks / "mine.toml").write_text("id = 3")
        asked = {"image": "", "task": "mine"}
        refused = server.http.post("/api/tag", json=asked)
        assert refused.status_code == 503
        assert "mine.toml: id: " in refused.json()["error"]["message"]
        assert server.chat("m").status_code == 200
        assert server.http.post("/api/chat", json={"prompt": "hi", "model": "m"}).status_code == 200
        (tasks / "mine.toml").unlink()
        assert "There is no task 'mine'" in server.http.post("/api/tag", json=asked).json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"backend": "docker"}, "backend"),
        ({"llm_params": {"temp": -1}}, "llm_params.temp"),
        ({"llm_params": {"n_gpu_layers": 1}}, "llm_params.n_gpu_layers"),
        ([1], None),
    ],
)
def test_what_is_wrong_changes_nothing(server: Rolecall, body: Any, param: str | None) -> None:
    """400 in OpenAI's shape, with the field."""
    answer = server.http.post(CONFIG, json=body)
    assert answer.status_code == 400
    assert (answer.json()["error"]["type"], answer.json()["error"]["param"]) == ("invalid_request_error", param)
    assert server.get(CONFIG)["set"] == {"backend": None, "llm_params": {}}


def test_bodies_that_are_none(server: Rolecall) -> None:
    """No JSON is 400, what is not called so 415, and too much 413."""
    json_type = {"content-type": "application/json"}
    assert server.http.post(CONFIG, content=b"{", headers=json_type).status_code == 400
    assert server.http.post(CONFIG, content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    assert server.http.post(CONFIG, content=b" " * 70_000 + b"{}", headers=json_type).status_code == 413
    assert server.http.put(CONFIG, json={}).status_code == 405


def test_a_client_that_leaves_within_its_body(server: Rolecall) -> None:
    """It is no failure of rolecall's, of which the terminal would have a traceback."""
    for path in (CONFIG, "/datasets"):
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{{"
        )
        server.raw(head.encode()).close()
        for _ in range(3):  # each goes through the loop several times
            assert server.get(CONFIG)["problem"] is None
    assert "Traceback" not in server.words()


def test_it_needs_an_admins_key(make: Make) -> None:
    """With keys in force a key for inference alone is not enough, to look or to set."""
    server = make(settings={"api_keys_file": "keys.json"})
    keys = {}
    for name, scopes in (("boss", ["admin"]), ("guest", ["inference"])):
        command = [
            sys.executable,
            "-m",
            "rolecall",
            "keys",
            "add",
            name,
            "--config-dir",
            str(server.config_dir),
        ]
        command += [word for scope in scopes for word in ("--scope", scope)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=server.environment)
        keys[name] = {"authorization": f"Bearer {done.stdout.strip()}"}
    with server:
        assert server.http.get(CONFIG).status_code == 401
        assert server.http.get(CONFIG, headers=keys["guest"]).status_code == 403
        assert server.http.post(CONFIG, json={}, headers=keys["guest"]).status_code == 403
        assert server.http.post(CONFIG, json={"backend": "server"}, headers=keys["boss"]).status_code == 200
