"""The GET endpoints, load and unload, and the shape of every answer, over the sockets of a running rolecall."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import httpx
import openai
import pytest

from fakes import FakeBackend, FakeLauncher, FakeProbe, FakeTransport
from harness import CONFIGS, Rolecall, eventually, fake_entry, prompt, upstream_entry
from rolecall.core.scheduler import Scheduler
from rolecall.gateway.app import create_app
from rolecall.gateway.counting import Counting
from rolecall.gateway.images import Images
from rolecall.gateway.inference import Inference
from rolecall.gateway.pictures import Pictures
from rolecall.gateway.recorder import Recorder
from rolecall.gateway.routes import Json
from rolecall.gateway.services import Services
from rolecall.gateway.upstream import UpstreamResponse
from rolecall.runtime.engine import EngineMaker
from rolecall.runtime.leftovers import EngineRoll
from rolecall.runtime.registry import CURATED
from rolecall.runtime.roster import Roster
from rolecall.runtime.supervisor import Supervisor
from rolecall.runtime.token_memory import TokenMemory
from rolecall.settings import Settings, load_settings
from simulator import nvml
from simulator.nvml import Machine, card

CANARY = "sk-canary-51c9"
SHIPPED: list[dict[str, Any]] = json.loads((CONFIGS / CURATED).read_text())
FLORENCE, QWEN3 = "florence-2-large_(SAFETENSORS)", "qwen3-vl-8b-instruct_(FP8)"
ODD = ["org/model:Q4_K_M", "name_(FP8)", "with a space", "a%2Fb", "ä", "deep/er/load", "role:taken"]
SIXTEEN = {"profile": "constrained_16gb", "include_non_installed": 1}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    """Run one rolecall with the shipped registry, fake engines of every kind of name, and secrets around it."""
    entries = (
        *SHIPPED,
        fake_entry("small", model_aliases=["tiny/alias"], role_priority={"sort": 20}, source_provider="acme"),
        fake_entry("better", role_priority={"sort": 30, "taken": 5}, quantization="q4_k_m", context_length=4096),
        fake_entry("huge", vram_estimate_mb=2_000_000, role_priority={"sort": 99, "vast": 1}),
        fake_entry("broken", "--fail-start", "no such tensor"),
        fake_entry("cycled"),
        fake_entry("slow", "--load-s", "1.5"),
        *(fake_entry(name) for name in ODD),
        upstream_entry("far", f"http://user:{CANARY}@127.0.0.1:9/v1", backend_config={"api_key_env": "FAR_API_KEY"}),
    )
    secrets = dict.fromkeys(("FAR_API_KEY", "OPENAI_API_KEY", "HF_TOKEN", "CHAT_PROXY_API_KEY"), CANARY)
    folder = tmp_path_factory.mktemp("routes")
    settings = {"demo_models": False, "ollama_base_url": "http://127.0.0.1:9"}
    with Rolecall(folder, entries, settings=settings, environ=secrets) as running:
        yield running


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    """Return the error of an answer in OpenAI's shape."""
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = answer.json()["error"]
    return error


# -- models


def test_the_list_of_models(server: Rolecall) -> None:
    """It has OpenAI's shape, holds what is installed, and starts nothing."""
    listing = server.get("/v1/models")
    assert listing["object"] == "list"
    cards = {card["id"]: card for card in listing["data"]}
    assert {"small", "better", "far", *ODD} <= set(cards)
    assert not {entry["name"] for entry in SHIPPED} & set(cards)
    assert {(card["object"], type(card["created"]), card["installed"]) for card in cards.values()} == {
        ("model", int, True)
    }
    assert (cards["small"]["owned_by"], cards["better"]["owned_by"]) == ("acme", "rolecall")
    assert cards["better"]["roles"] == {"sort": 30, "taken": 5}
    assert (cards["better"]["quantization"], cards["better"]["context_length"]) == ("q4_k_m", 4096)
    assert cards["small"]["aliases"] == ["tiny/alias"]
    assert server.state_of("small") == "stopped"


def test_models_that_are_not_installed(server: Rolecall) -> None:
    """They are listed for those who ask, and marked."""
    cards = {card["id"]: card for card in server.get("/v1/models", include_non_installed=1)["data"]}
    assert [cards[entry["name"]]["installed"] for entry in SHIPPED] == [False] * len(SHIPPED)
    assert cards[FLORENCE]["vram_estimate_mb"] == 3500
    assert server.get("/v1/models", include_non_installed=0) == server.get("/v1/models")


