"""``rolecall doctor``: what is found on this machine, what is wrong with it, what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from types import MappingProxyType

import typer
from rich.text import Text

from rolecall.cli import checks, machine_checks, registry_checks
from rolecall.cli.checks import Finding, Subject
from rolecall.cli.common import AsJson, ConfigDir, StateDir, print_json
from rolecall.cli.spinner import spinning
from rolecall.cli.table import folded, show
from rolecall.errors import ConfigurationError

Check = Callable[[Subject], Finding]
CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        "python": checks.python,
        "configuration": checks.configuration,
        "registry": checks.registry,
        "models": registry_checks.models,
        "roles": registry_checks.roles,
        "tasks": registry_checks.tasks,
        "experiments": registry_checks.experiments,
        "permissions": registry_checks.permissions,
        "profile": checks.profile,
        "GPU": machine_checks.gpu,
        "GPU processes": machine_checks.gpu_processes,
        "memory": machine_checks.memory,
        "llama.cpp": machine_checks.llama_cpp,
        "llama.cpp cli": machine_checks.llama_cpp_cli,
        "vLLM": machine_checks.vllm,
        "Ollama": machine_checks.ollama,
        "port": machine_checks.port,
        "door": machine_checks.door,
        "log": machine_checks.log,
        "state folder": machine_checks.state,
        "models folder": machine_checks.models_folder,
        "learnt": machine_checks.learnt,
        "engines": machine_checks.engines,
    }
)

_STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}
_INDENT = 6 + 2 + max(map(len, CHECKS))


def command(*, as_json: AsJson = False, config_dir: ConfigDir = None, state_dir: StateDir = None) -> None:
    """Check configuration, GPUs, engines, port and folders.

    Exit code 1 if a check fails; it changes nothing.
    """
    with spinning("looking"):
        findings = examine(Subject.of(config_dir, state_dir))
    failed = [name for name, finding in findings.items() if finding.level == "fail"]
    if as_json:
        rows = [{"check": name, **asdict(finding)} for name, finding in findings.items()]
        print_json({"ok": not failed, "checks": rows})
    else:
        show(lambda width: _lines(findings, width))
    if failed:
        raise typer.Exit(1)


def examine(subject: Subject, checks: Mapping[str, Check] = CHECKS) -> dict[str, Finding]:
    """Return what each check finds; they run side by side, since some wait for programs and servers."""
    with ThreadPoolExecutor(len(checks)) as pool:
        findings = pool.map(lambda check: _result(check, subject), checks.values())
        return dict(zip(checks, findings, strict=True))


def _result(check: Check, subject: Subject) -> Finding:
    try:
        return check(subject)
    except ConfigurationError as error:
        return Finding("fail", str(error))
    except Exception as error:  # noqa: BLE001 - who asks what is wrong must be told the rest all the same
        return Finding("fail", f"the check itself failed: {type(error).__name__}: {error}", "report it as a bug")


def _lines(findings: Mapping[str, Finding], width: int | None) -> Iterator[Text]:
    for name, finding in findings.items():
        text = "\n".join([finding.finding, *([f"→ {finding.advice}"] if finding.advice else [])])
        for number, line in enumerate(folded(text, width, _INDENT)):
            head = (("", ""), ("", "")) if number else ((finding.level, _STYLES[finding.level]), (name, "bold"))
            yield Text.assemble((head[0][0].ljust(6), head[0][1]), (head[1][0].ljust(_INDENT - 6), head[1][1]), line)
    levels = [finding.level for finding in findings.values()]
    yield Text()
    yield Text(f"{levels.count('ok')} ok, {levels.count('warn')} to look at, {levels.count('fail')} failed")
