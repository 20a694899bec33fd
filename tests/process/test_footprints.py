"""Footprints are learnt: wrong figures, memory that is given back late, others that come and go on the same GPUs."""

from __future__ import annotations

import itertools
import math
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness import CHAT, FAKE_ENGINE, Gpus, Rolecall, prompt
from rolecall.core.decisions import Decision, read
from rolecall.core.events import BecameReady, Exited
from rolecall.core.profiles import RESERVE_MB
from simulator.nvml import Machine, card

VARYING = """
import os, random, sys, time
path, truth_mb, spread, late_s, engine, *flags = sys.argv[1:]
mb = round(float(truth_mb) * random.uniform(1 - float(spread), 1 + float(spread)))
with open(path, "a") as file:
    file.write("%r %d\\n" % (time.monotonic(), mb))
grow_mb = mb // 50
late_s = random.uniform(float(late_s) / 2, float(late_s) * 3 / 2)
flags += ["--gpu-mb", str(mb - grow_mb), "--gpu-grow-mb", str(grow_mb), "--gpu-release-late-s", str(late_s)]
os.execv(sys.executable, [sys.executable, engine, *flags])
"""
"""Becomes a fake engine that holds about ``truth_mb``, each time a little more or less, 2 % of it once it answers."""

FOREIGN_MB = (300, 1500)
"""What others hold of each GPU: less than what rolecall leaves to them, so that only guesses can be too tight."""


@dataclass(frozen=True)
class Plan:
    """What is loaded how often; ``late_s`` is the mean time after which memory is free, ``processes`` as in Machine."""

    loads: int = 200
    gpus_mb: tuple[int, ...] = (24564, 24564)
    truths_mb: tuple[int, ...] = (4000, 5000, 6000, 7000, 8000, 9000, 10000, 11000, 12000)
    processes: str = "listed"
    load_s: float = 0.5
    late_s: float = 1.0
    spread: float = 0.015
    foreign_every_s: float = 10.0
    clients: int = 4
    seed: int = 1

    def declared_mb(self) -> list[int]:
        """Return what the entries say: off by 0.5 to 2, both ends included, in no order, but no more than a GPU has."""
        last = len(self.truths_mb) - 1
        factors = [0.5 * 4 ** (index / last) for index in range(last + 1)]
        random.Random(self.seed).shuffle(factors)
        most_mb = min(self.gpus_mb) - RESERVE_MB
        return [min(round(truth * factor), most_mb) for truth, factor in zip(self.truths_mb, factors, strict=True)]


@dataclass
class Load:
    """One start: what was reserved for it and what it took (MB), and how many went well before it."""

    model: str
    reserved_mb: int
    begun: float
    before: int
    truth_mb: int = 0
    is_ready: bool = False
    ran_out: bool = False

    @property
    def error(self) -> float:
        """How far the reservation was off, as a part of the truth."""
        return abs(self.reserved_mb - self.truth_mb) / self.truth_mb


@dataclass
class Report:
    """What came of it; ``again`` are the first loads after a restart, ``lost`` the answers that were none."""

    loads: list[Load] = field(default_factory=list)
    again: list[Load] = field(default_factory=list)
    answers: int = 0
    lost: list[str] = field(default_factory=list)

    def errors(self, before: range) -> list[float]:
        """Return the errors of the loads that had so many before them, in order of size."""
        return sorted(load.error for load in self.loads if load.before in before and load.truth_mb)

    def ran_out(self, *, learnt: bool) -> dict[str, int]:
        """Return how often each model ran out of memory, before its first load that went well or after it."""
        failed = [load.model for load in self.loads if load.ran_out and bool(load.before) is learnt]
        return {model: failed.count(model) for model in failed}


def p95(errors: list[float]) -> float:
    """Return the smallest that 95 % do not exceed; they are in order."""
    return errors[math.ceil(0.95 * len(errors)) - 1]


def learn(library: Path, folder: Path, plan: Plan) -> Report:
    """Run the plan, then start rolecall again on what was learnt."""
    gpus = Gpus(
        library,
        folder,
        Machine(tuple(card(i, mb, mb - FOREIGN_MB[0]) for i, mb in enumerate(plan.gpus_mb)), processes=plan.processes),
    )
    truths = dict(zip((f"m{mb}" for mb in plan.truths_mb), plan.truths_mb, strict=True))
    entries = [
        _entry(folder, name, truths[name], declared_mb, plan)
        for name, declared_mb in zip(truths, plan.declared_mb(), strict=True)
    ]
    report = Report()
    with gpus.rolecall(*entries, settings={"record_decisions": str(folder / "first.jsonl")}) as server:
        stranger = Stranger(gpus, plan)
        stranger.start()
        _use(server, plan, folder, list(truths), report)
        stranger.stop()
    report.loads = loads_of(folder / "first.jsonl", folder)
    with gpus.rolecall(*entries, settings={"record_decisions": str(folder / "second.jsonl")}) as server:
        for name in truths:
            server.chat(name)
    report.again = [load for load in loads_of(folder / "second.jsonl", folder) if load.before == 0]
    return report


