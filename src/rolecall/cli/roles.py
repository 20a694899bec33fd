"""``rolecall roles list|set|remove|policy``: who plays which role how well, and how a role chooses."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from rolecall.cli.common import AsJson, ConfigDir, StateDir, print_json
from rolecall.cli.edits import DryRun, change_registry, prepared, tell, with_entry
from rolecall.cli.offline import open_roster
from rolecall.cli.table import NOTHING, Column, Row, say, show, table
from rolecall.core.catalog import ROLE_PREFIX, role_name
from rolecall.runtime.registry_edit import RegistryText
from rolecall.runtime.roster import Roster
from rolecall.runtime.settings_edit import edit_role_table

app = typer.Typer(no_args_is_help=True, help="List and change which model plays which role.")

Role = Annotated[str, typer.Argument(help="Name of a role, with or without role: before it.")]
Model = Annotated[str, typer.Argument(help="Name or alias of a model.")]

_COLUMNS = (
    Column("role"),
    Column("model"),
    Column("priority", right=True),
    Column("state", style=lambda text: "green" if text == "installed" else "dim"),
    Column("policy", below="policy {}"),
    Column("fallback", below="falls back to {}"),
)


@app.command("list")
def list_roles(*, as_json: AsJson = False, config_dir: ConfigDir = None, state_dir: StateDir = None) -> None:
    """List the roles with their models, the best first."""
    roster = open_roster(config_dir, state_dir)
    roles = [_role(roster, role) for role in roster.catalog.roles]
    if as_json:
        print_json(roles)
    elif roles:
        show(lambda width: table(_COLUMNS, [row for role in roles for row in _rows(role)], width, notes="why"))
    else:
        say(f"the registry in {roster.settings.config_dir} has no roles; `rolecall roles set ROLE MODEL PRIORITY`")


def _role(roster: Roster, role: str) -> dict[str, Any]:
    settings = roster.settings
    own = settings.roles.get(role, {})
    playing = sorted(
        (c for c in roster.candidates() if role in c.entry.priorities), key=lambda c: (-c.priority(role), c.name)
    )
    return {
        "role": role,
        "policy": own.get("policy", settings.role_policy),
        "quality_tolerance": own.get("quality_tolerance", settings.quality_tolerance),
        "fallback": list(own.get("fallback", ())),
        "models": [
            {
                "model": c.name,
                "priority": c.priority(role),
                "enabled": c.entry.enabled,
                "installed": c.unavailable is None,
                "reason": c.unavailable,
            }
            for c in playing
        ],
    }


def _rows(role: dict[str, Any]) -> list[Row]:
    rows = []
    for number, model in enumerate(role["models"]):
        policy = f"{role['policy']} {role['quality_tolerance']:g}"
        own = (policy, ", ".join(role["fallback"]) or NOTHING)
        state = "installed" if model["installed"] else "not installed" if model["enabled"] else "disabled"
        cells = (role["role"], model["model"], f"{model['priority']:g}", state)
        rows.append(Row((*cells, *((NOTHING, NOTHING) if number else own)), model["reason"] or ""))
    return rows


@app.command("set")
def set_priority(  # noqa: PLR0913 - arguments and options
    role: Role,
    model: Model,
    priority: Annotated[float, typer.Argument(help="0 to 100, higher is better.", min=0, max=100)],
    *,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
) -> None:
    """Let a model play a role, at a priority."""
    role = _named(role)
    value = int(priority) if priority.is_integer() else priority
    names: list[str] = []

    def change(found: RegistryText) -> str:
        found, at = with_entry(found, model)
        names.append(found.rows[at]["name"])
        return found.put((at, "role_priority", _spelling(found.rows[at], role)), value).text

    edit = change_registry(prepared(config_dir, dry_run=dry_run), change, dry_run=dry_run)
    report = {"role": role, "model": names[0], "priority": value}
    tell(edit, f"{names[0]}: role {role} at {value}", report, as_json=as_json, dry_run=dry_run)


@app.command()
def remove(
    role: Role, model: Model, *, dry_run: DryRun = False, as_json: AsJson = False, config_dir: ConfigDir = None
) -> None:
    """Take a role from a model."""
    role = _named(role)
    names: list[str] = []

    def change(found: RegistryText) -> str:
        found, at = with_entry(found, model)
        row = found.rows[at]
        names.append(row["name"])
        found = found.drop((at, "role_priority", _spelling(row, role)))
        listed = row.get("roles") or []
        kept = [each for each in (listed.split(",") if isinstance(listed, str) else listed) if role_name(each) != role]
        return found.text if kept == listed else found.put((at, "roles"), kept).text

    edit = change_registry(prepared(config_dir, dry_run=dry_run), change, dry_run=dry_run)
    told = f"{names[0]}: no longer {role}"
    tell(edit, told, {"role": role, "model": names[0]}, as_json=as_json, dry_run=dry_run)
    entry = next(entry for entry in edit.registry.entries if entry.name == names[0])
    if role in entry.priorities:
        say(f"{names[0]} plays {role} still, as model_registry.discovered.json says")


@app.command()
def policy(  # noqa: PLR0913 - each is a value of its own
    role: Role,
    *,
    policy: Annotated[
        str | None, typer.Option(help="adaptive or priority; empty: as role_policy says.", metavar="POLICY")
    ] = None,
    quality_tolerance: Annotated[
        str | None, typer.Option(help="0 to 100; empty: as quality_tolerance says.", metavar="POINTS")
    ] = None,
    fallback: Annotated[
        list[str] | None,
        typer.Option(help="A model, alias or role:NAME to try next; may be repeated; empty: none.", metavar="NAME"),
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
) -> None:
    """Change how a role chooses: its table in rolecall.toml, whose comments stay. It holds from the next start on."""
    role = _named(role)
    values: dict[str, Any] = {}
    if policy is not None:
        values["policy"] = policy or None
    if quality_tolerance is not None:
        values["quality_tolerance"] = _number(quality_tolerance)
    if fallback is not None:
        values["fallback"] = [name for name in fallback if name] or None
    if not values:
        raise typer.BadParameter("nothing to change: give --policy, --quality-tolerance or --fallback")
    edit = edit_role_table(prepared(config_dir, dry_run=dry_run), role, values, dry_run=dry_run)
    lines = [
        f"{role}: {key} {'as by default' if value is None else json.dumps(value)}" for key, value in values.items()
    ]
    report = {"role": role, **values}
    follows = "a running server follows when it is started again"
    tell(edit, "\n".join(lines), report, as_json=as_json, dry_run=dry_run, follows=follows)


def _number(text: str) -> float | None:
    try:
        return json.loads(text) if text else None
    except ValueError:
        raise typer.BadParameter(f"--quality-tolerance: {text!r} is no number from 0 to 100") from None


def _named(role: str) -> str:
    name = role_name(role_name(role).removeprefix(ROLE_PREFIX))
    if not name:
        raise typer.BadParameter("a role needs a name")
    return name


def _spelling(row: Any, role: str) -> str:
    """Return a role as the entry writes it."""
    own = row.get("role_priority")
    return next((key for key in own if role_name(key) == role), role) if isinstance(own, dict) else role