@pytest.mark.parametrize("spelling", [lambda name: quote(name, safe=""), lambda name: quote(name, safe="/:()")])
@pytest.mark.parametrize("name", [*ODD, FLORENCE])
def test_a_model_by_its_id(server: Rolecall, name: str, spelling: Any) -> None:
    """Any id is found, percent-encoded or not, installed or not."""
    answer = server.http.get(f"/v1/models/{spelling(name)}")
    assert answer.status_code == 200, answer.text
    assert answer.json()["id"] == name
    assert "resolves_to" not in answer.json()


def test_openais_client_finds_the_models(server: Rolecall) -> None:
    """Its list is typed, and it retrieves ids in its own spelling."""
    client = openai.OpenAI(base_url=server.base_url + "/v1", api_key="any", max_retries=0)
    listed = {model.id: model for model in client.models.list()}
    assert [client.models.retrieve(name) == listed[name] for name in ODD] == [True] * len(ODD)
    with pytest.raises(openai.NotFoundError) as refusal:
        client.models.retrieve("org/model:Q4_K_N")
    assert refusal.value.code == "model_not_found"
    assert "'org/model:Q4_K_M'" in refusal.value.message


@pytest.mark.parametrize(("name", "model"), [("tiny/alias", "small"), ("role:sort", "better"), ("role:SORT", "better")])
def test_a_model_by_alias_and_role(server: Rolecall, name: str, model: str) -> None:
    """The id is as asked for, and resolves_to is the model; the rest is the model's card."""
    found, itself = (server.get(f"/v1/models/{each}") for each in (name, model))
    assert found == {**itself, "id": name, "resolves_to": model}


def test_a_name_goes_before_a_role(server: Rolecall) -> None:
    """A model that is called like a role is the model."""
    assert server.get("/v1/models/role:taken")["backend"] == "llama_cpp"
    assert "resolves_to" not in server.get("/v1/models/role:taken")


@pytest.mark.parametrize(
    ("id_", "code", "hint"),
    [
        ("smal", "model_not_found", "'small'"),
        ("role:sorted", "model_not_found", "'role:sort'"),
        ("role:vast", "no_model_for_role", "huge"),
        ("role:object_detection", "no_model_for_role", FLORENCE),
        ("role:", "model_not_found", "Known roles"),
        ("", "model_not_found", "''"),
    ],
)
def test_a_model_that_does_not_exist(server: Rolecall, id_: str, code: str, hint: str) -> None:
    """It is a 404 with the nearest names, or with the reason why nobody can serve the role."""
    error = problem(server.http.get(f"/v1/models/{id_}"), 404)
    assert error["code"] == code
    assert hint in error["message"]


def test_the_health_of_models(server: Rolecall) -> None:
    """One row for each installed model, with its state, requests, memory and process."""
    rows = {row["model"]: row for row in server.get("/v1/models/health")["data"]}
    assert {"small", "far", *ODD} <= set(rows)
    assert FLORENCE not in rows
    assert rows["small"] == {
        "model": "small", "backend": "llama_cpp", "state": "stopped", "sleep_level": None, "reduced": None,
        "pinned": False,
        "in_flight": 0, "waiting": 0, "devices": [], "vram_reserved_mb": 0,
        "footprint_mb": 100, "footprint_source": "declared", "rss_mb": None,
        "pid": None, "port": None, "uptime_s": None, "load_s": 1.1, "load_fraction": None, "load_eta_s": None,
        "failures": 0, "retry_in_s": None, "error": None,
    }  # fmt: skip
    assert (rows["far"]["footprint_mb"], rows["far"]["footprint_source"]) == (0, "declared")
    assert server.get("/v1/models/health")["gpus"] == []


def test_the_health_of_a_model_that_fails(tmp_path: Path) -> None:
    """The circuit breaker shows: how often it failed, when it is tried again, and the engine's words."""
    with Rolecall(tmp_path, [fake_entry("broken", "--fail-start", "no such tensor")]) as running:
        eventually(lambda: running.chat("broken").status_code == 503 and running.row("broken")["failures"] == 3)
        row = running.row("broken")
    assert (row["state"], row["vram_reserved_mb"], row["devices"]) == ("failed", 0, [])
    assert 3 < row["retry_in_s"] <= 4
    assert "no such tensor" in row["error"]


