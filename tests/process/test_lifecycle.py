"""Engines from their first request to the moment when nothing of them is left."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from harness import (
    Rolecall,
    eventually,
    fake_entry,
    is_running,
    rest_of,
    text_of,
    words,
)

SECRET = "sk-canary-7f3a"
SLOW = {"tokens": 12, "token_delay_s": 0.1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the shared server; fakes count their starts in it."""
    return tmp_path_factory.mktemp("lifecycle")


@pytest.fixture(scope="module")
def taken_port() -> Iterator[int]:
    """Return a port on which this process listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture(scope="module")
def server(folder: Path, taken_port: int) -> Iterator[Rolecall]:
    """Run one rolecall with a model for each test, under a profile in which none evicts another."""
    fails = ("--fail-start", "out of memory: tried 99 GB", "--exit-code", "3")
    for name, content in (("no-shell", b"#!/no/such/shell\n"), ("no-format", b"\0")):
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o755)
    entries = (
        fake_entry("single", "--load-s", "0.3", "--starts-log", str(folder / "single")),
        fake_entry("killed", "--starts-log", str(folder / "killed")),
        fake_entry("crashing"),
        fake_entry("once", *fails, "--fail-start-times", "1", "--state", str(folder / "once")),
        fake_entry("role-best", *fails, role_priority={"sort": 90}),
        fake_entry("role-next", role_priority={"sort": 10}),
        fake_entry("never-ready", "--never-ready", "--starts-log", str(folder / "never-ready"), load_timeout_s=0.5),
        fake_entry("never-bound", "--never-bind", load_timeout_s=0.5),
        *(
            {"name": name, "backend": "vllm", "backend_config": {"command": [str(folder / name), "{port}"]}}
            for name in ("no-shell", "no-format")
        ),
        fake_entry("port-lost", "--bind-delay-s", "1", "--starts-log", str(folder / "port-lost")),
        fake_entry(
            "port-unshared",
            *("--shares-no-port", "--bind-when-loaded", "--load-s", "0.5"),
            *("--starts-log", str(folder / "port-unshared")),
        ),
        fake_entry("port-untold", "--shares-no-port", "--bind-failure", "no luck"),
        fake_entry("port-taken", backend_config={"port": taken_port}),
        fake_entry("drained"),
        fake_entry("idle", idle_unload_s=0.2),
        fake_entry("stubborn", "--ignore-term"),
        fake_entry("parent", "--spawn-child"),
        fake_entry("explicit"),
        fake_entry("interrupted-load", "--load-s", "0.5", "--starts-log", str(folder / "interrupted-load")),
        fake_entry("slow-end", "--term-delay-s", "0.5", "--starts-log", str(folder / "slow-end")),
        fake_entry("narrow", max_parallel=2),
        fake_entry("clean-exit", "--starts-log", str(folder / "clean-exit")),
        fake_entry("env", backend_config={"env": {"FAKE_SETTING": "1"}}),
        fake_entry("odd/na me:(Q4)", model_aliases=["odd-alias"]),
    )
    with Rolecall(folder, entries, environ={"SOME_API_KEY": SECRET, "HF_TOKEN": SECRET}) as running:
        yield running


def starts(folder: Path, model: str) -> int:
    """Return how often the engine of a model was started."""
    path = folder / model
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_fifty_simultaneous_requests_start_one_engine(server: Rolecall, folder: Path) -> None:
    """Fifty clients that ask for a cold model at once are all answered by the one process that is started."""
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: server.chat("single"), range(50)))
    assert [answer.status_code for answer in answers] == [200] * 50
    assert starts(folder, "single") == 1
    assert server.row("single")["in_flight"] == 0


def test_an_engine_that_loses_its_port_is_started_on_another(server: Rolecall, folder: Path) -> None:
    """Somebody who takes the port between its choice and the engine's bind costs a second start, and no request."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.chat, "port-lost")
        eventually(lambda: starts(folder, "port-lost"))
        lost = server.row("port-lost")["port"]
        with socket.create_server(("127.0.0.1", lost)):
            assert answer.result().status_code == 200
    assert server.row("port-lost")["port"] != lost
    assert starts(folder, "port-lost") == 2


