"""``rolecall init``: what it finds, what it writes and what it leaves alone, and how its first question ends."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cli.invoke import call, configured, environment, in_terminal
from harness import FAKE_ENGINE, Rolecall, eventually, fake_entry, new_token, processes_of
from model_places import listing, model_folder, model_gguf, projector_gguf
from simulator import nvml
from unused_ports import unused_port, unused_ports

SILENT = ("--answer-within", "0")
CURATED, DISCOVERED = "model_registry.curated.json", "model_registry.discovered.json"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty home, which is the working directory as well; no Ollama, and a port that is free."""
    for variable in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "LLAMA_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("OLLAMA_MODELS", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "ROLECALL_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Return a folder with a chat model, one that sees, an embedder and a folder for vLLM; headers only."""
    folder = tmp_path / "models"
    model_gguf(folder / "Chatty-8B-Q4_K_M.gguf")
    model_gguf(folder / "seer" / "Seer-4B-Q8_0.gguf")
    projector_gguf(folder / "seer" / "mmproj-Seer-4B-F16.gguf")
    model_gguf(folder / "Bge-Small-F16.gguf", "bert", template=None, bert__pooling_type=1)
    model_folder(folder / "Writer-1B")
    return folder


def report(*arguments: str | Path, env: Mapping[str, str] | None = None, code: int = 0) -> Any:
    """Return what ``init`` prints as JSON; it looks nowhere but where it is told."""
    result = call("init", *arguments, "--json", env=env)
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def test_an_empty_home_gets_a_registry_of_what_was_found(home: Path, models: Path) -> None:
    """The user's own folder is made with all files; each model has the roles that it was found fit for."""
    found = report(models, "--yes", "--port", str(unused_port()), *SILENT)
    folder = home / ".config" / "rolecall"
    assert (found["config_dir"], found["written"]) == (str(folder), True)
    assert sorted(path.name for path in folder.iterdir()) == [
        "experiments.toml",
        CURATED,
        DISCOVERED,
        "profiles.toml",
        "rolecall.toml",
    ]
    assert {file["state"] for file in found["files"]} == {"new"}
    names = [entry["name"] for entry in json.loads((folder / DISCOVERED).read_text())]
    assert names == ["bge-small_(F16)", "chatty-8b_(Q4_K_M)", "seer-4b_(Q8_0)", "writer-1b_(BF16)"]
    assert "demo" not in (folder / CURATED).read_text()
    roles = {role: part["model"] for role, part in found["roles"].items()}
    assert roles["caption"] == "seer-4b_(Q8_0)"
    assert roles["embedding"] == "bge-small_(F16)"
    assert next(iter(roles)) == "chat"
    assert found["answer"] is None
    assert found["run"].endswith("serve")
    assert call("models", "validate").exit_code == 0


def test_a_second_run_changes_nothing(home: Path, models: Path) -> None:
    """Not a byte, and no file is touched; a model that came since is added without a question of what was there."""
    here = (models, "--yes", *SILENT)
    report(*here)
    before = [(path, path.stat().st_mtime_ns) for path in sorted(home.rglob("*"))]
    again = report(*here)
    assert (again["written"], {file["state"] for file in again["files"]}) == (False, {"unchanged"})
    assert [(path, path.stat().st_mtime_ns) for path in sorted(home.rglob("*"))] == before
    model_gguf(models / "Newer-8B-Q4_K_M.gguf")
    third = report(*here)
    assert [file["path"] for file in third["files"] if file["state"] == "changed"] == [
        str(home / ".config" / "rolecall" / DISCOVERED)
    ]
    assert all(file["backup"] is None for file in third["files"])


def test_a_dry_run_writes_nothing(home: Path, models: Path) -> None:
    """Neither the folder nor a part of it, in words as in JSON."""
    found = report(models, "--dry-run")
    assert (found["written"], found["dry_run"], len(found["files"])) == (False, True, 5)
    shown = call("init", models, "--dry-run")
    assert shown.exit_code == 0
    assert "nothing was written (--dry-run)" in shown.stdout
    assert "chatty-8b_(Q4_K_M)" in shown.stdout
    assert listing(home) == []


