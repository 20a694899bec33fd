"""``rolecall doctor``: it finds what is wrong, says what to do, changes nothing and never crashes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest

from cli.invoke import call, configured, environment, in_terminal, rolecall
from harness import FAKE_ENGINE, Rolecall, fake_entry, upstream
from process.fake_ollama import FakeOllama
from rolecall.cli.checks import Subject
from rolecall.cli.doctor import CHECKS, examine
from rolecall.runtime.leftovers import Identity
from simulator import memory, nvml
from unused_ports import unused_port


def configure(tmp_path: Path, settings: str = "", **more: Any) -> tuple[str, ...]:
    """Return the options of a sound configuration with one model, the log in ``tmp_path`` and a port that is free."""
    lines = [f"log_path = {json.dumps(str(tmp_path / 'log.jsonl'))}", settings]
    if "port" not in settings:
        lines.append(f"port = {unused_port()}")
    return configured(tmp_path, more.get("entries", [fake_entry("one")]), "\n".join(lines))


def findings(*options: str, env: dict[str, str] | None = None) -> tuple[int, dict[str, dict[str, str]]]:
    """Return the exit code and each check's row."""
    result = call("doctor", "--json", *options, env=env)
    report = json.loads(result.stdout)
    assert report["ok"] == (result.exit_code == 0)
    return result.exit_code, {row["check"]: row for row in report["checks"]}


def engine(tmp_path: Path, script: str) -> str:
    """Return a program to be named in llama_server."""
    path = tmp_path / "llama-server"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return f"llama_server = {json.dumps(str(path))}"


def test_a_sound_machine_passes(tmp_path: Path) -> None:
    """Every check is reported, none fails, and the exit code is 0."""
    code, found = findings(*configure(tmp_path))
    assert code == 0
    assert list(found) == list(CHECKS)
    assert "fail" not in {row["level"] for row in found.values()}
    assert found["registry"]["finding"] == "1 entries"
    assert found["models"]["finding"] == "1 of 1 are installed"


def test_it_changes_nothing(tmp_path: Path) -> None:
    """No file is made or touched, not even the folders that rolecall would make."""
    here = configure(tmp_path, f"state_dir = {json.dumps(str(tmp_path / 'not-yet'))}")
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    assert call("doctor", *here[:2]).exit_code in (0, 1)
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


def test_a_broken_task_is_told(tmp_path: Path) -> None:
    """With the file and the field; the server goes on without it, so nothing fails."""
    options = configure(tmp_path)
    folder = Path(options[1]) / "tasks"
    folder.mkdir()
    assert findings(*options)[1]["tasks"]["level"] == "ok"
    (folder / "mine.toml").write_text('title = "Mine"')
    code, found = findings(*options)
    assert (code, found["tasks"]["level"]) == (0, "warn")
    assert f"{folder / 'mine.toml'}: role: is missing" in found["tasks"]["finding"]


def test_experiments_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    """A server starts without them, so it is a warning; each problem is named."""
    options = configure(tmp_path)
    assert findings(*options)[1]["experiments"]["finding"] == "0 experiments"
    (Path(options[1]) / "experiments.toml").write_text('[x]\nrole = "chat"\nweight = 1\n')
    code, found = findings(*options)
    assert (code, found["experiments"]["level"]) == (0, "warn")
    assert f"{Path(options[1]) / 'experiments.toml'}: x" in found["experiments"]["finding"]


def test_a_broken_registry_is_a_failed_check(tmp_path: Path) -> None:
    """Entry and field are named, and all other checks are made."""
    here = configure(tmp_path, entries=[{"name": "one", "backend": "llama_cpp", "pinned": "perhaps"}])
    code, found = findings(*here)
    assert code == 1
    assert (found["registry"]["level"], found["models"]["level"]) == ("fail", "warn")
    assert "entry 1 'one': field pinned:" in found["registry"]["finding"]
    assert found["profile"]["level"] == found["port"]["level"] == "ok"


def test_a_wrong_setting_is_a_failed_check(tmp_path: Path) -> None:
    """The setting, its value and its origin are named; the rest is looked at with the defaults."""
    here = configure(tmp_path, "max_queue = -3")
    code, found = findings(*here)
    assert code == 1
    assert "max_queue" in found["configuration"]["finding"]
    assert "-3 in " in found["configuration"]["finding"]
    assert "rolecall.toml" in found["configuration"]["finding"]
    assert found["registry"]["finding"] == "1 entries"


