"""The end of rolecall: answers in flight, waiting requests, engines, lines; by SIGTERM and by SIGKILL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness import (
    CHAT,
    Rolecall,
    eventually,
    fake_entry,
    http_request,
    is_running,
    new_agent,
    prompt,
    read_to_end,
    rest_of,
    text_of,
    unchunked,
    words,
)
from rolecall.runtime.leftovers import Identity

pytestmark = pytest.mark.long

ENDLESS = {"tokens": 10_000, "token_delay_s": 0.05}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_answers_in_flight_are_finished(tmp_path: Path, number: signal.Signals) -> None:
    """A stream and a whole answer that have begun come to their end; whoever comes then is 503; the exit code is 0."""
    with Rolecall(tmp_path, [fake_entry("m")]) as server, ThreadPoolExecutor(1) as pool:
        fake = {"tokens": 10, "token_delay_s": 0.1}
        with server.stream("m", fake=fake) as answer:
            lines = answer.iter_lines()
            next(lines)
            whole = pool.submit(server.chat, "m", fake=fake)
            server.await_in_flight("m", 2)
            server.terminate(number)
            refused = eventually(lambda: late if (late := server.chat("m")).status_code != 200 else None)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
            assert 1 <= int(refused.headers["retry-after"]) <= 120
            assert server.get("/health")["status"] == "ok"
            rest, is_whole = rest_of(lines)
        assert (rest[-1], text_of(rest), is_whole) == ("[DONE]", words(10), True)
        assert whole.result().json()["choices"][0]["message"]["content"] == words(10)
        assert server.ended(5) == 0
        by_id = {line["request_id"]: line for line in server.log_lines()}
        assert [by_id[a.headers["x-request-id"]]["status"] for a in (answer, whole.result(), refused)] == [
            200,
            200,
            503,
        ]
        assert "Traceback" not in server.words()


def test_an_answer_beyond_the_grace_is_ended_with_an_error(tmp_path: Path) -> None:
    """After shutdown_grace_s a stream gets an error event and no proper end, a whole answer a 503; both have lines."""
    with Rolecall(tmp_path, [fake_entry("m")], settings={"shutdown_grace_s": 0.3}) as server:
        with ThreadPoolExecutor(1) as pool, server.stream("m", fake=ENDLESS) as answer:
            lines = answer.iter_lines()
            next(lines)
            whole = pool.submit(server.chat, "m", fake=ENDLESS)
            server.await_in_flight("m", 2)
            started = time.monotonic()
            server.terminate()
            rest, is_whole = rest_of(lines)
        assert not is_whole
        assert rest[-1]["error"]["code"] == "shutting_down"
        assert (whole.result().status_code, whole.result().json()["error"]["code"]) == (503, "shutting_down")
        assert server.ended(5) == 0
        assert time.monotonic() - started < 4
        assert server.line_of(answer)["error"].startswith("shutting_down: ")
        assert server.line_of(whole.result())["status"] == 503
        assert "Traceback" not in server.words()


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    """Who sends SIGTERM twice is in a hurry: streams end with an error event at once, and no line is lost."""
    with Rolecall(tmp_path, [fake_entry("m")], settings={"shutdown_grace_s": 60}) as server:
        with server.stream("m", fake=ENDLESS) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.terminate()
            eventually(lambda: "finishing answers in flight" in server.words())
            server.process.send_signal(signal.SIGTERM)
            rest, is_whole = rest_of(lines)
        assert not is_whole
        assert rest[-1]["error"]["code"] == "shutting_down"
        assert server.ended(5) == 0
        assert server.line_of(answer)["error"].startswith("shutting_down: ")


def test_waiting_requests_are_told_to_come_back(tmp_path: Path) -> None:
    """A request in the queue, and one whose model is loading, get 503 at once; the half-loaded engine is ended."""
    entries = (fake_entry("busy", max_parallel=1), fake_entry("loading", "--load-s", "30"))
    with Rolecall(tmp_path, entries) as server, ThreadPoolExecutor(3) as pool:
        busy = pool.submit(server.chat, "busy", fake={"tokens": 10, "token_delay_s": 0.1})
        server.await_in_flight("busy", 1)
        waiting = [pool.submit(server.chat, model) for model in ("busy", "loading")]
        server.await_waiting(2)
        server.await_state("loading", "starting")
        started = time.monotonic()
        server.terminate()
        assert [(each.result().status_code) for each in waiting] == [503, 503]
        assert time.monotonic() - started < 0.7
        assert busy.result().status_code == 200
        assert server.ended(5) == 0
        assert sorted(line["status"] for line in server.log_lines()) == [200, 503, 503]


def test_no_line_is_lost(tmp_path: Path) -> None:
    """Every answer that a client got before and during the end has its line."""
    with Rolecall(tmp_path, [fake_entry("m", max_parallel=20)]) as server, ThreadPoolExecutor(20) as pool:
        server.http.post("/v1/models/m/load")
        answers: list[str] = []

        def ask(_: int) -> None:
            while True:
                try:
                    answers.append(server.chat("m").headers["x-request-id"])
                except httpx.TransportError:
                    return

        asking = [pool.submit(ask, number) for number in range(20)]
        eventually(lambda: len(answers) > 200)
        server.terminate()
        assert server.ended(10) == 0
        for each in asking:
            each.result()
        lines = server.log_lines()
        assert set(answers) <= {line["request_id"] for line in lines}
        assert len(lines) == len({line["request_id"] for line in lines})


def test_a_client_that_stalls_does_not_hold_the_end(tmp_path: Path) -> None:
    """Neither half a body nor a client that does not read keeps rolecall from ending soon after the grace."""
    with Rolecall(tmp_path, [fake_entry("m")], settings={"shutdown_grace_s": 0.2}) as server:
        server.http.post("/v1/models/m/load")
        agent = new_agent()
        flood = prompt("m", stream=True, fake={"tokens": 1_000_000})
        with (
            server.raw(http_request(b"{", headers={"Content-Length": "100", "User-Agent": agent})) as half,
            server.raw(http_request(flood)),
            server.raw(),
        ):
            server.await_in_flight("m", 1)
            started = time.monotonic()
            server.terminate()
            assert server.ended(12) == 0
            assert time.monotonic() - started < 8
            assert b"shutting_down" in read_to_end(half)
        assert server.line_by(agent)["status"] == 503
        assert len(server.log_lines()) == 2


def test_idle_connections_do_not_hold_the_end(tmp_path: Path) -> None:
    """With nothing to finish the end comes at once, whatever keep-alive connections there are."""
    with Rolecall(tmp_path, [fake_entry("m")]) as server:
        assert server.chat("m").status_code == 200
        with server.raw(), server.raw(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            started = time.monotonic()
            assert server.stop() == 0
        assert time.monotonic() - started < 2


def test_an_engine_that_ignores_sigterm_does_not_survive_rolecall(tmp_path: Path) -> None:
    """What does not end by SIGTERM, with all its children, is killed before rolecall ends, however often it is told."""
    with Rolecall(tmp_path, [fake_entry("m", "--ignore-term", "--spawn-child")]) as server:
        server.chat("m")
        stats = server.stats("m")
        server.terminate()
        eventually(lambda: not accepts(server))
        for _ in range(3):
            server.process.send_signal(signal.SIGTERM)
        assert server.ended(12) == 0
        eventually(lambda: not is_running(stats["child_pid"]))
        assert not is_running(stats["pid"])


def accepts(server: Rolecall) -> bool:
    """Whether it takes connections."""
    try:
        server.raw().close()
    except ConnectionError:
        return False
    return True


@pytest.mark.parametrize("wait_for", ["", "profile "])
def test_a_signal_during_the_start_ends_it(tmp_path: Path, wait_for: str) -> None:
    """SIGTERM before rolecall is ready ends it without a trace of what was preloading."""
    server = Rolecall(tmp_path, [fake_entry("m", "--load-s", "30", preload=True)])
    server.launch()
    eventually(lambda: wait_for in server.words())
    server.terminate()
    assert server.ended(5) in {0, -signal.SIGTERM}
    assert "Traceback" not in server.words()


class TestSigkill:
    """Nobody can clean up after SIGKILL but the kernel and the next start."""

    def test_engines_die_with_a_killed_rolecall(self, tmp_path: Path) -> None:
        """The parent-death signal ends ready and loading engines, even those that ignore SIGTERM."""
        entries = (fake_entry("ready", "--ignore-term"), fake_entry("loading", "--load-s", "30"))
        with Rolecall(tmp_path, entries) as server, ThreadPoolExecutor(1) as pool:
            server.chat("ready")
            loading = pool.submit(server.chat, "loading")
            server.await_state("loading", "starting")
            pids = [eventually(lambda model=model: server.row(model)["pid"]) for model in ("ready", "loading")]  # type: ignore[misc]
            server.process.kill()
            server.process.wait()
            eventually(lambda: not any(map(is_running, pids)), within_s=2)
            assert isinstance(loading.exception(), httpx.TransportError)

    def test_what_an_engine_started_ends_as_well(self, tmp_path: Path) -> None:
        """A grandchild, of which the kernel knows nothing, is ended within seconds of a killed rolecall."""
        with Rolecall(tmp_path, [fake_entry("m", "--spawn-child")]) as server:
            server.chat("m")
            orphan = server.stats("m")["child_pid"]
            server.process.kill()
            server.process.wait()
            eventually(lambda: not is_running(orphan), within_s=5)
        with Rolecall(tmp_path, [fake_entry("m")]) as server:
            assert server.chat("m").status_code == 200
        assert list((tmp_path / "state" / "engines").glob("*.json")) == []

    def test_engines_of_a_living_rolecall_are_left_alone(self, tmp_path: Path) -> None:
        """Two rolecalls with one state folder do not end each other's engines."""
        with Rolecall(tmp_path / "first", [fake_entry("m")], state_dir=tmp_path / "state") as first:
            first.chat("m")
            pid = first.row("m")["pid"]
            with Rolecall(tmp_path / "second", [fake_entry("m")], state_dir=tmp_path / "state") as second:
                second.chat("m")
                assert is_running(pid)
                assert "left over" not in second.words()
            assert is_running(pid)
            assert first.chat("m").status_code == 200
            assert first.row("m")["pid"] == pid


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """Start a process in a session of its own that has nothing to do with rolecall."""
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def write_roll(folder: Path, owner: dict[str, Any], **engines: dict[str, Any]) -> Path:
    """Write down engines as an earlier rolecall would have."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{owner['pid']}.json"
    path.write_text(json.dumps({"owner": owner, "engines": engines}))
    return path


def test_only_the_very_processes_that_were_written_down_are_ended(
    tmp_path: Path, stranger: subprocess.Popen[bytes]
) -> None:
    """A number that now belongs to another process, and rubbish in the folder, harm nobody and are cleared away."""
    folder = tmp_path / "state" / "engines"
    dead = {"pid": 2**22 - 1, "born": "long ago"}
    write_roll(folder, dead, old={"pid": stranger.pid, "born": "another boot 17"})
    for name, text in (("1.json", "{rubbish"), ("2.json", "[]"), ("3.json", '{"owner": {"pid": 1}}'), ("4.json", "")):
        (folder / name).write_text(text)
    with Rolecall(tmp_path, [fake_entry("m")]) as server:
        assert is_running(stranger.pid)
        assert "left over" not in server.words()
        assert "Traceback" not in server.words()
        assert list(folder.iterdir()) == []


def test_a_leftover_that_was_written_down_is_ended(tmp_path: Path, stranger: subprocess.Popen[bytes]) -> None:
    """An engine whose rolecall is gone, also where that number now belongs to another process, is ended."""
    not_its_owner = {"pid": os.getpid(), "born": "long ago"}
    write_roll(tmp_path / "state" / "engines", not_its_owner, m=asdict(Identity.of(stranger.pid)))
    with Rolecall(tmp_path, [fake_entry("m")]) as server:
        assert stranger.wait(5) == -signal.SIGKILL
        assert "ended m, an engine left over" in server.words()


def test_a_port_that_is_taken_names_its_holder(tmp_path: Path) -> None:
    """A second rolecall on the same port ends with 2 and says which process has it; the first goes on."""
    with Rolecall(tmp_path / "first", [fake_entry("m")]) as first:
        second = Rolecall(tmp_path / "second", [fake_entry("m")], arguments=["--port", str(first.port)]).run()
        assert second.returncode == 2
        assert f"port: {first.port} is taken by process {first.process.pid} (" in second.stderr
        assert "Traceback" not in second.stderr
        assert first.http.post(CHAT, json=prompt("m")).status_code == 200


def test_requests_are_answered_as_soon_as_it_says_ready(tmp_path: Path) -> None:
    """The line with the address is true when it is written: a client that acts on it is never refused."""
    server = Rolecall(tmp_path, [fake_entry("m")])
    code = (
        "import re, socket, subprocess, sys\n"
        "process = subprocess.Popen(sys.argv[1:], stderr=subprocess.PIPE)\n"
        "port = next(m[1] for line in process.stderr if (m := re.search(rb'ready at http://[^:]+:(\\d+)/v1', line)))\n"
        "try:\n"
        "    socket.create_connection(('127.0.0.1', int(port))).close()\n"
        "finally:\n"
        "    process.terminate()\n"
        "sys.exit(process.wait())\n"
    )
    argv = [sys.executable, "-c", code, *server.argv]
    done = subprocess.run(argv, env=server.environment, cwd=tmp_path, capture_output=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr


def test_a_stream_that_ends_in_time_is_byte_for_byte_whole(tmp_path: Path) -> None:
    """The end of rolecall adds nothing to an answer that is finished within the grace."""
    with Rolecall(tmp_path, [fake_entry("m")]) as server:
        server.http.post("/v1/models/m/load")
        body = prompt("m", stream=True, fake={"tokens": 5, "token_delay_s": 0.1})
        with server.raw(http_request(body)) as connection:
            server.await_in_flight("m", 1)
            server.terminate()
            content, whole = unchunked(read_to_end(connection).partition(b"\r\n\r\n")[2])
        assert whole
        assert content.endswith(b"data: [DONE]\n\n")
        assert server.ended(5) == 0
