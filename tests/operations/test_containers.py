"""The Dockerfile and the compose files: what they copy, set and start is there. No image is built here."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from cli.invoke import call, configured
from harness import Rolecall, fake_entry
from operations.shipped import FOLDER, ROOT, shipped
from rolecall.settings import PREFIX, Settings
from unused_ports import unused_port

DOCKERFILE = shipped("docker/Dockerfile")
ENGINES = ("llama", "vllm")


def instructions() -> list[tuple[str, str]]:
    """Return name and arguments of each instruction, with joined lines."""
    text = "\n".join(line for line in DOCKERFILE.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1].strip()) for line in text.splitlines() if line.strip()]


def stage(name: str) -> list[tuple[str, str]]:
    """Return the instructions of one stage."""
    found = instructions()
    begin = next(n for n, (each, words) in enumerate(found) if each == "FROM" and words.endswith(f"AS {name}"))
    end = next((n for n in range(begin + 1, len(found)) if found[n][0] == "FROM"), len(found))
    return found[begin:end]


def image(engine: str) -> list[tuple[str, str]]:
    """Return the instructions of the image with an engine."""
    made = stage("rolecall")
    assert made[0][1].split()[0] == "${ENGINE}"
    return [*stage(engine), *made]


def only(engine: str, name: str) -> str:
    """Return the arguments of the one instruction of that name."""
    (found,) = (words for each, words in image(engine) if each == name)
    return found


def environment(engine: str) -> dict[str, str]:
    """Return what an image sets."""
    return dict(re.findall(r"(\w+)=(\S+)", " ".join(words for name, words in image(engine) if name == "ENV")))


def compose(*names: str) -> dict[str, Any]:
    """Return the service of the compose files."""
    service: dict[str, Any] = {}
    for name in names:
        service |= yaml.safe_load(shipped(f"docker/{name}"))["services"]["rolecall"]
    return service


def test_what_is_copied_is_there_and_not_ignored() -> None:
    """Each source of a COPY is in the repository, and the ignore file lets it through."""
    allowed = [line[1:] for line in shipped("docker/Dockerfile.dockerignore").splitlines() if line.startswith("!")]
    copies = [words.split()[:-1] for name, words in instructions() if name == "COPY" and "--from" not in words]
    sources = [source.removeprefix("./") for words in copies for source in words]
    assert "src" in sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, pattern) for pattern in allowed), source


def test_variables_name_settings() -> None:
    """Every CHAT_PROXY variable of an image is a setting, with a value that it takes."""
    for engine in ENGINES:
        given = {name: value for name, value in environment(engine).items() if name.startswith(PREFIX)}
        assert set(given) <= {PREFIX + name.upper() for name in Settings.model_fields}
        assert given[f"{PREFIX}HOST"] == "0.0.0.0"
        assert f"{PREFIX}API_KEYS_FILE" in given


@pytest.mark.parametrize("engine", ENGINES)
def test_what_the_image_starts_is_a_command_of_ours(engine: str) -> None:
    """Entry point and command are `rolecall serve`; its folders are volumes."""
    assert json.loads(only(engine, "ENTRYPOINT")) == ["/opt/rolecall/bin/rolecall"]
    assert json.loads(only(engine, "CMD")) == ["serve"]
    mounted = {volume.split(":")[1] for volume in compose("compose.yaml")["volumes"]}
    named = environment(engine)
    folders = {named[PREFIX + name] for name in ("CONFIG_DIR", "STATE_DIR", "MODELS_DIR")}
    assert folders | {str(Path(named[PREFIX + name]).parent) for name in ("LOG_PATH", "API_KEYS_FILE")} == mounted


@pytest.mark.parametrize("engine", ENGINES)
def test_other_commands_have_the_folders_of_the_server(engine: str, tmp_path: Path) -> None:
    """`rolecall backup` without options, as `docker compose exec` has it, finds configuration, state and keys."""
    configured(tmp_path / "given", [])
    (tmp_path / "given" / "configs").rename(tmp_path / "config")
    (tmp_path / "given" / "state").rename(tmp_path / "state")
    (tmp_path / "state" / "usage.json").write_text("{}")
    variables = {
        name: str(tmp_path / value.lstrip("/"))
        for name, value in environment(engine).items()
        if value.startswith("/") and not name.endswith("LLAMA_SERVER")
    }
    (tmp_path / "keys").mkdir()
    assert call("keys", "add", "ops", env=variables).exit_code == 0
    assert call("backup", tmp_path / "b.tar.gz", env=variables).exit_code == 0
    with tarfile.open(tmp_path / "b.tar.gz") as archive:
        assert {"config/rolecall.toml", "state/usage.json", "keys/api_keys.json"} <= set(archive.getnames())


@pytest.mark.parametrize("engine", ENGINES)
def test_the_image_is_not_roots(engine: str) -> None:
    """The last USER is a number that is not 0; the folders it writes to are its own."""
    *_, user = (words for name, words in image(engine) if name == "USER")
    assert user == compose("compose.yaml")["user"] == "1000:1000"
    assert "install -d -o 1000 -g 1000 -m 0700 /config /keys /state /logs /models" in " ".join(
        words for name, words in image(engine) if name == "RUN"
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_the_health_check_tells_good_from_bad(engine: str, tmp_path: Path) -> None:
    """Its command ends with 0 beside a server with keys, and with another code beside none."""
    *_, program, option, code = json.loads(only(engine, "HEALTHCHECK").partition("CMD ")[2])
    assert (program, option) == ("/opt/rolecall/bin/python", "-c")
    settings = {"api_keys_file": "keys.json"}
    port = str(unused_port())
    server = Rolecall(tmp_path, [fake_entry("m")], settings=settings, arguments=("--port", port))
    call("keys", "add", "ops", "--config-dir", str(server.config_dir))
    argv = [sys.executable, "-c", code.replace("8100", port)]
    with server:
        assert subprocess.run(argv, check=False).returncode == 0
    assert subprocess.run(argv, check=False, stderr=subprocess.DEVNULL).returncode != 0


def test_without_keys_the_container_does_not_start(tmp_path: Path) -> None:
    """It listens on all of the container's addresses, so a missing or empty key file ends it with 2 and the reason."""
    options = configured(tmp_path, [])
    settings = {f"{PREFIX}HOST": "0.0.0.0", f"{PREFIX}API_KEYS_FILE": str(tmp_path / "api_keys.json")}
    refused = call("serve", "--port", "0", *options, env=settings)
    assert refused.exit_code == 2
    assert "make a key with `rolecall keys add NAME`" in refused.stderr


