"""docs/monitoring with Prometheus' own tools, and a real Prometheus that scrapes a real rolecall.

Skipped where there is no Prometheus; `make test-monitoring` installs it and requires them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness import DEADLINE_S, Rolecall, eventually, fake_entry
from rolecall.core.keys import hashed
from unused_ports import unused_port

MONITORING = Path(__file__).parents[2] / "docs" / "monitoring"
KEY = "rk-of-the-tests"


@pytest.fixture(scope="module", autouse=True)
def programs() -> None:
    """Require Prometheus' programs, or skip with the reason."""
    missing = [name for name in ("prometheus", "promtool") if shutil.which(name) is None]
    if missing and os.environ.get("ROLECALL_TEST_PROMETHEUS") != "required":
        pytest.skip(f"{' and '.join(missing)} not found; make test-monitoring installs it")
    assert not missing


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    """Run a rolecall with keys that has answered, refused and failed."""
    entries = [fake_entry("good", "--metrics", roles=["talk"]), fake_entry("bad", "--fail-start", "no")]
    made = Rolecall(tmp_path_factory.mktemp("monitored"), entries, settings={"api_keys_file": "keys.json"})
    file = made.config_dir / "keys.json"
    row = {"name": "all", "sha256": hashed(KEY.encode()), "scopes": ["admin", "inference"]}
    file.write_text(json.dumps({"version": 1, "keys": [row]}))
    file.chmod(0o600)
    with made as running:
        running.http.headers["authorization"] = f"Bearer {KEY}"
        for model in ("good", "role:talk", "bad", "nobody"):
            running.chat(model)
        with running.stream("good") as answer:
            answer.read()
        yield running


def promtool(*words: str, text: str | None = None) -> str:
    """Return what promtool says; fails if it is not content."""
    done = subprocess.run(
        ["promtool", *words], cwd=MONITORING, input=text, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_rules_and_their_tests_hold() -> None:
    """The rules can be read, and each of them is tested to fire and to be silent."""
    assert "SUCCESS" in promtool("check", "rules", "rules.yml")
    assert "SUCCESS" in promtool("test", "rules", "rules_test.yml")


def test_the_example_can_be_used() -> None:
    """The configuration is one, with the lines for a key too."""
    text = (MONITORING / "prometheus.yml").read_text()
    assert "SUCCESS" in promtool("check", "config", "prometheus.yml")
    with_key = text.replace(
        "    # authorization:\n    #   credentials_file", "    authorization:\n      credentials_file"
    )
    assert "\n      credentials_file" in with_key


def test_the_page_is_linted(server: Rolecall) -> None:
    """Names, types and help of our own metrics are as Prometheus wants them."""
    lines = server.http.get("/metrics").text.splitlines(keepends=True)
    ours = [line for line in lines if "fake:" not in line]  # an engine's own names are its own affair
    assert promtool("check", "metrics", text="".join(ours)).strip() == ""


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[httpx.Client]:
    """Run a Prometheus that scrapes every second, as by the example with a key."""
    (folder / "key").write_text(KEY)
    text = (MONITORING / "prometheus.yml").read_text()
    for old, new in (
        ("15s", "1s"),
        ("127.0.0.1:8100", target),
        ("rules.yml", str(MONITORING / "rules.yml")),
        (
            "    # authorization:\n    #   credentials_file: /etc/prometheus/rolecall.key",
            "    authorization:\n      credentials_file: key",
        ),
    ):
        assert old in text
        text = text.replace(old, new)
    (folder / "prometheus.yml").write_text(text)
    address = f"127.0.0.1:{unused_port()}"
    words = ["--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address={address}"]
    with (folder / "terminal").open("wb") as terminal:
        process = subprocess.Popen(["prometheus", *words], cwd=folder, stdout=terminal, stderr=terminal)
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=DEADLINE_S, trust_env=False) as http:
            yield http
    finally:
        process.terminate()
        process.wait(DEADLINE_S)


def ask(http: httpx.Client, path: str, **query: str) -> Any:
    """Return the data of an answer; None while there is none."""
    try:
        answer = http.get(path, params=query)
    except httpx.TransportError:
        return None
    return answer.json()["data"] if answer.status_code == 200 else None


def value(http: httpx.Client, query: str) -> float | None:
    data = ask(http, "/api/v1/query", query=query)
    return float(data["result"][0]["value"][1]) if data and data["result"] else None


def test_a_real_prometheus_scrapes_a_real_run(server: Rolecall, tmp_path: Path) -> None:
    """With a key it takes every sample, its sums are those of the log, and all rules can be evaluated."""
    with prometheus(tmp_path, server.base_url.removeprefix("http://")) as http:
        lines = server.log_lines(5)
        eventually(lambda: value(http, 'up{job="rolecall"}') == 1)
        eventually(lambda: value(http, "sum(rolecall_requests_total)") == len(lines))
        written = sum(line["completion_tokens"] or 0 for line in lines)
        assert value(http, "sum(rolecall_output_tokens_total)") == written
        assert value(http, 'sum(rolecall_model_failures_total{model="bad", kind="start"})')
        assert value(http, 'fake:posts_total{model="good"}') == 3
        assert value(http, "scrape_samples_scraped") == value(http, "scrape_samples_post_metric_relabeling")
        targets = ask(http, "/api/v1/targets")["activeTargets"]
        assert [target["lastError"] for target in targets] == [""]

        def evaluated() -> Any:
            rules = [rule for group in ask(http, "/api/v1/rules")["groups"] for rule in group["rules"]]
            return rules if all(rule["health"] != "unknown" for rule in rules) else None

        assert {rule["health"] for rule in eventually(evaluated)} == {"ok"}
        said = (tmp_path / "terminal").read_text()
        assert "level=error" not in said
        assert "level=warn" not in said
