"""`/metrics` of a running rolecall: it tells the same as the request log, whatever happened."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from harness import CHAT, Gpus, Rolecall, eventually, fake_entry, prompt
from rolecall.core.keys import hashed
from simulator.nvml import cards

OPENMETRICS = "application/openmetrics-text;version=1.0.0"


def samples(text: str) -> list[Sample]:
    """Return all samples of a page; fails for one that is there twice."""
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert len({(each.name, frozenset(each.labels.items())) for each in found}) == len(found)
    return found


def values(found: Sequence[Sample], name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """Return the values of a metric, summed up by some of its labels; without those that are 0."""
    sums: Counter[tuple[str, ...]] = Counter()
    for sample in found:
        if sample.name == name:
            sums[tuple(sample.labels[label] for label in labels)] += sample.value  # type: ignore[assignment]
    return {key: value for key, value in sums.items() if value}


def scrape(server: Rolecall, until: Any = None) -> list[Sample]:
    """Return the samples of a page, of the first for which ``until`` is true: a page is given again for a moment."""

    def look() -> list[Sample] | None:
        found = samples(server.http.get("/metrics").text)
        return found if until is None or until(found) else None

    return eventually(look)


def model_of(line: dict[str, Any]) -> str:
    """Return the model that a request got, or else was for."""
    return str(line["model"] or line.get("wanted_model", "unknown"))


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    """Run a rolecall that has served, refused and failed all kinds of requests."""
    entries = (
        fake_entry("one", role_priority={"talk": 60}, capabilities=["text", "embedding"]),
        fake_entry("two", role_priority={"talk": 50, "think": 50}),
        fake_entry("broken", "--fail-start", "no"),
        fake_entry("dies", "--crash-after-tokens", "1"),
    )
    with Rolecall(tmp_path_factory.mktemp("metrics"), entries) as server:
        with ThreadPoolExecutor(8) as pool:
            asked = [
                *(("one", {}) for _ in range(200)),
                *(("role:talk", {"stream": True}) for _ in range(60)),
                *(("role:think", {"fake": {"tokens": 3}}) for _ in range(20)),
                *(("two", {"fake": {"error_status": 500}}) for _ in range(5)),
                *((f"nobody-{number}", {}) for number in range(30)),
                ("broken", {}),
                ("dies", {}),
            ]
            list(pool.map(lambda each: server.http.post(CHAT, json=prompt(each[0], **each[1])).read(), asked))
        server.http.post("/v1/embeddings", json={"model": "one", "input": "x"})
        server.http.post("/v1/embeddings", content=b"{")
        server.log_lines(len(asked) + 2)
        yield server


def test_counters_are_those_of_the_log(busy: Rolecall) -> None:
    """Requests, tokens, failures and times add up to what the lines say, by each label."""
    lines = busy.log_lines()
    found = scrape(busy, lambda each: sum(values(each, "rolecall_requests_total").values()) == len(lines))

    def labels(line: dict[str, Any]) -> tuple[str, ...]:
        return model_of(line), line["role"] or "", line["endpoint"], f"{line['status'] // 100}xx"

    of_request = ("model", "role", "endpoint", "status")
    assert values(found, "rolecall_requests_total", *of_request) == Counter(map(labels, lines))
    for name, field in (
        ("input_tokens", "prompt_tokens"),
        ("output_tokens", "completion_tokens"),
        ("reasoning_tokens", "reasoning_tokens"),
        ("input_images", "images"),
    ):
        sums: Counter[tuple[str, ...]] = Counter()
        for line in lines:
            sums[labels(line)[:3]] += line[field] or 0
        assert values(found, f"rolecall_{name}_total", *of_request[:3]) == {k: v for k, v in sums.items() if v}
    failed = [line for line in lines if line["error"] is not None]
    codes = Counter((*labels(line)[:3], line["error"].partition(":")[0]) for line in failed)
    assert len(codes) >= 4
    assert any((model, code) == ("broken", "model_start_failed") for model, _, _, code in codes)
    assert values(found, "rolecall_request_errors_total", *of_request[:3], "code") == codes
    for name, field, parts in (
        ("request_duration_seconds", "duration_ms", 4),
        ("time_to_first_token_seconds", "ttft_ms", 3),
        ("queue_wait_seconds", "queue_ms", 1),
    ):
        known = [line for line in lines if line[field] is not None]
        counts = Counter(labels(line)[:parts] for line in known)
        assert values(found, f"rolecall_{name}_count", *of_request[:parts]) == counts
        total = sum(values(found, f"rolecall_{name}_sum").values())
        assert total == pytest.approx(sum(line[field] for line in known) / 1000)


def test_what_became_of_models(busy: Rolecall) -> None:
    """Each load has its time, a start that failed and a crash are told apart, and states are shown."""
    found = scrape(
        busy, lambda each: ("dies", "crash") in values(each, "rolecall_model_failures_total", "model", "kind")
    )
    loads = values(found, "rolecall_model_load_seconds_count", "model", "kind")
    assert loads == {("one", "start"): 1, ("two", "start"): 1, ("dies", "start"): 1}
    assert values(found, "rolecall_model_failures_total", "model", "kind")["broken", "start"] >= 1
    states = values(found, "rolecall_model_state", "model", "state")
    assert set(states) == {("one", "ready"), ("two", "ready"), ("broken", "failed"), ("dies", "failed")}
    assert values(found, "rolecall_model_vram_reserved_bytes", "model", "gpu") == {
        ("one", "host"): 100 * 2**20,
        ("two", "host"): 100 * 2**20,
    }
    assert values(found, "rolecall_degraded", "problem") == {}
    assert values(found, "process_resident_memory_bytes")[()] > 20e6


def test_no_label_is_what_somebody_made_up(busy: Rolecall) -> None:
    """Thirty models that nobody has are one series."""
    found = scrape(busy)
    models = {sample.labels["model"] for sample in found if "model" in sample.labels}
    assert models == {"one", "two", "broken", "dies", "unknown"}
    assert not any("nobody" in value for sample in found for value in sample.labels.values())


def test_the_page_is_as_was_asked_for(busy: Rolecall) -> None:
    """Text without a wish, OpenMetrics where Prometheus asks for it, which its own parser takes; nobody keeps it."""
    plain = busy.http.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert plain.headers["cache-control"] == "no-store"
    strict = busy.http.get("/metrics", headers={"accept": f"{OPENMETRICS},text/plain;q=0.5"})
    assert strict.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert strict.text.endswith("\n# EOF\n")
    assert strict.text.count("# EOF") == 1
    names = {family.name for family in parse_openmetrics(strict.text)}  # type: ignore[no-untyped-call]
    assert {"rolecall_requests", "rolecall_decision_seconds", "process_cpu_seconds"} <= names


@pytest.mark.parametrize(
    ("accept", "told"),
    [
        ("", "text/plain; version=0.0.4"),
        ("text/plain;version=abc", "text/plain; version=0.0.4"),
        ("text/plain;version=1.0.0;escaping=allow-utf-8", "text/plain; version=1.0.0"),
        ('application/openmetrics-text; version="1.0.0"', "application/openmetrics-text; version=1.0.0"),
        ("application/openmetrics-text;version=9.9", "text/plain; version=0.0.4"),
        ("application/openmetrics-text;version=1.0.0;q=0,text/plain", "text/plain; version=0.0.4"),
        ("application/openmetrics-text;q=x;;=,,*/*;q=0.1", "text/plain; version=0.0.4"),
    ],
)
def test_any_accept_has_an_answer(busy: Rolecall, accept: str, told: str) -> None:
    """The page says what it is, which is never more than can be written."""
    answer = busy.http.get("/metrics", headers={"accept": accept})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(told)


def test_many_who_scrape_at_once_are_given_one_page(busy: Rolecall) -> None:
    """Fifty scrapes cost no more than a few: in quick succession they are given the same."""
    with ThreadPoolExecutor(10) as pool:
        pages = [answer.text for answer in pool.map(lambda _: busy.http.get("/metrics"), range(50))]
    assert len(set(pages)) <= 5


def test_an_empty_server_has_a_page(tmp_path: Path) -> None:
    """Before the first request there is nothing to count, and all the rest is told."""
    with Rolecall(tmp_path, [fake_entry("a")]) as server:
        found = scrape(server)
        assert values(found, "rolecall_requests_total") == {}
        assert values(found, "rolecall_input_tokens_total") == {}
        assert values(found, "rolecall_model_state", "model", "state") == {("a", "stopped"): 1}
        assert values(found, "rolecall_info", "profile") == {("roomy",): 1}


def counters(found: Sequence[Sample], name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """Return each row of a metric, also those that are 0."""
    return {tuple(each.labels[label] for label in labels): each.value for each in found if each.name == name}


def test_what_can_fail_is_0_before_it_does(tmp_path: Path) -> None:
    """Each model of the registry has its counters from the first page on, loaded or not, and keeps them."""
    entries = [fake_entry("a", "--fail-start", "no"), fake_entry("b"), fake_entry("off", enabled=False)]
    models = ("a", "b", "off")
    requests = ("rolecall_requests_total", "model", "status")
    failures = ("rolecall_model_failures_total", "model", "kind")
    at_first = {(model, kind): 0.0 for model in models for kind in ("start", "crash")}
    with Rolecall(tmp_path, entries) as server:
        found = scrape(server)
        assert counters(found, *requests) == dict.fromkeys(((model, "5xx") for model in (*models, "unknown")), 0.0)
        assert counters(found, *failures) == at_first
        assert counters(found, "rolecall_swaps_total", "model") == dict.fromkeys(((model,) for model in models), 0.0)
        assert (server.chat("a").status_code, server.chat("b").status_code) == (503, 200)
        server.http.post("/v1/models/b/unload")
        found = scrape(server, lambda each: values(each, *requests).get(("b", "2xx")))
        assert values(found, *requests) == {("a", "5xx"): 1, ("b", "2xx"): 1}
        assert counters(found, *requests)["b", "5xx"] == 0
        assert counters(found, *failures) == at_first | {("a", "start"): 1}
        server.write_registry(fake_entry("b"), fake_entry("new"))
        server.terminate(signal.SIGHUP)
        found = scrape(server, lambda each: ("new", "5xx") in counters(each, *requests))
        assert counters(found, *requests)["a", "5xx"] == 1
        assert counters(found, *failures)["a", "start"] == 1
        assert ("off", "start") not in counters(found, *failures)


def test_who_may_not_administer_learns_nothing(tmp_path: Path) -> None:
    """With keys in force the page needs the scope admin."""
    server = Rolecall(tmp_path, [fake_entry("a")], settings={"api_keys_file": "keys.json"})
    rows = [
        {"name": name, "sha256": hashed(f"rk-{name}".encode()), "scopes": [scope]}
        for name, scope in (("boss", "admin"), ("guest", "inference"))
    ]
    file = server.config_dir / "keys.json"
    file.write_text(json.dumps({"version": 1, "keys": rows}))
    file.chmod(0o600)
    with server:
        assert server.http.get("/metrics").status_code == 401
        for name, status in (("guest", 403), ("boss", 200)):
            answer = server.http.get("/metrics", headers={"authorization": f"Bearer rk-{name}"})
            assert answer.status_code == status


def test_swaps_and_memory(nvml_library: Path, tmp_path: Path) -> None:
    """A swap is counted with its reason; the card's memory is shared out among models, others and nobody."""
    gpus = Gpus(nvml_library, tmp_path, cards(8000))
    big = {"vram_estimate_mb": 5000}
    entries = [fake_entry(name, "--gpu-mb", "5000", **big) for name in ("a", "b")]
    with gpus.rolecall(*entries) as server:
        gpus.set_foreign_mb(300)
        server.chat("a")
        server.chat("b")
        found = scrape(server, lambda each: values(each, "rolecall_vram_used_bytes").get((), 0) > 5000 * 2**20)
        assert values(found, "rolecall_swaps_total", "model") == {("b",): 1}
        assert values(found, "rolecall_evictions_total", "model", "how", "reason") == {("a", "stop", "room"): 1}
        total = values(found, "rolecall_vram_total_bytes", "gpu")[("0",)]
        assert total == 8000 * 2**20
        assert values(found, "rolecall_vram_free_bytes")[()] + values(found, "rolecall_vram_used_bytes")[()] == total
        assert values(found, "rolecall_model_vram_reserved_bytes", "model", "gpu")["b", "0"] >= 5000 * 2**20


