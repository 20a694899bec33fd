"""Real processes under fire: engines that do not fit together, many clients, a random engine killed all the time."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from harness import CHAT, FAKE_ENGINE, Gpus, Rolecall, eventually, fake_entry, prompt, rest_of, text_of, words
from simulator import nvml

SIZES_MB = (6000, 7000, 8000)
"""Of which two fit on a card of 16 GB, or one, never three."""


@dataclass(frozen=True)
class Plan:
    """What comes down on a rolecall; ``load_s`` is how long each engine loads, ``late_s`` how long its memory stays."""

    requests: int = 500
    clients: int = 16
    kill_every_s: float = 2.0
    load_s: float = 0.5
    late_s: float = 1.0
    token_delay_s: float = 0.02
    patience_s: float = 2.0
    """How long a client waits at most that was refused and told when to come back."""
    seed: int = 1


@dataclass(frozen=True)
class Ending:
    """How one request ended: ``whole``, ``refused`` or ``cut`` (and told so), or ``untold`` with what was wrong."""

    kind: str
    request_id: str
    seconds: float
    code: str = ""
    """Of the error."""


@dataclass
class Report:
    """What came of it."""

    endings: list[Ending] = field(default_factory=list)
    kills: int = 0
    starts: int = 0
    wall_s: float = 0.0
    lines: int = 0
    problems: list[str] = field(default_factory=list)
    """Of the log."""
    lost_mb: int = 0
    reserved_mb: int = 0
    processes_left: int = 0

    def count(self, kind: str) -> int:
        """Return how many requests ended so."""
        return sum(ending.kind == kind for ending in self.endings)

    def codes(self) -> Counter[str]:
        """Return how often each error was given."""
        return Counter(ending.code for ending in self.endings if ending.code)


class Killer(threading.Thread):
    """Kills a random engine every so often, whatever it is doing, until told to stop."""

    def __init__(self, server: Rolecall, plan: Plan) -> None:
        super().__init__(daemon=True)
        self._server, self._every_s = server, plan.kill_every_s
        self._draw = random.Random(plan.seed)
        self._over = threading.Event()
        self.kills = 0

    def run(self) -> None:
        """Kill."""
        while not self._over.wait(self._every_s):
            if victims := engines(self._server):
                with contextlib.suppress(psutil.NoSuchProcess):
                    self._draw.choice(victims).kill()
                    self.kills += 1

    def stop(self) -> int:
        """Kill no more and return how many were killed."""
        self._over.set()
        self.join()
        return self.kills


def engines(server: Rolecall) -> list[psutil.Process]:
    """Return the engines' own processes, from their first moment on."""
    found = []
    for process in server.engine_processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            if str(FAKE_ENGINE) in process.cmdline():
                found.append(process)
    return found


def fire(library: Path, folder: Path, plan: Plan) -> Report:
    """Run the plan on one simulated GPU of 16 GB and return what came of it."""
    gpus = Gpus(library, folder, nvml.ONE_16GB)
    late = ("--gpu-release-late-s", str(plan.late_s), "--starts-log", str(folder / "starts"))
    # One engine's memory is held by a grandchild in a session of its own, as by vLLM's EngineCore.
    child = ("--spawn-child", "--child-session", "--leave-child", "--child-holds-gpu")
    entries = [
        fake_entry(f"m{mb}", "--gpu-mb", str(mb), "--load-s", str(plan.load_s), *late, *faults, vram_estimate_mb=mb)
        for mb, faults in zip(SIZES_MB, (child, (), ()), strict=True)
    ]
    report = Report()
    with gpus.rolecall(*entries, settings={"max_overtake_s": 5}) as server:
        began = time.monotonic()
        killer = Killer(server, plan)
        killer.start()
        report.endings = _besiege(server, plan)
        report.kills, report.wall_s = killer.stop(), time.monotonic() - began
        report.lines = len(server.log_lines(plan.requests))
        report.problems = list(_problems(server, report.endings))
        for entry in entries:
            server.http.post(f"/v1/models/{entry['name']}/unload")
        with contextlib.suppress(AssertionError):
            eventually(lambda: not gpus.lost_mb() and not server.get("/health")["reserved_mb"])
        report.lost_mb = gpus.lost_mb()
        report.reserved_mb = sum(row["vram_reserved_mb"] for row in server.get("/v1/models/health")["data"])
        report.reserved_mb = max(report.reserved_mb, server.get("/health")["reserved_mb"])
        report.processes_left = len(engines(server))
    report.starts = len((folder / "starts").read_text().splitlines())
    return report


