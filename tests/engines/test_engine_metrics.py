"""llama.cpp's own metrics on rolecall's page, from the real engine."""

from __future__ import annotations

import json
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from harness import Rolecall

BOARD = (Path(__file__).parents[2] / "docs" / "monitoring" / "grafana.json").read_text()


def test_the_engine_tells_what_the_board_asks_for(demo_models: Path, tmp_path: Path) -> None:
    """Started by rolecall it has its page, and each metric of llama.cpp on the board is on ours, with the model."""
    config = {"model_path": str(demo_models / "demo-chat.gguf")}
    entry = {"name": "m", "backend": "llama_cpp", "backend_config": config, "vram_estimate_mb": 100}
    with Rolecall(tmp_path, [entry], settings={"llama_server": "embedded"}) as server:
        assert server.chat("m").status_code == 200
        text = server.http.get("/metrics").text
    told = {s.name: s for family in text_string_to_metric_families(text) for s in family.samples}
    asked = set(re.findall(r"llamacpp:\w+", json.dumps(json.loads(BOARD))))
    assert len(asked) >= 4
    assert asked <= told.keys()
    assert {told[name].labels["model"] for name in asked} == {"m"}
    assert told["llamacpp:tokens_predicted_total"].value > 0