def _entry(folder: Path, name: str, truth_mb: int, declared_mb: int, plan: Plan) -> dict[str, Any]:
    varying = ["{python}", "-IS", "-c", VARYING, str(folder / f"{name}.starts"), str(truth_mb), str(plan.spread)]
    engine = [str(plan.late_s), str(FAKE_ENGINE), "--port", "{port}", "--alias", "{alias}"]
    config = {"command": [*varying, *engine, "--load-s", str(plan.load_s)]}
    return {"name": name, "backend": "llama_cpp", "backend_config": config, "vram_estimate_mb": declared_mb}


class Stranger(threading.Thread):
    """Somebody else whose use of the GPUs changes, until told to stop."""

    def __init__(self, gpus: Gpus, plan: Plan) -> None:
        super().__init__(daemon=True)
        self._gpus, self._every_s = gpus, plan.foreign_every_s
        self._draw = random.Random(plan.seed)
        self._over = threading.Event()

    def run(self) -> None:
        """Come and go."""
        while not self._over.wait(self._every_s):
            self._gpus.set_foreign_mb(self._draw.randint(*FOREIGN_MB), self._draw.randrange(len(self._gpus.cards)))

    def stop(self) -> None:
        """Change no more."""
        self._over.set()
        self.join()


def _use(server: Rolecall, plan: Plan, folder: Path, models: list[str], report: Report) -> None:
    """Ask for random models until there were enough loads."""
    draw = random.Random(plan.seed)
    order = iter(lambda: draw.choice(models), None)
    lock = threading.Lock()

    def ask(http: httpx.Client) -> None:
        while sum(len(_starts(folder, model)) for model in models) < plan.loads:
            with lock:
                model = next(order)
            answer = http.post(CHAT, json=prompt(model))
            report.answers += 1
            if answer.status_code != 200:
                report.lost.append(f"{model}: {answer.text}")

    with (
        httpx.Client(base_url=server.base_url, timeout=300, trust_env=False) as http,
        ThreadPoolExecutor(plan.clients) as pool,
    ):
        for done in [pool.submit(ask, http) for _ in range(plan.clients)]:
            done.result()


def _starts(folder: Path, model: str) -> list[tuple[float, int]]:
    """Return when each engine of a model began, and what it took."""
    path = folder / f"{model}.starts"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(float(moment), int(mb)) for moment, mb in (line.split() for line in lines)]


def loads_of(log: Path, folder: Path) -> list[Load]:
    """Return the starts that a decision log tells of, with what the engines took."""
    found: list[Load] = []
    with log.open("rb") as lines:
        for decision in read(lines):
            if isinstance(decision, Decision):
                _take_in(found, decision)
    for model, own in itertools.groupby(sorted(found, key=lambda load: load.model), key=lambda load: load.model):
        taken = _starts(folder, model)
        for load, after in itertools.pairwise([*own, replace(found[0], begun=math.inf)]):
            load.truth_mb = next((mb for moment, mb in taken if load.begun <= moment < after.begun), 0)
    return found


def _take_in(found: list[Load], decision: Decision) -> None:
    event = decision.event
    if isinstance(event, BecameReady | Exited):
        last = next(load for load in reversed(found) if load.model == event.model)
        if isinstance(event, BecameReady):
            last.is_ready = True
        else:
            last.ran_out |= event.out_of_memory
    for effect in decision.effects:
        if effect["type"] == "Start":
            model, before = effect["model"], _ready(found, effect["model"])
            found.append(Load(model, sum(mb for _, mb in effect["placement"]), decision.now, before))


def _ready(found: list[Load], model: str) -> int:
    return sum(load.is_ready for load in found if load.model == model)


SMALL = Plan(22, (16376,), (4500, 7000, 9500), load_s=0.05, late_s=0.1, foreign_every_s=2, clients=2)


@pytest.mark.alone
@pytest.mark.parametrize("processes", ["listed", "empty"])
def test_footprints_are_learnt(nvml_library: Path, tmp_path: Path, processes: str) -> None:
    """Declared wrong by 0.5 to 2, a model is given what it takes from its fourth load on, and nothing is lost."""
    report = learn(nvml_library, tmp_path, replace(SMALL, processes=processes))
    assert report.lost == []
    assert report.answers >= SMALL.loads
    assert max(report.ran_out(learnt=False).values(), default=0) <= 1
    assert report.ran_out(learnt=True) == {}
    wrong, learnt = report.errors(range(1)), report.errors(range(3, 1000))
    assert len(learnt) >= 10
    assert p95(learnt) < 0.05
    assert max(wrong) > 0.3  # or there was nothing to learn
    assert len(report.again) == len(SMALL.truths_mb)
    assert max(load.error for load in report.again) < 0.05
