"""``rolecall replay LOG``: whether this version's scheduler decides what a recorded one decided."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from rolecall.cli.common import AsJson, fail, print_json
from rolecall.core.decisions import BrokenLogError, encode
from rolecall.core.wording import counted
from rolecall.errors import ConfigurationError
from rolecall.simulation.replay import Difference, Replay, replay


def command(
    log: Annotated[Path | None, typer.Argument(help="A decision log, see the setting record_decisions.")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Run a decision log again on a new scheduler, which must agree at every step.

    Exit code 1 at the first difference, 2 for a file that is no decision log.
    """
    if log is None:
        raise ConfigurationError("which log? The setting record_decisions names the file that rolecall writes")
    try:
        with log.open("rb") as lines:
            result = replay(lines)
    except OSError as error:
        raise ConfigurationError(f"{log}: {error.strerror or error}") from None
    except BrokenLogError as error:
        raise ConfigurationError(f"{log}: {error}") from None
    if not result.runs:
        raise ConfigurationError(f"{log}: no recorded run is in it")
    if as_json:
        print_json(_as_dict(result))
    else:
        typer.echo("\n".join(_in_words(result)))
    if result.difference is not None:
        fail(f"{log}: the decisions differ from step {result.difference.step} on")


def _as_dict(result: Replay) -> dict[str, Any]:
    return {
        "agrees": result.difference is None,
        "steps": result.steps,
        "runs": result.runs,
        "truncated_lines": list(result.truncated),
        "difference": None if result.difference is None else _difference(result.difference),
    }


def _difference(difference: Difference) -> dict[str, Any]:
    decision = difference.decision
    return {
        "step": difference.step,
        "line": decision.line,
        "now": decision.now,
        "event": orjson.loads(encode(decision.event, decision.now, ()))["event"],
        "recorded": list(decision.effects),
        "decided": list(difference.decided),
        "error": difference.error,
    }


def _in_words(result: Replay) -> Iterator[str]:
    for line in result.truncated:
        yield f"note: line {line} is cut off and was left out; rolecall was killed while it was written"
    if result.difference is None:
        yield f"{counted(result.steps, 'step')} of {counted(result.runs, 'run')}: all agree"
        return
    shown = _difference(result.difference)
    yield f"step {shown['step']} (line {shown['line']}, at {shown['now']} s)"
    yield f"event     {_json(shown['event'])}"
    yield from _effects("recorded", shown["recorded"])
    if shown["error"] is None:
        yield from _effects("decided", shown["decided"])
    else:
        yield f"decided   {shown['error']}"


def _effects(title: str, effects: list[Any]) -> Iterator[str]:
    for number, effect in enumerate(effects or ["nothing"]):
        yield f"{'' if number else title:<10}{effect if isinstance(effect, str) else _json(effect)}"


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()