def test_the_health_of_a_model_that_loads(server: Rolecall) -> None:
    """While it loads, its row says how far that is and how long it will still take; then how long it took."""
    with server.stream("slow") as answer:
        row = server.row("slow")
        assert row["state"] == "starting"
        assert 0 < row["load_fraction"] < 1
        assert 0 < row["load_eta_s"] < 5
        answer.read()
    row = server.row("slow")
    assert (row["state"], row["load_fraction"], row["load_eta_s"]) == ("ready", None, None)
    assert 1 < row["load_s"] < 10
    server.http.post("/v1/models/slow/unload")
    assert server.row("slow")["load_s"] == row["load_s"]


def test_the_health_of_gpus(nvml_library: Path, tmp_path: Path) -> None:
    """Each GPU shows what it has and who holds what; each model on which it lies; what was learnt is its footprint."""
    environ = nvml.environment(nvml_library, nvml.TWO_16GB, tmp_path)
    entries = [
        fake_entry("left", "--gpu-mb", "5000", vram_estimate_mb=9000),
        fake_entry("right", "--gpu-mb", "7000", vram_estimate_mb=10000),
    ]
    with Rolecall(tmp_path / "server", entries, profile=None, environ=environ) as running:
        for name in ("left", "right"):
            running.http.post(f"/v1/models/{name}/load")
        eventually(lambda: {running.row(name)["footprint_source"] for name in ("left", "right")} == {"learnt"})
        found = running.get("/v1/models/health")
        rows = {row["model"]: row for row in found["data"]}
        assert {name: (row["vram_reserved_mb"], row["footprint_mb"]) for name, row in rows.items()} == {
            "left": (5000, 5000),
            "right": (7000, 7000),
        }
        (at,) = rows["left"]["devices"]
        gpu = found["gpus"][at["index"]]
        assert gpu == {
            "index": at["index"], "uuid": at["uuid"], "name": "NVIDIA Test GPU", "total_mb": 16376,
            "usable_mb": 14328, "used_mb": 5300, "reserved_mb": 5000, "foreign_mb": 300,
        }  # fmt: skip
        assert {row["devices"][0]["index"] for row in rows.values()} == {0, 1}
        assert [gpu["index"] for gpu in found["gpus"]] == [0, 1]


# -- select_by_role


def test_select_by_role_with_the_shipped_registry(server: Rolecall) -> None:
    """The answer has exactly these keys; excluding the best gives the second best."""
    best = server.get("/v1/models/select_by_role", role="keywords", **SIXTEEN)
    assert best == {
        "model": FLORENCE, "role": "keywords", "priority": 95, "vram_estimate_mb": 3500, "profile": "constrained_16gb"
    }  # fmt: skip
    second = server.get("/v1/models/select_by_role", role="keywords", exclude_models=FLORENCE, **SIXTEEN)
    assert (second["model"], second["priority"]) == (QWEN3, 80)


@pytest.mark.parametrize(
    "excluded", [[FLORENCE, QWEN3], [f"{FLORENCE},{QWEN3}"], [f"{QWEN3}, {FLORENCE}"], ["x", f",{QWEN3},", FLORENCE]]
)
def test_several_models_are_excluded(server: Rolecall, excluded: list[str]) -> None:
    """The parameter may be repeated and may hold several names with commas."""
    found = server.get("/v1/models/select_by_role", role="keywords", exclude_models=excluded, **SIXTEEN)
    assert found["model"] == "qwen25vl_8.3b_(Q4_K_M)"


def test_an_alias_excludes_its_model(server: Rolecall) -> None:
    """Models are excluded by any of their ids."""
    query = {"role": "sort", "exclude_models": ["better", "tiny/alias"]}
    assert problem(server.http.get("/v1/models/select_by_role", params=query), 404)["code"] == "no_model_for_role"


@pytest.mark.parametrize("role", ["sort", "role:sort", " Sort "])
def test_spellings_of_a_role(server: Rolecall, role: str) -> None:
    """The prefix, spaces and capitals do not matter; the profile in force is named."""
    assert server.get("/v1/models/select_by_role", role=role) == {
        "model": "better", "role": "sort", "priority": 30, "vram_estimate_mb": 100, "profile": "roomy"
    }  # fmt: skip


