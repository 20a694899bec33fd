"""``rolecall report``: what the request log says about prompts and experiments, for people."""

from __future__ import annotations

import typer

from rolecall.cli.experiments import report_experiment
from rolecall.cli.report_prompts import prompts

app = typer.Typer(no_args_is_help=True, help="Reports over the request log.")


@app.callback()
def report() -> None:
    """Report on prompts and experiments, from the request log."""


app.command("prompts")(prompts)
app.command("experiment")(report_experiment)
