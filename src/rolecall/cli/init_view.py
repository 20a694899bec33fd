"""The plan of ``rolecall init``: as a table for people, as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.text import Text

from rolecall.cli.checks import Finding
from rolecall.cli.first_answer import Answer
from rolecall.cli.init_plan import Plan, is_demo
from rolecall.cli.table import NOTHING, Column, Row, labelled, table
from rolecall.core.selection import Candidate, Rejected
from rolecall.core.vram import HOST
from rolecall.discovery.found import shown
from rolecall.runtime.config_folder import PlannedFile

_MOST_LEFT_OUT = 5
_COLUMNS = (
    Column("model"),
    Column("backend", below="{}"),
    Column("MB", right=True),
    Column("context", right=True, below="context {}"),
    Column("gets the roles", below="gets {}"),
    Column("lies in", below="lies in {}"),
)


def plan_lines(plan: Plan, width: int | None) -> Iterator[Text]:
    """Yield what was found, what each model gets, what fits together, and which files would be written."""
    yield from labelled(_machine(plan), width)
    rows = list(_rows(plan))
    if rows:
        yield Text()
        yield from table(_COLUMNS, rows, width, notes="remark")
    yield Text()
    yield from labelled(_outcome(plan), width)


def _machine(plan: Plan) -> Iterator[tuple[str, str]]:
    active = plan.roster.active
    yield "GPU", _said(plan.machine)
    most = active.profile.max_concurrent_models
    yield (
        "profile",
        f"{active.profile.name} ({active.source}): {active.budget_mb} MB for models, at most {most} at once",
    )
    for name, finding in plan.engines.items():
        yield name, _said(finding)
    yield "port", _said(plan.port.finding)
    yield "models", _places(plan)


def _said(finding: Finding) -> str:
    return "\n".join([finding.finding, *([f"→ {finding.advice}"] if finding.advice else [])])


def _places(plan: Plan) -> str:
    findings = plan.found.findings
    lines = [f"{count} in {shown(place.path)} ({place.provider})" for place, count in findings.per_place]
    if findings.has_answered and findings.daemon:
        lines.append(f"Ollama: {findings.daemon}")
    if not plan.has_models:
        where = "there" if lines else "at the places where programs keep them"
        lines += [
            f"none was found {where} that can be served",
            "→ name folders (`rolecall init ~/models`), or fetch one: `rolecall models search`, `rolecall models pull`",
        ]
    return "\n".join(lines)


# --- the table


def _rows(plan: Plan) -> Iterator[Row]:
    roles: dict[str, list[str]] = {}
    for part in plan.parts:
        roles.setdefault(part.model.name, []).append(f"{part.role}:{part.model.priority(part.role):g}")
    states = plan.found.next.states
    for candidate in plan.roster.candidates():
        name = candidate.name
        if name in roles or candidate.unavailable is None or name in states:
            yield Row(_cells(plan, candidate, roles.get(name, ())), _remark(plan, candidate))


def _cells(plan: Plan, candidate: Candidate, roles: Sequence[str]) -> Sequence[str]:
    entry = candidate.entry
    is_managed = plan.roster.backend(entry).managed
    return (
        entry.name,
        entry.backend,
        str(candidate.footprint_mb) if candidate.footprint_mb and is_managed else NOTHING,
        str(entry.context_tokens or NOTHING),
        ", ".join(roles) or NOTHING,
        _where(plan, candidate) if is_managed else "its own server",
    )


def _where(plan: Plan, candidate: Candidate) -> str:
    placement = next((c.placements[candidate.name] for c in plan.companies if candidate.name in c.placements), ())
    indices = {device.id: device.index for device in plan.roster.active.devices}
    return ", ".join("RAM" if s.device == HOST else f"GPU {indices[s.device]}" for s in placement) or NOTHING


def _remark(plan: Plan, candidate: Candidate) -> str:
    if is_demo(candidate):
        return "a demo model: scripted weights, made by the first start"
    budget_mb = plan.roster.active.budget_mb
    if candidate.unavailable is None and (candidate.footprint_mb or 0) > budget_mb:
        return f"larger than the {budget_mb} MB for models; `rolecall models fit` tells with which context it fits"
    return candidate.unavailable or ""


# --- what comes of it


def _outcome(plan: Plan) -> Iterator[tuple[str, str]]:
    if text := _together(plan):
        yield "together", text
    if missed := [role for role, rejected in plan.without.items() if any(_is_here(plan, each) for each in rejected)]:
        yield "no model", f"for {', '.join(missed)}, though there are some; `rolecall select ROLE --explain` says why"
    left_out = plan.found.left_out
    for each in left_out[:_MOST_LEFT_OUT]:
        yield "left out", f"{each.path}: {each.reason}"
    if len(left_out) > _MOST_LEFT_OUT:
        yield "left out", f"{len(left_out) - _MOST_LEFT_OUT} more, which `rolecall models scan` lists"
    for name, value in plan.values.items():
        yield "setting", f"{name} = {value}"
    yield "files", "\n".join([str(plan.settings.config_dir), *(f"  {_fate(file)}" for file in plan.files)])


def _is_here(plan: Plan, rejected: Rejected) -> bool:
    return rejected.why != "unavailable" or rejected.name in plan.found.next.states


def _fate(file: PlannedFile) -> str:
    is_kept = file.state == "changed" and file.by_hand
    return f"{file.name}: {file.state}{', and the present one is kept beside it' if is_kept else ''}"


def _together(plan: Plan) -> str:
    if not plan.companies:
        return ""
    budget_mb, at_once = plan.roster.active.budget_mb, plan.roster.active.profile.max_concurrent_models
    first, *rest = plan.companies
    used = f"{first.used_mb} of {budget_mb} MB"
    if not rest:
        return f"{', '.join(first.names)}: {'all of them fit' if len(first.names) > 1 else 'it fits'} ({used})"
    why = f"the profile loads {at_once} at once" if len(first.placements) >= at_once else "they do not all fit"
    turns = f"take turns, because {why}: rolecall swaps them as they are asked for"
    if all(len(company.names) == 1 for company in plan.companies):
        largest_mb = max(company.used_mb for company in plan.companies)
        return f"{', '.join(c.names[0] for c in plan.companies)} (the largest: {largest_mb} of {budget_mb} MB)\n{turns}"
    lines = [f"{', '.join(company.names)} ({company.used_mb} of {budget_mb} MB)" for company in plan.companies]
    return "\n".join([*lines, f"these {turns}"])


# --- for programs


def report(plan: Plan, *, written: bool, dry_run: bool, backups: Mapping[str, Path]) -> dict[str, Any]:
    """Return the plan, and what became of it, as JSON has it."""
    folder = plan.settings.config_dir
    return {
        "config_dir": str(folder),
        "written": written,
        "dry_run": dry_run,
        "files": [
            {"path": str(folder / file.name), "state": file.state, "backup": _path(backups.get(file.name))}
            for file in plan.files
        ],
        "settings": dict(plan.values),
        "gpu": asdict(plan.machine),
        "profile": {
            "name": plan.roster.active.profile.name,
            "budget_mb": plan.roster.active.budget_mb,
            "max_concurrent_models": plan.roster.active.profile.max_concurrent_models,
        },
        "engines": {name: asdict(finding) for name, finding in plan.engines.items()},
        "port": {"number": plan.port.number, "running": plan.port.is_running, **asdict(plan.port.finding)},
        "models": [_model(plan, each) for each in plan.roster.candidates()],
        "roles": {part.role: {"model": part.model.name, "others": list(part.others)} for part in plan.parts},
        "roles_without_a_model": {
            role: {each.name: each.reason for each in rejected} for role, rejected in plan.without.items()
        },
        "together": [{"models": list(each.names), "used_mb": each.used_mb} for each in plan.companies],
        "left_out": [{"path": each.path, "reason": each.reason} for each in plan.found.left_out],
    }


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _model(plan: Plan, candidate: Candidate) -> dict[str, Any]:
    return {
        "name": candidate.name,
        "backend": candidate.entry.backend,
        "footprint_mb": candidate.footprint_mb,
        "context_tokens": candidate.entry.context_tokens,
        "demo": is_demo(candidate),
        "unavailable": candidate.unavailable,
        "state": plan.found.next.states.get(candidate.name),
    }


def answer_report(answer: Answer) -> dict[str, Any]:
    """Return the first answer as JSON has it."""
    return {**asdict(answer), "seconds": round(answer.seconds, 3)}
