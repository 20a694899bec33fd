"""A registry that changes while rolecall runs, and one that is wrong from the start."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from harness import CHAT, Rolecall, eventually, fake_entry, is_running, prompt, rest_of, text_of, words

BASE = (fake_entry("stays", roles=["chat"]),)
SLOW = {"tokens": 10, "token_delay_s": 0.1}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    """Run one rolecall for the module."""
    with Rolecall(tmp_path_factory.mktemp("reload"), BASE) as running:
        yield running
        assert "Traceback" not in running.words()


@pytest.fixture
def server(shared: Rolecall) -> Iterator[Rolecall]:
    """Return the shared rolecall, its registry as it was at the start before and after the test."""
    yield shared
    shared.write_registry_text("[]", "discovered")
    reload(shared, *BASE)


def reload(server: Rolecall, *entries: dict[str, Any]) -> None:
    """Write a registry and have it read at once."""
    server.write_registry(*entries)
    assert server.http.post("/v1/admin/reload").status_code == 200


def names(server: Rolecall, **query: Any) -> list[str]:
    """Return the ids that are listed."""
    return [card["id"] for card in server.get("/v1/models", **query)["data"]]


def await_names(server: Rolecall, *expected: str) -> None:
    """Wait until exactly these models are listed."""
    eventually(lambda: sorted(names(server)) == sorted(expected))


def test_a_new_entry_can_be_used_without_a_restart(server: Rolecall) -> None:
    """A model that is written into the registry is listed and answers a moment later."""
    server.write_registry(*BASE, fake_entry("fresh", model_aliases=["new"]))
    await_names(server, "stays", "fresh")
    assert server.chat("new").status_code == 200


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[{", "is not JSON"),
        ("", "is not JSON"),
        ("17", "must be a JSON list of entries, not a number"),
        ('[{"name": "stays"}]', "entry 1 'stays': field backend: is missing"),
        ('[{"name": "stays", "backend": "vllm", "role_priority": {"chat": 101}}]', "field role_priority.chat"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_a_broken_registry_keeps_the_last_good_one(server: Rolecall, text: str, complaint: str) -> None:
    """What is wrong is shown on /health with file, entry and field; models work on; a mended file ends the alarm.

    On the terminal a broken registry is not said to be in force.
    """
    before = server.words().count("the registry changed")
    server.write_registry_text(text)
    health = eventually(lambda: h if (h := server.get("/health"))["status"] == "degraded" else None)
    assert complaint in health["problems"]["registry"]
    assert "model_registry.curated.json" in health["problems"]["registry"]
    assert server.words().count("the registry changed") == before
    assert server.chat("stays").status_code == 200
    refused = server.http.post("/v1/admin/reload")
    assert refused.status_code == 400
    assert complaint in refused.json()["error"]["message"]
    changes = server.words().count("the registry changed")
    server.write_registry(*BASE)
    eventually(lambda: server.words().count("the registry changed") == changes + 1)
    eventually(lambda: server.get("/health")["status"] == "ok")


def test_a_stream_in_flight_ends_with_the_engine_that_began_it(server: Rolecall) -> None:
    """A changed command line restarts the engine only when it is idle; who comes meanwhile gets the new one."""
    reload(server, *BASE, fake_entry("changing"))
    with ThreadPoolExecutor(1) as pool, server.stream("changing", fake=SLOW) as answer:
        lines = answer.iter_lines()
        next(lines)
        old = server.row("changing")["pid"]
        reload(server, *BASE, fake_entry("changing", "--chatty", "1"))
        later = pool.submit(server.chat, "changing")
        assert server.state_of("changing") == "stopping"
        rest, is_whole = rest_of(lines)
        assert (rest[-1], text_of(rest), is_whole) == ("[DONE]", words(10), True)
        assert later.result().status_code == 200
    assert not is_running(old)
    assert "--chatty" in server.stats("changing")["argv"]


def test_an_idle_engine_with_a_changed_command_line_is_stopped_at_once(server: Rolecall) -> None:
    """An engine that no longer matches its entry does not stay loaded."""
    reload(server, *BASE, fake_entry("idle-change"))
    server.chat("idle-change")
    pid = server.row("idle-change")["pid"]
    reload(server, *BASE, fake_entry("idle-change", max_parallel=3))
    server.await_state("idle-change", "stopped")
    assert not is_running(pid)


def test_what_does_not_concern_the_engine_restarts_nothing(server: Rolecall) -> None:
    """New aliases, roles, defaults and estimates apply to the next request, with the same process."""
    reload(server, *BASE, fake_entry("alike"))
    server.chat("alike")
    pid = server.row("alike")["pid"]
    changed = fake_entry("alike", roles=["extra"], model_aliases=["other"], generation_defaults={"max_tokens": 2})
    reload(server, *BASE, {**changed, "vram_estimate_mb": 200})
    for name in ("alike", "other", "role:extra"):
        assert server.chat(name).json()["usage"]["completion_tokens"] == 2
    assert server.row("alike")["pid"] == pid


def test_a_removed_model_is_gone_and_its_stream_is_finished(server: Rolecall) -> None:
    """A model that leaves the registry is 404 from then on; an answer that has begun comes to its end."""
    reload(server, *BASE, fake_entry("leaving"))
    with server.stream("leaving", fake=SLOW) as answer:
        lines = answer.iter_lines()
        next(lines)
        pid = server.row("leaving")["pid"]
        reload(server, *BASE)
        assert server.chat("leaving").status_code == 404
        assert server.state_of("leaving") == "stopping"
        rest, is_whole = rest_of(lines)
    assert (rest[-1], text_of(rest), is_whole) == ("[DONE]", words(10), True)
    eventually(lambda: not is_running(pid))
    assert names(server) == ["stays"]
    eventually(lambda: [row["model"] for row in server.get("/v1/models/health")["data"]] == ["stays"])


def test_whoever_waits_for_a_model_that_is_removed_is_told(server: Rolecall) -> None:
    """A request, and a load by hand, that wait for a model get 404 when it leaves the registry."""
    reload(server, *BASE, fake_entry("short-lived", "--load-s", "20"))
    with ThreadPoolExecutor(2) as pool:
        chat = pool.submit(server.chat, "short-lived")
        load = pool.submit(server.http.post, "/v1/models/short-lived/load")
        server.await_waiting(2)
        reload(server, *BASE)
        for answer in (chat.result(), load.result()):
            assert answer.status_code == 404
            assert answer.json()["error"]["code"] == "model_not_found"


def test_an_unload_calls_a_load_by_hand_off(server: Rolecall) -> None:
    """It ends with 409, and the model is stopped."""
    reload(server, *BASE, fake_entry("changed-mind", "--load-s", "20"))
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(server.http.post, "/v1/models/changed-mind/load")
        server.await_state("changed-mind", "starting")
        assert server.http.post("/v1/models/changed-mind/unload").json()["state"] == "stopped"
        assert load.result().status_code == 409
        assert load.result().headers["x-should-retry"] == "false"
        assert load.result().json()["error"]["code"] == "conflict"
    assert server.row("changed-mind")["state"] == "stopped"


def test_a_model_that_is_removed_while_it_is_unloaded(server: Rolecall) -> None:
    """An unload that is overtaken by the removal of its model ends well."""
    reload(server, *BASE, fake_entry("twice-gone", "--term-delay-s", "0.5"))
    server.chat("twice-gone")
    with ThreadPoolExecutor(1) as pool:
        unload = pool.submit(server.http.post, "/v1/models/twice-gone/unload")
        server.await_state("twice-gone", "stopping")
        reload(server, *BASE)
        assert unload.result().status_code == 200
        assert unload.result().json()["state"] == "stopped"


def test_a_model_that_comes_back_works(server: Rolecall) -> None:
    """An entry that is removed and written again is as new."""
    for _ in range(2):
        reload(server, *BASE, fake_entry("back-again"))
        assert server.chat("back-again").status_code == 200
        reload(server, *BASE)
        assert server.chat("back-again").status_code == 404


def test_curated_wins_over_discovered_field_by_field(server: Rolecall) -> None:
    """The two files are merged into a snapshot: what the curated one says counts, what it leaves out is kept."""
    found = fake_entry("both", display_name="found", family="f", license="MIT", roles=["chat"])
    written = fake_entry("both", display_name="written", family=None)
    server.write_registry(found, fake_entry("only-found"), {"name": "wrong", "backend": 7}, name="discovered")
    server.write_registry(*BASE, written)
    await_names(server, "stays", "both", "only-found")
    card = server.get("/v1/models/both")
    assert (card["display_name"], card["roles"]) == ("written", {"chat": 50})
    merged = json.loads((server.config_dir / "model_registry.json").read_text())
    both = next(entry for entry in merged if entry["name"] == "both")
    assert (both["display_name"], both["family"], both["license"]) == ("written", "f", "MIT")
    assert [entry["name"] for entry in merged] == ["stays", "both", "only-found"]
    warnings = server.get("/health")["registry"]["warnings"]
    assert any("discovered entry 3 'wrong': field backend" in warning for warning in warnings)
    assert server.chat("only-found").status_code == 200


def test_unknown_fields_are_kept_and_warned_about(server: Rolecall) -> None:
    """A misspelt field is no error: it is kept in the snapshot and named with what it may have meant."""
    reload(server, *BASE, fake_entry("typo", idle_unlaod_s=5))
    (warning,) = server.get("/health")["registry"]["warnings"]
    assert "'idle_unlaod_s'" in warning
    assert "did you mean 'idle_unload_s'?" in warning
    assert '"idle_unlaod_s": 5' in (server.config_dir / "model_registry.json").read_text()


def test_models_without_their_files_are_unlisted_until_they_are_there(server: Rolecall, tmp_path: Path) -> None:
    """An entry whose file is absent is listed only on request; it appears by itself once the file is there."""
    path = tmp_path / "weights.gguf"
    reload(server, *BASE, fake_entry("late", backend_config={"model_path": str(path)}, roles=["late"]))
    assert names(server) == ["stays"]
    assert names(server, include_non_installed=1) == ["stays", "late"]
    assert not server.get("/v1/models/late")["installed"]
    refused = server.chat("late")
    assert refused.status_code == 404
    assert f"not installed: {path} does not exist" in refused.json()["error"]["message"]
    path.write_bytes(b"x")
    await_names(server, "stays", "late")
    assert server.chat("role:late").status_code == 200
    path.unlink()
    await_names(server, "stays")


@pytest.mark.parametrize("path", ["x" * 300, "a/" * 3000, "nul\0byte"])
def test_a_path_that_no_system_takes_is_not_installed(server: Rolecall, path: str) -> None:
    """A path that is too long or impossible makes one entry unusable, not rolecall."""
    reload(server, *BASE, fake_entry("odd-path", backend_config={"model_path": path}))
    assert names(server) == ["stays"]
    assert server.chat("odd-path").status_code == 404
    assert server.chat("stays").status_code == 200


@pytest.mark.parametrize("url", ["http://[::1", "http://host:99999/v1", "http://", "http:///v1"])
def test_a_base_url_that_is_none_is_a_reason_not_to_list_it(server: Rolecall, url: str) -> None:
    """A base_url that cannot be an address makes its entry unusable, with the reason; nothing is left behind."""
    reload(server, *BASE, {"name": "astray", "backend": "openai", "backend_config": {"base_url": url}})
    answer = server.chat("astray")
    assert answer.status_code == 404
    assert "base_url" in answer.json()["error"]["message"]
    assert server.get("/health")["queue"] == 0


def test_requests_do_not_notice_reloads(server: Rolecall) -> None:
    """While the file is written over and over, every request is answered."""
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(server.chat, "stays") for _ in range(60)]
        for number in range(20):
            reload(server, *BASE, fake_entry(f"extra-{number}"))
        assert [each.result().status_code for each in asked] == [200] * 60


def test_a_file_that_is_written_in_pieces_is_read_when_it_is_whole(server: Rolecall) -> None:
    """An editor that writes slowly leaves half a file for a while; in the end the whole one counts."""
    path = server.config_dir / "model_registry.curated.json"
    text = json.dumps([*BASE, fake_entry("slowly")])
    with path.open("w") as file:
        file.write(text[:100])
        file.flush()
        eventually(lambda: server.get("/health")["status"] == "degraded")
        file.write(text[100:])
    await_names(server, "stays", "slowly")
    assert server.get("/health")["status"] == "ok"


def test_a_registry_behind_a_link_and_in_a_new_folder_is_still_followed(tmp_path: Path) -> None:
    """Changes of a linked file are noticed, and so are those in a config folder that was replaced."""
    with Rolecall(tmp_path / "a", BASE) as server:
        target = tmp_path / "elsewhere.json"
        target.write_text(json.dumps([fake_entry("linked")]))
        path = server.config_dir / "model_registry.curated.json"
        path.unlink()
        path.symlink_to(target)
        await_names(server, "linked")
        target.write_text(json.dumps([fake_entry("linked"), fake_entry("behind")]))
        await_names(server, "linked", "behind")
        server.config_dir.rename(tmp_path / "old")
        server.config_dir.mkdir()
        server.write_registry(fake_entry("replaced"))
        await_names(server, "replaced")


class TestRefusedStarts:
    """What is wrong at the start ends it with exit code 2 and the place of the mistake."""

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("{", ["model_registry.curated.json", "is not JSON"]),
            ('[{"backend": "vllm"}]', ["entry 1", "field name", "is missing"]),
            ('[{"name": "a"}, 7]', ["entry 1 'a'", "field backend", "entry 2", "must be an object, not a number"]),
            ('[{"name": "a", "backend": "vllm", "vram_estimate_mb": "much"}]', ["'a'", "vram_estimate_mb", "'much'"]),
            ('[{"name": "a", "backend": "x"}, {"name": "a", "backend": "x"}]', ["entry 2 'a'", "already belongs to"]),
            (
                '[{"name": "a", "backend": "x", "backend_config": {"model_path": "m/a.gguf", "mmproj_path": "../b"}}]',
                ["backend_config.mmproj_path", "leaves the model's folder"],
            ),
        ],
    )
    def test_a_broken_registry(self, tmp_path: Path, text: str, words: list[str]) -> None:
        """A registry that cannot be used is refused, naming file, entry and field."""
        server = Rolecall(tmp_path)
        server.write_registry_text(text)
        done = server.run()
        assert done.returncode == 2
        for word in words:
            assert word in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_broken_profile(self, tmp_path: Path) -> None:
        """A profile with a wrong field is refused, naming file, profile and field."""
        server = Rolecall(tmp_path)
        path = server.config_dir / "profiles.toml"
        path.write_text(path.read_text().replace('bias = "balanced"', 'bias = "lucky"'))
        done = server.run()
        assert done.returncode == 2
        assert str(path) in done.stderr
        assert "balanced_24gb" in done.stderr
        assert "'lucky'" in done.stderr

    def test_an_unknown_profile(self, tmp_path: Path) -> None:
        """A profile that does not exist is refused, with the ones that do."""
        done = Rolecall(tmp_path, profile="generous_69gb").run()
        assert done.returncode == 2
        assert "'generous_69gb'" in done.stderr
        assert "did you mean 'generous_96gb'" in done.stderr


def test_rolecall_starts_without_any_registry(tmp_path: Path) -> None:
    """An empty config folder is a rolecall without models, to which a registry can be added."""
    server = Rolecall(tmp_path)
    (server.config_dir / "model_registry.curated.json").unlink()
    with server:
        assert names(server) == []
        assert server.http.post(CHAT, json=prompt("x")).status_code == 404
        server.write_registry(fake_entry("first"))
        await_names(server, "first")
        assert server.chat("first").status_code == 200
