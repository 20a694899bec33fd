"""One run of tasks over many pictures: carried out, and what came of it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import typer

from rolecall import __version__
from rolecall.cli.client import key_header
from rolecall.cli.common import fail, print_json
from rolecall.cli.table import console_for, printable
from rolecall.cli.vision_job import Job, Options, at_a_time, planned, usable_output
from rolecall.cli.vision_progress import Shown, Tally, duration
from rolecall.core.wording import counted
from rolecall.vision.ask import Asker
from rolecall.vision.batch import Batch, BatchError, Wishes
from rolecall.vision.batch_earlier import Earlier
from rolecall.vision.batch_record import Record, to_json
from rolecall.vision.task import Task
from rolecall.vision.writers import Output, OutputError, open_output
from rolecall.vision.writers_cells import value_text

_INTERRUPTED = 130


def run(tasks: Sequence[Task], words: Sequence[str], options: Options) -> None:
    """Do tasks for the pictures that words mean. Ends with exit code 1 if anything failed, 130 after Ctrl-C."""
    job = planned(tasks, words, options)
    if options.dry_run:
        job.describe()
    else:
        _Run(job).carry_out()


@dataclass(frozen=True, slots=True)
class _Run:
    job: Job

    def carry_out(self) -> None:
        """Ask for all that is missing, write it down, and say what came of it."""
        console_for()  # so that a stdout that is not UTF-8 fails at no answer
        output = _opened(self.job.options.out, resume=self.job.options.resume)
        shown = Shown(self.job.total, self._show, self.job.options.out)
        began = time.monotonic()
        for line in self.job.pictures.splitlines():
            shown.say(line)
        shown.say(f"{self.job.plan.words}; {at_a_time(max(stage.jobs for stage in self.job.plan.stages))}")
        problem, stopped = None, False
        try:
            with shown.open():
                stopped = asyncio.run(self._ask_all(output, shown))
        except (BatchError, OutputError) as error:
            problem = str(error)
        except KeyboardInterrupt:
            stopped = True
        except BaseException:  # such as that nobody reads stdout any more
            output.close()
            raise
        try:
            output.close()
        except OutputError as error:
            problem = problem or str(error)
        self._conclude(shown, time.monotonic() - began, problem, stopped=stopped)

    async def _ask_all(self, output: Output, shown: Shown) -> bool:
        earlier = Earlier(output.records() if self.job.options.resume else (), sidecars=self.job.options.sidecars)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        headers = {"user-agent": f"rolecall/{__version__}", **key_header()}
        client = httpx.AsyncClient(base_url=self.job.url, headers=headers, trust_env=False, limits=limits)
        wishes = Wishes(
            self.job.variables, self.job.options.model, self.job.options.sidecars, self.job.options.replace_descriptions
        )
        tasks = {task.id: task for task in self.job.tasks}
        async with client:
            batch = Batch(
                Asker(client, patience_s=0), tasks, self.job.plan, output, shown, wishes=wishes, earlier=earlier
            )
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, batch.stop)
            telling = asyncio.create_task(shown.tell_now_and_then())
            try:
                await batch.run(self.job.found.pictures)
            finally:
                telling.cancel()
        return batch.stopped

    def _show(self, record: Record) -> None:
        if self.job.options.out is not None or record.status != "ok":
            return
        if self.job.options.as_json:
            typer.echo(to_json(record))
        else:
            what = f"{record.task}: " if len(self.job.tasks) > 1 else ""
            text = ", ".join(record.tags) if record.tags else value_text(record.value)
            typer.echo(printable(f"{_short(record.file)}: {what}{text}"))

    def _conclude(self, shown: Shown, seconds: float, problem: str | None, *, stopped: bool) -> None:
        for each in self.job.found.unreadable:
            shown.say(each)
        shown.say(self._result(shown, seconds))
        if self.job.options.as_json and self.job.options.out is not None:
            print_json({**self.job.facts(), **_tallied(shown), "seconds": round(seconds, 3), "stopped": stopped})
        again = "; the same command with --resume goes on" if self._keeps_output(shown.tally) else ""
        if problem is not None:
            fail(problem + ("" if "--resume" in problem else again))
        if stopped:
            shown.say(f"stopped{again}")
            raise typer.Exit(_INTERRUPTED)
        if shown.tally.failed or shown.tally.sidecar_errors or self.job.found.unreadable:
            raise typer.Exit(1)

    def _keeps_output(self, tally: Tally) -> bool:
        """Remove a new output in which nothing is written, which would only be in the way; say whether one is left."""
        path = self.job.options.out
        is_left = self.job.options.resume or tally.ok + tally.failed > 0
        if path is not None and not is_left:
            path.unlink(missing_ok=True)
        return path is not None and is_left

    def _result(self, shown: Shown, seconds: float) -> str:
        tally = shown.tally
        parts = [f"{counted(tally.ok, 'answer')} in {duration(seconds)}"]
        if tally.earlier:
            parts.append(f"{tally.earlier} there already")
        if tally.failed:
            parts.append(f"{tally.failed} failed")
        if tally.discarded:
            parts.append(f"{counted(tally.discarded, 'part')} of them not used")
        if tally.sidecars:
            parts.append(counted(tally.sidecars, "sidecar"))
        if tally.sidecar_errors:
            parts.append(f"{counted(tally.sidecar_errors, 'sidecar')} not written")
        models = ", ".join(f"{name} {number}" for name, number in tally.models.most_common())
        return ", ".join(parts) + (f" ({models})" if models else "")


class _Nowhere:
    """An output that keeps nothing: the answers are printed."""

    def records(self) -> Iterator[Record]:
        yield from ()

    def add(self, record: Record) -> None:
        del record

    def close(self) -> None:
        pass


def _opened(path: Path | None, *, resume: bool) -> Output:
    if path is None:
        return _Nowhere()
    with usable_output():
        return open_output(path, resume=resume)


def _tallied(shown: Shown) -> dict[str, Any]:
    tally = shown.tally
    return {
        "ok": tally.ok,
        "failed": tally.failed,
        "earlier": tally.earlier,
        "sidecars": tally.sidecars,
        "sidecar_errors": tally.sidecar_errors,
        "discarded": tally.discarded,
        "prompt_tokens": tally.prompt_tokens,
        "completion_tokens": tally.completion_tokens,
        "models": dict(tally.models),
    }


def _short(file: str) -> str:
    """Return a path as seen from here, if it lies below."""
    try:
        return str(Path(file).relative_to(Path.cwd()))
    except ValueError:
        return file
