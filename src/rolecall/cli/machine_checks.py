"""The checks of ``rolecall doctor`` that look at the machine: GPUs, memory, engines, port and folders."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import httpx
import psutil

from rolecall.backends.ollama import OllamaDaemon
from rolecall.backends.vllm import find_vllm
from rolecall.cli.checks import Finding, Subject
from rolecall.cli.client import KeyNeeded, connect, default_url
from rolecall.cli.common import CommandError
from rolecall.core.models import ModelEntry
from rolecall.core.wording import counted
from rolecall.discovery.discover import own_ollama
from rolecall.errors import ConfigurationError
from rolecall.runtime.api_keys import KeyStore, open_keys
from rolecall.runtime.drivers import backends
from rolecall.runtime.engines import EMBEDDED, find_llama_engine
from rolecall.runtime.learnt import VERSION
from rolecall.runtime.leftovers import engines_seen
from rolecall.runtime.ports import listening_socket
from rolecall.runtime.registry import load_registry
from rolecall.runtime.roster import LEARNT
from rolecall.settings import Settings

_VERSION_LIMIT_S = 30
_OLLAMA_LIMIT_S = 1.0
_HEALTH_LIMIT_S = 2.0
# ggml_backend_dev_type: 1 is a GPU, 2 an integrated one.
_LIST_GPUS = "import xllamacpp; print(*[d['name'] for d in xllamacpp.get_device_info() if d['type'].value in (1, 2)])"
_LOW_DISK_MB = 500
_DEFAULT_VLLM = str(Settings.model_fields["vllm_command"].default)
_BY_GROWTH = "what a model holds is learnt from how much the use of its GPU grows"
_KEPT = "kept for the next start, which takes them over"
_LEFT = "left over from a rolecall that is gone"

# --- the machine ------------------------------------------------------------------------------------------------------


def gpu(subject: Subject) -> Finding:
    """Report the driver and the GPUs, or why there are none."""
    report = subject.probe.report()
    lines = [f"NVIDIA driver {report.driver_version}"] if report.driver_version else []
    lines += [f"{g.index}: {g.name}, {g.vram_free_mb} of {g.vram_total_mb} MB free" for g in report.gpus]
    return Finding("warn" if report.problem else "ok", "\n".join([*lines, *filter(None, [report.problem])]))


def gpu_processes(subject: Subject) -> Finding:
    """Report whether the driver says what each process holds; models are measured by it."""
    report = subject.probe.report()
    if not report.gpus:
        return Finding("ok", "no GPU")
    untold = [gpu.index for gpu in report.gpus if gpu.uuid not in report.processes_mb]
    if untold:
        cards = " and ".join(f"GPU {index}" for index in untold)
        return Finding("ok", f"the driver tells no figures by process for {cards}; {_BY_GROWTH}")
    pids = {pid for listed in report.processes_mb.values() for pid in listed}
    if not pids:
        return Finding("ok", f"the driver lists no process now; if it lists none at all, {_BY_GROWTH}")
    if not any(map(psutil.pid_exists, pids)):
        advice = "nothing needs to be done; `docker run --pid=host` gives exact figures"
        return Finding(
            "ok", f"the driver lists processes of another pid namespace, as in a container; {_BY_GROWTH}", advice
        )
    return Finding("ok", "the driver says what each process holds")


def memory(subject: Subject) -> Finding:
    """Report the host's memory, which is the budget where there is no GPU."""
    memory = psutil.virtual_memory()
    available_mb = memory.available >> 20
    text = f"{available_mb} of {memory.total >> 20} MB available"
    budget_mb = subject.active_profile().budget_mb
    if not subject.probe.report().gpus and budget_mb > available_mb:
        advice = "end other programs, or set max_vram_mb, before models fill the memory"
        return Finding("warn", f"{text}, and without a GPU models may take {budget_mb} MB of it", advice)
    return Finding("ok", text)


# --- engines ----------------------------------------------------------------------------------------------------------


def llama_cpp(subject: Subject) -> Finding:
    """Report the llama.cpp engine that would be started, and whether it runs."""
    engine = find_llama_engine(subject.settings.llama_server)
    if engine is None:
        advice = (
            "pip install 'rolecall[llama]', or put llama-server on the PATH (brew install llama.cpp, "
            "conda install -c conda-forge llama-cpp), or name it in llama_server"
        )
        return Finding("warn", "neither llama-server nor the embedded engine is there", advice)
    what = "the embedded engine" if engine == EMBEDDED else engine[0]
    said, works = _ask_version(engine)
    if not works:
        return Finding("fail", f"{what} does not run: {said}", "install it again, or choose another with llama_server")
    if engine == EMBEDDED and subject.probe.report().gpus and not _embedded_sees_gpu():
        advice = (
            "put a llama-server that was built for the GPU on the PATH, or name it in llama_server; conda-forge "
            "has one (conda install -c conda-forge llama-cpp), and xllamacpp wheels for CUDA are at "
            "https://xorbitsai.github.io/xllamacpp/whl/cu128"
        )
        return Finding("warn", f"{what}, {said}: it computes on the CPU, though there is a GPU", advice)
    return Finding("ok", f"{what}, {said}")