def test_explain(server: Rolecall) -> None:
    """All candidates in order, and every other model of the role with its reason."""
    full = server.get("/v1/models/select_by_role", role="sort", explain=1, exclude_models="small")
    assert (full["model"], full["reason"]) == ("better", "highest priority that fits")
    assert [candidate["model"] for candidate in full["candidates"]] == ["better"]
    assert {each["model"]: each["why"] for each in full["rejected"]} == {"small": "excluded", "huge": "too_large"}
    assert "1000000 MB more than" in next(each["reason"] for each in full["rejected"] if each["model"] == "huge")
    nobody = server.get("/v1/models/select_by_role", role="vast", explain=1)
    assert (nobody["model"], nobody["candidates"]) == (None, [])


@pytest.mark.parametrize(
    ("query", "status", "code", "words"),
    [
        ({}, 400, "invalid_request", ["role", "?role="]),
        ({"role": ""}, 400, "invalid_request", ["role"]),
        ({"role": "role:"}, 400, "invalid_request", ["role"]),
        ({"role": "sorting"}, 404, "model_not_found", ["'sorting'", "'role:sort'"]),
        ({"role": "vast"}, 404, "no_model_for_role", ["huge", "1000000 MB"]),
        ({"role": "keywords"}, 404, "no_model_for_role", [FLORENCE, QWEN3]),
        ({"role": "sort", "profile": "roomie"}, 400, "invalid_request", ["'roomie'", "'roomy'", "development"]),
        ({"role": "sort", "explain": "perhaps"}, 400, "invalid_request", ["explain", "'perhaps'"]),
    ],
)
def test_select_by_role_refuses(
    server: Rolecall, query: dict[str, str], status: int, code: str, words: list[str]
) -> None:
    """A query that makes no sense is 400, a role without a model 404; the message names what there is instead."""
    error = problem(server.http.get("/v1/models/select_by_role", params=query), status)
    assert error["code"] == code
    assert [word for word in words if word not in error["message"]] == []


# -- load and unload


@pytest.mark.parametrize("name", ["org/model:Q4_K_M", "a%2Fb", "deep/er/load"])
def test_load_and_unload(server: Rolecall, name: str) -> None:
    """Both answer with the model's row: ready with a process, then stopped without."""
    path = f"/v1/models/{quote(name, safe='')}"
    loaded = server.http.post(f"{path}/load").json()
    assert (loaded["model"], loaded["state"], loaded["vram_reserved_mb"]) == (name, "ready", 100)
    assert loaded["pid"] > 0
    assert server.get(path)["state"] == "ready"
    unloaded = server.http.post(f"{path}/unload").json()
    assert (unloaded["state"], unloaded["pid"], unloaded["vram_reserved_mb"]) == ("stopped", None, 0)
    assert server.http.post(f"{path}/unload").json() == unloaded


def test_load_by_role_and_what_others_run(server: Rolecall) -> None:
    """A role loads its best model; a server of somebody else is ready at once, without a process."""
    assert server.http.post("/v1/models/role:sort/load").json()["model"] == "better"
    far = server.http.post("/v1/models/far/load").json()
    assert (far["state"], far["pid"], far["vram_reserved_mb"]) == ("ready", None, 0)
    assert server.http.post("/v1/models/far/unload").json()["state"] == "stopped"


@pytest.mark.parametrize(
    ("path", "status", "code", "hint"),
    [
        ("/v1/models/nobody/load", 404, "model_not_found", "'nobody'"),
        ("/v1/models/nobody/unload", 404, "model_not_found", "'nobody'"),
        ("/v1/models/role:sort/unload", 400, "invalid_request", "better"),
        ("/v1/models/huge/load", 400, "model_too_large", "1000000 MB more"),
        (f"/v1/models/{FLORENCE}/load", 404, "model_not_found", "model_path is missing"),
        ("/v1/models/broken/load", 503, "model_start_failed", "no such tensor"),
    ],
)
def test_load_and_unload_refuse(server: Rolecall, path: str, status: int, code: str, hint: str) -> None:
    """They fail as a request for the model would."""
    error = problem(server.http.post(path), status)
    assert error["code"] == code
    assert hint in error["message"]


# -- configuration and health