def test_origins_of_settings_are_shown(tmp_path: Path) -> None:
    """Each setting that somebody gave is shown with its value and where it came from."""
    here = configure(tmp_path, "max_queue = 7")
    _, found = findings(*here, env={"CHAT_PROXY_LOG_PROMPTS": "true", "CHAT_PROXY_MAX_QUEU": "9"})
    lines = found["configuration"]["finding"].splitlines()
    assert f"max_queue = 7, in {tmp_path / 'configs' / 'rolecall.toml'}" in lines
    assert "log_prompts = True, in the environment variable CHAT_PROXY_LOG_PROMPTS" in lines
    assert f"state_dir = {tmp_path / 'state'}, from the command line (--state-dir)" in lines
    assert found["configuration"]["level"] == "warn"
    assert "CHAT_PROXY_MAX_QUEU names no setting; did you mean 'CHAT_PROXY_MAX_QUEUE'?" in lines[-1]


def test_a_folder_that_is_not_there_is_a_failed_check(tmp_path: Path) -> None:
    """A config folder that was named but does not exist is told, without a traceback."""
    done = rolecall("doctor", "--config-dir", tmp_path / "none", "--state-dir", tmp_path, cwd=tmp_path)
    assert done.returncode == 1
    assert "none' from --config-dir is not a folder that exists" in done.stdout
    assert done.stderr == ""


def test_a_check_that_crashes_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    """Whatever goes wrong in a check is a finding of that check."""

    def crashing(subject: Subject) -> Any:
        raise ZeroDivisionError(subject.settings.port)

    found = examine(Subject.of(tmp_path, tmp_path), {"odd": crashing, "python": CHECKS["python"]})
    assert found["odd"].level == "fail"
    assert found["odd"].finding.startswith("the check itself failed: ZeroDivisionError")
    assert found["python"].level == "ok"


# --- engines ----------------------------------------------------------------------------------------------------------


def test_the_version_of_a_llama_server_is_shown(tmp_path: Path) -> None:
    """A configured binary is asked for its version."""
    here = configure(tmp_path, engine(tmp_path, f'exec "{sys.executable}" "{FAKE_ENGINE}" "$@"'))
    _, found = findings(*here)
    assert found["llama.cpp"]["level"] == "ok"
    assert found["llama.cpp"]["finding"] == f"{tmp_path / 'llama-server'}, version: 11434 (fake)"


def test_a_llama_server_that_does_not_run_fails(tmp_path: Path) -> None:
    """A binary that ends with an error is told with what it said."""
    here = configure(tmp_path, engine(tmp_path, "echo 'libcuda.so.1: cannot open shared object file' >&2; exit 127"))
    code, found = findings(*here)
    assert code == 1
    assert found["llama.cpp"]["finding"].endswith("exit code 127: libcuda.so.1: cannot open shared object file")


def test_a_llama_server_that_is_not_there_fails(tmp_path: Path) -> None:
    """A path that is no program is told as the setting that is wrong."""
    code, found = findings(*configure(tmp_path, 'llama_server = "/no/such/llama-server"'))
    assert code == 1
    assert found["llama.cpp"]["finding"].startswith("llama_server: '/no/such/llama-server' is no program")


def test_ollama_is_found_where_the_settings_say(tmp_path: Path) -> None:
    """A running Ollama is shown with its version and its models; one that is absent is no problem."""
    entries = [{"name": "m", "backend": "ollama"}]
    with FakeOllama("a:latest", "b:latest") as ollama:
        _, found = findings(*configure(tmp_path, f'ollama_base_url = "{ollama.base_url}"', entries=entries))
        assert found["Ollama"]["finding"] == f"version 0.40.12 at {ollama.base_url}, 2 models"
    _, found = findings(*configure(tmp_path, f'ollama_base_url = "http://127.0.0.1:{unused_port()}"', entries=entries))
    assert found["Ollama"]["level"] == "ok"
    assert found["Ollama"]["finding"].startswith("none at ")
    assert found["Ollama"]["finding"].endswith("1 entries name it")
    assert "ollama_base_url" in found["Ollama"]["advice"]


def test_a_server_that_is_no_ollama(tmp_path: Path) -> None:
    """Something else on Ollama's port is told as no Ollama."""
    body = b'{"version":"0.99.1"}'
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
    with upstream(lambda connection, _: connection.sendall(head + body)) as server:
        url = server.base_url.removesuffix("/v1")
        _, found = findings(*configure(tmp_path, f'ollama_base_url = "{url}"'))
    assert found["Ollama"]["finding"] == f"none at {url}; 0 entries name it"


