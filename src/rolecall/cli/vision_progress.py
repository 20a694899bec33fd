"""How a run over many pictures goes, on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import asyncio
import math
import re
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from rolecall.cli.table import console_for, printable
from rolecall.vision.batch_record import Key, Record
from rolecall.vision.plan import Stage

EVERY_S = 10.0
_MARGIN_S = 1.0
"""So long after a pause the question that waited is asked again, or waits anew."""
_SHOWN_PROBLEMS = 20
_WINDOW_S = 60.0
"""The rate is that of the last minute: a model that had to be loaded first does not slow it down for ever."""
_WHEN = re.compile(r"[;,.]?[^;,.]*\bin \d+(?:\.\d+)? ?s(?:econds?)?\b")
"""What a server says of the time until the next try: it was so when it said it, and is told anew here."""


@dataclass(slots=True)
class Tally:
    """What came of a run: answers (units of one task for one picture), and sums over them."""

    ok: int = 0
    failed: int = 0
    earlier: int = 0
    sidecars: int = 0
    sidecar_errors: int = 0
    discarded: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    models: Counter[str] = field(default_factory=Counter)

    def add(self, record: Record) -> None:
        """Count a record."""
        if record.status == "ok":
            self.ok += 1
        else:
            self.failed += 1
        self.sidecars += record.sidecar is not None
        self.sidecar_errors += record.sidecar_error is not None
        self.discarded += record.discarded
        self.prompt_tokens += record.prompt_tokens or 0
        self.completion_tokens += record.completion_tokens or 0
        if record.model:
            self.models[record.model] += 1


class Pace:
    """How many answers come in a second, and when the last one will be there."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._times = deque([now()])

    def step(self) -> None:
        """There is one more."""
        now = self._now()
        self._times.append(now)
        while self._times[1] < now - _WINDOW_S:
            self._times.popleft()

    @property
    def per_s(self) -> float:
        """Answers in a second; 0 where nothing can be said yet.

        Where the next one is late it is as if it came now, so that the rate sinks while all wait.
        """
        steps, span_s = len(self._times) - 1, self._times[-1] - self._times[0]
        if steps == 0 or span_s <= 0:
            return 0.0
        return min(steps / span_s, (steps + 1) / (self._now() - self._times[0]))

    def left_s(self, count: int) -> float | None:
        """Return the seconds that ``count`` more answers will take; None where nothing can be said."""
        rate = self.per_s
        return count / rate if rate else None


class Waits:
    """Which questions wait to be asked again, and why the latest of them does."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._tries: list[float] = []
        self._reason = ""

    def begin(self, reason: str, pause_s: float) -> None:
        """A question waits so many seconds for that reason."""
        self._reason, self._tries = _WHEN.sub("", reason), [*self._pending(), self._now() + pause_s]

    @property
    def reason(self) -> str:
        """Why questions wait, without when they are asked again; empty while none does."""
        return self._reason if self._pending() else ""

    @property
    def left_s(self) -> float:
        """The seconds until the next one is asked again; 0 while none waits."""
        return max(0.0, min(self._pending(), default=0.0) - self._now())

    def _pending(self) -> list[float]:
        return [at for at in self._tries if self._now() < at + _MARGIN_S]


class Shown:
    """Tells how a run of so many answers goes; ``tally`` counts them."""

    def __init__(
        self,
        total: int,
        show: Callable[[Record], None],
        kept: Path | None,
        *,
        every_s: float = EVERY_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Show each record with ``show``; where ``kept`` has all of them, the first problems are told alone."""
        self.tally = Tally()
        self._total = total
        self._show = show
        self._kept = kept
        self._problems = 0
        self._every_s = every_s
        self._pace = Pace(now)
        self._waits = Waits(now)
        self._told_wait = ""
        self._progress: Progress | None = None

    @contextmanager
    def open(self) -> Iterator[None]:
        """Show it meanwhile."""
        console = console_for(error=True)
        if not console.is_terminal or console.is_dumb_terminal:
            yield
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            _Speed(self._speed),
        )
        self._progress = Progress(
            *columns, TimeElapsedColumn(), console=console, redirect_stdout=sys.stdout.isatty(), redirect_stderr=False
        )
        self._bar = self._progress.add_task("", total=self._total)
        with self._progress:
            yield
        self._progress = None

    async def tell_now_and_then(self) -> None:
        """Say how far it is and why it waits, also while no answer comes, until this is cancelled."""
        with suppress(OSError):  # nobody reads stderr any more
            while True:
                await asyncio.sleep(self._every_s)
                self.tick()

    def tick(self) -> None:
        """Say it once: on a terminal, where the bar says the rest, why it waits, unless that was said last."""
        wait = self._waits.reason
        if self._progress is None:
            more = f", {duration(self._waits.left_s)} more" if self._waits.left_s else ""
            self.say(self.line() + (f"; it waits{more}: {wait}" if wait else ""))
        elif wait and wait != self._told_wait:
            self.say(f"it waits: {wait}")
        self._told_wait = wait

    # -- what the run tells

    def begin(self, stage: Stage) -> None:
        """A stage begins."""
        if self._progress is not None:
            self._progress.update(self._bar, description=", ".join(stage.tasks))

    def earlier(self, _key: Key) -> None:
        """There is a record of an earlier run."""
        self.tally.earlier += 1
        self._total -= 1
        if self._progress is not None:
            self._progress.update(self._bar, total=self._total)

    def finished(self, record: Record) -> None:
        """A record was written down."""
        self.tally.add(record)
        self._pace.step()
        self._show(record)
        if problem := record.error or record.sidecar_error:
            self._tell(f"{record.file}: {record.task}: {problem}")
        if self._progress is not None:
            self._progress.update(self._bar, advance=1)

    def waiting(self, reason: str, pause_s: float) -> None:
        """A question is asked again after a pause."""
        self._waits.begin(reason, pause_s)

    def _tell(self, problem: str) -> None:
        self._problems += 1
        if self._kept is None or self._problems <= _SHOWN_PROBLEMS:
            self.say(problem)
        elif self._problems == _SHOWN_PROBLEMS + 1:
            self.say(f"further problems are in {self._kept} alone")

    def say(self, text: str) -> None:
        """Print a line on stderr, above the bar if there is one."""
        line = f"rolecall: {' '.join(printable(text).split())}"
        if self._progress is not None:
            self._progress.console.print(line, soft_wrap=True)
        else:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()

    def line(self) -> str:
        """Return how far it is in words."""
        count = self.tally.ok + self.tally.failed
        failed = f", {self.tally.failed} failed" if self.tally.failed else ""
        return f"{count} of {self._total} answers{failed}, {self._speed(self._total - count)}"

    def _speed(self, count: int) -> str:
        """Return the rate, and how long so many more answers will take: no less than what is waited for now."""
        left_s = self._pace.left_s(count)
        if left_s is None:
            return "-/s"
        rate = self._pace.per_s
        speed = f"{rate:.1f}/s" if rate >= 1 else f"{rate * 60:.1f}/min"
        return f"{speed}, {duration(max(left_s, self._waits.left_s))} left"


class _Speed(ProgressColumn):
    def __init__(self, speed: Callable[[int], str]) -> None:
        super().__init__()
        self._speed = speed

    def render(self, task: Task) -> Text:
        return Text(self._speed(int(task.remaining or 0)))


def duration(seconds: float) -> str:
    """Return ``12s``, ``3m05s`` or ``2h07m``."""
    whole = math.ceil(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02}m"