def test_health(server: Rolecall) -> None:
    """Profile, budget, what is reserved, the queue, and how many entries there are."""
    server.http.post("/v1/models/cycled/load")
    before = server.get("/health")
    assert (before["status"], before["problems"], before["profile"]) == ("ok", {}, "roomy")
    assert (before["budget_mb"], before["queue"], before["log_lines_dropped"]) == (1_000_000, 0, 0)
    assert before["registry"]["entries"] == len(server.entries)
    server.http.post("/v1/models/cycled/unload")
    assert before["reserved_mb"] - server.get("/health")["reserved_mb"] == 100


def test_the_settings_in_force(server: Rolecall) -> None:
    """Every setting is shown by its name."""
    shown = server.get("/v1/config/proxy")
    assert set(shown) == set(Settings.model_fields)
    assert (shown["port"], shown["demo_models"], shown["deployment_profile"]) == (0, False, "roomy")
    assert shown["log_path"] == str(server.log_path)


READ_ONLY = (
    "/health", "/v1/models?include_non_installed=1", "/v1/models/far", "/v1/models/health", "/v1/config/profile",
    "/v1/config/proxy", "/v1/models/select_by_role?role=sort&explain=1", "/v1/models/nobody", "/nowhere",
)  # fmt: skip


@pytest.mark.parametrize("path", READ_ONLY)
def test_no_secret_is_shown(server: Rolecall, path: str) -> None:
    """Keys of the environment and addresses with passwords appear nowhere."""
    answer = server.http.get(path)
    assert CANARY not in answer.text
    assert CANARY not in str(answer.headers)


MACHINES = {
    "8 GB": (nvml.ONE_8GB, "development", 6144),
    "16 GB": (nvml.ONE_16GB, "constrained_16gb", 14328),
    "two of 16 GB": (nvml.TWO_16GB, "multi_gpu_2x16gb", 28656),
    "141 GB": (nvml.ONE_141GB, "generous_96gb", 141723),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_the_profile_of_a_machine(machine: str, nvml_library: Path, tmp_path: Path) -> None:
    """The profile that was detected with all its fields, the budget, and each GPU with what is free now."""
    gpus, name, budget_mb = MACHINES[machine]
    environ = nvml.environment(nvml_library, gpus, tmp_path)
    with Rolecall(tmp_path / "server", profile=None, settings={"demo_models": False}, environ=environ) as running:
        found = running.get("/v1/config/profile")
        assert (found["source"], found["gpu_problem"]) == ("auto", None)
        assert (found["active_profile"]["name"], found["active_profile"]["budget_mb"]) == (name, budget_mb)
        assert set(found["active_profile"]) == {
            "name", "max_vram_mb", "gpu_count", "max_concurrent_models", "preferred_quantizations", "strategy", "bias",
            "idle_unload_s", "allow_cpu", "groups", "budget_mb",
        }  # fmt: skip
        assert found["detected_gpus"] == [vars(gpu) for gpu in gpus.gpus]
        first = gpus.gpus[0]
        assert not isinstance(first, int)
        Machine((card(0, first.vram_total_mb, 1234), *gpus.gpus[1:])).write(tmp_path / "gpus.txt")
        assert running.get("/v1/config/profile")["detected_gpus"][0]["vram_free_mb"] == 1234


def test_the_profile_without_a_driver(nvml_library: Path, tmp_path: Path) -> None:
    """No driver is no error: the profile for development, and the reason in words."""
    environ = nvml.environment(nvml_library, nvml.NO_DRIVER, tmp_path)
    with Rolecall(tmp_path / "server", profile=None, settings={"demo_models": False}, environ=environ) as running:
        found = running.get("/v1/config/profile")
    assert (found["active_profile"]["name"], found["source"]) == ("development", "auto")
    assert found["detected_gpus"] == []
    assert "driver" in found["gpu_problem"]


def test_the_profile_by_hand(server: Rolecall, nvml_library: Path, tmp_path: Path) -> None:
    """The source tells the file from the environment."""
    assert server.get("/v1/config/profile")["source"] == "config"
    environ = nvml.environment(nvml_library, nvml.ONE_24GB, tmp_path)
    environ["IMAGEWORKS_DEPLOYMENT_PROFILE"] = "development"
    with Rolecall(tmp_path / "server", settings={"demo_models": False}, environ=environ) as running:
        found = running.get("/v1/config/profile")
    assert (found["active_profile"]["name"], found["source"]) == ("development", "env")
    assert found["active_profile"]["budget_mb"] == found["active_profile"]["max_vram_mb"] == 10000
    assert len(found["detected_gpus"]) == 1


# -- the shape of every answer


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *(("GET", path, None) for path in READ_ONLY),
        *(("HEAD", path, None) for path in READ_ONLY),
        ("GET", "/", 404),
        ("POST", "/v1/nothing", 404),
        ("GET", "/v1/models/", 404),
        ("POST", "/health", 405),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models/small", 405),
        ("POST", "/v1/models/small", 405),
        ("POST", "/v1/admin/reload", 200),
        ("POST", "/v1/chat/completions", 415),
    ],
)
def test_every_answer_is_json_with_a_request_id(server: Rolecall, method: str, path: str, status: int | None) -> None:
    """Right or wrong, it has an id of its own; HEAD has the head of GET; an error has OpenAI's shape."""
    answer, again = server.http.request(method, path), server.http.request(method, path)
    assert status in (None, answer.status_code)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers["x-request-id"] != again.headers["x-request-id"]
    if method == "HEAD":
        same = server.http.get(path)
        assert (answer.content, answer.status_code) == (b"", same.status_code)
    elif answer.status_code >= 400:
        problem(answer, answer.status_code)
    if answer.status_code == 405:
        assert answer.headers["allow"]


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/api/config", "GET, HEAD, POST"),
        ("/datasets", "GET, HEAD, POST"),
        ("/datasets/1/samples/1", "GET, HEAD, PATCH"),
        ("/v1/chat/completions", "POST"),
    ],
)
def test_a_wrong_method_is_told_all_that_are_right(server: Rolecall, path: str, allowed: str) -> None:
    """Also where each method of a path has a route of its own."""
    answer = server.http.put(path)
    assert answer.headers["allow"] == allowed
    assert problem(answer, 405)["message"] == f"{path} does not take PUT; it takes {allowed}."