def test_what_a_person_wrote_is_kept(home: Path, tmp_path: Path, models: Path) -> None:
    """A port that somebody else has is changed in their settings, with a copy; their registry is never written."""
    taken, _ = unused_ports(2)
    with socket.create_server(("127.0.0.1", taken)):
        settings = f"# mine\nport = {taken}  # the one I like\n"
        own = '[ { "name":"own","backend":"openai","backend_config":{"base_url":"http://127.0.0.1:9/v1"} } ]'
        here = configured(tmp_path, settings=settings)
        (tmp_path / "configs" / CURATED).write_text(own)
        result = call("init", models, "--yes", *SILENT, *here)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "configs" / "rolecall.toml").read_text()
    assert text.startswith("# mine\nport = ")
    assert text.endswith("  # the one I like\n")
    assert f"port = {taken} " not in text
    (backup,) = (tmp_path / "configs").glob("rolecall.toml.*.bak")
    assert backup.read_text() == settings
    assert str(backup) in result.stdout
    assert "what rolecall.toml was before" in result.stdout
    assert f"{taken} is taken by process {os.getpid()} (" in result.stdout
    assert (tmp_path / "configs" / CURATED).read_text() == own
    assert report(models, "--yes", *SILENT, *here)["written"] is False


def test_a_folder_that_was_named_is_made(tmp_path: Path, models: Path) -> None:
    """With its parents; a file of that name is refused."""
    folder = tmp_path / "some" / "where"
    found = report(models, "--yes", *SILENT, "--config-dir", folder, "--state-dir", tmp_path / "state")
    assert (folder / DISCOVERED).exists()
    assert found["run"].endswith(f"serve --config-dir {folder} --state-dir {tmp_path / 'state'}")
    (tmp_path / "file").touch()
    result = call("init", models, "--yes", "--config-dir", tmp_path / "file")
    assert (result.exit_code, "is not a folder that exists" in result.stderr) == (2, True)


def test_a_place_of_models_that_is_no_folder(tmp_path: Path) -> None:
    """It ends with 1 and writes nothing: of a file the folder is named, of nothing that it is not there."""
    (tmp_path / "model.gguf").touch()
    for name, words in (("model.gguf", f"name the folder that it lies in, {tmp_path}"), ("gone", "one that exists")):
        result = call("init", tmp_path / name, "--yes", *SILENT, "--config-dir", tmp_path / "new")
        assert (result.exit_code, words in result.stderr) == (1, True)
    assert not (tmp_path / "new").exists()


def test_a_broken_configuration_is_told_and_left_alone(tmp_path: Path, models: Path) -> None:
    """The file and what is wrong with it; nothing is written."""
    here = configured(tmp_path)
    (tmp_path / "configs" / CURATED).write_text('[{"name": "one", "backend": "llama_cpp", "pinned": "perhaps"}]')
    before = listing(tmp_path)
    result = call("init", models, "--yes", *here)
    assert result.exit_code == 2
    assert "field pinned" in result.stderr
    assert listing(tmp_path) == before


def test_a_broken_file_of_a_scan_is_kept_aside(tmp_path: Path, models: Path) -> None:
    """It is made anew, and the copy says what was there."""
    here = configured(tmp_path, [])
    (tmp_path / "configs" / DISCOVERED).write_text("[{")
    found = report(models, "--yes", *SILENT, *here)
    (backup,) = [file["backup"] for file in found["files"] if file["backup"]]
    assert Path(backup).read_text() == "[{"


# --- no models