def test_the_version_of_vllm_is_shown(tmp_path: Path) -> None:
    """What its environment says of it is believed; else the program is asked, and a broken one is a warning."""
    program = tmp_path / "env" / "bin" / "vllm"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho vLLM 0.99.2\n")
    program.chmod(0o755)
    here = configure(tmp_path, f'vllm_command = "{program}"')
    assert findings(*here)[1]["vLLM"]["finding"] == f"{program}, version vLLM 0.99.2"
    program.write_text("#!/bin/sh\necho no torch; exit 1\n")
    row = findings(*here)[1]["vLLM"]
    assert (row["level"], row["finding"]) == ("warn", f"{program} does not run: exit code 1: no torch")
    (tmp_path / "env" / "lib" / "python3.11" / "site-packages" / "vllm-0.99.3.dist-info").mkdir(parents=True)
    assert findings(*here)[1]["vLLM"]["finding"] == f"{program}, version 0.99.3"


def test_a_vllm_that_is_not_there_is_told_where_it_is_needed(tmp_path: Path) -> None:
    """Models without files need none; a model that is here, or a program that was named, does."""
    entry = {"name": "m", "backend": "vllm", "backend_config": {"model_path": str(tmp_path / "weights")}}
    here = configure(tmp_path, entries=[entry, {"name": "nowhere", "backend": "vllm"}])
    env = {"PATH": str(tmp_path)}
    assert findings(*here, env=env)[1]["vLLM"]["level"] == "ok"
    (tmp_path / "weights").mkdir()
    row = findings(*here, env=env)[1]["vLLM"]
    assert (row["level"], row["finding"]) == ("warn", "'vllm' is no program here; models that need it: 1")
    assert "set vllm_command" in row["advice"]


def test_a_vllm_that_no_entry_needs(tmp_path: Path) -> None:
    """Entries that bring a command of their own are not spoken of, as if they had no model here."""
    own = {"command": ["sh", "{port}"], "model_path": str(tmp_path)}
    here = configure(tmp_path, entries=[{"name": "own", "backend": "vllm", "backend_config": own}])
    assert findings(*here, env={"PATH": str(tmp_path)})[1]["vLLM"]["finding"] == "not found; no entry needs it"


def test_a_command_whose_program_is_gone(tmp_path: Path) -> None:
    """It is told by name, like the files that a model has lost."""
    own = {"command": ["/usr/bin/no-such-engine", "{port}"]}
    here = configure(tmp_path, entries=[fake_entry("one"), {"name": "m", "backend": "vllm", "backend_config": own}])
    row = findings(*here)[1]["models"]
    assert row["level"] == "warn"
    assert row["finding"].splitlines() == [
        "1 of 2 are installed",
        "m: command /usr/bin/no-such-engine is not there",
    ]


def test_programs_of_mode_cli(tmp_path: Path) -> None:
    """They are looked for where an entry wants them, and only there."""
    assert findings(*configure(tmp_path))[1]["llama.cpp cli"]["finding"] == "no entry has mode 'cli'"
    config = {"mode": "cli", "model_path": "m.gguf"}
    here = configure(tmp_path, entries=[{"name": "m", "backend": "llama_cpp", "backend_config": config}])
    row = findings(*here, env={"PATH": str(tmp_path)})[1]["llama.cpp cli"]
    assert row["level"] == "warn"
    assert "needs llama-completion or llama-cli" in row["finding"]
    assert "mode 'server'" in row["advice"]
    (tmp_path / "llama-completion").write_text("#!/bin/sh\n")
    (tmp_path / "llama-completion").chmod(0o755)
    row = findings(*here, env={"PATH": str(tmp_path)})[1]["llama.cpp cli"]
    assert (row["level"], row["finding"]) == ("ok", "the programs are there for m")


# --- GPUs -------------------------------------------------------------------------------------------------------------


def test_gpus_and_driver_are_shown(tmp_path: Path, nvml_library: Path) -> None:
    """The driver's version, each GPU with its memory, and the profile that follows from them."""
    variables = {**environment(), **nvml.environment(nvml_library, nvml.TWO_16GB, tmp_path)}
    done = rolecall("doctor", "--json", *configure(tmp_path), env=variables)
    found = {row["check"]: row for row in json.loads(done.stdout)["checks"]}
    assert found["GPU"]["level"] == "ok"
    assert found["GPU"]["finding"].splitlines()[1:] == [
        f"{index}: NVIDIA Test GPU, 16076 of 16376 MB free" for index in (0, 1)
    ]
    assert found["profile"]["finding"].startswith("multi_gpu_2x16gb (auto): 28656 MB")


