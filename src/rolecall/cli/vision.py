"""``rolecall tag``, ``caption``, ``keywords``, ``describe``, ``ocr`` and ``run``: tasks over many pictures."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from rolecall.cli.client import Url
from rolecall.cli.common import AsJson, ConfigDir, fail
from rolecall.cli.vision_job import Options, known_tasks, split
from rolecall.cli.vision_run import run
from rolecall.core.json_text import as_text, is_text
from rolecall.vision.batch_files import NoPictures
from rolecall.vision.plan import Order
from rolecall.vision.task import Task
from rolecall.vision.tasks import UnknownTask


class Sidecar(str, Enum):
    """The kinds of sidecars."""

    XMP = "xmp"


Paths = Annotated[
    list[str], typer.Argument(metavar="PATH", help="Files, folders with all below them, or patterns in quotes.")
]
TasksAndPaths = Annotated[
    list[str],
    typer.Argument(metavar="TASK... PATH", help="Tasks, then files, folders with all below them, or patterns."),
]
Out = Annotated[
    Path | None,
    typer.Option(help="Write to this .jsonl, .csv or .duckdb; else answers are printed.", show_default=False),
]
WriteSidecar = Annotated[
    Sidecar | None,
    typer.Option(help="Put keywords, tags and the description into NAME.jpg.xmp as well.", show_default=False),
]
Replace = Annotated[
    bool, typer.Option("--replace-descriptions", help="Of sidecars that have a description already, too.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with --out: ask only for what is not there yet.")]
Jobs = Annotated[
    int | None, typer.Option("--jobs", "-j", min=1, max=256, help="Pictures at a time.", show_default="free places")
]
StageByStage = Annotated[
    bool | None,
    typer.Option(
        "--stage-by-stage/--picture-by-picture", help="The order of several tasks.", show_default="what loads less"
    ),
]
Model = Annotated[
    str | None, typer.Option(help="A model, or role:NAME, instead of the tasks' roles.", show_default=False)
]
Language = Annotated[
    str | None, typer.Option(help="The variable `language` of tasks that have it.", show_default=False)
]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="A variable of the tasks; may be repeated.", metavar="NAME=TEXT")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and why in this order.")]


Chosen = Callable[[list[str], Path | None], tuple[list[Task], list[str]]]
"""Finds the tasks and the paths that a command's words name, with the tasks of a config folder.

Raises ``UnknownTask`` and ``NoPictures``.
"""


def _command(text: str, words: object, chosen: Chosen, *, has_order: bool) -> Callable[..., None]:
    """Return a command over pictures; ``words`` is how Typer reads what ``chosen`` gets.

    Typer takes options from a signature: that of one task's command lacks the order of several.
    """

    def command(  # noqa: PLR0913 - each is an option of its own
        words: list[str],
        *,
        out: Out = None,
        write_sidecar: WriteSidecar = None,
        replace_descriptions: Replace = False,
        resume: Resume = False,
        jobs: Jobs = None,
        stage_by_stage: StageByStage = None,
        model: Model = None,
        language: Language = None,
        set_: Set = None,
        dry_run: DryRun = False,
        as_json: AsJson = False,
        url: Url = None,
        config_dir: ConfigDir = None,
    ) -> None:
        order = None if stage_by_stage is None else Order.STAGE if stage_by_stage else Order.PICTURE
        variables = _variables(set_ or (), language)
        sidecars = write_sidecar is not None
        options = Options(
            out,
            sidecars,
            replace_descriptions,
            resume,
            jobs,
            order,
            model,
            variables,
            dry_run,
            as_json,
            url,
            config_dir,
        )
        try:
            tasks, paths = chosen(words, config_dir)
        except (UnknownTask, NoPictures) as error:
            fail(str(error), 2)
        run(tasks, paths, options)

    command.__doc__ = text
    command.__annotations__["words"] = words
    if not has_order:
        signature = inspect.signature(command, eval_str=True)
        kept = [each for name, each in signature.parameters.items() if name != "stage_by_stage"]
        command.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined] # what inspect looks for
    return command


def command_for(task: str, text: str) -> Callable[..., None]:
    """Return the command for one task, which is described by ``text``."""
    return _command(
        text, Paths, lambda paths, config_dir: ([known_tasks(config_dir).find(task)], paths), has_order=False
    )


tag = command_for("tags", "Tag pictures with words of a fixed vocabulary: light, clarity, setting, weather, density.")
caption = command_for("caption", "Caption pictures: one sentence each.")
keywords = command_for("keywords", "Find keywords for pictures.")
describe = command_for("description", "Describe pictures at length.")
ocr = command_for("ocr", "Read the text in pictures.")
run_tasks = _command(
    """Do one or several tasks for pictures, your own tasks included.

    Several tasks are done picture by picture where their models are loaded together, else stage by stage: all pictures
    for one model, then all for the next.
    """,
    TasksAndPaths,
    lambda words, config_dir: split(words, known_tasks(config_dir)),
    has_order=True,
)


def _variables(given: Sequence[str], language: str | None) -> dict[str, str]:
    pairs = [each.partition("=") for each in given]
    if wrong := [name for name, equals, _ in pairs if not equals or not name]:
        fail(f"--set takes NAME=TEXT, and {wrong[0]!r} is none", 2)
    values = {name: text for name, _, text in pairs} | ({} if language is None else {"language": language})
    if wrong := [name for name, text in values.items() if not (is_text(name) and is_text(text))]:
        fail(f"the variable {as_text(wrong[0])!r} is no text: it has bytes that are no UTF-8", 2)
    return values