def test_without_models_there_are_the_demo_models(home: Path) -> None:
    """They are said to be that, and where models come from."""
    result = call("init", "--yes", *SILENT)
    assert result.exit_code == 0, result.output
    assert "none was found" in result.stdout
    assert "demo-chat" in result.stdout
    assert "a demo model: scripted weights" in result.stdout
    registry = json.loads((home / ".config" / "rolecall" / CURATED).read_text())
    assert [entry["name"] for entry in registry][:2] == ["demo-chat", "demo-reasoning"]


def test_without_models_and_without_demo_models(home: Path) -> None:
    """It is a configuration all the same, and the end says how to come by models."""
    result = call("init", "--yes", "--no-demo")
    assert result.exit_code == 0, result.output
    assert "`rolecall models pull" in result.stdout
    assert "answer " not in result.stdout


# --- engines, port, GPUs


def test_the_port_that_was_asked_for(home: Path, models: Path) -> None:
    """It stands in the settings; one that is taken, or that a variable overrules, is refused."""
    port = unused_port()
    report(models, "--yes", "--port", str(port), *SILENT)
    assert f"\nport = {port}\n" in (home / ".config" / "rolecall" / "rolecall.toml").read_text()
    assert report(models, "--dry-run")["port"]["number"] == port
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = str(listener.getsockname()[1])
        result = call("init", models, "--yes", "--port", taken)
        assert (result.exit_code, f"--port {taken} is taken by process {os.getpid()}" in result.stderr) == (1, True)
        result = call("init", models, "--yes", "--port", str(port), env={"CHAT_PROXY_PORT": taken})
        assert (result.exit_code, "would have no effect" in result.stderr) == (1, True)
        found = report(models, "--dry-run", env={"CHAT_PROXY_PORT": taken})
        assert (found["port"]["level"], found["settings"]) == ("warn", {})


def test_an_engine_off_the_path_is_found(home: Path, models: Path) -> None:
    """A llama-server of the PATH that does not run gives way to one that was built in a clone; vLLM in its place."""
    broken = home / "bin" / "llama-server"
    built = home / "llama.cpp" / "build" / "bin" / "llama-server"
    vllm = home / "vllm" / "bin" / "vllm"
    for path, script in (
        (broken, "echo no libcuda >&2; exit 1"),
        (built, f'exec "{sys.executable}" "{FAKE_ENGINE}" "$@"'),
        (vllm, "echo vLLM 0.99"),
    ):
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    env = {"PATH": f"{broken.parent}:/usr/bin:/bin"}
    found = report(models, "--yes", *SILENT, env=env)
    assert found["settings"] == {"llama_server": str(built), "vllm_command": str(vllm)}
    assert found["engines"]["llama.cpp"]["finding"] == f"{built}, version: 11434 (fake)"
    assert found["engines"]["vLLM"]["finding"] == f"{vllm}, version vLLM 0.99"
    assert next(model for model in found["models"] if model["name"] == "writer-1b_(BF16)")["unavailable"] is None
    assert report(models, "--yes", *SILENT, env=env)["written"] is False


def test_an_engine_that_lacks_is_told_with_how_to_get_it(models: Path) -> None:
    """Where a model was found for it."""
    found = report(models, "--dry-run", env={"PATH": "/usr/bin:/bin"})
    assert found["engines"]["vLLM"]["finding"] == "not found, and 1 of the models found need it"
    assert "pip install vllm" in found["engines"]["vLLM"]["advice"]


def test_gpus_decide_what_fits_together(tmp_path: Path, home: Path, models: Path, nvml_library: Path) -> None:
    """Cards, profile and budget are the driver's; the table says on which card each model lies."""
    variables = {
        **environment(),
        **nvml.environment(nvml_library, nvml.TWO_16GB, tmp_path),
        "OLLAMA_HOST": "127.0.0.1:9",
    }
    argv = [sys.executable, "-m", "rolecall", "init", str(models), "--dry-run"]
    done = subprocess.run(argv, env=variables, cwd=home, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "1: NVIDIA Test GPU, 16076 of 16376 MB free" in done.stdout
    assert "multi_gpu_2x16gb (auto): 28656 MB for models, at most 3 at once" in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("seer-4b_(Q8_0)")]
    assert "GPU " in line
    assert ": all of them fit (" in done.stdout