def test_an_engine_that_shares_no_port_is_started_once_more(server: Rolecall, folder: Path) -> None:
    """Its port was held for it, which few servers mind; none is held for its next start. In vain it did not load."""
    line = server.line_of(server.chat("port-unshared"))
    assert line["status"] == 200
    assert line["load_ms"] >= 500
    assert line["queue_ms"] >= 500
    assert starts(folder, "port-unshared") == 2
    assert server.http.post("/v1/models/port-unshared/unload").status_code == 200
    assert server.chat("port-unshared").status_code == 200
    assert starts(folder, "port-unshared") == 3


def test_an_engine_that_shares_no_port_and_does_not_say_so_starts_the_next_time(server: Rolecall) -> None:
    """Whatever a start failed for: no port is held for the next one."""
    answer = server.chat("port-untold")
    assert answer.status_code == 503
    assert "no luck" in answer.text
    eventually(lambda: server.chat("port-untold").status_code == 200)


def test_a_killed_engine_is_started_again_by_the_next_request(server: Rolecall, folder: Path) -> None:
    """An engine that dies idle is no error for anybody: the next request starts a new one at once."""
    assert server.chat("killed").status_code == 200
    os.kill(server.row("killed")["pid"], signal.SIGKILL)
    server.await_state("killed", "failed")
    assert "SIGKILL" in server.row("killed")["error"]
    assert server.chat("killed").status_code == 200
    assert starts(folder, "killed") == 2


def test_an_engine_that_keeps_crashing_is_started_with_pauses(server: Rolecall) -> None:
    """The second crash in a row makes requests wait: 503 with Retry-After and the reason, until the pause is over."""
    crash = {"crash_after_tokens": 0}
    for _ in range(2):
        broken = server.chat("crashing", fake=crash)
        assert broken.status_code == 502
        assert broken.json()["error"]["code"] == "engine_error"
        server.await_state("crashing", "failed")
    refused = server.chat("crashing")
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["code"] == "model_start_failed"
    assert "SIGKILL" in refused.json()["error"]["message"]
    assert 0 < server.row("crashing")["retry_in_s"] <= 1
    eventually(lambda: server.chat("crashing").status_code == 200)


def test_a_failed_start_says_why_and_is_no_verdict_for_ever(server: Rolecall) -> None:
    """A start that fails is a 503 with the engine's last lines; once its cause is gone the model works."""
    refused = server.chat("once")
    error = refused.json()["error"]
    assert refused.status_code == 503
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == "model_start_failed"
    assert "exit code 3" in error["message"]
    assert "out of memory: tried 99 GB" in error["message"]
    assert 1 <= int(refused.headers["retry-after"]) <= 120
    assert server.row("once")["state"] == "failed"
    eventually(lambda: server.chat("once").status_code == 200)
    assert server.row("once")["error"] is None


def test_a_role_falls_to_the_next_model_when_the_best_does_not_start(server: Rolecall) -> None:
    """A role is answered by the next best model while the best one fails to start."""
    answer = server.chat("role:sort")
    assert answer.status_code == 200
    assert answer.headers["x-rolecall-model"] == "role-next"
    line = server.line_of(answer)
    assert (line["requested_model"], line["role"], line["model"]) == ("role:sort", "sort", "role-next")
    assert server.chat("role-best").status_code == 503


@pytest.mark.parametrize("model", ["never-ready", "never-bound"])
def test_an_engine_that_is_never_ready_is_given_up(server: Rolecall, model: str) -> None:
    """After load_timeout_s the answer is 503, and the process that never got ready is gone."""
    started = time.monotonic()
    answer = server.chat(model)
    assert answer.status_code == 503
    assert "not ready after 0.5 s (load_timeout_s)" in answer.json()["error"]["message"]
    assert time.monotonic() - started < 5
    assert server.row(model)["pid"] is None
    assert not [p for p in server.engine_processes() if model in " ".join(p.cmdline())]


