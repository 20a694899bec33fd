"""rolecall as it is measured: with everything that it can do, and with all that is optional off."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

from bench.servers import ROOT, Place, Server
from rolecall.core.keys import ApiKey, hashed, key_file

FULL_NAME = "rolecall"
BY_NAME = "rolecall by name"
CUTTING_NAME = "rolecall cutting"
BARE_NAME = "rolecall bare"
NAMES = (FULL_NAME, CUTTING_NAME, BARE_NAME)

MODEL = "bench"
ROLE = "role:chat"
KEY = "rc-bench0123456789abcdef0123456789ab"

FULL = """
api_keys_file = "api_keys.json"
"""
"""What is on by default is on; keys are what most will add."""

CUTTING = """
history_fit = "all"
reasoning_truncate_history = true
"""
"""What is not on by default and looks at every conversation."""

BARE = """
history_fit = "off"
image_urls = "pass"
log_backups = 0
probe_every_s = 0
reasoning_field = "as_is"
stream_loading_comments = false
vision_truncate_history = false
"""

COMMON = """
port = ${port}
log_path = "${folder}/chat_proxy.jsonl"
state_dir = "${folder}/state"
demo_models = false
llama_server = "embedded"
"""


def full() -> Server:
    """Return a rolecall with several models and roles, keys, and all that it does by default."""
    return _server(FULL_NAME, lambda place: _lay_out_full(place, FULL), {"authorization": f"Bearer {KEY}"})


def cutting() -> Server:
    """Return the same with histories cut to the context of every model, which is not done by default."""
    made = _server(CUTTING_NAME, lambda place: _lay_out_full(place, FULL + CUTTING), dict(full().headers))
    return replace(made, is_aside=True)


def bare() -> Server:
    """Return a rolecall with one model, and what is optional off. The request log is not optional."""
    return _server(BARE_NAME, _lay_out_bare)


def _server(name: str, lay_out: Any, headers: dict[str, str] | None = None) -> Server:
    arguments = ("-m", "rolecall", "serve", "--config-dir", "${folder}")
    return Server(name, sys.executable, arguments, lay_out, "it is what is measured", headers=headers or {})


def _lay_out_full(place: Place, settings: str) -> None:
    everything = [
        _entry(
            place, MODEL, ["text", "vision"], {"chat": 80, "caption": 80, "description": 70}, model_aliases=["the-one"]
        ),
        _entry(place, "bench-large", ["text", "vision", "tools"], {"caption": 90, "description": 90}),
        _entry(place, "bench-small", ["text"], {"chat": 50, "keywords": 80}),
        _entry(place, "bench-tiny", ["text"], {"chat": 20, "keywords": 40}),
        _entry(place, "bench-embedding", ["embedding"], {"embedding": 50}),
    ]
    _lay_out(place, settings, everything)
    keys = [ApiKey(name="bench", sha256=hashed(KEY.encode())), ApiKey(name="other", sha256=hashed(b"rc-other"))]
    path = place.folder / "api_keys.json"
    path.write_text(json.dumps(key_file(keys)))
    path.chmod(0o600)


def _lay_out_bare(place: Place) -> None:
    _lay_out(place, BARE, [_entry(place, MODEL, ["text", "vision"], {"chat": 50})])


def _lay_out(place: Place, settings: str, entries: list[dict[str, Any]]) -> None:
    (place.folder / "rolecall.toml").write_text(place.fill(COMMON + settings))
    (place.folder / "profiles.toml").write_text((ROOT / "configs" / "profiles.toml").read_text())
    (place.folder / "model_registry.curated.json").write_text(json.dumps(entries))


def _entry(place: Place, name: str, capabilities: list[str], roles: dict[str, int], **fields: Any) -> dict[str, Any]:
    """Return a model of the upstream under a name that is not its own: ``model`` has to be rewritten."""
    return {
        "name": name,
        "backend": "openai",
        "backend_config": {"base_url": f"http://127.0.0.1:{place.upstream}/v1"},
        "served_model_id": "mock-model",
        "capabilities": capabilities,
        "role_priority": roles,
        "context_length": 131072,
        "max_parallel": 1024,
        **fields,
    }