def test_with_keys_it_is_called_by_other_containers(tmp_path: Path) -> None:
    """With a key it listens beyond loopback; the host name of the compose file is the machine's, which is allowed."""
    assert compose("compose.yaml")["hostname"] == "rolecall"
    server = Rolecall(tmp_path, [fake_entry("m")], settings={"api_keys_file": "keys.json", "host": "0.0.0.0"})
    key = call("keys", "add", "ops", "--config-dir", str(server.config_dir)).stdout.strip()
    with server:
        url = f"http://127.0.0.1:{server.port}/v1/models"
        host = subprocess.run(["hostname"], capture_output=True, text=True, check=True).stdout.strip()
        answer = httpx.get(url, headers={"host": f"{host}:8100", "authorization": f"Bearer {key}"}, trust_env=False)
        assert answer.status_code == 200
        assert httpx.get(url, trust_env=False).status_code == 401


def test_compose_is_careful() -> None:
    """Loopback alone, no root file system to write to, no capabilities, time for answers, and a GPU asked for."""
    service = compose("compose.yaml")
    assert service["ports"] == [f"127.0.0.1:{Settings.model_fields['port'].default}:8100"]
    assert (service["read_only"], service["cap_drop"], service["init"]) == (True, ["ALL"], True)
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(service["stop_grace_period"].rstrip("s")) >= Settings.model_fields["shutdown_grace_s"].default + 20
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    context = (FOLDER / "docker" / service["build"]["context"]).resolve()
    assert context == ROOT
    assert (context / service["build"]["dockerfile"]).is_file()
    assert compose("compose.vllm.yaml")["build"]["args"]["ENGINE"] == "vllm"
    assert ("ARG", "ENGINE=llama") in instructions()


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not here")
def test_compose_itself_takes_them(tmp_path: Path) -> None:
    """`docker-compose config` reads both variants."""
    shutil.copytree(FOLDER / "docker", tmp_path / "docker")
    for files in (["compose.yaml"], ["compose.yaml", "compose.vllm.yaml"]):
        options = [word for name in files for word in ("-f", name)]
        done = subprocess.run(
            ["docker-compose", *options, "config", "-q"], cwd=tmp_path / "docker", capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
