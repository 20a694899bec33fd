"""Experiments in a running rolecall: who is served how, what is logged, and what becomes of a file that changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest

from harness import CHAT, Rolecall, eventually, fake_entry, prompt
from photographs import photograph
from rolecall.core.keys import ApiKey, hashed
from rolecall.insight.feedback import feedback_path, judgement_of
from rolecall.runtime.api_keys import change_keys, new_key

ENTRIES = (
    fake_entry("good", roles=["caption"], role_priority={"caption": 90}),
    fake_entry("small", roles=["other"]),
    fake_entry("eyes", "--mmproj", "p", capabilities=["text", "vision"], role_priority={"vision_general": 80}),
    fake_entry("lens", "--mmproj", "p", capabilities=["text", "vision"]),
    fake_entry("broken", backend_config={"command": ["/bin/false"]}),
    fake_entry("vectors", capabilities=["embedding"], roles=["index"]),
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

[pictures]
prompt = "p4"
sticky = "session"
[pictures.variants.eyes]
[pictures.variants.lens]
model = "lens"
set = { max_tokens = 2 }

[failing]
prompt = "p5"
[failing.variants.control]
[failing.variants.broken]
model = "broken"
prompt_version = "2"
parameters = { fallback_mode = 1 }
set = { max_tokens = 4 }

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


def test_a_version_that_was_not_sent_is_not_logged(server: Rolecall) -> None:
    """Where the control serves, the request's own version stands in the line, also if the model fails to start."""
    answer = ask(server, wish="failing=broken", metadata={"prompt_id": "p5", "prompt_version": "1"})
    assert answer.status_code == 200
    assert part(server, answer)[:2] == ("failing", "broken")
    assert "fallback" in part(server, answer)[2]
    assert server.line_of(answer)["prompt_version"] == "1"


def test_a_fallback_is_noted_beside_a_parameter_called_like_it(server: Rolecall) -> None:
    """The name of a parameter that the request kept does not hide that its variant's model did not serve it."""
    answer = ask(server, wish="failing=broken", metadata={"prompt_id": "p5"}, fallback_mode=2)
    assert answer.status_code == 200
    words = [note.split(" ")[:2] for note in part(server, answer)[2].split("; ")]
    assert words[:2] == [["forced"], ["kept", "fallback_mode"]]
    assert [word for word, *_ in words[2:]] == ["fallback"]


def test_questions_about_pictures(server: Rolecall) -> None:
    """A picture with a prompt goes to the variant's model with its parameters, by session or as its header says."""
    form: dict[str, Any] = {"file": ("p.jpg", photograph(1, size=(64, 48))), "prompt": (None, "hi")}

    def look(**headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return server.http.post("/analyze_image", files=form, headers={"x-prompt-id": "p4", **named})

    forced = look(x_rolecall_experiment="pictures=lens")
    assert forced.status_code == 200, forced.text
    assert part(server, forced) == ("pictures", "lens", "forced", "lens")
    assert server.line_of(forced)["completion_tokens"] == 2
    found = [look(x_session_id="one").headers["x-rolecall-experiment"] for _ in range(3)]
    assert len(set(found)) == 1
    assert "x-rolecall-experiment" not in look().headers


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


# -- the report and feedback


def test_an_experiment_with_two_models_is_reported(tmp_path: Path) -> None:
    """Requests of both models are served, logged and compared; a failing one is found to be worse, by its feedback."""
    text = '[f]\nrole = "caption"\nmetric = "feedback"\n[f.variants.now]\n[f.variants.small]\nmodel = "small"\n'
    with running(tmp_path, text) as server:
        assert ask(server, wish="f=small").status_code == 200
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda _: judged(server), range(330))) == [True] * 330
        found = report(server, "f")
        assert found["forced"] == 1
        assert sum(variant["requests"] for variant in found["variants"]) == 330
        assert [variant["feedback"] for variant in found["variants"]] == [1.0, 0.0]
        (comparison,) = found["comparisons"]
        assert (comparison["verdict"], comparison["difference"]) == ("worse", -1.0)
        shown = rolecall(server, "report", "experiment", "f")
        assert "small is worse than now" in shown.stdout
        assert "look as often as you like.\nThat is exact where a variant changes nothing" in shown.stdout
        markdown = rolecall(server, "report", "experiment", "f", "--markdown").stdout
        assert "\n\n| variant | " in markdown
        assert "| small is worse than now" in markdown
        both = rolecall(server, "report", "experiment", "f", "--markdown", "--json", code=2)
        assert "--json and --markdown exclude each other" in both.stderr
        for path in (server.log_path, feedback_path(server.log_path)):
            path.rename(path.with_name(f"{path.name}.1"))
        answer = ask(server)
        posted = {"request_id": answer.headers["x-request-id"], "score": "up"}
        assert server.http.post("/v1/feedback", json=posted).status_code == 200
        rotated = report(server, "f")
        assert (rotated["is_complete"], rotated["comparisons"][0]["verdict"], rotated["remarks"]) == (True, "worse", [])
        assert sum(variant["feedbacks"] for variant in rotated["variants"]) == 331
        last = server.log_lines()[-2]["request_id"]
        assert "feedback.score" in rolecall(server, "logs", "show", last, "--file", str(server.log_path)).stdout