@pytest.mark.parametrize(
    ("model", "why"), [("no-shell", "No such file or directory"), ("no-format", "Exec format error")]
)
def test_a_command_that_cannot_be_run_is_said_to_be_so(server: Rolecall, model: str, why: str) -> None:
    """A command whose program is there and cannot be run answers 503 with what the system says about it."""
    answer = server.chat(model)
    assert answer.status_code == 503
    assert why in answer.json()["error"]["message"]


def test_a_fixed_port_that_is_taken_names_its_holder(server: Rolecall, taken_port: int) -> None:
    """A registry entry with a port on which somebody listens answers 503 naming that process."""
    answer = server.chat("port-taken")
    assert answer.status_code == 503
    message = answer.json()["error"]["message"]
    assert f"backend_config.port {taken_port} is taken by process {os.getpid()} (" in message


def test_an_unload_waits_for_the_answer_in_flight(server: Rolecall) -> None:
    """A stream goes on to its end while its model is to be unloaded, and only then the process ends."""
    with ThreadPoolExecutor(1) as pool, server.stream("drained", fake=SLOW) as answer:
        lines = answer.iter_lines()
        next(lines)
        pid = server.row("drained")["pid"]
        unloading = pool.submit(server.http.post, "/v1/models/drained/unload")
        server.await_state("drained", "stopping")
        assert is_running(pid)
        assert not unloading.done()
        rest, is_whole = rest_of(lines)
        assert (rest[-1], text_of(rest), is_whole) == ("[DONE]", words(12), True)
        assert unloading.result().json()["state"] == "stopped"
    assert not is_running(pid)


def test_an_idle_model_is_unloaded_and_comes_back(server: Rolecall) -> None:
    """After idle_unload_s without a request the process ends; the next request starts it again."""
    assert server.chat("idle").status_code == 200
    pid = server.row("idle")["pid"]
    server.await_state("idle", "stopped")
    assert not is_running(pid)
    assert server.chat("idle").status_code == 200


def test_a_request_that_meets_a_stop_is_answered_by_a_new_engine(server: Rolecall, folder: Path) -> None:
    """A request that comes while its model is on its way out waits for the next process and is answered by it."""
    assert server.chat("slow-end").status_code == 200
    with ThreadPoolExecutor(1) as pool:
        unloading = pool.submit(server.http.post, "/v1/models/slow-end/unload")
        server.await_state("slow-end", "stopping")
        assert server.chat("slow-end").status_code == 200
        assert unloading.result().status_code == 200
    assert starts(folder, "slow-end") == 2