@pytest.mark.parametrize(
    ("processes", "said"),
    [
        ("unmeasured", "the driver tells no figures by process for GPU 0; what a model holds is learnt from how much"),
        ("empty", "the driver lists no process now; if it lists none at all, what a model holds is learnt from"),
        ("host-pids", "the driver lists processes of another pid namespace, as in a container; what a model holds is"),
        ("listed", "the driver says what each process holds"),
    ],
)
def test_whether_the_driver_tells_of_processes(
    tmp_path: Path, nvml_library: Path, survivor: psutil.Process, processes: str, said: str
) -> None:
    """By it models are measured, or else by the use of their GPU: the finding says which."""
    machine = nvml.Machine(nvml.ONE_16GB.gpus, processes=processes)
    variables = {**environment(), **nvml.environment(nvml_library, machine, tmp_path)}
    memory.hold(nvml.simulation(tmp_path), {nvml.card(0, 16376).uuid: 500}, pid=survivor.pid)
    done = rolecall("doctor", "--json", *configure(tmp_path), env=variables)
    found = {row["check"]: row for row in json.loads(done.stdout)["checks"]}
    assert found["GPU processes"]["level"] == "ok"
    assert found["GPU processes"]["finding"].startswith(said)


def test_an_engine_that_leaves_the_gpu_idle_is_a_warning(tmp_path: Path, nvml_library: Path) -> None:
    """Where there is a GPU, an embedded engine that was built for the CPU is told, with what to do about it."""
    pytest.importorskip("xllamacpp", reason="the embedded engine is an extra")
    variables = {**environment(), **nvml.environment(nvml_library, nvml.ONE_16GB, tmp_path)}
    here = configure(tmp_path, settings='llama_server = "embedded"')
    done = rolecall("doctor", "--json", *here, env=variables)
    found = {row["check"]: row for row in json.loads(done.stdout)["checks"]}
    assert found["llama.cpp"]["level"] == "warn"
    assert "it computes on the CPU, though there is a GPU" in found["llama.cpp"]["finding"]
    assert "llama-server that was built for the GPU" in found["llama.cpp"]["advice"]


def test_a_driver_that_fails_is_a_warning_with_the_way_out(tmp_path: Path, nvml_library: Path) -> None:
    """Without a working driver models still run in host memory; the finding says how to mend the driver."""
    variables = {**environment(), **nvml.environment(nvml_library, nvml.DRIVER_NOT_LOADED, tmp_path)}
    done = rolecall("doctor", "--json", *configure(tmp_path), env=variables)
    found = {row["check"]: row for row in json.loads(done.stdout)["checks"]}
    assert found["GPU"]["level"] == "warn"
    assert "sudo modprobe nvidia" in found["GPU"]["finding"]


# --- port, folders, processes -----------------------------------------------------------------------------------------


def test_a_port_held_by_another_process_fails(tmp_path: Path) -> None:
    """Who holds the port is named, with the way out."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        code, found = findings(*configure(tmp_path, f"port = {port}"))
    assert code == 1
    assert f"{port} is taken by process {os.getpid()} (" in found["port"]["finding"]


def test_a_port_held_by_rolecall_itself_is_fine(tmp_path: Path) -> None:
    """A rolecall that runs is no obstacle; its engines are shown as its own."""
    with Rolecall(tmp_path, [fake_entry("one")]) as server:
        server.http.post("/v1/models/one/load")
        here = ("--config-dir", str(server.config_dir), "--state-dir", str(server.state))
        code, found = findings(*here, env={"CHAT_PROXY_PORT": str(server.port)})
        pid = server.row("one")["pid"]
    assert code == 0
    assert found["port"]["finding"] == f"rolecall 0.1.0 is running at http://127.0.0.1:{server.port}"
    assert found["engines"] == {"check": "engines", "level": "ok", "finding": f"running: one (pid {pid})", "advice": ""}


@pytest.mark.parametrize("place", ["folder", "file/log.jsonl"])
def test_a_log_that_cannot_be_written_fails(tmp_path: Path, place: str) -> None:
    """A log path that is a folder, or lies under a file, is found before the first request is lost."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    here = configure(tmp_path)
    code, found = findings(*here, env={"CHAT_PROXY_LOG_PATH": str(tmp_path / place)})
    assert code == 1
    assert (found["log"]["level"], "log_path" in found["log"]["advice"]) == ("fail", True)


