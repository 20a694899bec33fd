"""Roles in requests: another profile's choice, fallbacks, and what the answer says of the choice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness import Rolecall, fake_entry, picture

BROKEN = ("--fail-start", "no such file")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    """A rolecall whose role ``tag`` has no model that starts, and falls back to ``caption``."""
    entries = [
        fake_entry("large", role_priority={"caption": 80}, quantization="bf16", capabilities=["text", "vision"]),
        fake_entry("small", role_priority={"caption": 80}, quantization="q4_k_m", vram_estimate_mb=50),
        fake_entry("broken", *BROKEN, roles=["tag"]),
        fake_entry("broken-too", *BROKEN, roles=["hopeless"]),
        fake_entry("at", roles=["odd@development"]),
    ]
    settings = {"role_policy": "priority"}
    running = Rolecall(tmp_path_factory.mktemp("roles"), entries, settings=settings)
    with (running.config_dir / "rolecall.toml").open("a") as file:
        file.write('[roles.tag]\nfallback = ["unknown", "role:caption"]\n[roles.hopeless]\nfallback = ["role:tag"]\n')
    with running:
        yield running


def test_an_answer_says_what_was_chosen(server: Rolecall) -> None:
    """Model, role and priority are headers of the answer; a named model has no role."""
    answer = server.chat("role:caption")
    headers = {name: value for name, value in answer.headers.items() if name.startswith("x-rolecall")}
    assert headers == {"x-rolecall-model": "small", "x-rolecall-role": "caption", "x-rolecall-priority": "80"}
    answer = server.chat("large")
    assert answer.headers["x-rolecall-model"] == "large"
    assert "x-rolecall-role" not in answer.headers


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("role:caption", "small"),
        ("role:caption@generous_96gb", "large"),
        ("role:Caption@development", "small"),
        ("role:odd@development", "at"),
    ],
)
def test_a_role_can_be_chosen_by_another_profile(server: Rolecall, name: str, model: str) -> None:
    """The profile's quantizations decide; the card of the name says the same; a role with an @ in its name is meant."""
    answer = server.chat(name)
    assert answer.headers["x-rolecall-model"] == model
    assert server.line_of(answer)["requested_model"] == name
    assert server.get(f"/v1/models/{name}")["resolves_to"] == model


def test_an_unknown_profile_is_told_with_those_there_are(server: Rolecall) -> None:
    """The error is a 404 that lists the profiles and suggests the whole name."""
    answer = server.chat("role:caption@generous_96")
    assert answer.status_code == 404
    message = answer.json()["error"]["message"]
    assert "balanced_24gb" in message
    assert "'role:caption@generous_96gb'" in message


def test_a_role_falls_back_when_none_of_its_models_can_start(server: Rolecall) -> None:
    """Unknown names in the list are passed over and warned about at the start; the line has the role that answered."""
    answer = server.chat("role:tag")
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-rolecall-role"] == "caption"
    line = server.line_of(answer)
    assert (line["requested_model"], line["role"], line["model"]) == ("role:tag", "caption", "small")
    assert "roles.tag.fallback: The model 'unknown' does not exist" in server.words()


def test_a_fallback_is_taken_for_what_the_role_cannot_read(server: Rolecall) -> None:
    """A picture goes to the fallback whose model has vision."""
    messages = [{"role": "user", "content": [picture()]}]
    answer = server.http.post("/v1/chat/completions", json={"model": "role:tag", "messages": messages})
    assert answer.headers["x-rolecall-model"] == "large"


def test_if_all_fail_the_first_reason_and_the_others_are_told(server: Rolecall) -> None:
    """Fallbacks of fallbacks are not followed."""
    answer = server.chat("role:hopeless")
    assert answer.status_code == 503
    message = answer.json()["error"]["message"]
    assert message.startswith("The model 'broken-too'")
    assert "Its fallbacks cannot either: The model 'broken'" in message