def test_a_model_that_is_too_large_is_told(tmp_path: Path) -> None:
    """It gets no role, and the table says why; what can be asked is shown for the kind of model that is left."""
    entries = [fake_entry("huge", roles=["chat"], vram_estimate_mb=10**9)]
    entries.append(fake_entry("vectors", roles=["embedding"], capabilities=["embedding"]))
    result = call("init", "--only", tmp_path, "--yes", *SILENT, *configured(tmp_path, entries))
    assert result.exit_code == 0, result.output
    assert "MB for models; `rolecall models fit` tells with which context it fits" in result.stdout
    assert "for chat, though there are some" in result.stdout
    assert "/v1/embeddings" in result.stdout.splitlines()[-1]


def test_a_state_folder_that_cannot_be_made(tmp_path: Path, home: Path, models: Path) -> None:
    """Nothing is written where nothing could run."""
    (tmp_path / "file").touch()
    result = call("init", models, "--yes", "--state-dir", tmp_path / "file")
    assert (result.exit_code, "state_dir" in result.stderr) == (2, True)
    assert listing(home) == []


# --- asking and being asked


def test_nobody_to_ask(home: Path, models: Path) -> None:
    """Without a terminal it says how to do without one."""
    for extra in ((), ("--json",)):
        result = call("init", models, *extra)
        assert (result.exit_code, "--yes writes without asking" in result.stderr) == (1, True)
    assert listing(home) == []