def _embedded_sees_gpu() -> bool:
    argv = [sys.executable, "-c", _LIST_GPUS]
    done = subprocess.run(argv, capture_output=True, timeout=_VERSION_LIMIT_S, check=False)
    return bool(done.stdout.strip())


def _ask_version(command: Sequence[str]) -> tuple[str, bool]:
    """Return what the program says to ``--version`` (a line that speaks of one), or why it fails."""
    argv = [*command, "--version"]
    try:
        done = subprocess.run(argv, capture_output=True, errors="replace", timeout=_VERSION_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"--version did not end within {_VERSION_LIMIT_S} s", False
    except OSError as error:
        return str(error), False
    lines = [line.strip() for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
    said = next((line for line in lines if "version" in line.lower()), lines[-1] if lines else "not a word")
    return (said, True) if done.returncode == 0 else (f"exit code {done.returncode}: {said}", False)


def llama_cpp_cli(subject: Subject) -> Finding:
    """Report whether the programs are there that entries of mode ``cli`` run."""
    users = [e for e in _entries(subject) if e.backend_config.mode == "cli" and not e.backend_config.command]
    if not users:
        return Finding("ok", "no entry has mode 'cli'")
    backend = backends(subject.settings)
    reasons = {entry.name: reason for entry in users if (reason := backend(entry.backend).unavailable(entry))}
    if reasons:
        advice = "install the programs of llama.cpp beside llama-server, or take mode 'server'"
        return Finding("warn", "\n".join(f"{name}: {reason}" for name, reason in reasons.items()), advice)
    return Finding("ok", f"the programs are there for {', '.join(entry.name for entry in users)}")


def vllm(subject: Subject) -> Finding:
    """Report the vLLM that would be started."""
    command = subject.settings.vllm_command
    found = find_vllm(command)
    if found is None:
        users = _users(subject, "vllm")
        files = backends(subject.settings)("vllm").files
        has_files = [entry.name for entry in users if (paths := files(entry)) and all(p.exists() for p in paths)]
        if not has_files and command == _DEFAULT_VLLM:
            return Finding("ok", f"not found; {_not_needed(len(users))}")
        advice = "pip install vllm into an environment of its own, and set vllm_command to its program vllm"
        return Finding("warn", f"{command!r} is no program here; models that need it: {len(has_files)}", advice)
    build = backends(subject.settings)("vllm").build()
    if build.startswith("vllm ") and "." in build:  # its environment tells: to ask vLLM itself takes many seconds
        return Finding("ok", f"{found[0]}, version {build.removeprefix('vllm ')}")
    said, works = _ask_version(found)
    if works:
        return Finding("ok", f"{found[0]}, version {said}")
    return Finding("warn", f"{found[0]} does not run: {said}", "install vLLM again, in an environment of its own")


def _not_needed(users: int) -> str:
    if not users:
        return "no entry needs it"
    who = "1 entry names it, and its model is" if users == 1 else f"{users} entries name it, and their models are"
    return f"{who} not here"


def ollama(subject: Subject) -> Finding:
    """Report each Ollama that a scan or an entry would ask: its version, and how many models it has."""
    settings = subject.settings
    own = own_ollama(settings, os.environ).rstrip("/")
    address = OllamaDaemon(settings.ollama_base_url).address
    users = Counter(address(entry) for entry in _users(subject, "ollama"))
    said = {url: _ollama_at(url) for url in dict.fromkeys((own, *users))}
    lines = [said[url] or f"none at {url}; {users[url]} entries name it" for url in said]
    is_lacking = any(said[url] is None for url in users)
    return Finding("ok", "\n".join(lines), "start it (`ollama serve`), or set ollama_base_url" if is_lacking else "")


def _ollama_at(url: str) -> str | None:
    """Return what an Ollama says of itself; None if none answers there."""
    try:
        number = _answer(f"{url}/api/version")["version"]
        count = len(_answer(f"{url}/api/tags")["models"])
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError):
        return None
    return f"version {number} at {url}, {counted(count, 'model')}"


def _answer(url: str) -> Any:
    return httpx.get(url, timeout=_OLLAMA_LIMIT_S, trust_env=False).raise_for_status().json()


def _users(subject: Subject, backend: str) -> list[ModelEntry]:
    """Return the entries of a backend that do not bring their own command."""
    return [e for e in _entries(subject) if e.backend == backend and not e.backend_config.command]


def _entries(subject: Subject) -> Sequence[ModelEntry]:
    """Return the registry's entries; none of one that another check tells to be wrong."""
    try:
        return load_registry(subject.settings.config_dir).entries
    except ConfigurationError:
        return ()


# --- where it runs ----------------------------------------------------------------------------------------------------


def port(subject: Subject) -> Finding:
    """Report whether rolecall could listen, or runs already, or who is in the way."""
    settings = subject.settings
    if settings.port == 0:
        return Finding("ok", "a free port is taken at each start")
    url = default_url(settings)
    with suppress(CommandError), connect(url, None) as client:
        try:
            health = client.health(within_s=_HEALTH_LIMIT_S)
        except KeyNeeded:
            return Finding("ok", f"a rolecall is running at {url}, which shows no more without an API key")
        return Finding("ok", f"rolecall {health['version']} is running at {url}")
    listening_socket(settings.host, settings.port, has_keys=_has_keys(settings)).close()
    return Finding("ok", f"{settings.port} of {settings.host} is free")


def _has_keys(settings: Settings) -> bool:
    keys = open_keys(settings)
    return keys is not None and bool(keys.ring.keys)


def door(subject: Subject) -> Finding:
    """Report who may come in: the API keys, and what `Host` and `Origin` may be."""
    settings = subject.settings
    keys = open_keys(settings)
    lines = ["no API keys: whoever reaches this server may do everything" if keys is None else _keys_of(keys)]
    if settings.allowed_hosts:
        lines.append(f"called {', '.join(settings.allowed_hosts)}, beside loopback's names")
    if settings.allowed_origins:
        lines.append(f"web pages of {', '.join(settings.allowed_origins)} may ask")
    text = "\n".join(lines)
    if keys is not None and keys.problem:
        return Finding("warn", text, keys.problem)
    if keys is not None and keys.path.stat().st_mode & 0o044:
        return Finding("warn", text, f"others can read the hashes in {keys.path}; chmod 600 it")
    return Finding("ok", text)


def _keys_of(keys: KeyStore) -> str:
    now = datetime.now(timezone.utc)
    expired = [key.name for key in keys.ring.keys if key.is_expired(now)]
    admins = sum("admin" in key.scopes for key in keys.ring.keys)
    over = f"; expired: {', '.join(expired)}" if expired else ""
    return f"API keys in {keys.path}: {len(keys.ring.keys)}, {admins} with the scope admin{over}"


def log(subject: Subject) -> Finding:
    """Report whether the request log can be written."""
    path = subject.settings.log_path.absolute()
    if path.exists() and not path.is_file():
        return Finding("fail", f"{path} is not a file", "set log_path to a file")
    if path.exists() and not os.access(path, os.W_OK):
        return Finding("fail", f"{path} cannot be written", "change its owner or mode, or set log_path to another file")
    return _folder(path.parent, str(path), "log_path")


def state(subject: Subject) -> Finding:
    """Report whether the state folder can be written."""
    return _folder(subject.settings.state_dir, str(subject.settings.state_dir), "state_dir")


def _folder(folder: Path, shown: str, setting: str) -> Finding:
    """Say whether files can be made in ``folder``, or it can be made itself."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Finding("fail", f"{shown}: {there} cannot be written", f"change its owner or mode, or set {setting}")
    free_mb = shutil.disk_usage(there).free >> 20
    if free_mb < _LOW_DISK_MB:
        return Finding("warn", f"{shown}: only {free_mb} MB are free on its disk", f"make room, or set {setting}")
    return Finding("ok", shown if there == folder else f"{shown} (will be made)")


def models_folder(subject: Subject) -> Finding:
    """Report whether models can be fetched, and how much room there is for them."""
    folder = subject.settings.models_folder
    found = _folder(folder, str(folder), "models_dir")
    if found.level != "ok":
        return found
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return replace(found, finding=f"{found.finding}: {shutil.disk_usage(there).free / 10**9:.1f} GB are free")


def learnt(subject: Subject) -> Finding:
    """Report whether what loads have taught can be read."""
    path = subject.settings.state_dir / LEARNT
    try:
        data = json.loads(path.read_bytes())
        models = {entry["key"]["model"] for entry in data["entries"]}
        version = data["version"]
    except FileNotFoundError:
        return Finding("ok", "nothing yet")
    except OSError as error:
        return Finding("warn", f"{path} cannot be read ({error.strerror})", "change its owner or mode")
    except (ValueError, KeyError, TypeError) as error:
        advice = "the next `rolecall serve` moves it aside and learns anew"
        return Finding("warn", f"{path} makes no sense ({type(error).__name__}: {error})", advice)
    if version != VERSION:
        return Finding("warn", f"{path} is of version {version!r}, known is {VERSION}", "update rolecall, or remove it")
    return Finding("ok", f"{path}: {counted(len(models), 'model')}")


def engines(subject: Subject) -> Finding:
    """Report engines that run, those that wait for the next start, and those that should be gone."""
    running: list[str] = []
    kept: list[str] = []
    left: list[str] = []
    for seen in engines_seen(subject.settings.state_dir):
        where = running if seen.is_owned else kept if seen.record.can_be_adopted else left
        where.append(f"{seen.record.model} (pid {seen.pid})")
    lines = [f"{what}: {', '.join(who)}" for what, who in (("running", running), (_KEPT, kept), (_LEFT, left)) if who]
    if left:
        return Finding("warn", "\n".join(lines), "the next `rolecall serve` with this state folder ends them")
    return Finding("ok", "\n".join(lines) or "none runs, none is left over")
