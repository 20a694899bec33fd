"""docs/monitoring and docs/metrics.md name metrics that a running rolecall tells, and all of them."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import Rolecall, fake_entry

DOCS = Path(__file__).parents[2] / "docs"
BOARD: dict[str, Any] = json.loads((DOCS / "monitoring" / "grafana.json").read_text())
RULES: dict[str, Any] = yaml.safe_load((DOCS / "monitoring" / "rules.yml").read_text())
NAME = re.compile(r"\b(?:rolecall|process|llamacpp:)\w*", re.ASCII)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the kind of each metric on a running rolecall's page."""
    with Rolecall(tmp_path_factory.mktemp("told"), [fake_entry("m")]) as server:
        assert server.chat("m").status_code == 200
        text = server.http.get("/metrics").text
    return dict(re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE))


def samples(kinds: dict[str, str]) -> set[str]:
    """Return what the samples of these metrics are called."""
    suffixes = {"histogram": ("_bucket", "_sum", "_count")}
    return {name + suffix for name, kind in kinds.items() for suffix in suffixes.get(kind, ("",))}


def expressions(board: Any = BOARD) -> Iterator[str]:
    """Yield every query of the board."""
    for panel in board["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    for variable in board["templating"]["list"]:
        yield from [variable["definition"]] if "definition" in variable else []


def names(texts: Iterator[str]) -> set[str]:
    """Return the metrics that queries name; texts in quotation marks are none."""
    return {name for text in texts for name in NAME.findall(re.sub(r'"[^"]*"', "", text))}


def test_the_board_asks_for_what_is_told(told: dict[str, str]) -> None:
    """Each metric of the board is on the page; those of llama.cpp are looked for where its engine runs."""
    asked = {name for name in names(expressions()) if not name.startswith("llamacpp:")}
    assert len(asked) > 25
    assert asked - samples(told) == set()


def test_the_rules_ask_for_what_is_told(told: dict[str, str]) -> None:
    """Each metric of an alert is on the page."""
    asked = names(rule["expr"] for group in RULES["groups"] for rule in group["rules"])
    assert len(asked) > 8
    assert asked - samples(told) == set()


def test_every_alert_is_tested() -> None:
    """The unit tests of the rules name each of them."""
    text = (DOCS / "monitoring" / "rules_test.yml").read_text()
    assert [rule["alert"] for group in RULES["groups"] for rule in group["rules"] if rule["alert"] not in text] == []


def test_every_metric_is_documented(told: dict[str, str]) -> None:
    """The table has each metric of ours, and no other."""
    rows = re.findall(r"^\| `(rolecall_\w+)` \|", (DOCS / "metrics.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(name for name in told if name.startswith("rolecall_"))


def test_the_board_can_be_drawn() -> None:
    """Panels have ids of their own, lie beside each other within the width, and ask the Prometheus that was chosen."""
    panels = BOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, two in itertools.combinations(places, 2):
        beside = one["x"] + one["w"] <= two["x"] or two["x"] + two["w"] <= one["x"]
        assert beside or one["y"] + one["h"] <= two["y"] or two["y"] + two["h"] <= one["y"]
    for panel in panels:
        if panel["type"] != "row":
            assert {panel["datasource"]["uid"], *(each["datasource"]["uid"] for each in panel["targets"])} == {
                "${datasource}"
            }