# -- a bug of our own, inside of this process


def bug(url: str, body: bytes) -> UpstreamResponse:
    """Fail as no transport should."""
    raise RuntimeError(f"a bug with {CANARY}")


async def never() -> NoReturn:
    """Reload nothing."""
    raise AssertionError("nothing is reloaded")


async def test_a_bug_of_ours_is_told_without_its_innards(tmp_path: Path) -> None:
    """The client gets a 500 in OpenAI's shape with an id; the lease is given back, and the line is written."""
    (tmp_path / CURATED).write_text(json.dumps([upstream_entry("a", "http://127.0.0.1:9/v1")]))
    settings = load_settings({"config_dir": tmp_path, "state_dir": tmp_path, "log_path": tmp_path / "log.jsonl"}, {})
    roster = Roster(settings, lambda _name: FakeBackend(managed=False), FakeProbe())
    roster.load()
    recorder = Recorder(settings.log_path, settings.max_log_bytes, settings.log_backups)
    async with FakeLauncher().http() as http:
        maker = EngineMaker(FakeLauncher(), http, roster.backend, EngineRoll(tmp_path / "engines"))
        supervisor = Supervisor(Scheduler(), maker, roster.backend)
        supervisor.configure(roster.configured())
        transport = FakeTransport(bug)
        counting = Counting.of(settings, TokenMemory(tmp_path / "tokens.json"), Pictures(), http)
        services = Services(roster, supervisor, transport, recorder, Images(settings), counting)
        app = create_app(services, Inference(services), never)
        transport_to_app = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport_to_app, base_url="http://localhost") as client:
            answer = await client.post("/v1/chat/completions", json=prompt("a"))
        row = supervisor.status()[0].model
    recorder.close()
    assert len(transport.requests) == 1
    assert problem(answer, 500)["code"] == "internal_error"
    assert CANARY not in answer.text
    assert answer.headers["x-request-id"].startswith("req_")
    assert row.in_flight == 0
    (line,) = (json.loads(each) for each in settings.log_path.read_text().splitlines())
    assert (line["status"], line["request_id"]) == (500, answer.headers["x-request-id"])


def test_an_answer_with_half_a_character() -> None:
    """What UTF-8 cannot hold is escaped, and the rest of the answer is there."""
    assert json.loads(bytes(Json({"a": "é\ud800", "b": 1}).body)) == {"a": "é\ud800", "b": 1}