def test_what_health_says_is_wrong_is_told(tmp_path: Path) -> None:
    """Each thing that can be wrong has its row, and broken experiments are among them."""
    with Rolecall(tmp_path, [fake_entry("m")]) as server:
        assert values(scrape(server), "rolecall_degraded", "problem") == {}
        (server.config_dir / "experiments.toml").write_text("[oops")
        server.terminate(signal.SIGHUP)
        eventually(lambda: "experiments" in server.get("/health")["problems"])
        found = scrape(server, lambda each: values(each, "rolecall_degraded"))
    assert values(found, "rolecall_degraded", "problem") == {("experiments",): 1}
    rows = {each.labels["problem"] for each in found if each.name == "rolecall_degraded"}
    assert rows == {"registry", "log", "api_keys", "experiments", "markers", "state"}


def test_who_is_not_scraped_is_no_larger() -> None:
    """A server starts without prometheus_client, and without what traces need."""
    code = (
        "import sys; from rolecall.cli.serve import extensions; extensions()\n"
        "sys.exit(bool({'prometheus_client', 'opentelemetry', 'duckdb'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_scrape_asks_with_any_client(busy: Rolecall) -> None:
    """What is no scrape is told so: there is only GET."""
    assert busy.http.post("/metrics").status_code == 405
    assert httpx.get(f"{busy.base_url}/metrics", trust_env=False).status_code == 200