def test_an_unload_during_a_load_fails_nobody(server: Rolecall, folder: Path) -> None:
    """Whoever waits for a model that is unloaded while it loads is answered after a second start."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(server.chat, "interrupted-load")
        eventually(lambda: starts(folder, "interrupted-load") == 1)
        assert server.http.post("/v1/models/interrupted-load/unload").status_code == 200
        assert waiting.result().status_code == 200
    assert starts(folder, "interrupted-load") == 2


def test_an_engine_that_ignores_sigterm_is_killed(server: Rolecall) -> None:
    """An unload ends by SIGKILL what does not end by itself."""
    assert server.chat("stubborn").status_code == 200
    pid = server.row("stubborn")["pid"]
    assert server.http.post("/v1/models/stubborn/unload", timeout=15).json()["state"] == "stopped"
    assert not is_running(pid)


@pytest.mark.parametrize("how", ["unload", "crash"])
def test_the_children_of_an_engine_go_with_it(server: Rolecall, how: str) -> None:
    """What an engine has started itself is ended with it, when it is stopped and when it dies."""
    assert server.chat("parent").status_code == 200
    stats = server.stats("parent")
    assert is_running(stats["child_pid"])
    if how == "crash":
        os.kill(stats["pid"], signal.SIGKILL)
    else:
        server.http.post("/v1/models/parent/unload")
    eventually(lambda: not is_running(stats["child_pid"]))
    assert not is_running(stats["pid"])


def test_an_exit_that_nobody_asked_for_is_a_crash(server: Rolecall, folder: Path) -> None:
    """An engine that leaves with exit code 0 has failed all the same, and is started again when it is needed."""
    assert server.chat("clean-exit", fake={"exit_after_tokens": 0, "exit_code": 0}).status_code == 502
    server.await_state("clean-exit", "failed")
    assert "exit code 0" in server.row("clean-exit")["error"]
    assert server.chat("clean-exit").status_code == 200
    assert starts(folder, "clean-exit") == 2


def test_load_and_unload_by_hand(server: Rolecall) -> None:
    """Load starts a model and returns its row, unload stops it; both can be repeated."""
    for _ in range(2):
        row = server.http.post("/v1/models/explicit/load").json()
        assert (row["model"], row["state"], row["in_flight"]) == ("explicit", "ready", 0)
        assert is_running(row["pid"])
        assert psutil.Process(row["pid"]).memory_info().rss >> 20 == pytest.approx(row["rss_mb"], abs=5)
        assert row["vram_reserved_mb"] == 100
    for _ in range(2):
        row = server.http.post("/v1/models/explicit/unload").json()
        assert (row["state"], row["pid"], row["vram_reserved_mb"]) == ("stopped", None, 0)


def test_load_and_unload_of_what_cannot_be_loaded(server: Rolecall) -> None:
    """An unknown model is a 404, one that does not start a 503 with the reason."""
    for action in ("load", "unload"):
        unknown = server.http.post(f"/v1/models/explicitt/{action}")
        assert unknown.status_code == 404
        assert "'explicit'" in unknown.json()["error"]["message"]
    broken = server.http.post("/v1/models/no-shell/load")
    assert broken.status_code == 503
    assert broken.json()["error"]["code"] == "model_start_failed"


@pytest.mark.parametrize("id_", ["odd%2Fna%20me%3A%28Q4%29", "odd/na%20me:(Q4)", "odd-alias"])
def test_load_takes_any_spelling_of_an_id(server: Rolecall, id_: str) -> None:
    """Ids with a slash, a space, a colon and brackets work in the path, escaped or not, and so do aliases."""
    row = server.http.post(f"/v1/models/{id_}/load").json()
    assert (row["model"], row["state"]) == ("odd/na me:(Q4)", "ready")


def test_no_more_requests_reach_an_engine_than_it_serves_at_once(server: Rolecall) -> None:
    """With max_parallel 2 the third request waits in the queue of rolecall, not in the engine."""
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: server.chat("narrow", fake={"tokens": 2, "token_delay_s": 0.05}), range(6)))
    assert [answer.json()["choices"][0]["message"]["content"] for answer in answers] == [words(2)] * 6
    assert server.stats("narrow")["max_in_flight"] == 2


def test_engines_get_their_own_variables_and_no_secrets(server: Rolecall) -> None:
    """An engine's environment has what its entry sets, and none of the keys in rolecall's own."""
    assert server.chat("env").status_code == 200
    names = server.stats("env")["env"]
    assert "FAKE_SETTING" in names
    assert "PATH" in names
    assert not {"SOME_API_KEY", "HF_TOKEN"} & set(names)
    assert SECRET not in server.words()


def test_engines_listen_on_loopback_only(server: Rolecall) -> None:
    """No engine can be reached from another machine."""
    assert server.chat("env").status_code == 200
    process = psutil.Process(server.row("env")["pid"])
    listening = {c.laddr.ip for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    """Run rolecall under the profile development, with room for one of two models."""
    entries = (
        fake_entry("left", vram_estimate_mb=9000),
        fake_entry("right", vram_estimate_mb=9000),
        fake_entry("huge", vram_estimate_mb=10_500, role_priority={"big": 1}),
    )
    with Rolecall(tmp_path_factory.mktemp("tight"), entries, profile="development") as running:
        yield running


def test_a_model_makes_room_for_another_without_breaking_an_answer(tight: Rolecall) -> None:
    """A request for a second model waits until the stream of the first is complete, then takes its place."""
    with ThreadPoolExecutor(1) as pool, tight.stream("left", fake=SLOW) as answer:
        lines = answer.iter_lines()
        next(lines)
        other = pool.submit(tight.chat, "right")
        tight.await_waiting(1)
        assert tight.get("/health")["reserved_mb"] == 9000
        rest, is_whole = rest_of(lines)
        assert (rest[-1], text_of(rest), is_whole) == ("[DONE]", words(12), True)
        assert other.result().status_code == 200
    assert tight.state_of("left") == "stopped"
    assert tight.line_of(other.result())["load_ms"] > 0


def test_a_crash_while_another_model_waits_for_its_room(tight: Rolecall) -> None:
    """It is a crash as at any other time, and the other model has the room at once."""
    with ThreadPoolExecutor(1) as pool, tight.stream("left", fake=SLOW | {"tokens": 1000}) as answer:
        lines = answer.iter_lines()
        next(lines)
        other = pool.submit(tight.chat, "right")
        tight.await_waiting(1)
        os.kill(tight.row("left")["pid"], signal.SIGKILL)
        assert rest_of(lines)[0][-1]["error"]["code"] == "engine_error"
        assert other.result().status_code == 200
    row = tight.row("left")
    assert (row["state"], row["failures"]) == ("failed", 1)
    assert "SIGKILL" in row["error"]
    assert 'rolecall_model_failures_total{kind="crash",model="left"} 1.0' in tight.http.get("/metrics").text


def test_only_one_engine_is_ever_there(tight: Rolecall) -> None:
    """While clients alternate between two models that do not fit together, no two engines live side by side."""
    together = 0
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(tight.chat, ("left", "right")[i % 2]) for i in range(8)]
        while not all(each.done() for each in asked):
            together = max(together, len(tight.engine_processes()))
    assert [each.result().status_code for each in asked] == [200] * 8
    assert together == 1


def test_a_model_that_never_fits_is_refused_with_the_difference(tight: Rolecall) -> None:
    """A model above the budget is 400, one of a role 404, each saying by how much; nothing is evicted for it."""
    for model, status in (("huge", 400), ("role:big", 404)):
        answer = tight.chat(model)
        assert answer.status_code == status
        assert "needs 10500 MB, 500 MB more than the 10000 MB it may use" in answer.json()["error"]["message"]


def test_a_pinned_model_is_loaded_at_start_and_stays(tmp_path: Path) -> None:
    """A preloaded, pinned model is there without a request, and who has no room beside it is told so."""
    entries = (fake_entry("pin", preload=True, pinned=True, idle_unload_s=0.1), fake_entry("other"))
    with Rolecall(tmp_path, entries, profile="development") as server:
        server.await_state("pin", "ready")
        answer = server.chat("other")
        assert answer.status_code == 503
        assert "pinned models (pin) hold" in answer.json()["error"]["message"]
        assert server.state_of("pin") == "ready"


def test_without_autostart_only_what_is_loaded_answers(tmp_path: Path) -> None:
    """With autostart off a request for a cold model is 503 and says what to do; a load by hand makes it work."""
    with Rolecall(tmp_path, [fake_entry("manual")], settings={"autostart_enabled": False}) as server:
        answer = server.chat("manual")
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "model_not_loaded"
        assert "/v1/models/NAME/load" in answer.json()["error"]["message"]
        assert server.http.post("/v1/models/manual/load").status_code == 200
        assert server.chat("manual").status_code == 200


def test_a_drain_has_its_limit(tmp_path: Path) -> None:
    """An answer that outlasts drain_limit_s is ended with an error event, so that an unload never waits for ever."""
    with Rolecall(tmp_path, [fake_entry("endless")], settings={"drain_limit_s": 0.3}) as server:
        with server.stream("endless", fake={"tokens": 10_000, "token_delay_s": 0.05}) as answer:
            lines = answer.iter_lines()
            next(lines)
            assert server.http.post("/v1/models/endless/unload", timeout=20).json()["state"] == "stopped"
            rest, is_whole = rest_of(lines)
        assert rest[-1]["error"]["code"] == "engine_error"
        assert not is_whole