def judged(server: Rolecall) -> bool:
    """Send a request and feedback on it, good for one variant and bad for the other; whether all went as it should."""
    answer = ask(server)
    is_small = answer.headers["x-rolecall-experiment"] == "f=small"
    posted = {"request_id": answer.headers["x-request-id"], "score": "down" if is_small else "up"}
    given = server.http.post("/v1/feedback", json=posted)
    return given.status_code == 200 and given.json()["about"]["variant"] == ("small" if is_small else "now")


def rolecall(server: Rolecall, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command beside a server, with its configuration and log."""
    env = {**server.environment, "CHAT_PROXY_LOG_PATH": str(server.log_path)}
    argv = [sys.executable, "-m", "rolecall", *words, "--config-dir", str(server.config_dir)]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done


def report(server: Rolecall, name: str) -> dict[str, Any]:
    """Return what the report says as JSON."""
    return dict(json.loads(rolecall(server, "report", "experiment", name, "--json").stdout))


def test_experiments_are_listed_and_checked(server: Rolecall) -> None:
    """The list says what runs; the check tells models that are not there, and keys that nobody has."""
    listed = json.loads(rolecall(server, "experiments", "list", "--json").stdout)
    assert [(each["name"], each["state"]) for each in listed][:2] == [("models", "running"), ("cooler", "running")]
    assert "caption" in rolecall(server, "experiments", "list").stdout
    checked = json.loads(rolecall(server, "experiments", "validate", "--json").stdout)
    assert (checked["experiments"], checked["problems"]) == (6, [])
    said = "\n".join(checked["warnings"])
    assert "missing: gone cannot serve here: backend_config.command holds no" in said
    assert "keyless: is sticky by key, and there are no API keys" in said
    assert "there are: models, cooler" in rolecall(server, "report", "experiment", "nope", code=1).stderr
    nowhere = rolecall(server, "report", "experiment", "models", "--file", "/nowhere/log.jsonl", code=1)
    assert "no request log at /nowhere/log.jsonl" in nowhere.stderr


def test_a_wrong_file_fails_the_check(tmp_path: Path) -> None:
    """The problem is told with file, experiment and field, and the exit code says that it is one."""
    made = running(tmp_path, '[e]\nrole = "r"\n')
    assert "e: variants: " in rolecall(made, "experiments", "validate", code=2).stderr
    assert json.loads(rolecall(made, "experiments", "validate", "--json", code=2).stdout)["problems"]
    write(made, "")
    assert "no experiments in" in rolecall(made, "experiments", "list").stderr


def test_what_never_gets_a_request_is_told(tmp_path: Path) -> None:
    """An experiment behind another one on the same, at the same time, and one on a role that answers nobody."""
    two = "[{0}.variants.a]\n[{0}.variants.b]\n"
    heads = {
        "first": 'role = "caption"\nend = 2026-12-01',
        "behind": 'role = "caption"\nstart = 2026-11-01',
        "later": 'role = "caption"\nstart = 2026-12-01\nenabled = false',
        "index": 'role = "index"',
    }
    made = running(tmp_path, "".join(f"[{name}]\n{head}\n{two.format(name)}" for name, head in heads.items()))
    assert json.loads(rolecall(made, "experiments", "validate", "--json").stdout)["warnings"] == [
        "behind: gets no request that first takes, which stands before it",
        "index: role:index is for embeddings or rerank, which take no part",
    ]


def test_a_pipe_is_no_file_of_experiments(tmp_path: Path) -> None:
    """Nothing waits for its writer; it is told."""
    made = running(tmp_path)
    path = made.config_dir / "experiments.toml"
    path.unlink()
    os.mkfifo(path)
    assert "is no regular file" in rolecall(made, "experiments", "validate", code=2).stderr
    with made as server:
        assert "is no regular file" in server.get("/health")["problems"]["experiments"]


def post(server: Rolecall, body: Any, key: str | None = None) -> httpx.Response:
    """Post feedback."""
    return server.http.post("/v1/feedback", json=body, headers={"authorization": f"Bearer {key}"} if key else {})


def test_feedback_is_kept_once(server: Rolecall) -> None:
    """The same feedback again is not written again; another one replaces it; both are told."""
    request_id = ask(server, "good").headers["x-request-id"]
    answers = [post(server, {"request_id": request_id, "score": score}) for score in (0.5, 0.5, 1)]
    assert [answer.json()["recorded"] for answer in answers] == [True, False, True]
    assert getattr(judgement_of(server.log_path, request_id), "score", None) == 1
    lines = [line for line in feedback_path(server.log_path).read_text().splitlines() if request_id in line]
    assert len(lines) == 2
    assert json.loads(lines[-1]).keys() == {"ts", "request_id", "score", "label", "comment", "key"}


@pytest.mark.parametrize("request_id", ["req_" + "0" * 32, "nonsense", "../../etc/passwd"])
def test_feedback_on_nothing(server: Rolecall, request_id: str) -> None:
    """An id that no request has is told, in OpenAI's shape."""
    answer = post(server, {"request_id": request_id, "score": 1})
    assert answer.status_code == 404
    assert answer.json()["error"]["param"] == "request_id"
    assert "x-request-id" in answer.json()["error"]["message"]


def test_feedback_that_is_wrong(server: Rolecall) -> None:
    """A wrong score is refused naming the field; a body too large is refused as such."""
    assert post(server, {"request_id": "x", "score": 5}).json()["error"]["param"] == "score"
    large = post(server, {"request_id": "x", "score": 1, "comment": "x" * 40_000})
    assert large.status_code == 413
    assert "setting" not in large.json()["error"]["message"]


def test_the_longest_comment_is_taken(server: Rolecall) -> None:
    """Two thousand characters, however many escapes the client writes each of them with."""
    posted = json.dumps({"request_id": ask(server, "good").headers["x-request-id"], "score": 1, "comment": "😀" * 2000})
    headers = {"content-type": "application/json"}
    assert server.http.post("/v1/feedback", content=posted.encode(), headers=headers).status_code == 200


def test_feedback_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """Nobody is told that it is kept, and `/health` names it; once it can be written again, it is."""
    with running(tmp_path, "") as server:
        posted: dict[str, Any] = {"request_id": ask(server, "good").headers["x-request-id"], "score": 1}
        blocked = feedback_path(server.log_path)
        blocked.mkdir()
        refused = post(server, posted)
        assert refused.status_code == 503
        assert "cannot be written: Is a directory" in refused.json()["error"]["message"]
        health = server.get("/health")
        assert health["status"] == "degraded"
        assert "could not be written: Is a directory" in health["problems"]["feedback"]
        blocked.rmdir()
        assert post(server, posted).json()["recorded"] is True
        assert server.get("/health")["problems"] == {}
        assert judgement_of(server.log_path, posted["request_id"]) is not None


def test_feedback_on_a_request_in_a_compressed_log(server: Rolecall) -> None:
    """What logrotate has compressed is known as before."""
    answer = ask(server, "good")
    server.line_of(answer)
    rotated = server.log_path.rename(f"{server.log_path}.2")
    subprocess.run(["gzip", str(rotated)], check=True)
    assert post(server, {"request_id": answer.headers["x-request-id"], "score": 1}).status_code == 200


def test_feedback_on_an_answer_that_goes_on(server: Rolecall) -> None:
    """While an answer is being written there is nothing to judge yet."""
    with server.stream("good", fake={"tokens": 20, "token_delay_s": 0.1}) as answer:
        lines = answer.iter_lines()
        assert next(lines)
        early = post(server, {"request_id": answer.headers["x-request-id"], "score": 1})
        assert early.status_code == 409
        assert "complete" in early.json()["error"]["message"]


def test_feedback_on_ones_own_requests(tmp_path: Path) -> None:
    """A key may judge its own requests, none of another key's, which are as good as unknown to it; admin may all."""
    made = running(tmp_path, '[k]\nrole = "caption"\nsticky = "key"\n[k.variants.a]\n[k.variants.b]\n')
    names: dict[str, tuple[Literal["inference", "admin"], ...]] = {
        "anna": ("inference",),
        "bert": ("inference",),
        "root": ("inference", "admin"),
    }
    keys = {name: new_key() for name in names}
    rows = tuple(ApiKey(name=name, sha256=hashed(keys[name].encode()), scopes=scopes) for name, scopes in names.items())
    path = made.config_dir / "keys.json"
    change_keys(path, lambda _: rows)
    with (made.config_dir / "rolecall.toml").open("a") as file:
        file.write('api_keys_file = "keys.json"\n')
    with made as server:
        headers = {"authorization": f"Bearer {keys['anna']}"}
        answers = [server.http.post(CHAT, json=prompt("role:caption"), headers=headers) for _ in range(6)]
        assert len({answer.headers["x-rolecall-experiment"] for answer in answers}) == 1
        body = {"request_id": answers[0].headers["x-request-id"], "label": "good"}
        codes = [post(server, body, key).status_code for key in (*keys.values(), None)]
        assert codes == [200, 404, 200, 401]