@pytest.fixture
def survivor() -> Iterator[psutil.Process]:
    """Yield a process that stands for an engine."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield psutil.Process(process.pid)
        process.kill()


def test_engines_left_over_are_named_and_left_alone(tmp_path: Path, survivor: psutil.Process) -> None:
    """An engine whose rolecall is gone is a warning; the doctor ends nobody."""
    here = configure(tmp_path)
    record = {
        "owner": {"pid": 1, "born": "long ago"},
        "engines": {
            "orphan": asdict(Identity.of(survivor.pid)),
            "ended": {"pid": survivor.pid, "born": "long ago"},
        },
    }
    (tmp_path / "state" / "engines").mkdir()
    (tmp_path / "state" / "engines" / "1.json").write_text(json.dumps(record))
    (tmp_path / "state" / "engines" / "2.json").write_text("{half a record")
    _, found = findings(*here)
    assert found["engines"]["level"] == "warn"
    assert found["engines"]["finding"] == f"left over from a rolecall that is gone: orphan (pid {survivor.pid})"
    assert survivor.is_running()


def test_engines_that_are_kept_are_no_problem(tmp_path: Path) -> None:
    """An engine that waits for the next start is told as such."""
    with Rolecall(tmp_path, [fake_entry("one")], settings={"keep_engines_on_exit": True}) as server:
        server.http.post("/v1/models/one/load")
        pid = server.row("one")["pid"]
        server.process.kill()
        server.process.wait()
        _, found = findings("--config-dir", str(server.config_dir), "--state-dir", str(server.state))
        psutil.Process(pid).kill()
    assert found["engines"]["level"] == "ok"
    assert found["engines"]["finding"] == f"kept for the next start, which takes them over: one (pid {pid})"


@pytest.mark.parametrize(
    ("text", "level", "said"),
    [
        (None, "ok", "nothing yet"),
        ('{"version": 1, "entries": [{"key": {"model": "m"}}, {"key": {"model": "m"}}]}', "ok", ": 1 model"),
        ("{half", "warn", "makes no sense (JSONDecodeError"),
        ('{"entries": 5}', "warn", "makes no sense (TypeError"),
        ('{"version": 99, "entries": []}', "warn", "is of version 99, known is 1"),
    ],
)
def test_what_was_learnt(tmp_path: Path, text: str | None, level: str, said: str) -> None:
    """A file that cannot be read is told with what becomes of it, and is left as it is."""
    here = configure(tmp_path)
    path = tmp_path / "state" / "learnt.json"
    if text is not None:
        path.write_text(text)
    _, found = findings(*here)
    assert found["learnt"]["level"] == level
    assert said in found["learnt"]["finding"]
    assert (level == "ok") == (not found["learnt"]["advice"])
    assert (path.read_text() if path.exists() else None) == text


def test_the_report_fits_eighty_columns(tmp_path: Path) -> None:
    """On a terminal findings go on under themselves; the last line has the counts."""
    lines = in_terminal("doctor", *configure(tmp_path), columns=80)
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 80
    assert lines[0].startswith("ok    python")
    assert lines[-1].endswith("0 failed")


# --- models, roles, permissions


def gguf_entry(path: Path, **fields: Any) -> dict[str, Any]:
    """Return an entry for a file."""
    config = {"model_path": str(path)}
    return {"name": path.stem, "backend": "llama_cpp", "backend_config": config, "vram_estimate_mb": 10, **fields}


def test_models_whose_files_are_gone_are_named(tmp_path: Path) -> None:
    """With the file; those that are disabled, or are made when they are needed, are not."""
    entries = [gguf_entry(tmp_path / "gone.gguf"), gguf_entry(tmp_path / "off.gguf", enabled=False)]
    demo = {"name": "demo", "backend": "llama_cpp", "backend_config": {"model_path": "${STATE_DIR}/demo/x.gguf"}}
    settings = engine(tmp_path, "echo version 1")
    code, found = findings(*configure(tmp_path, settings, entries=[fake_entry("one"), *entries, demo]))
    assert (code, found["models"]["level"]) == (0, "warn")
    assert found["models"]["finding"].splitlines() == [
        "1 of 4 are installed",
        f"gone: {tmp_path / 'gone.gguf'} is gone",
    ]
    assert "models scan --forget" in found["models"]["advice"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_model_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """A load of it would fail."""
    file = tmp_path / "shut.gguf"
    file.touch(0)
    _, found = findings(*configure(tmp_path, engine(tmp_path, "echo version 1"), entries=[gguf_entry(file)]))
    assert f"shut: {file} cannot be read by this user" in found["models"]["finding"]


def test_roles_without_a_model(tmp_path: Path) -> None:
    """One that the settings have a table for, and one whose models are too large, deserve a look; others are told."""
    entries = [
        fake_entry("one", roles=["chat"]),
        fake_entry("huge", roles=["keywords"], vram_estimate_mb=10**9),
        {"name": "elsewhere", "backend": "vllm", "roles": ["caption"]},
    ]
    here = configure(tmp_path, entries=entries)
    _, found = findings(*here)
    assert found["roles"]["level"] == "warn"
    first, second = found["roles"]["finding"].splitlines()
    assert first == "1 role has a model"
    assert second.startswith("keywords: huge: ")
    text = (tmp_path / "configs" / "rolecall.toml").read_text()
    (tmp_path / "configs" / "rolecall.toml").write_text(f"{text}\n[roles.narration]\nquality_tolerance = 5\n")
    assert (
        "narration: rolecall.toml has a table for it, and no model plays it" in findings(*here)[1]["roles"]["finding"]
    )
    here = configure(tmp_path, entries=[entries[0], entries[2]])
    assert findings(*here)[1]["roles"] == {
        "check": "roles",
        "level": "ok",
        "finding": "1 role has a model; none for caption",
        "advice": "",
    }


def test_a_configuration_that_everybody_can_change(tmp_path: Path) -> None:
    """An entry names the program that is started: a registry for all to write is a warning, with the way out."""
    here = configure(tmp_path)
    assert findings(*here)[1]["permissions"]["level"] == "ok"
    registry = tmp_path / "configs" / "model_registry.curated.json"
    registry.chmod(0o666)
    row = findings(*here)[1]["permissions"]
    assert (row["level"], row["advice"]) == ("warn", f"chmod o-w {registry}")
    assert f"everybody on this machine can change {registry}" in row["finding"]


def test_the_room_for_models_is_told(tmp_path: Path) -> None:
    """Of the folder that models are fetched into; one that cannot be made is a failure, with the setting."""
    (tmp_path / "file").touch()
    row = findings(*configure(tmp_path))[1]["models folder"]
    assert row["level"] == "ok"
    assert row["finding"].endswith(" GB are free")
    code, found = findings(*configure(tmp_path, f'models_dir = "{tmp_path / "file" / "models"}"'))
    assert (code, found["models folder"]["level"]) == (1, "fail")
    assert "models_dir" in found["models folder"]["advice"]


def test_ollama_is_asked_where_scan_and_entries_ask(tmp_path: Path) -> None:
    """At OLLAMA_HOST, as a scan does, and at the address of each entry; one that only entries name is told."""
    gone = f"http://127.0.0.1:{unused_port()}"
    with FakeOllama("a:latest") as ours, FakeOllama("b:latest", "c:latest") as theirs:
        entries = [
            {"name": "m", "backend": "ollama", "backend_config": {"base_url": f"{theirs.base_url}/v1"}},
            {"name": "n", "backend": "ollama", "backend_config": {"base_url": gone}},
        ]
        host = {"OLLAMA_HOST": ours.base_url}
        _, found = findings(*configure(tmp_path, entries=entries), env=host)
    assert found["Ollama"]["finding"].splitlines() == [
        f"version 0.40.12 at {ours.base_url}, 1 model",
        f"version 0.40.12 at {theirs.base_url}, 2 models",
        f"none at {gone}; 1 entries name it",
    ]
    assert found["Ollama"]["advice"]


def test_an_ollama_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The one that a scan would ask, whatever address entries have."""
    ours, theirs = (f"http://127.0.0.1:{unused_port()}" for _ in range(2))
    entries = [{"name": "m", "backend": "ollama", "backend_config": {"base_url": theirs}}]
    _, found = findings(*configure(tmp_path, entries=entries), env={"OLLAMA_HOST": ours})
    assert found["Ollama"]["finding"].splitlines() == [
        f"none at {ours}; 0 entries name it",
        f"none at {theirs}; 1 entries name it",
    ]
