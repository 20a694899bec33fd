"""``rolecall init``: from the models on this machine to a first answer."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from rolecall.cli.client import KEY_VARIABLE, default_url, key_header
from rolecall.cli.common import AsJson, CommandError, ConfigDir, StateDir, Yes, confirmed, print_json
from rolecall.cli.first_answer import Answer, Question, ask_running, ask_started
from rolecall.cli.folders import Folders, Only, named_folders
from rolecall.cli.init_plan import Plan, Wishes, make_plan
from rolecall.cli.init_view import answer_report, plan_lines, report
from rolecall.cli.spinner import counting, spinning
from rolecall.cli.table import labelled, show
from rolecall.core.wording import counted
from rolecall.runtime.config_folder import write_folder
from rolecall.runtime.ports import free_port
from rolecall.settings import Settings, load_settings, prepare_state_dir

_ANSWER_WITHIN_S = 120.0


def command(  # noqa: PLR0913 - options
    folders: Folders = None,
    *,
    only: Only = False,
    yes: Yes = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, and write nothing.")] = False,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on.", show_default="8100")] = None,
    demo: Annotated[
        bool | None,
        typer.Option(
            "--demo/--no-demo", help="With the demo models in a new registry, or without.", show_default=False
        ),
    ] = None,
    answer_within: Annotated[
        float, typer.Option(min=0, help="Seconds that the first answer may take; 0: ask nothing.", metavar="S")
    ] = _ANSWER_WITHIN_S,
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
    state_dir: StateDir = None,
) -> None:
    """Set rolecall up: find GPUs, engines and models, write the configuration, ask a first question.

    Shows the plan and asks before it writes. What a person wrote is never replaced without a copy beside it. Run it
    again whenever something is new: what stands as it should is left alone. Exit code 1 if the first answer fails.
    """
    given = named_folders(folders, only=only)
    is_asked = not (yes or dry_run)
    if is_asked and (as_json or not sys.stdin.isatty()):
        raise CommandError("nobody can be asked here: --yes writes without asking, --dry-run shows the plan")
    settings = load_settings({"config_dir": config_dir, "state_dir": state_dir}, may_be_absent=True)
    wishes = Wishes(given, not only, port, demo)
    with counting("looking for models") as progress:
        plan = make_plan(settings, wishes, os.environ, Path.home(), progress)
    if not as_json:
        show(lambda width: plan_lines(plan, width))
    if is_asked:
        plan = _approved(plan, settings, wishes)
    options = _options(plan, config_dir, state_dir)
    if dry_run:
        _tell_dry(plan, options, as_json=as_json)
    else:
        _carry_out(plan, options, answer_within, as_json=as_json)


def _approved(plan: Plan, settings: Settings, wishes: Wishes) -> Plan:
    """Return the plan that the person at the terminal agrees to; raises ``CommandError`` if there is none."""
    if wishes.demo is None and _offers_demo(plan) and not confirmed("\nUse the demo models for now?", default=True):
        plan = make_plan(settings, replace(wishes, demo=False), os.environ, Path.home())
    if plan.changed and not confirmed("\nWrite this?", default=True):
        raise CommandError("nothing was written")
    return plan


def _tell_dry(plan: Plan, options: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        print_json(report(plan, written=False, dry_run=True, backups={}) | _asked(None, None, options))
    else:
        show(lambda _width: [Text("nothing was written (--dry-run)")])


def _carry_out(plan: Plan, options: Sequence[str], answer_within_s: float, *, as_json: bool) -> None:
    """Write the files and ask the first question; raises ``CommandError`` if its answer does not come."""
    prepare_state_dir(plan.settings)  # first: what is written makes no sense without one
    backups = write_folder(plan.settings.config_dir, plan.files)
    if not as_json:
        show(lambda width: labelled(_written(plan, backups), width))
    answer, reason = _first_answer(plan, options, answer_within_s)
    if as_json:
        print_json(
            report(plan, written=bool(plan.changed), dry_run=False, backups=backups) | _asked(answer, reason, options)
        )
    else:
        show(lambda width: _ending(plan, options, answer, width))
    if reason:
        raise CommandError(f"no first answer: {reason}\nthe configuration is written")


def _asked(answer: Answer | None, reason: str | None, options: Sequence[str]) -> dict[str, Any]:
    return {"answer": answer and answer_report(answer), "answer_problem": reason, "run": _line(options)}


def _offers_demo(plan: Plan) -> bool:
    return not plan.has_models and any(part.is_demo for part in plan.parts) and bool(plan.changed)


def _written(plan: Plan, backups: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    count = len(plan.changed)
    if not count:
        yield "", "everything stands as it should; nothing was written"
        return
    yield "written", f"{counted(count, 'file')} in {plan.settings.config_dir}"
    for name, path in backups.items():
        yield "kept", f"{path}: what {name} was before"


# --- the first answer


def _first_answer(plan: Plan, options: Sequence[str], within_s: float) -> tuple[Answer | None, str | None]:
    """Return the answer, or why there is none; both None where nothing can be asked, or is not wanted."""
    question = _question(plan)
    if question is None or not within_s:
        return None, None
    settings = plan.settings
    if settings.api_keys_file is not None and not key_header():
        return None, f"the server wants an API key of its callers: set {KEY_VARIABLE}"
    try:
        with spinning(f"asking role:{question.role}, which loads {question.model}"):
            if plan.port.is_running:
                return ask_running(settings, question, within_s), None
            if settings.port == 0:
                settings = settings.model_copy(update={"port": free_port()})
            return ask_started(settings, options, question, within_s), None
    except CommandError as error:
        return None, str(error)


def _question(plan: Plan) -> Question | None:
    asked = (Question.to(part.role, part.model.entry) for part in plan.parts)
    return next((each for each in asked if each), None)


def _options(plan: Plan, config_dir: Path | None, state_dir: Path | None) -> list[str]:
    """Return the options by which another command finds this configuration."""
    options = ["--config-dir", str(plan.settings.config_dir)] if config_dir else []
    return options + (["--state-dir", str(plan.settings.state_dir)] if state_dir else [])


def _ending(plan: Plan, options: Sequence[str], answer: Answer | None, width: int | None) -> Iterator[Text]:
    """Yield the answer and what to type next; what is typed is never folded."""
    if answer:
        said = f"{answer.model} for role:{answer.role}, after {answer.seconds:.1f} s:\n{answer.text}"
        yield from labelled([("answer", said)], width)
    if not plan.parts:
        fetch = (
            "there is none yet: `rolecall models pull REPOSITORY` fetches one, `rolecall init --demo` shows the rest"
        )
        yield from labelled([("models", fetch)], width)
    if plan.port.is_running and plan.values:
        yield from labelled([("restart", "the rolecall that runs reads the settings when it starts")], width)
    question = _question(plan)
    typed = [*([] if plan.port.is_running else [_line(options)]), *([_curl(plan, question)] if question else [])]
    if typed:
        yield Text("\nask it:" if plan.port.is_running else "\nstart it, and ask it:" if question else "\nstart it:")
    yield from (Text(f"  {line}", "bold") for line in typed)


def _line(options: Sequence[str]) -> str:
    return shlex.join([*_program(), "serve", *options])


def _program() -> list[str]:
    """Return how this program was called, so that the line works where this one did."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return [sys.executable, "-m", "rolecall"]
    return ["rolecall"] if shutil.which("rolecall") else [str(called)]


def _curl(plan: Plan, question: Question) -> str:
    body = {key: value for key, value in question.body.items() if key != "max_tokens"}
    words = ["curl", default_url(plan.settings) + question.path, "-H", "content-type: application/json"]
    return shlex.join([*words, "-d", json.dumps(body, separators=(",", ":"))])
