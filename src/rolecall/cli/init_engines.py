"""Engines and port for ``rolecall init``: what is there, what a setting has to say so that it is found."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rolecall.backends.vllm import find_vllm
from rolecall.cli import machine_checks
from rolecall.cli.checks import Finding, Subject
from rolecall.cli.client import KeyNeeded, connect, default_url
from rolecall.cli.common import CommandError
from rolecall.runtime.driver_probe import DriverProbe
from rolecall.runtime.engine_places import llama_servers, vllm_programs
from rolecall.runtime.ports import holder, is_free
from rolecall.settings import Settings

_LOOK_AT_PORTS = 100
_HEALTH_LIMIT_S = 2.0
_BY_DEFAULT = "by default"
GET_VLLM = "python3 -m venv ~/vllm && ~/vllm/bin/pip install vllm, then run `rolecall init` again"


@dataclass(frozen=True)
class Engines:
    """What was found of each engine, and the settings by which those off the PATH are found."""

    findings: Mapping[str, Finding]
    values: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Port:
    """Where rolecall is to listen: ``value`` is what the settings file has to say for it, None for nothing new."""

    finding: Finding
    number: int
    value: int | None = None
    is_running: bool = False


def find_engines(settings: Settings, probe: DriverProbe, home: Path) -> Engines:
    """Look for llama.cpp, vLLM and Ollama: by the settings, then at usual places off the PATH."""
    values: dict[str, str] = {}
    llama = machine_checks.llama_cpp(Subject(settings, probe=probe))
    if llama.level != "ok" and settings.origin("llama_server") == _BY_DEFAULT:
        for path in llama_servers(home):
            there = settings.model_copy(update={"llama_server": str(path)})
            found = machine_checks.llama_cpp(Subject(there, probe=probe))
            if found.level == "ok":
                llama, values["llama_server"] = found, str(path)
                break
    is_absent = find_vllm(settings.vllm_command) is None and settings.origin("vllm_command") == _BY_DEFAULT
    if is_absent and (programs := vllm_programs(home)):
        values["vllm_command"] = str(programs[0])
    there = settings.model_copy(update=values)
    subject = Subject(there, probe=probe)
    vllm = machine_checks.vllm(subject) if find_vllm(there.vllm_command) else Finding("ok", "not found", GET_VLLM)
    return Engines({"llama.cpp": llama, "vLLM": vllm, "Ollama": machine_checks.ollama(subject)}, values)


def needed(findings: Mapping[str, Finding], users: Mapping[str, int]) -> dict[str, Finding]:
    """Return the findings, with those engines to be looked at that models were found for and that are not there.

    What nobody needs is told in few words.
    """
    made = dict(findings)
    if not users.get("ollama") and made["Ollama"].finding.startswith("none at "):
        made["Ollama"] = Finding("ok", made["Ollama"].finding.partition(";")[0])
    if users.get("vllm") and made["vLLM"].advice == GET_VLLM:
        text = f"not found, and {users['vllm']} of the models found need it"
        made["vLLM"] = Finding("warn", text, GET_VLLM)
    elif not users.get("vllm") and made["vLLM"].advice == GET_VLLM:
        made["vLLM"] = replace(made["vLLM"], finding="not found; no model needs it", advice="")
    return made


def find_port(settings: Settings, wanted: int | None) -> Port:
    """Return the port to listen on: as wanted or set if it is free or a rolecall has it, else the next free one.

    Raises ``CommandError`` if the wanted one is taken, or is set where a file cannot change it.
    """
    is_fixed = settings.is_from_environment("port")
    if wanted is not None and is_fixed and wanted != settings.port:
        raise CommandError(
            f"--port {wanted} would have no effect: port = {settings.port} is set {settings.origin('port')}"
        )
    number = settings.port if wanted is None else wanted
    value = None if number == settings.port else number
    if number == 0:
        return Port(Finding("ok", "a free one is taken at each start"), number, value)
    if _is_ours(settings, number):
        return Port(Finding("ok", f"{number}: a rolecall is running there"), number, value, is_running=True)
    if is_free(settings.host, number):
        return Port(Finding("ok", f"{number} of {settings.host} is free"), number, value)
    who = holder(number)
    if wanted is not None:
        raise CommandError(f"--port {wanted} is taken by {who}; stop it, or name another port")
    return _another(settings, who, is_fixed=is_fixed)


def _another(settings: Settings, who: str, *, is_fixed: bool) -> Port:
    number, host = settings.port, settings.host
    taken = f"{number} is taken by {who}"
    if is_fixed:
        advice = f"stop it, or set another one: port is set {settings.origin('port')}"
        return Port(Finding("warn", taken, advice), number)
    following = range(number + 1, min(number + _LOOK_AT_PORTS, 65536))
    free = next((port for port in following if is_free(host, port)), None)
    if free is None:
        return Port(Finding("warn", f"{taken}, and none of the {_LOOK_AT_PORTS} after it is free on {host}"), number)
    return Port(Finding("ok", f"{free}, because {taken}"), free, free)


def _is_ours(settings: Settings, number: int) -> bool:
    with suppress(CommandError), connect(default_url(settings.model_copy(update={"port": number})), None) as client:
        with suppress(KeyNeeded):
            client.health(within_s=_HEALTH_LIMIT_S)
        return True
    return False


def changed_values(engines: Engines, port: Port) -> dict[str, Any]:
    """Return what the settings file has to say so that all this is in force."""
    return {**engines.values, **({} if port.value is None else {"port": port.value})}
