"""Experiments in a running rolecall: who is served how, what is logged, and what becomes of a file that changes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness import CHAT, Rolecall, eventually, fake_entry, prompt

ENTRIES = (
    fake_entry("good", roles=["caption"], role_priority={"caption": 90}),
    fake_entry("small", roles=["other"]),
    fake_entry("gone", backend_config={"command": ["/nowhere/engine"]}),
)
FILE = """
[models]
role = "caption"
sticky = "session"
[models.variants.now]
[models.variants.small]
model = "small"

[cooler]
prompt = "p1"
[cooler.variants.control]
[cooler.variants.cool]
parameters = { temperature = 0.2, enable_thinking = false }
set = { max_tokens = 3 }
system = "Be brief."
prompt_version = "2"

[missing]
prompt = "p2"
[missing.variants.control]
parameters = { seed = 1 }
[missing.variants.gone]
model = "gone"

[keyless]
prompt = "p3"
sticky = "key"
[keyless.variants.a]
[keyless.variants.b]
"""


def running(folder: Path, text: str = FILE) -> Rolecall:
    """Return a rolecall with a file of experiments, not started yet."""
    made = Rolecall(folder, ENTRIES)
    write(made, text)
    return made


def write(server: Rolecall, text: str) -> None:
    """Replace the file of experiments in one step."""
    path = server.config_dir / "experiments.toml"
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    """Run one rolecall for the module."""
    with running(tmp_path_factory.mktemp("experiments")) as made:
        yield made
        assert "Traceback" not in made.words()


def ask(server: Rolecall, model: str = "role:caption", wish: str | None = None, **more: Any) -> httpx.Response:
    """Send a chat, with headers of the experiment and the session."""
    named = {"x-rolecall-experiment": wish, "x-session-id": more.pop("session", None)}
    headers = {name: value for name, value in named.items() if value is not None}
    return server.http.post(CHAT, json=prompt(model, **more), headers=headers)


def part(server: Rolecall, answer: httpx.Response) -> tuple[Any, ...]:
    """Return what the line of an answer says of the experiment."""
    line = server.line_of(answer)
    return tuple(line.get(name) for name in ("experiment", "variant", "variant_note", "model"))


def test_sessions_get_one_model_each(server: Rolecall) -> None:
    """Both models serve, each session always the same one; header and line name the variant, the line a hash."""
    served: dict[str, set[str]] = {}
    for number in range(24):
        session = f"session-{number % 8}"
        answer = ask(server, session=session)
        assert answer.status_code == 200
        experiment, variant, note, model = part(server, answer)
        assert (experiment, note) == ("models", None)
        assert answer.headers["x-rolecall-experiment"] == f"models={variant}"
        assert answer.headers["x-rolecall-model"] == model == {"now": "good", "small": "small"}[variant]
        line = server.line_of(answer)
        assert session not in json.dumps(line["experiment_unit"])
        assert line["role"] == "caption"
        served.setdefault(session, set()).add(model)
    assert all(len(models) == 1 for models in served.values())
    assert set(Counter(model for models in served.values() for model in models)) == {"good", "small"}


@pytest.mark.parametrize(
    ("model", "more"), [("good", {"session": "s"}), ("role:caption", {}), ("role:other", {"session": "s"})]
)
def test_others_are_left_alone(server: Rolecall, model: str, more: dict[str, Any]) -> None:
    """A model that is named, a request without a session, and another role are no part of it: no header, no field."""
    answer = ask(server, model, **more)
    assert answer.status_code == 200
    assert "x-rolecall-experiment" not in answer.headers
    assert "experiment" not in server.line_of(answer)


def test_out_of_it_and_into_a_variant(server: Rolecall) -> None:
    """``off`` keeps a request out, ``NAME=VARIANT`` gives that one and says so, a wrong one is refused."""
    assert part(server, ask(server, wish="off", session="s"))[:2] == (None, None)
    forced = ask(server, wish="models=small")
    assert part(server, forced) == ("models", "small", "forced", "small")
    wrong = ask(server, wish="models=large")
    assert wrong.status_code == 400
    assert "models=small" in wrong.json()["error"]["message"]
    assert wrong.json()["error"]["param"] == "x-rolecall-experiment"


def test_parameters_and_the_system_text(server: Rolecall) -> None:
    """The engine gets the variant's parameters and text; what the client says goes before ``parameters`` alone."""
    wish, more = "cooler=cool", {"metadata": {"prompt_id": "p1", "prompt_version": "1"}}
    answer = ask(server, "good", wish, max_tokens=50, **more)
    line = server.line_of(answer)
    assert (line["experiment"], line["variant"], line["prompt_version"]) == ("cooler", "cool", "2")
    assert line["completion_tokens"] <= 3
    body = server.stats("good")["last_request"]["body"]
    assert (body["temperature"], body["max_tokens"]) == (0.2, 3)
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    kept = ask(server, "good", wish, temperature=1, **more)
    assert part(server, kept)[2] == "forced; kept temperature"
    control = ask(server, "good", "cooler=control", **more)
    assert server.line_of(control)["prompt_version"] == "1"


def test_a_model_that_is_not_there(server: Rolecall) -> None:
    """The request is served as the control would be, counts for its variant, and the line says why."""
    answer = ask(server, wish="missing=gone", metadata={"prompt_id": "p2"})
    assert answer.status_code == 200
    assert part(server, answer) == ("missing", "gone", "forced; fallback model_not_found", "good")


def test_sticky_by_key_needs_keys(server: Rolecall) -> None:
    """Without keys there is nobody to be given a variant."""
    assert part(server, ask(server, "good", metadata={"prompt_id": "p3"}))[0] is None


def test_the_file_is_read_again(tmp_path: Path) -> None:
    """A change is in force a moment later, a broken file keeps the last good one and says so, none ends all."""
    one = '[e]\nrole = "caption"\n[e.variants.a]\n[e.variants.b]\nweight = 0\n'
    with running(tmp_path, "# nothing yet\n") as server:
        assert part(server, ask(server))[0] is None
        write(server, one)
        eventually(lambda: part(server, ask(server))[:2] == ("e", "a"))
        write(server, one + "wieght = 1\n")
        problem = eventually(lambda: server.get("/health")["problems"].get("experiments"))
        assert "e: variants.b.wieght: there is no such field" in problem
        assert "experiments.toml" in problem
        assert server.get("/health")["status"] == "degraded"
        assert part(server, ask(server))[:2] == ("e", "a")
        write(server, "")
        eventually(lambda: part(server, ask(server))[0] is None)
        assert server.get("/health")["problems"] == {}


def test_a_restart_changes_nobodys_variant(tmp_path: Path) -> None:
    """Nothing is kept of who got what, and yet each session gets the same after a restart."""
    seen = []
    for folder in ("one", "two"):
        with running(tmp_path / folder) as server:
            answers = [ask(server, session=f"s{number}") for number in range(10)]
            seen.append([answer.headers["x-rolecall-experiment"] for answer in answers])
    assert seen[0] == seen[1]


def test_a_broken_file_at_the_start(tmp_path: Path) -> None:
    """It serves without experiments and says so."""
    with running(tmp_path, "[e\n") as server:
        assert "is no TOML" in server.get("/health")["problems"]["experiments"]
        assert part(server, ask(server))[0] is None