def dialogue(key: bytes, *arguments: str | Path) -> tuple[int, str]:
    """Run a command on a terminal and press a key when it asks; return the exit code and what was shown."""
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-m", "rolecall", *map(str, arguments)]
    child = subprocess.Popen(
        argv,
        env=environment(TERM="dumb"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    seen, pressed, deadline = b"", 0, time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 0.1)[0]:
            try:
                part = os.read(ours, 65536)
            except OSError:
                break
            if not part:
                break
            seen += part
        if seen.count(b"[Y/n]") > pressed:
            pressed += 1
            if key == b"\x03":
                child.send_signal(signal.SIGINT)
            else:
                os.write(ours, key)
    os.close(ours)
    return child.wait(30), seen.decode()


@pytest.mark.parametrize("key", [b"n\n", b"\x03", b"\x04"], ids=["no", "ctrl-c", "ctrl-d"])
def test_who_declines_gets_nothing_written(home: Path, models: Path, key: bytes) -> None:
    """The plan was shown, and nothing is there that was not there before."""
    code, shown = dialogue(key, "init", models)
    assert code in (1, 130)
    assert "Write this?" in shown
    assert listing(home) == []


def test_who_agrees_gets_it(home: Path) -> None:
    """Without models the demo models are offered first."""
    code, shown = dialogue(b"\n", "init", *SILENT)
    assert code == 0, shown
    assert shown.index("Use the demo models for now?") < shown.index("Write this?")
    assert (home / ".config" / "rolecall" / CURATED).exists()


def test_it_fits_a_narrow_terminal(models: Path) -> None:
    """No line is cut off, paths apart."""
    lines = in_terminal("init", models, "--dry-run", columns=80)
    assert all(len(line) <= 80 or "/" in line for line in lines)
    assert any("gets chat:" in line for line in lines)


# --- the first answer


def test_the_first_answer_comes_from_a_server_of_its_own(tmp_path: Path) -> None:
    """It is started for the question and ended after it, with its engine; no request log is left."""
    token = new_token()
    here = configured(tmp_path, [fake_entry("one", roles=["chat"])], f"port = {unused_port()}\n")
    result = call("init", "--only", tmp_path, "--yes", *here, env={"ROLECALL_TEST_RUN": token})
    assert result.exit_code == 0, result.output
    assert any(line.split()[:4] == ["answer", "one", "for", "role:chat,"] for line in result.stdout.splitlines())
    assert "start it" in result.stdout
    eventually(
        lambda: not [words for words in processes_of(token).values() if "serve" in words or "fake_engine" in words]
    )
    assert not list(tmp_path.rglob("*.jsonl"))


def test_the_server_that_runs_is_asked(tmp_path: Path) -> None:
    """None is started beside it, and its port is the right one."""
    with Rolecall(tmp_path, [fake_entry("one", roles=["chat"])]) as server:
        here = ("--config-dir", server.config_dir, "--state-dir", server.state)
        env = {"CHAT_PROXY_PORT": str(server.port)}
        shown = call("init", "--only", tmp_path, "--yes", *here, env=env)
        assert "start it" not in shown.stdout
        assert shown.stdout.splitlines()[-2] == "ask it:"
        found = report("--only", tmp_path, "--yes", *here, env=env)
        assert found["port"]["running"] is True
        assert found["answer"]["model"] == "one"
        assert found["answer"]["url"] == f"http://127.0.0.1:{server.port}"
        assert [row["model"] for row in server.http.get("/v1/models/health").json()["data"]] == ["one"]


def test_a_server_with_another_configuration(tmp_path: Path, models: Path) -> None:
    """It is not taken for this one: the exit code is 1, and the message says what to do."""
    with Rolecall(tmp_path / "other", [fake_entry("one", roles=["chat"])]) as server:
        here = configured(tmp_path, [fake_entry("two", roles=["chat"])], f"port = {server.port}\n")
        result = call("init", "--only", models, "--yes", *here)
    assert result.exit_code == 1
    assert "it was started with another configuration" in result.stderr


def test_an_answer_that_does_not_come_in_time(tmp_path: Path) -> None:
    """After the limit it says what it waited for; the configuration is there, and nothing runs on."""
    token = new_token()
    here = configured(tmp_path, [fake_entry("slow", "--load-s", "60", roles=["chat"])], f"port = {unused_port()}\n")
    result = call("init", "--only", tmp_path, "--yes", "--answer-within", "5", *here, env={"ROLECALL_TEST_RUN": token})
    assert result.exit_code == 1, result.output
    assert "slow did not answer role:chat within 5 s" in result.stderr
    assert "the configuration is written" in result.stderr
    eventually(
        lambda: not [words for words in processes_of(token).values() if "serve" in words or "fake_engine" in words]
    )


def test_a_server_that_wants_a_key(tmp_path: Path) -> None:
    """Without one nothing is started, and the variable for it is named."""
    here = configured(tmp_path, [fake_entry("one", roles=["chat"])], f"port = {unused_port()}\nhost = '127.0.0.1'\n")
    result = call(
        "init", "--only", tmp_path, "--yes", *here, env={"CHAT_PROXY_API_KEYS_FILE": str(tmp_path / "no.json")}
    )
    assert result.exit_code == 1
    assert "the server wants an API key of its callers: set ROLECALL_API_KEY" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_end_while_the_answer_is_awaited(tmp_path: Path, number: signal.Signals) -> None:
    """Server and engine end with it, by whatever signal; what was written is whole."""
    token = new_token()
    here = configured(tmp_path, [fake_entry("slow", "--load-s", "60", roles=["chat"])], f"port = {unused_port()}\n")
    argv = [sys.executable, "-m", "rolecall", "init", "--only", str(tmp_path), "--yes", *here]
    with subprocess.Popen(argv, env=environment(ROLECALL_TEST_RUN=token), stdout=subprocess.PIPE) as process:
        eventually(lambda: any("fake_engine" in words for words in processes_of(token).values()))
        process.send_signal(number)
        assert process.wait(30) != 0
    eventually(lambda: not processes_of(token))
    assert call("models", "validate", *here[:2]).exit_code == 0