def _besiege(server: Rolecall, plan: Plan) -> list[Ending]:
    draw = random.Random(plan.seed)
    models = [f"m{mb}" for mb in SIZES_MB]
    wishes = [(draw.choice(models), number % 2 == 0, draw.randint(1, 30)) for number in range(plan.requests)]
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=plan.clients)
    with (
        httpx.Client(base_url=server.base_url, timeout=300, limits=limits, trust_env=False) as http,
        ThreadPoolExecutor(plan.clients) as pool,
    ):
        return list(pool.map(lambda wish: _ask(http, plan, *wish), wishes))


def _ask(http: httpx.Client, plan: Plan, model: str, is_streamed: bool, tokens: int) -> Ending:  # noqa: FBT001 - as drawn
    body = prompt(model, stream=is_streamed, fake={"tokens": tokens, "token_delay_s": plan.token_delay_s})
    began = time.monotonic()
    with http.stream("POST", CHAT, json=body) as answer:
        if answer.status_code == 200 and is_streamed:
            kind, code = _of_stream(*rest_of(answer.iter_lines()), words(tokens))
        else:
            answer.read()
            kind, code = _of_body(answer, words(tokens))
        request_id = answer.headers["x-request-id"]
    seconds = time.monotonic() - began
    if kind == "refused":  # as clients do who are told to come back later
        time.sleep(min(plan.patience_s, float(answer.headers.get("retry-after", 0))))
    return Ending(kind, request_id, seconds, code)


def _of_body(answer: httpx.Response, expected: str) -> tuple[str, str]:
    body = answer.json()
    if answer.status_code == 200:
        is_whole = body["choices"][0]["message"]["content"] == expected
        return ("whole", "") if is_whole else ("untold", f"half an answer: {answer.text}")
    code = error_code(body)
    return ("refused", code) if code else ("untold", f"no error in OpenAI's shape: {answer.text}")


def _of_stream(events: list[Any], is_ended: bool, expected: str) -> tuple[str, str]:  # noqa: FBT001 - as it comes
    last = events[-1] if events else None
    if last == "[DONE]" and is_ended and text_of(events) == expected:
        return "whole", ""
    code = error_code(last)
    return ("cut", code) if code and not is_ended else ("untold", f"ends with {last}")


def error_code(body: Any) -> str:
    """Return the code of an error in OpenAI's shape; nothing for anything else."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or set(error) != {"message", "type", "param", "code"} or not error["message"]:
        return ""
    return str(error["code"])


def _problems(server: Rolecall, endings: list[Ending]) -> Iterator[str]:
    """Yield what is wrong with the log: a line too many, one that lacks, one that tells another story."""
    lines = Counter(line["request_id"] for line in server.log_lines())
    yield from (f"{count} lines for {name}" for name, count in lines.items() if count > 1)
    ids = {ending.request_id for ending in endings}
    yield from (f"no line for {name}" for name in ids - lines.keys())
    yield from (f"a line for nobody: {name}" for name in lines.keys() - ids)
    told = {line["request_id"]: line["error"] is None for line in server.log_lines()}
    for ending in endings:
        if told.get(ending.request_id) is not (ending.kind == "whole"):
            yield f"the line of {ending.request_id} says another thing than its client saw: {ending.kind}"


@pytest.mark.alone
def test_every_request_ends_clearly_under_fire(nvml_library: Path, tmp_path: Path) -> None:
    """Whatever is killed when: whole answers or clear errors, cuts that are told, a line each, nothing left behind."""
    plan = Plan(requests=150, kill_every_s=0.8, load_s=0.1, late_s=0.1, token_delay_s=0.01, patience_s=1)
    report = fire(nvml_library, tmp_path, plan)
    assert [ending for ending in report.endings if ending.kind == "untold"] == []
    assert report.problems == []
    assert (len(report.endings), report.lines) == (150, 150)
    assert len({ending.request_id for ending in report.endings}) == 150
    assert (report.lost_mb, report.reserved_mb, report.processes_left) == (0, 0, 0)
    assert report.kills >= 3
    assert report.starts > len(SIZES_MB)
    assert report.count("whole") >= 5, report.codes()  # or the fire was too hot to tell anything
