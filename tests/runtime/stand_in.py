"""Stand-ins for rolecall that start real engines and can be killed at any moment; run as a script by the tests.

A line of JSON on the standard input forks one (importing everything anew for each would take most of the time), an
empty line ends the server. What it forks goes by a token: it is in the environment or on the command line of each.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import uvloop

from rolecall.backends.base import Launch
from rolecall.core.vram import Share
from rolecall.runtime.guardian import Guardian
from rolecall.runtime.launcher import EngineLauncher, EngineProcess
from rolecall.runtime.leftovers import EngineRoll

ENGINE = """
import os, signal, sys, time
token, most = sys.argv[1], int(sys.argv[2])

def start(*steps, environ=os.environ):
    if os.fork() == 0:
        for step in steps:
            step()
        os.execve("/bin/sleep", ["sleep", "600." + token], environ)

def fork_again():
    if os.fork():
        os._exit(0)

def ignore_sigterm():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

start()
start(ignore_sigterm)
start(environ={})
start(os.setsid, ignore_sigterm)
start(fork_again, os.setsid, fork_again)
for _ in range(most):
    start(fork_again, os.setsid)
    time.sleep(0.005)
while True:
    time.sleep(600)
"""
"""Starts what is hard to end: own sessions, orphans, processes that ignore SIGTERM or have no environment."""


def say(text: str) -> None:
    """Write a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def live(folder: Path, token: str, plan: str, *, keep: bool) -> None:
    """Carry out a plan: ``ready`` starts one engine, ``churn`` starts and stops them for ever, ``leave`` ends."""
    roll = EngineRoll(folder / "engines")
    guardian = None if keep else Guardian()
    launcher = EngineLauncher(folder / "logs", os.environ, keep=keep, guardian=guardian, roll=roll)
    launch = Launch((sys.executable, "-I", "-S", "-c", ENGINE, token, "0"), "http://127.0.0.1:1234/v1")
    say(f"began {os.getpid()}")
    while True:
        if plan == "churn":
            launch = Launch((*launch.argv[:-1], str(random.choice([0, 20, 200]))), launch.base_url)
        process = await launcher.start("m", launch)
        if plan != "churn":
            roll.ready("m", fingerprint="f", placement=(Share("GPU-1", 500, 16000),))
            say(f"ready {process.pid}")
            if plan == "leave":
                return
            await asyncio.sleep(600)
        await _come_and_go(roll, process)


async def _come_and_go(roll: EngineRoll, process: EngineProcess) -> None:
    gone = asyncio.ensure_future(process.wait())
    await asyncio.sleep(random.uniform(0, 0.15))
    if random.random() < 0.7:
        roll.ready("m", fingerprint="f")
        await asyncio.sleep(random.uniform(0, 0.15))
        roll.unready("m")
    process.send(random.choice([signal.SIGTERM, signal.SIGKILL]))
    await gone


def main() -> None:
    """Fork a stand-in for each line."""
    while order := sys.stdin.readline().strip():
        fields: dict[str, Any] = json.loads(order)
        if pid := os.fork():
            os.waitpid(pid, 0)
            say("gone")
        else:
            os.environ["STAND_IN"] = fields["token"]
            random.seed()
            run = random.choice([asyncio.run, uvloop.run])
            run(live(Path(fields["folder"]), fields["token"], fields["plan"], keep=fields["keep"]))
            sys.exit()


if __name__ == "__main__":
    main()
